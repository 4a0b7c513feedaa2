"""Restarts a private nats-server whose streams met a full disk, once there is room again.

What could not be written stays broken: nats-server 2.9.10 hangs in that stream, 2.15.1 refuses all
further writes (both reproduced), and neither recovers when there is room. A restart helps, and
costs nothing that was acknowledged.
"""

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from agent.bus import Bus
from schemas.protocols import PublishError

log = structlog.get_logger()

LOOK_SECONDS = 1.0
STORE_SECONDS = 5.0
SILENT_SECONDS = 20.0
FULL_BYTES = 8 * 1024 * 1024
ROOM_BYTES = 64 * 1024 * 1024
"""Below `FULL_BYTES` some write may have failed; below this much another one soon will."""


class StorageWatch:
    """Looks at the disk every second, and stores a trial value every 5 s."""

    def __init__(self, bus: Bus, folder: Path, restart: Callable[[], None]) -> None:
        """Watch the disk that `folder` is on; `restart` ends the server and starts it anew."""
        self._bus = bus
        self._folder = folder
        self._restart = restart
        self._is_broken = False
        self._stored_at = time.monotonic()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._store())
            group.create_task(self._look())

    async def _store(self) -> None:
        while True:
            await asyncio.sleep(STORE_SECONDS)
            try:
                await self._bus.bucket("state").put("up.storage", str(time.time_ns()).encode())
            except PublishError as error:
                log.warning("trial_value_not_stored", error=str(error))
            else:
                self._stored_at = time.monotonic()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            free = shutil.disk_usage(self._folder).free
            if free < FULL_BYTES and not self._is_broken:
                self._is_broken = True
                log.error(
                    "disk_full",
                    folder=str(self._folder),
                    free_bytes=free,
                    effect="streams store nothing, evictions wait or are lost",
                    remedy=f"free {ROOM_BYTES // 1024**2} MiB; the server is then restarted",
                )
            is_silent = time.monotonic() - self._stored_at > SILENT_SECONDS
            if (self._is_broken or is_silent) and free >= ROOM_BYTES:
                reason = "the disk was full" if self._is_broken else "nothing can be stored"
                log.error("server_restarts", reason=reason, free_bytes=free)
                self._restart()
                self._is_broken = False
                self._stored_at = time.monotonic()
