"""Operations a second of several caches in turns, with their latency and the CPU they take."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import psutil

from agent.client import CacheClient
from benchmarks.peers import Peer
from benchmarks.rounds import Spread, abba, ratios, spread

SLICE_SECONDS = 0.5
KEYS = 64
BATCH = 64


class Result(msgspec.Struct, frozen=True):
    """One peer in one cell; `ratio` is the cache's rate by this peer's, None for itself."""

    peer: str
    rate: Spread
    p95_seconds: float
    cpu_seconds: float
    ratio: Spread | None


class Cell(msgspec.Struct, frozen=True):
    """All peers at one operation, value size and concurrency."""

    operation: str
    size_bytes: int
    concurrency: int
    results: list[Result]

    def rate_of(self, peer: str) -> float | None:
        """Median operations a second."""
        return next((one.rate.median for one in self.results if one.peer == peer), None)


async def compare(
    peers: Sequence[Peer], operation: str, size: int, concurrency: int, rounds: int
) -> Cell:
    """Measure one cell. The first peer is the one that all are compared with."""
    value = b"x" * size
    keys = [f"bench-{size}-{number}" for number in range(KEYS)]
    for peer in peers:
        for key in keys:
            await peer.put(key, value)
    p95s: dict[str, list[float]] = {peer.name: [] for peer in peers}
    cpus: dict[str, list[float]] = {peer.name: [] for peer in peers}

    def slice_of(peer: Peer) -> Callable[[], Awaitable[float]]:
        process = psutil.Process(peer.pid)

        async def ask(number: int) -> None:
            key = keys[number % KEYS]
            if operation == "put":
                await peer.put(key, value)
                return
            answer = await peer.get(key)
            if answer is None or len(answer) != size:
                raise RuntimeError(f"{peer.name} did not answer {size} bytes under {key}")

        async def one_slice() -> float:
            before = sum(process.cpu_times()[:2])
            rate, latencies = await paced(ask, concurrency)
            cpus[peer.name].append((sum(process.cpu_times()[:2]) - before) / len(latencies))
            p95s[peer.name].append(latencies[int(0.95 * len(latencies))])
            return rate

        return one_slice

    figures = await abba({peer.name: slice_of(peer) for peer in peers}, rounds)
    ours = peers[0].name
    return Cell(
        operation,
        size,
        concurrency,
        [
            Result(
                name,
                spread(rates),
                spread(p95s[name]).median,
                spread(cpus[name]).median,
                None if name == ours else ratios(figures, ours, name),
            )
            for name, rates in figures.items()
        ],
    )


async def paced(
    ask: Callable[[int], Awaitable[None]], concurrency: int
) -> tuple[float, list[float]]:
    """`concurrency` askers for one slice: requests a second, and their latencies, sorted."""
    latencies: list[float] = []
    started = time.perf_counter()
    end = started + SLICE_SECONDS

    async def worker(first: int) -> None:
        number, now = first, time.perf_counter()
        while now < end:
            await ask(number)
            before, now = now, time.perf_counter()
            latencies.append(now - before)
            number += concurrency

    await asyncio.gather(*(worker(number) for number in range(concurrency)))
    return len(latencies) / (time.perf_counter() - started), sorted(latencies)


async def fill(peer: Peer, start: int, end: int) -> None:
    """Put entries number `start` to `end` of 128 B, 64 at once."""
    numbers = iter(range(start, end))

    async def worker() -> None:
        for number in numbers:
            await peer.put(f"other-{number}", b"x" * 128)

    await asyncio.gather(*(worker() for _ in range(64)))


async def batches(client: CacheClient, rounds: int) -> list[tuple[str, Spread, Spread | None]]:
    """How often a second 64 values of 4 KiB come, by `get_many` and by single gets."""
    keys = [f"batch-{number}" for number in range(BATCH)]
    for key in keys:
        await client.put(key, b"x" * 4096)

    async def together(_number: int) -> None:
        answers = await client.get_many(keys)
        assert len(answers) == BATCH

    async def one_by_one(_number: int) -> None:
        for key in keys:
            await client.get(key)

    async def side_by_side(_number: int) -> None:
        await asyncio.gather(*map(client.get, keys))

    ways = {
        "`get_many`": together,
        "64 gets, one after the other": one_by_one,
        "64 gets at once": side_by_side,
    }

    def slice_of(ask: Callable[[int], Awaitable[None]]) -> Callable[[], Awaitable[float]]:
        async def one_slice() -> float:
            return (await paced(ask, 1))[0]

        return one_slice

    figures = await abba({how: slice_of(ask) for how, ask in ways.items()}, rounds)
    first = next(iter(ways))
    return [
        (how, spread(rates), None if how == first else ratios(figures, first, how))
        for how, rates in figures.items()
    ]
