"""Ceph's S3 server with a whole cluster behind it, in memory, where its programs are installed.

`apt-get install radosgw ceph-mon ceph-mgr ceph-osd`; needs about 20 s to start and 0.6 GB of RAM.
"""

import http.client
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path

from benchmarks.moto import ACCESS_KEY, SECRET_KEY, make_bucket

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
DEADLINE_SECONDS = 120.0
CONFIGURATION = """
[global]
fsid = {fsid}
mon host = 127.0.0.1:{mon_port}
auth cluster required = none
auth service required = none
auth client required = none
# radosgw otherwise hangs, asking for the secure mode that needs authentication.
ms mon client mode = crc
ms bind ipv6 = false
public addr = 127.0.0.1
osd objectstore = memstore
memstore device bytes = 2147483648
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
mon warn on pool no redundancy = false
mon allow pool size one = true
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
mon data = {folder}/mon
mgr data = {folder}/mgr
osd data = {folder}/osd
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw lc debug interval = 10
rgw dns name =
"""


def missing_programs() -> list[str]:
    """What must be installed before a server can be started."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether an S3 server there answers anybody, be it with a refusal."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class RadosGateway:
    """One cluster with one gateway; its credentials are those of `benchmarks.moto`.

    `start` after `kill`, which ends the gateway, keeps the port and what the cluster holds.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._mon_port = free_port()
        self._fsid = str(uuid.uuid4())
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._gateway: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The gateway's."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start everything, or only the gateway; returns when that answers."""
        if not self._daemons:
            self._start_cluster()
        self._gateway = self._spawn("radosgw", "-n", "client.rgw")
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not answers(self._port):
            assert time.monotonic() < deadline, f"no answer from {self.url}"
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL for the gateway."""
        assert self._gateway is not None
        self._gateway.kill()
        self._gateway.wait()

    def _start_cluster(self) -> None:
        for name in ("mon", "mgr", "osd", "rgw"):
            (self._folder / name).mkdir(parents=True)
        (self._folder / "ceph.conf").write_text(
            CONFIGURATION.format(
                fsid=self._fsid, folder=self._folder, port=self._port, mon_port=self._mon_port
            )
        )
        monmap = str(self._folder / "monmap")
        address = f"[v2:127.0.0.1:{self._mon_port}]"
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._spawn("ceph-mon", "-i", "a")
        self._spawn("ceph-mgr", "-i", "a")
        self._run("ceph", "osd", "new", self._fsid)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", self._fsid)
        self._spawn("ceph-osd", "-i", "0")
        keys = ("--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY)
        self._run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", *keys)

    def stop(self) -> None:
        """End everything; what it held is gone."""
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its name."""
        make_bucket(self.url, name)
        return name

    def _run(self, program: str, *arguments: str) -> None:
        command = [program, "--conf", str(self._folder / "ceph.conf"), *arguments]
        if program == "monmaptool":
            command = [program, *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_SECONDS)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [program, "--conf", str(self._folder / "ceph.conf"), "-f", *arguments]
        with (self._folder / f"{program}.out").open("wb") as out:
            daemon = subprocess.Popen(command, stdout=out, stderr=out)
        self._daemons.append(daemon)
        return daemon
