"""An archive service on a real bus, and what it says there."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent.bus import Bus, ensure_bucket
from agent.bus.lease import BucketLeases
from archive.service import ArchiveBus, ArchiveService
from archive.settings import ArchiveSettings
from archive.store import ObjectStore
from schemas.archive import Stored, StoredEntry
from schemas.cache import Evicted
from schemas.message import Message
from schemas.protocols import Publisher
from tests.support.evictions import ManualClock, folder_store, manifest_headers

M = TypeVar("M", bound=Message)
DEADLINE_SECONDS = 20.0
FAST = {
    "segment_seconds": 0.02,
    "retry_seconds": 0.05,
    "standby_poll_seconds": 0.05,
    "probe_interval_seconds": 0.05,
}


@contextlib.asynccontextmanager
async def archiving(
    bus: Bus,
    store: ObjectStore | Path,
    *,
    clock: ManualClock | None = None,
    instance: str = "a1",
    publisher: Publisher | None = None,
    **settings: Any,
) -> AsyncIterator[ArchiveService]:
    """A running service that is ready."""
    served = await bus.serve("archive", [], description="test")
    leases = BucketLeases(bus.bucket("lease"), instance)
    service = ArchiveService(
        ArchiveBus(
            publisher=publisher or bus,
            queue=bus,
            parts=bus,
            index=bus.bucket("archive"),
            make_index=lambda: ensure_bucket(bus, "archive"),
            state=bus.bucket("state"),
            letters=bus,
            requester=bus,
            leases=leases,
            serve=served.add,
        ),
        folder_store(store) if isinstance(store, Path) else store,
        msgspec.convert({**FAST, **settings}, ArchiveSettings),
        instance,
        clock or ManualClock(),
        namespaces=("default",),
    )
    try:
        async with service:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await service.wait_ready()
            yield service
    finally:
        await leases.close()


async def until(is_so: Callable[[], bool]) -> None:
    """Return once something that is not announced is so: a connection, a counter."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not is_so():
            await asyncio.sleep(0.005)


async def evict(bus: Bus, manifest: Evicted, value: bytes = b"value") -> None:
    """Publish an eviction, as the cache does; a tombstone has no value."""
    await bus.publish_raw(
        f"evicted.{manifest.namespace}",
        b"" if manifest.tombstone else value,
        manifest_headers(manifest),
        message_id=f"{manifest.key[:50]!r} {manifest.version} {manifest.tombstone}",
    )


class Heard:
    """What is said on a subject, in order, from the moment this exists."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._stored: deque[StoredEntry] = deque()

    @classmethod
    async def on(cls, bus: Bus, subject: str) -> "Heard":
        heard = cls()
        await bus.subscribe(subject, lambda *message: heard._messages.put_nowait(message))
        return heard

    async def next(self, kind: type[M]) -> M:
        """The next message of this kind; others before it are skipped."""
        family = kind.SUBJECT.partition(".{")[0]
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                subject, payload = await self._messages.get()
                if subject.startswith(family):
                    return msgspec.json.decode(payload, type=kind)

    async def stored(self) -> StoredEntry:
        """The next entry that is said to be stored, however many one message says."""
        while not self._stored:
            self._stored.extend((await self.next(Stored)).entries)
        return self._stored.popleft()

    def rest(self) -> list[str]:
        """The subjects that nobody has taken yet."""
        subjects = []
        while not self._messages.empty():
            subjects.append(self._messages.get_nowait()[0])
        return subjects
