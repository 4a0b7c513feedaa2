"""The private nats-server of `resource-agent up`: one on a state folder, alive as long as we are.

In the state folder:

- `lock`: held by the process that runs the server, which is this one.
- `up.json`: how others find it, while it runs. Holds the password, mode 0600.
- `nats/server.json`: port, password and store limit, kept between runs, mode 0600.
- `nats/lock`: held by the server itself and its guard (`guard.py`).
- `nats/store`, `nats/server.conf`, `nats/server.log`, `nats/server.err` (what it wrote
  before it had a log, and panics), and the logs of the last run: `….last`.

Two locks, because the server can outlive us by some seconds when we are killed, and two
servers on one store destroy data: whoever starts a server first waits for the second lock.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import msgspec
import structlog
from msgspec import Meta

from agent.human import reason
from agent.nats_server.binary import server_version
from agent.nats_server.config import ServerSettings, config_text
from agent.nats_server.process import ServerProcess, ServerStartError
from agent.state_folder import (
    StateFolderError,
    lock,
    write_private,
    write_private_json,
)
from schemas.message import UNDECODABLE

OWNER_SECONDS = 1.0  # a process that was killed lets go of its lock at once
START_ATTEMPTS = 3  # ports are tried by this many, should one be taken between look and use
BACKOFF_SECONDS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STABLE_SECONDS = 10.0  # a server that lived so long starts the back-off anew

_log = structlog.get_logger(service="nats_server")


class Kept(msgspec.Struct, kw_only=True):
    """What stays the same from one run to the next."""

    port: Annotated[int, Meta(ge=1, le=65535)]
    password: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    max_file_store_bytes: Annotated[int, Meta(ge=1)]


class PrivateServer:
    """A nats-server on a free loopback port, supervised; `async with` starts and stops it.

    It is restarted on its port when it dies, and it is stopped when this process ends in
    whatever way. Store, port and password are those of the last run on the same folder.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        binary: Path,
        root: str = "fleet.v1",
        settings: ServerSettings | None = None,
        on_restart: Callable[[int], None] | None = None,
    ) -> None:
        """Prepare; nothing happens before `start`.

        Args:
            state_dir: Created where missing, with mode 0700.
            binary: The nats-server to run.
            root: Subject root, which guests may read.
            settings: The server's settings.
            on_restart: Called with `restarts` after each restart, when the server is ready.
        """
        self.state_dir = state_dir.absolute()
        self.restarts = 0
        self.port = 0
        self.max_file_store_bytes = 0
        self._folder = self.state_dir / "nats"
        self._binary = binary
        self._root = root
        self._settings = settings or ServerSettings()
        self._on_restart = on_restart
        self._name = f"resource-agent-{secrets.token_hex(8)}"
        self._password = ""
        self._process = ServerProcess(binary, self._folder, name=self._name)
        self._supervisor: asyncio.Task[None] | None = None
        self._held = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """Address with the credentials of user `local`, who has all rights."""
        return f"nats://local:{self._password}@127.0.0.1:{self.port}"

    @property
    def server_pid(self) -> int:
        """Process id of the nats-server that runs now."""
        return self._process.pid

    @property
    def public_url(self) -> str:
        """Address without credentials: what a guest uses, fit for a log."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def used_default_port(self) -> bool:
        """Whether clients find the server without being told the port."""
        return self.port == self._settings.preferred_port

    async def start(self) -> None:
        """Return when the server accepts connections.

        Raises:
            StateFolderError: the folder cannot be created or written, or (its subclass
                StateFolderBusyError) another process runs a server on it.
            ServerStartError: the server did not come up.
            ServerTooOldError: a setting asks for what this server cannot do.
            ServerNotFoundError: the binary does not run.
        """
        try:
            await self._start()
        except OSError as error:
            await self.stop()
            raise StateFolderError(
                f"cannot use state folder {self.state_dir}: {reason(error)}"
            ) from error
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        version = await asyncio.to_thread(server_version, self._binary)
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._held.callback(
            os.close, await lock(self.state_dir / "lock", wait_seconds=OWNER_SECONDS)
        )
        up_json = self.state_dir / "up.json"
        up_json.unlink(missing_ok=True)  # of a run that was killed
        self._held.callback(up_json.unlink, missing_ok=True)
        kept = _read_kept(self._folder / "server.json")
        self._password = kept.password if kept else secrets.token_hex(16)
        self.max_file_store_bytes = self._store_limit(kept)
        candidates = [kept.port] if kept else []
        candidates.append(self._settings.preferred_port)
        for attempts_left in reversed(range(START_ATTEMPTS)):
            self.port = next(filter(_is_free, candidates), 0) or _any_free_port()
            self._write_config(version)
            try:
                await self._process.start(self.port)
                break
            except ServerStartError as error:
                # Who took the port may have left again.
                was_taken = "address already in use" in str(error) or not _is_free(self.port)
                if attempts_left == 0 or not was_taken:
                    raise
        write_private_json(
            self._folder / "server.json",
            {
                "port": self.port,
                "password": self._password,
                "max_file_store_bytes": self.max_file_store_bytes,
            },
        )
        write_private_json(
            up_json,
            {
                "nats_url": self.url,
                "pid": os.getpid(),
                "state_dir": str(self.state_dir),
                "port": self.port,
                "password": self._password,
            },
        )
        self._supervisor = asyncio.create_task(self._supervise(), name="nats-supervisor")

    async def stop(self) -> None:
        """Stop the server and give the folder free; harmless when nothing runs."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
            self._supervisor = None
        await self._process.stop()
        self._held.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _store_limit(self, kept: Kept | None) -> int:
        """Bytes for all streams, never less than in an earlier run.

        With a lower limit nats-server 2.9 leaves streams out whose reserved sizes no
        longer fit, with the data in them.
        """
        wanted = self._settings.max_file_store_bytes
        wanted = wanted or shutil.disk_usage(self._folder).free // 4
        return max(wanted, kept.max_file_store_bytes if kept else 1)

    def _write_config(self, version: tuple[int, int, int]) -> None:
        text = config_text(
            self._settings,
            version=version,
            server_name=self._name,
            port=self.port,
            password=self._password,
            root=self._root,
            store_dir=str(self._folder / "store"),
            log_file=str(self._folder / "server.log"),
            max_file_store_bytes=self.max_file_store_bytes,
        )
        write_private(self._folder / "server.conf", text)

    async def _supervise(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            code = await self._process.wait()
            if loop.time() - started > STABLE_SECONDS:
                failures = 0
            _log.error("server_died", guard_exit_code=code, logs=str(self._folder))
            while True:
                await asyncio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])
                failures += 1
                try:
                    await self._process.start(self.port)
                    break
                except (ServerStartError, StateFolderError, OSError) as error:
                    _log.error("server_restart_failed", reason=reason(error), attempt=failures)
            self.restarts += 1
            _log.warning("server_restarted", restarts=self.restarts, port=self.port)
            if self._on_restart is not None:
                self._on_restart(self.restarts)


def _read_kept(path: Path) -> Kept | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return None
    except UNDECODABLE as error:  # a new port and password do no harm
        _log.warning("server_json_ignored", path=str(path), reason=str(error))
        return None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:  # macOS lets us bind beside a listener on all addresses
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
