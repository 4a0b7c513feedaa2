"""The cache in process against cachetools and diskcache; its pauses and its memory.

`python -m benchmarks.bench_memory`: needs the dependency group `bench`. Operations are
timed in slices of 20,000, one candidate after the other and back (A B B A); the longest single
operation is that of a run that fills the cache and goes on at full size.
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence

import cachetools
import diskcache
import psutil

from benchmarks.rounds import ROUNDS, abba, ratios, spread
from cache.memory import MB, InMemoryKVCacheManager
from cache.policies import POLICIES

SLICE = 20_000
VALUE = bytes(100)


def keys_of(entries: int) -> list[str]:
    return [f"key-{number:012d}" for number in range(entries)]


def filled(entries: int, policy: str = "lru") -> InMemoryKVCacheManager:
    """Holds `entries` entries and, with its limit, few more."""
    max_memory_mb = -(-entries * (len(VALUE) + 16) // MB)
    manager = InMemoryKVCacheManager(max_memory_mb, policy)
    for key in keys_of(entries):
        manager.set(key, VALUE)
    return manager


def timed(
    operation: Callable[[str], object], keys: Sequence[str]
) -> Callable[[], Awaitable[float]]:
    """A slice: CPU nanoseconds of one operation, over random keys."""

    async def run() -> float:
        chosen = random.choices(keys, k=SLICE)  # noqa: S311 - no secret
        started = time.thread_time_ns()
        for key in chosen:
            operation(key)
        return (time.thread_time_ns() - started) / SLICE

    return run


def new_keys(operation: Callable[[str], object]) -> Callable[[], Awaitable[float]]:
    """A slice: CPU nanoseconds of storing a key never seen, where each evicts another."""
    number = 0

    async def run() -> float:
        nonlocal number
        chosen = [f"new-{number + one:012d}" for one in range(SLICE)]
        number += SLICE
        started = time.thread_time_ns()
        for key in chosen:
            operation(key)
        return (time.thread_time_ns() - started) / SLICE

    return run


def setting(manager: InMemoryKVCacheManager) -> Callable[[str], None]:
    return lambda key: manager.set(key, VALUE)


async def against_cachetools(entries: int) -> None:
    keys = keys_of(entries)
    lru: cachetools.LRUCache[str, bytes] = cachetools.LRUCache(maxsize=entries)
    for key in keys:
        lru[key] = VALUE
    gets = {"cachetools": timed(lru.__getitem__, keys)}
    sets = {"cachetools": timed(lambda key: lru.__setitem__(key, VALUE), keys)}
    news = {"cachetools": new_keys(lambda key: lru.__setitem__(key, VALUE))}
    for policy in POLICIES:
        manager = filled(entries, policy)
        gets[policy] = timed(manager.get, keys)
        sets[policy] = timed(setting(manager), keys)
        news[policy] = new_keys(setting(manager))
    for name, slices in (("get", gets), ("set, replacing", sets), ("set, evicting", news)):
        figures = await abba(slices)
        for candidate in slices:
            print(
                f"{entries:9,} entries, {name:14} {candidate:10} {spread(figures[candidate])} ns, "
                f"rate to cachetools {ratios(figures, 'cachetools', candidate)}"
            )


async def against_diskcache() -> None:
    value = os.urandom(MB)
    manager = InMemoryKVCacheManager(256)
    with tempfile.TemporaryDirectory() as folder:
        disk = diskcache.Cache(folder)
        keys = keys_of(64)
        for key in keys:
            manager.set(key, value)
            disk.set(key, value)

        def slice_of(operation: Callable[[str], object]) -> Callable[[], Awaitable[float]]:
            async def run() -> float:
                started = time.perf_counter_ns()
                for key in keys:
                    operation(key)
                return (time.perf_counter_ns() - started) / len(keys)

            return run

        for name, ours, theirs in (
            ("get", manager.get, disk.get),
            ("set", lambda key: manager.set(key, value), lambda key: disk.set(key, value)),
        ):
            figures = await abba({"ours": slice_of(ours), "diskcache": slice_of(theirs)}, ROUNDS)
            print(
                f"1 MB {name}: ours {spread(figures['ours'])} ns, "
                f"diskcache {spread(figures['diskcache'])} ns, "
                f"times as fast {ratios(figures, 'diskcache', 'ours')}"
            )
        disk.close()


def longest_operation(entries: int, policy: str) -> tuple[float, float]:
    """Longest and 99.99th percentile of set and get, in milliseconds of CPU."""
    manager = filled(entries, policy)
    times = []
    for number in range(max(2 * entries, 200_000)):
        started = time.thread_time_ns()
        if number % 2:
            manager.get(f"key-{number % entries:012d}")
        else:
            manager.set(f"new-{number:012d}", VALUE)
        times.append(time.thread_time_ns() - started)
    times.sort()
    return times[-1] / 1e6, times[int(len(times) * 0.9999)] / 1e6


def bytes_an_entry(entries: int, policy: str) -> tuple[float, float]:
    """Resident bytes beyond the texts of key and value: after loading, and after a get of each."""
    process = psutil.Process()
    before = process.memory_info().rss
    manager = InMemoryKVCacheManager(1024, policy)
    for number in range(entries):
        manager.set(f"key-{number:012d}", bytes(100))
    loaded = process.memory_info().rss - before
    for number in range(entries):
        manager.get(f"key-{number:012d}")
    read = process.memory_info().rss - before
    return loaded / entries - 116, read / entries - 116


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for policy in POLICIES:
        loaded, read = bytes_an_entry(200_000, policy)
        print(f"{policy:8} bytes an entry: {loaded:.0f}, after a get of each {read:.0f}")
    for policy in ("lru", "prefix"):
        for entries in (1_000, 1_000_000):
            longest, usual = longest_operation(entries, policy)
            print(f"{policy:8} {entries:9,} entries: longest {longest:.2f} ms, 99.99 % {usual:.2f}")
    for entries in (1_000, 1_000_000):
        asyncio.run(against_cachetools(entries))
    asyncio.run(against_diskcache())


if __name__ == "__main__":
    main()
