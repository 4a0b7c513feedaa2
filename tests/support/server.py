"""A private nats-server for tests: JetStream, a free port, killed and restarted at will."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from agent.nats_server.binary import find_server

DEADLINE_SECONDS = 10.0


class NatsServer:
    """One nats-server process on a free loopback port; `restart` keeps port and store."""

    def __init__(self, folder: Path, config: str = "", *, jetstream: bool = True) -> None:
        self.folder = folder
        self._config = config
        self._jetstream = jetstream
        self._process: subprocess.Popen[bytes] | None = None
        self.port = -1
        self.options: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob("*.ports"):
            stale.unlink()
        binary = find_server()
        assert binary is not None, "no nats-server: run `make setup` first"
        config = self.folder / "server.conf"
        jetstream = f'jetstream {{ store_dir: "{self.folder / "store"}" }}\n'
        config.write_text((jetstream if self._jetstream else "") + self._config)
        log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            [
                str(binary), "-c", str(config), "-a", "127.0.0.1", "-p", str(self.port),
                "--ports_file_dir", str(self.folder), *self.options,
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            for ports in self.folder.glob("*.ports"):
                try:
                    self.port = int(json.loads(ports.read_text())["nats"][0].rsplit(":", 1)[1])
                except (ValueError, KeyError, IndexError):
                    continue
                return
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.001)  # the ports file is the only sign of readiness the server gives
        raise TimeoutError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        """SIGKILL, as if the machine had taken it away."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def pause(self) -> None:
        """Every thread of it stands still when this returns."""
        self.signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
