"""One nats-server process under its guard: started, waited for, stopped, started again."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import structlog

from agent.state_folder import POLL_SECONDS, lock

GUARD = Path(__file__).with_name("guard.py")
LOCK_SECONDS = 7.0  # the guard of a process that was killed gives its server 3 s to stop
STOP_SECONDS = 5.0
READY_SECONDS = 60.0  # after a crash the server reads its whole store before it listens
GREETING_SECONDS = 1.0
LOOK_SECONDS = 1.0
HANG_SECONDS = 20.0
FULL_BYTES = 16 * 1024 * 1024  # less than this free, and any write may fail
ROOM_BYTES = 4 * FULL_BYTES

_log = structlog.get_logger(service="nats_server")


class ServerStartError(Exception):
    """The server ended, or did not answer in time; the text has the end of its log."""


class ServerProcess:
    """The server whose `server.conf`, logs and lock are in `folder`.

    The lock belongs to the server and its guard (`guard.py`), not to us: it tells
    whether a server still runs here, whatever became of the process that started it.
    """

    def __init__(self, binary: Path, folder: Path, *, name: str) -> None:
        """Prepare to run `binary`; `name` is the server_name in its configuration."""
        self.pid = 0
        self._port = 0
        self._binary = binary
        self._folder = folder
        self._name = name
        self._guard: asyncio.subprocess.Process | None = None

    async def start(self, port: int) -> None:
        """Start the server once the last one is gone; return when it takes connections.

        After an error there may still be something to `stop`; another `start` does it first.

        Raises:
            ServerStartError: it ended, or was not ready in time.
            StateFolderBusyError: another server runs in this folder.
        """
        await self.stop()
        self._port = port
        lock_fd = await lock(self._folder / "lock", wait_seconds=LOCK_SECONDS)
        try:
            self._keep_last_logs()
            with (self._folder / "server.err").open("wb") as errors:
                self._guard = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", GUARD),
                    *(self._binary, self._folder / "server.conf", str(lock_fd)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,  # Ctrl-C and a closed terminal are for us to handle
                    pass_fds=(lock_fd,),
                )
        finally:
            os.close(lock_fd)  # from here on guard and server hold it
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready(self._guard, port)
        except TimeoutError:
            raise self._start_error(f"was not ready after {READY_SECONDS:.0f} s") from None

    async def wait(self) -> int:
        """Wait for the guard's end and return its exit code; call it after `start`.

        A server that greets nobody for `HANG_SECONDS` is killed: it does not come back by itself.
        One whose disk was full is stopped when there is room again: a stream whose write failed
        takes no other until the server starts anew (2.9 to 2.15).
        """
        guard = self._guard
        assert guard is not None  # noqa: S101
        loop = asyncio.get_running_loop()
        greeted_at = loop.time()
        was_full = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    return await guard.wait()
            free_bytes = self._free_bytes()
            if free_bytes < FULL_BYTES and not was_full:
                was_full = True
                _log.error(
                    "disk_full",
                    folder=str(self._folder),
                    free_bytes=free_bytes,
                    remedy=f"make room: with {ROOM_BYTES} bytes free the server starts anew",
                )
            elif free_bytes >= ROOM_BYTES and was_full:
                _log.warning("disk_has_room", folder=str(self._folder), free_bytes=free_bytes)
                await self.stop()
                return await guard.wait()
            if await self._greets(self._port):
                greeted_at = loop.time()
            elif loop.time() - greeted_at > HANG_SECONDS:
                _log.error("server_hangs", after_seconds=HANG_SECONDS)
                self._kill(guard)

    async def stop(self) -> None:
        """Return when the guard is gone; its server then is too, or was sent SIGKILL."""
        guard = self._guard
        if guard is None:
            return
        assert guard.stdin is not None  # noqa: S101 - we asked for a pipe
        guard.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await guard.wait()
        except TimeoutError:
            _log.error("guard_killed", after_seconds=STOP_SECONDS)
        # The guard's group outlives it as long as the server does: that catches a server
        # whose guard was killed, and never a stranger who got the same process id.
        self._kill(guard)
        await guard.wait()
        self._guard = None

    def _kill(self, guard: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)

    def _free_bytes(self) -> int:
        try:
            return shutil.disk_usage(self._folder).free
        except OSError:  # somebody removed the folder
            return 0

    async def _ready(self, guard: asyncio.subprocess.Process, port: int) -> None:
        assert guard.stdout is not None  # noqa: S101 - we asked for a pipe
        line = await guard.stdout.readline()
        self.pid = json.loads(line)["pid"] if line else 0
        while guard.returncode is None:
            if await self._greets(port):
                return
            await asyncio.sleep(POLL_SECONDS)
        raise self._start_error(f"ended at start, guard's code {guard.returncode}")

    async def _greets(self, port: int) -> bool:
        """Whether our own server, and not a stranger on its port, takes connections."""
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    greeting = await reader.readline()
                finally:
                    writer.close()
        except OSError:  # TimeoutError is one, too
            return False
        return greeting.startswith(b"INFO ") and self._name.encode() in greeting

    def _keep_last_logs(self) -> None:
        """The run before this one may have ended for a reason that its logs tell."""
        for rotated in self._folder.glob("server.log.*"):
            rotated.unlink()
        for name in ("server.log", "server.err"):
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).replace(self._folder / f"{name}.last")

    def _start_error(self, what: str) -> ServerStartError:
        lines: list[str] = []
        for name in ("server.log", "server.err"):
            with contextlib.suppress(FileNotFoundError):
                lines += (self._folder / name).read_text(errors="replace").splitlines()[-5:]
        return ServerStartError("\n  ".join((f"nats-server {self._binary} {what}", *lines)))
