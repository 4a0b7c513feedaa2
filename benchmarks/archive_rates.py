"""Rates of the archive in turns with the S3 client that it uses, doing the same bytes bare."""

import asyncio
import contextlib
import functools
import os
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
import psutil

from agent.bus import Bus
from archive.s3 import S3Store
from benchmarks.archive_cache import GENERATION, LIFE_SECONDS, lender, receiver
from benchmarks.rounds import Spread, abba, ratios, spread
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


Way = Literal["file", "bus", "stream"]
"""How an eviction comes: lent by a cache, its file or its parts; or put into the stream."""


class Rates:
    """An archiver behind `bus`, with this process id, and the bare client beside it."""

    def __init__(self, bus: Bus, store: S3Store, archiver: int) -> None:
        self._bus = bus
        self._store = store
        self._archiver = archiver

    async def evictions(
        self, size_bytes: int, counts: tuple[int, int], rounds: int, way: Way
    ) -> Row:
        """From the first eviction until the stream is empty, and all are announced."""
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
            if way != "stream":
                lent = lender(self._bus, value, ours, same_host=way == "file")
                evict_all = await stack.enter_async_context(lent)

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
