"""Get and put of large values against a bare nats-py transfer of the same pieces.

`python -m benchmarks.bench_large`: a private nats-server, `resource-agent run cache` and a bare
responder as processes of their own, the client here. For each size ABBA rounds of whole transfers,
512 KiB a message, the same number in flight on both sides; MB/s (10^6 bytes a second) and the ratio
round by round. A put computes BLAKE3 on both sides; the bare transfer does so only in the line
that says it. What the digests alone reach here, in one thread, is printed first.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import nats
from blake3 import blake3
from nats.aio.client import Client

from agent.client import CacheClient
from benchmarks.installation import private_bus, python, service
from benchmarks.rounds import ROUNDS, abba, ratios, spread
from schemas.cache import PART_BYTES, PARTS_IN_FLIGHT
from schemas.digest import digest_of

SIZES_MIB = (1, 4, 16, 64)
MIB = 1024 * 1024
DIGESTS = {"BLAKE3": "blake3:", "BLAKE2b": "blake2b:", "SHA-256": "0"}
Run = Callable[[], Awaitable[object]]
Transfers = tuple[Run, Run]
"""Through the cache, and bare."""
SLICE_BYTES = 64 * MIB
"""Small values are transferred several times in a slice."""

RESPONDER = """
import asyncio, concurrent.futures, sys
import nats
from blake3 import blake3

async def main():
    client = await nats.connect(sys.argv[1])
    piece = bytes(int(sys.argv[2]))
    thread = concurrent.futures.ThreadPoolExecutor(1)

    async def digest(message):
        asked = thread.submit(blake3, message.data)
        if not message.data:
            await asyncio.wrap_future(asked)
        await message.respond(b"")

    await client.subscribe("bench.digest", cb=digest)

    async def give(message):
        await message.respond(piece)

    async def take(message):
        await message.respond(b"")

    await client.subscribe("bench.give", cb=give)
    await client.subscribe("bench.take", cb=take)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def bare_get(client: Client, value: bytes) -> None:
    """Ask for as many pieces as the value has, into one buffer."""
    starts = iter(range(0, len(value), PART_BYTES))
    buffer = bytearray(len(value))

    async def work() -> None:
        for start in starts:
            answer = await client.request("bench.give", b"", timeout=10)
            buffer[start : start + PART_BYTES] = answer.data

    await asyncio.gather(*(work() for _ in range(PARTS_IN_FLIGHT)))


async def bare_put(client: Client, value: bytes, subject: str = "bench.take") -> None:
    """Send the value in pieces."""
    starts = iter(range(0, len(value), PART_BYTES))

    async def work() -> None:
        for start in starts:
            await client.request(subject, value[start : start + PART_BYTES], timeout=10)

    await asyncio.gather(*(work() for _ in range(PARTS_IN_FLIGHT)))


async def digested_put(client: Client, value: bytes) -> None:
    """Send the value in pieces while both sides compute its BLAKE3 in a thread."""
    digesting = asyncio.create_task(asyncio.to_thread(blake3, value))
    await bare_put(client, value, "bench.digest")
    await digesting
    await client.request("bench.digest", b"", timeout=10)


def speed(transfer: Run, size: int) -> Callable[[], Awaitable[float]]:
    """A slice: MB/s over at least 64 MiB."""

    async def one_slice() -> float:
        times = max(1, SLICE_BYTES // size)
        started = time.perf_counter()
        for _ in range(times):
            await transfer()
        return times * size / (time.perf_counter() - started) / 1e6

    return one_slice


async def compare(
    cache: CacheClient, client: Client, value: bytes, buffer: bytearray, rounds: int
) -> None:
    """Print the lines for one value."""
    runs: dict[str, Transfers] = {
        "get_into": (lambda: cache.get_into("value", buffer), lambda: bare_get(client, value)),
        "get": (lambda: cache.get("value"), lambda: bare_get(client, value)),
        "put": (lambda: cache.put("value", value), lambda: bare_put(client, value)),
        "put, bare with BLAKE3": (
            lambda: cache.put("value", value),
            lambda: digested_put(client, value),
        ),
    }
    for name, (ours, bare) in runs.items():
        slices = {"cache": speed(ours, len(value)), "bare": speed(bare, len(value))}
        figures = await abba(slices, rounds)
        print(
            f"| {len(value) // MIB} MiB | {name} | {spread(figures['cache']).median:.0f} | "
            f"{spread(figures['bare']).median:.0f} | {ratios(figures, 'cache', 'bare')} |",
            flush=True,
        )


async def measure(rounds: int, sizes_mib: Sequence[int] = SIZES_MIB) -> None:
    """Print the table."""
    async with (
        private_bus() as bus,
        service(
            bus,
            "cache",
            RESOURCE_AGENT_CACHE__MAX_MEMORY_MB="256",
            RESOURCE_AGENT_CACHE__ARCHIVE_MODE="off",
            RESOURCE_AGENT_CACHE__SAME_HOST="false",
        ),
        python("-c", RESPONDER, bus.url, str(PART_BYTES)) as responder,
    ):
        assert responder.stdout is not None
        await responder.stdout.readline()
        client, cache = await nats.connect(bus.url), CacheClient(bus)
        value = bytes(max(sizes_mib) * MIB)
        alone = ", ".join(f"{name} {alone_mb(like, value):.0f}" for name, like in DIGESTS.items())
        print(f"{rounds} ABBA rounds of 64 MiB; MB a second of CPU: {alone}")
        print("| value | operation | cache MB/s | bare MB/s | ratio (quartiles) |\n"
              "|---|---|---|---|---|")  # fmt: skip
        buffer = bytearray(len(value))
        for mib in sizes_mib:
            part = value[: mib * MIB]
            await cache.put("value", part)
            await compare(cache, client, part, buffer, rounds)
        await client.close()


def alone_mb(like: str, value: bytes) -> float:
    """MB that the algorithm of the digest `like` takes in, for each second of CPU."""
    started = time.process_time()
    digest_of(value, like)
    return len(value) / (time.process_time() - started) / 1e6


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--sizes-mib", type=int, nargs="+", default=SIZES_MIB)
    chosen = parser.parse_args()
    asyncio.run(measure(chosen.rounds, chosen.sizes_mib))


if __name__ == "__main__":
    main()
