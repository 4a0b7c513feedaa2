"""Rates of the archive in turns with the S3 client that it uses, doing the same bytes bare."""

import asyncio
import contextlib
import functools
import itertools
import os
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import psutil

from agent.bus import Bus
from agent.bus.lease import BucketLeases
from archive.s3 import S3Store
from benchmarks.rounds import Spread, abba, ratios, spread
from cache.archive_link import ArchiveLink
from cache.entry import Entry
from cache.files import Files
from cache.large_evictions import LargeEvictions
from cache.lending import LENT_SHARE
from cache.namespace import Namespace
from cache.outbox import Item
from cache.room import Room
from cache.settings import MIB, CacheSettings
from cache.value_file import ValueFile
from schemas.cache import (
    EVICTED_HEADER,
    INLINE_LIMIT_BYTES,
    Evicted,
    encode_json_header,
    part_count,
    part_range,
)
from schemas.digest import digest_of
from schemas.protocols import PublishError
from schemas.units import SECOND_NS

LIFE_SECONDS = 300.0
RESTORE_SECONDS = 20.0
GENERATION = 1
AT_ONCE = 16
LOOK_SECONDS = 0.01


class Side(msgspec.Struct, frozen=True):
    """The archive or the bare client: values a second, the slowest of twenty, CPU for a value."""

    rate: Spread
    p95_seconds: float | None
    cpu_seconds: float


class Row(msgspec.Struct, frozen=True):
    """Both at one size; `ratio` of the rates, round by round."""

    size_bytes: int
    archive: Side
    bare: Side
    ratio: Spread


class Turn:
    """One side's slices: `work` does `count` values and returns how long each took, if it knows."""

    def __init__(
        self, work: Callable[[], Awaitable[list[float]]], count: int, processes: Sequence[int]
    ) -> None:
        self._work = work
        self._count = count
        self._processes = [psutil.Process(pid) for pid in processes]
        self._latencies: list[float] = []
        self._cpu_seconds: list[float] = []

    async def __call__(self) -> float:
        """Values a second of one slice."""
        cpu_before, began = self._cpu(), time.perf_counter()
        self._latencies += await self._work()
        seconds = time.perf_counter() - began
        self._cpu_seconds.append((self._cpu() - cpu_before) / self._count)
        return self._count / seconds

    def side(self, rates: Sequence[float]) -> Side:
        """Of all its slices."""
        slowest = statistics.quantiles(self._latencies, n=20)[-1] if self._latencies else None
        return Side(spread(rates), slowest, statistics.median(self._cpu_seconds))

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


class Rates:
    """An archiver behind `bus`, with this process id, and the bare client beside it."""

    def __init__(self, bus: Bus, store: S3Store, archiver: int) -> None:
        self._bus = bus
        self._store = store
        self._archiver = archiver

    async def evictions(
        self, size_bytes: int, counts: tuple[int, int], rounds: int, *, same_host: bool
    ) -> Row:
        """From the first eviction until the stream is empty, and all are announced.

        `same_host`: lent by a cache, else put into the stream.
        """
        value = os.urandom(size_bytes)
        ours, theirs = counts

        async def put_bare() -> list[float]:
            names = [secrets.token_hex(32) for _ in range(theirs)]
            put.extend(names)
            left = iter(names)
            await each(theirs, lambda: self._store.put(next(left), value))
            return []

        put: list[str] = []
        async with contextlib.AsyncExitStack() as stack:
            evict_all: Callable[[], Awaitable[None]]
            evict_all = functools.partial(evict_many, self._bus, value, ours)
            if same_host:
                evict_all = await stack.enter_async_context(lender(self._bus, value, ours))

            async def archived() -> list[float]:
                await evict_all()
                await drained(self._bus)
                return []

            archive = Turn(archived, ours, [self._archiver])
            bare = Turn(put_bare, theirs, [os.getpid()])
            row = await self._compare(size_bytes, archive, bare, rounds)
        left = iter(put)
        await each(len(put), lambda: self._store.delete(next(left)))
        return row

    async def restores(self, size_bytes: int, count: int, rounds: int, *, same_host: bool) -> Row:
        """One after the other, of values that are all different, and all in the store."""
        values = [os.urandom(size_bytes) for _ in range(count)]
        keys = [await evict(self._bus, value) for value in values]
        await drained(self._bus)
        names = [secrets.token_hex(32) for _ in range(count)]
        for name, value in zip(names, values, strict=True):
            await self._store.put(name, value)

        async def timed(get: Callable[[str], Awaitable[int]], all_: list[str]) -> list[float]:
            took = []
            for name in all_:
                began = time.perf_counter()
                found_bytes = await get(name)
                took.append(time.perf_counter() - began)
                if found_bytes != size_bytes:
                    raise RuntimeError(f"{name} did not come back")
            return took

        async def get_bare(name: str) -> int:
            return len(await self._store.get(name) or b"")

        with receiver(self._bus, same_host=same_host) as restore:
            archive = Turn(lambda: timed(restore, keys), count, [self._archiver])
            bare = Turn(lambda: timed(get_bare, names), count, [os.getpid()])
            row = await self._compare(size_bytes, archive, bare, rounds)
        for name in names:
            await self._store.delete(name)
        return row

    async def _compare(self, size_bytes: int, archive: Turn, bare: Turn, rounds: int) -> Row:
        figures = await abba({"archive": archive, "bare": bare}, rounds)
        return Row(
            size_bytes,
            archive.side(figures["archive"]),
            bare.side(figures["bare"]),
            ratios(figures, "archive", "bare"),
        )


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
    bus: Bus, value: bytes, count: int
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """What lends so many evictions of `value` as a cache does, whose outbox has room for all.

    Each has a name of the one file that the value lies in. Returns when all are stored.
    """
    room_bytes = int(count * len(value) / LENT_SHARE) + 16 * MIB
    leases = BucketLeases(bus.bucket("lease"), "bench")
    with cache_side(bus, same_host=True, outbox_max_bytes=room_bytes) as (namespace, link):
        lease = await leases.try_acquire("bench")
        if lease is None:
            raise RuntimeError("another benchmark holds the lease")
        large = LargeEvictions(namespace, bus, bus, lease)
        stop_listening = await link.listen()
        sending = asyncio.create_task(large.run())
        file, digest = namespace.files.keep(value), digest_of(value)
        if not isinstance(file, ValueFile):
            raise RuntimeError("there is no room for files in tmpfs")

        async def evict_lent() -> None:
            lent_before = large.lending.lent
            items = [_item(_linked(file, namespace.files), digest) for _ in range(count)]
            for item in items:
                namespace.outbox.add(item)
            await namespace.outbox.drained()
            await asyncio.sleep(LOOK_SECONDS)  # the last one is counted
            if large.lending.lent - lent_before != count:
                raise RuntimeError("not all were lent")

        try:
            yield evict_lent
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await stop_listening()
            await leases.close()


def _linked(file: ValueFile, files: Files) -> ValueFile:
    """The same file by another name, which goes with what this returns."""
    path = f"{os.path.dirname(file.path)}/{secrets.token_hex(16)}"
    os.link(file.path, path)
    return ValueFile(path, file.size_bytes, files.held)


def _item(file: ValueFile, digest: str) -> Item:
    now_ns = time.time_ns()
    key = f"bench:{secrets.token_hex(16)}"
    version = f"00000000000-{secrets.randbits(32):08x}"
    return Item(
        key=key,
        version=version,
        message_id=secrets.token_hex(16),
        evicted_at_ns=now_ns,
        entry=Entry(key=key, value=file, version=version, digest=digest),
        expires_at_ns=now_ns + int(LIFE_SECONDS * SECOND_NS),
    )


async def evict(
    bus: Bus, value: bytes, life_seconds: float = LIFE_SECONDS, *, digest: str = ""
) -> str:
    """Publish an eviction as the cache does, which knows its digest; returns its key."""
    key = f"bench:{secrets.token_hex(16)}"
    now = datetime.now(UTC)
    is_large = len(value) > INLINE_LIMIT_BYTES
    manifest = Evicted(
        namespace="default",
        key=key,
        version="00000000000-00000001",
        generation=GENERATION,
        evicted_at=now,
        size_bytes=len(value),
        digest=digest or digest_of(value),
        expires_at=now + timedelta(seconds=life_seconds),
        parts=part_count(len(value)) if is_large else 0,
        eviction=secrets.token_hex(8) if is_large else None,
    )
    for part in range(manifest.parts):
        first, end = part_range(part, len(value))
        await publish(bus, f"evicted_part.default.{manifest.eviction}.{part}", value[first:end], {})
    headers = {EVICTED_HEADER: encode_json_header(msgspec.json.encode(manifest))}
    await publish(bus, "evicted.default", b"" if is_large else value, headers)
    return key


async def publish(bus: Bus, subject: str, payload: bytes, headers: dict[str, str]) -> None:
    """Until the stream has it, as the cache does."""
    message_id = secrets.token_hex(16)
    while True:
        with contextlib.suppress(PublishError):
            return await bus.publish_raw(subject, payload, headers, message_id=message_id)
        await asyncio.sleep(LOOK_SECONDS)


async def evict_many(bus: Bus, value: bytes, count: int, **life: float) -> None:
    """Return when the archive has acknowledged so many."""
    digest = digest_of(value)
    await each(count, lambda: evict(bus, value, **life, digest=digest))
    await drained(bus)


async def drained(bus: Bus) -> None:
    """Return when the stream is empty."""
    while await bus.depth("EVICTIONS"):
        await asyncio.sleep(LOOK_SECONDS)


async def each(count: int, work: Callable[[], Awaitable[object]]) -> None:
    """Do `work` so many times, `AT_ONCE` at a time."""
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await work()

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
