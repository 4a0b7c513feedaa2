"""What is killed: server, S3, cache and archivers, each a process of its own that starts again."""

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from agent.nats_server.binary import find_server
from benchmarks.radosgw import free_port
from benchmarks.s3 import S3
from schemas.lifecycle import Role

STOP_SECONDS = 10.0
CACHE_MB = 6
LIFE_SECONDS = 86400


class Part(Protocol):
    """A process; `start` after `kill` goes on with what it had made durable."""

    def start(self) -> None:
        """Start it; it may need a moment before it serves."""

    def kill(self) -> None:
        """SIGKILL."""

    def stop(self) -> None:
        """End it for good, cleanly where it can."""


class Program:
    """A command line, whose output goes to `log`."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self._command = command
        self._log = log
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not help."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()


class Parts:
    """An installation in `folder`: one server, one S3 server, one cache, two archivers."""

    def __init__(
        self, folder: Path, s3: S3 | None, *, s3_url: str, bucket: str, same_host: bool = True
    ) -> None:
        """Without `s3` and `s3_url` the store is a folder; a server at `s3_url` is not killed.

        Without `same_host` the archivers read nothing from the cache's files.
        """
        self.folder = folder
        self._s3 = s3
        self.s3_url = s3_url
        self._bucket = bucket
        self._same_host = same_host
        self.port = free_port()
        self.store = ""
        self.all: dict[str, Part] = {}

    @property
    def url(self) -> str:
        """Of the nats-server."""
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start the server and S3, and make the bucket."""
        if self._s3 is not None:
            await asyncio.to_thread(self._s3.start)
            self.s3_url = self._s3.url
            self._s3.make_bucket(self._bucket)
            self.all["s3"] = self._s3
        if self.s3_url:
            self.store = f"s3://{self._bucket}/{secrets.token_hex(4)}"
        binary = find_server()
        assert binary is not None, "no nats-server: run `make setup`"
        configuration = self.folder / "server.conf"
        configuration.write_text(f'jetstream {{ store_dir: "{self.folder / "streams"}" }}\n')
        command = [str(binary), "-c", str(configuration), "-a", "127.0.0.1", "-p", str(self.port)]
        self.all["server"] = Program(command, self.folder / "server.log")
        self.all["server"].start()

    def start_services(self) -> None:
        """Start cache and archivers."""
        self.all["cache"] = self._service("cache", "cache")
        for name in ("archive-1", "archive-2"):
            self.all[name] = self._service("archive", name)
        for name in ("cache", "archive-1", "archive-2"):
            self.all[name].start()

    def stop(self) -> None:
        """End all of them, whoever needs another one first."""
        for part in reversed(self.all.values()):
            part.stop()

    def _service(self, role: Role, name: str) -> Program:
        settings = {
            "CACHE__MAX_MEMORY_MB": str(CACHE_MB),
            "CACHE__SAME_HOST": str(self._same_host).lower(),
            "CACHE__TTL__BASE_SECONDS": str(LIFE_SECONDS),
            "ARCHIVE__FOLDER": str(self.folder / "objects"),
            "ARCHIVE__SWEEP_INTERVAL_SECONDS": "5",
            "ARCHIVE__RETRY_MAX_SECONDS": "2",
        }
        if self.store:
            settings |= {"ARCHIVE__STORE": self.store, "ARCHIVE__S3__ENDPOINT_URL": self.s3_url}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RESOURCE_AGENT_")}
        env = kept | {f"RESOURCE_AGENT_{name}": value for name, value in settings.items()}
        state = str(self.folder / name)
        command = [sys.executable, "-m", "agent", "run", role, "--nats-url", self.url]
        command += ["--instance", name, "--state-dir", state]
        return Program(command, self.folder / f"{name}.log", env)
