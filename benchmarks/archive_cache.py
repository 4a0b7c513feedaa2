"""The cache's side of the archive, alone: it lends evictions and receives what is restored."""

import asyncio
import contextlib
import itertools
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import msgspec

from agent.bus import Bus
from agent.bus.lease import BucketLeases
from cache.archive_link import ArchiveLink
from cache.entry import Entry
from cache.files import Files
from cache.large_evictions import LargeEvictions
from cache.lending import LENT_SHARE, Lending
from cache.namespace import Namespace
from cache.outbox import Item
from cache.room import Room
from cache.settings import MIB, CacheSettings
from cache.value_file import ValueFile
from schemas.digest import digest_of
from schemas.units import SECOND_NS

LIFE_SECONDS = 300.0
RESTORE_SECONDS = 20.0
GENERATION = 1
LOOK_SECONDS = 0.01


@contextlib.contextmanager
def cache_side(
    bus: Bus, *, same_host: bool, **settings: object
) -> Iterator[tuple[Namespace, ArchiveLink]]:
    """A namespace of a cache, and what it asks and hears from the archive."""
    chosen = msgspec.convert(
        {"max_memory_mb": 512, "same_host": same_host, **settings}, CacheSettings
    )
    files = Files(chosen)
    namespace = Namespace(
        "default",
        chosen,
        epoch_ms=0,
        generation=GENERATION,
        message_ids=(f"bench.{secrets.token_hex(8)}" for _ in itertools.count()),
        clock=time.time_ns,
        files=files,
    )
    room = Room(chosen.uploads_max_bytes)
    link = ArchiveLink(
        namespace, bus, bus, time.time_ns, room, restore_timeout_seconds=RESTORE_SECONDS
    )
    try:
        yield namespace, link
    finally:
        files.close()


@contextlib.contextmanager
def receiver(bus: Bus, *, same_host: bool) -> Iterator[Callable[[str], Awaitable[int]]]:
    """What restores a key as a cache does, into RAM and verified, and returns its size."""
    with cache_side(bus, same_host=same_host) as (namespace, link):

        async def restore(key: str) -> int:
            entry = await link.restore(key)
            namespace.memory.remove(key)
            return 0 if entry is None else entry.value_bytes

        yield restore


@contextlib.asynccontextmanager
async def lender(
    bus: Bus, value: bytes, count: int, *, same_host: bool
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """What lends so many evictions of `value` as a cache does, whose outbox has room for all.

    Each has a name of the one file that the value lies in, or it is in RAM alone, so that the
    archiver asks for its parts, as it does from another host. Returns when all are stored.
    """
    room_bytes = int(count * len(value) / LENT_SHARE) + 16 * MIB
    leases = BucketLeases(bus.bucket("lease"), "bench")
    with cache_side(bus, same_host=same_host, outbox_max_bytes=room_bytes) as (namespace, link):
        lease = await leases.try_acquire("bench")
        if lease is None:
            raise RuntimeError("another benchmark holds the lease")
        lending = Lending(namespace, bus, bus, lease, "bench", "everywhere")
        large = LargeEvictions(namespace, bus, lease, lending)
        served = await bus.serve("lender", lending.endpoints(), description="bench")
        stop_listening = await link.listen()
        sending = asyncio.create_task(large.run())
        kept, digest = namespace.files.keep(value) if same_host else value, digest_of(value)
        if same_host and not isinstance(kept, ValueFile):
            raise RuntimeError("there is no room for files in tmpfs")

        def another() -> ValueFile | bytes:
            return _linked(kept, namespace.files) if isinstance(kept, ValueFile) else value

        async def evict_lent() -> None:
            lent_before = lending.lent
            items = [_item(another(), digest) for _ in range(count)]
            for item in items:
                namespace.outbox.add(item)
            await namespace.outbox.drained()
            await asyncio.sleep(LOOK_SECONDS)  # the last one is counted
            if lending.lent - lent_before != count:
                raise RuntimeError("not all were lent")

        try:
            yield evict_lent
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await stop_listening()
            await served.stop()
            await leases.close()


def _linked(file: ValueFile, files: Files) -> ValueFile:
    """The same file by another name, which goes with what this returns."""
    path = f"{os.path.dirname(file.path)}/{secrets.token_hex(16)}"
    os.link(file.path, path)
    return ValueFile(path, file.size_bytes, files.held)


def _item(value: ValueFile | bytes, digest: str) -> Item:
    now_ns = time.time_ns()
    key = f"bench:{secrets.token_hex(16)}"
    version = f"00000000000-{secrets.randbits(32):08x}"
    return Item(
        key=key,
        version=version,
        message_id=secrets.token_hex(16),
        evicted_at_ns=now_ns,
        entry=Entry(key=key, value=value, version=version, digest=digest),
        expires_at_ns=now_ns + int(LIFE_SECONDS * SECOND_NS),
    )
