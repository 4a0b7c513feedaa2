"""Values on the same host: get_into, kept descriptors and put against redis and a bare memory copy.

`python -m benchmarks.bench_same_host [--redis-server PATH]`: a private nats-server, `resource-agent
run cache` and redis-server (no persistence) as processes of their own, the client here, redis-py
with hiredis. Keys rotate over 128 MiB. For each size and number in flight ABBA rounds of at least
64 MiB; MB/s (10^6 bytes a second), ratios round by round, CPU of the answering process in each
request. `get_into` asks the cache each time, `kept` reads what is open already.
"""

import argparse
import asyncio
import contextlib
import importlib
import itertools
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from agent.client import CacheClient
from benchmarks.installation import private_bus, service
from benchmarks.rounds import ROUNDS, abba, ratios, spread

MIB = 1024 * 1024
SIZES_KIB = (256, 1024, 4096, 16384, 65536)
ALL_BYTES = 128 * MIB
SLICE_BYTES = 64 * MIB
READY_SECONDS = 10.0
TICKS = os.sysconf("SC_CLK_TCK")

Work = Callable[[int], Awaitable[object]]
"""One transfer of the value with that number."""
Candidates = dict[str, tuple[Work, int | None]]
"""By name: its work, and the process whose CPU it costs."""
COLUMNS = ("value", "in flight", "", "MB/s", "x redis", "x memory copy", "CPU ms a request")


@contextlib.asynccontextmanager
async def redis(program: str) -> AsyncIterator[tuple[Any, int]]:
    """A client of a fresh redis-server, and the server's process id."""
    importlib.import_module("hiredis")  # a slower parser would not be a fair comparison
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = await asyncio.create_subprocess_exec(
        program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with importlib.import_module("redis.asyncio").Redis(port=port) as client:
            async with asyncio.timeout(READY_SECONDS):
                while not await _answers(client):
                    await asyncio.sleep(0.05)
            yield client, server.pid
    finally:
        server.terminate()
        await server.wait()


async def _answers(client: Any) -> bool:  # noqa: ANN401 - redis-py may be absent
    with contextlib.suppress(Exception):
        return bool(await client.ping())
    return False


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Transfers:
    """Values of one size, so many in flight: from and to the same buffers whichever way they go."""

    def __init__(self, source: memoryview, size: int, in_flight: int) -> None:
        count = max(1, ALL_BYTES // size)
        self.values = [source[n * size : (n + 1) * size] for n in range(count)]
        # Written once, so that every page is there before it counts.
        self.buffers = [memoryview(bytearray(b"1" * size)) for _ in range(min(8, count))]
        self.cpu: dict[str, list[float]] = {}
        self._size = size
        self._in_flight = in_flight

    async def copy(self, number: int) -> None:
        """What memory allows at best."""
        self._buffer(number)[:] = self.values[number]

    def into(self, client: CacheClient) -> Work:
        """Gets into a buffer."""

        async def get(number: int) -> None:
            assert await client.get_into(f"k{number}", self._buffer(number)) == self._size

        return get

    def put(self, keep: Callable[[str, memoryview], Awaitable[object]]) -> Work:
        """Puts by `keep`."""

        async def put(number: int) -> None:
            await keep(f"k{number}", self.values[number])

        return put

    def slice(self, name: str, work: Work, pid: int | None) -> Callable[[], Awaitable[float]]:
        """MB/s of at least 64 MiB; the CPU of `pid` for each transfer is noted beside it."""

        async def one_slice() -> float:
            times = max(self._in_flight, SLICE_BYTES // self._size)
            numbers = iter(range(times))

            async def some() -> None:
                for number in numbers:
                    await work(number % len(self.values))

            cpu, started = (cpu_seconds(pid) if pid else 0.0), time.perf_counter()
            await asyncio.gather(*(some() for _ in range(self._in_flight)))
            elapsed = time.perf_counter() - started
            if pid:
                self.cpu.setdefault(name, []).append((cpu_seconds(pid) - cpu) / times)
            return times * self._size / elapsed / 1e6

        return one_slice

    def _buffer(self, number: int) -> memoryview:
        return self.buffers[number % len(self.buffers)]


async def measure(rounds: int, program: str, sizes: Sequence[int]) -> None:
    """Print the table."""
    settings = {
        "RESOURCE_AGENT_CACHE__MAX_MEMORY_MB": "512",
        "RESOURCE_AGENT_CACHE__ARCHIVE_MODE": "off",
    }
    async with (
        private_bus() as bus,
        service(bus, "cache", **settings) as cache_pid,
        redis(program) as (store, redis_pid),
        CacheClient(bus) as asking,
        CacheClient(bus) as keeping,
    ):
        asking.same_host.kept_files = 0
        print(f"{rounds} ABBA rounds of at least {SLICE_BYTES // MIB} MiB")
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        source = memoryview(bytearray(os.urandom(MIB)) * (ALL_BYTES // MIB))
        for size, in_flight in itertools.product(sizes, (1, 8)):
            transfers = Transfers(source, size, in_flight)
            for number, value in enumerate(transfers.values):
                await asking.put(f"k{number}", value)
                await store.set(f"k{number}", value)
                await keeping.get(f"k{number}")
            reads: Candidates = {
                "memory copy": (transfers.copy, None),
                "redis get": (lambda n: store.get(f"k{n}"), redis_pid),
                "get_into": (transfers.into(asking), cache_pid),
                "kept": (transfers.into(keeping), cache_pid),
            }
            writes: Candidates = {
                "memory copy": (transfers.copy, None),
                "redis set": (transfers.put(store.set), redis_pid),
                "put": (transfers.put(asking.put), cache_pid),
            }
            for candidates, theirs in ((reads, "redis get"), (writes, "redis set")):
                figures = await abba(
                    {name: transfers.slice(name, *one) for name, one in candidates.items()}, rounds
                )
                for name in candidates:
                    cpu = transfers.cpu.get(name)
                    cells = [
                        f"{size // 1024} KiB",
                        str(in_flight),
                        name,
                        f"{spread(figures[name]).median:.0f}",
                        str(ratios(figures, name, theirs)),
                        str(ratios(figures, name, "memory copy")),
                        f"{spread(cpu).median * 1e3:.2f}" if cpu else "",
                    ]
                    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--redis-server", default=shutil.which("redis-server"))
    parser.add_argument("--kib", type=int, nargs="+", default=SIZES_KIB)
    asked = parser.parse_args()
    if asked.redis_server is None:
        parser.error("no redis-server on PATH; give --redis-server")
    asyncio.run(measure(asked.rounds, asked.redis_server, [kib * 1024 for kib in asked.kib]))


if __name__ == "__main__":
    main()
