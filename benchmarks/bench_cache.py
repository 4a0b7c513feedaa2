"""A cache get over the bus against a bare nats-py responder that returns the same bytes.

`python -m benchmarks.bench_cache`: a private nats-server, `resource-agent run cache` and the bare
responder as processes of their own, the client here. For each size and concurrency twelve ABBA
rounds of half-second slices; gets a second, their ratio round by round, and the CPU time of the
responding process for each request.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

import nats
import psutil
from nats.aio.client import Client

from agent.client import CacheClient
from benchmarks.installation import private_bus, python, service
from benchmarks.rounds import ROUNDS, abba, ratios, spread

SIZES = (128, 4096)
CONCURRENCIES = (1, 32)
SLICE_SECONDS = 0.5

RESPONDER = """
import asyncio, sys
import nats

async def main():
    client = await nats.connect(sys.argv[1])
    values = {size: b"x" * size for size in map(int, sys.argv[2:])}

    async def answer(message):
        await message.respond(values[int(message.data)])

    await client.subscribe("bench.bare", cb=answer)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def gets(
    ask: Callable[[], Awaitable[object]], concurrency: int, watched: psutil.Process
) -> tuple[float, float]:
    """Requests a second, and CPU microseconds of `watched` for each, over one slice."""
    count = 0
    end = time.perf_counter() + SLICE_SECONDS

    async def worker() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await ask()
            count += 1

    cpu_before, started = sum(watched.cpu_times()[:2]), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    seconds = time.perf_counter() - started
    return count / seconds, (sum(watched.cpu_times()[:2]) - cpu_before) / count * 1e6


async def compare(
    client: Client, cache_pid: int, bare_pid: int, size: int, concurrency: int, rounds: int
) -> None:
    """Print one line for this size and concurrency."""
    cpu: dict[str, list[float]] = {"cache": [], "bare": []}

    def asks(name: str, subject: str, payload: bytes, pid: int) -> Callable[[], Awaitable[float]]:
        watched = psutil.Process(pid)

        async def ask() -> None:
            answer = await client.request(subject, payload, timeout=5)
            if len(answer.data) != size:
                raise RuntimeError(f"{subject} answered {len(answer.data)} bytes, not {size}")

        async def one_slice() -> float:
            rate, microseconds = await gets(ask, concurrency, watched)
            cpu[name].append(microseconds)
            return rate

        return one_slice

    figures = await abba(
        {
            "cache": asks(
                "cache", "fleet.v1.cache.default.get", f"value-{size}".encode(), cache_pid
            ),
            "bare": asks("bare", "bench.bare", str(size).encode(), bare_pid),
        },
        rounds,
    )
    print(
        f"| {size:,} B | {concurrency} | {spread(figures['cache']).median:,.0f} | "
        f"{spread(figures['bare']).median:,.0f} | {ratios(figures, 'cache', 'bare')} | "
        f"{spread(cpu['cache']).median:.0f} | {spread(cpu['bare']).median:.0f} |",
        flush=True,
    )


async def measure(rounds: int) -> None:
    """Print the table."""
    async with (
        private_bus() as bus,
        service(bus, "cache") as cache_pid,
        python("-c", RESPONDER, bus.url, *map(str, SIZES)) as bare,
    ):
        assert bare.stdout is not None
        await bare.stdout.readline()
        client = await nats.connect(bus.url)
        for size in SIZES:
            await CacheClient(bus).put(f"value-{size}", b"x" * size)
        print(f"{rounds} ABBA rounds of {SLICE_SECONDS} s slices")
        print("| value | at once | cache gets/s | bare/s | ratio (quartiles) | cache CPU µs "
              "| bare CPU µs |\n|---|---|---|---|---|---|---|")  # fmt: skip
        for size in SIZES:
            for concurrency in CONCURRENCIES:
                await compare(client, cache_pid, bare.pid, size, concurrency, rounds)
        await client.close()


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
