"""Get and put of large values against a bare nats-py transfer of the same pieces.

`python -m benchmarks.bench_large`: a private nats-server, `resource-agent run cache` and a bare
responder as processes of their own, the client here. For each size ABBA rounds of whole transfers,
512 KiB a message, the same number in flight on both sides; MB/s (10^6 bytes a second) and the ratio
round by round. The bare transfer computes no digest: what SHA-256 alone reaches here, in one
thread, is printed beside it.
"""

import argparse
import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable

import nats
from nats.aio.client import Client

from agent.client import CacheClient
from benchmarks.installation import private_bus, python, service
from benchmarks.rounds import ROUNDS, abba, ratios, spread
from schemas.cache import PART_BYTES, PARTS_IN_FLIGHT

SIZES_MIB = (1, 4, 16, 64)
MIB = 1024 * 1024
SLICE_BYTES = 64 * MIB
"""Small values are transferred several times in a slice."""

RESPONDER = """
import asyncio, sys
import nats

async def main():
    client = await nats.connect(sys.argv[1])
    piece = bytes(int(sys.argv[2]))

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


async def bare(client: Client, value: bytes, *, give: bool) -> None:
    """Ask for, or send, as many pieces as the value has."""
    starts = iter(range(0, len(value), PART_BYTES))
    buffer = bytearray(len(value))

    async def work() -> None:
        for start in starts:
            if give:
                answer = await client.request("bench.give", b"", timeout=10)
                buffer[start : start + PART_BYTES] = answer.data
            else:
                await client.request("bench.take", value[start : start + PART_BYTES], timeout=10)

    await asyncio.gather(*(work() for _ in range(PARTS_IN_FLIGHT)))


def speed(transfer: Callable[[], Awaitable[object]], size: int) -> Callable[[], Awaitable[float]]:
    """A slice: MB/s over at least 64 MiB."""

    async def one_slice() -> float:
        times = max(1, SLICE_BYTES // size)
        started = time.perf_counter()
        for _ in range(times):
            await transfer()
        return times * size / (time.perf_counter() - started) / 1e6

    return one_slice


async def measure(rounds: int) -> None:
    """Print the table."""
    async with (
        private_bus() as bus,
        service(
            bus,
            "cache",
            RESOURCE_AGENT_CACHE__MAX_MEMORY_MB="256",
            RESOURCE_AGENT_CACHE__ARCHIVE_MODE="off",
        ),
        python("-c", RESPONDER, bus.url, str(PART_BYTES)) as responder,
    ):
        assert responder.stdout is not None
        await responder.stdout.readline()
        client, cache = await nats.connect(bus.url), CacheClient(bus)
        value = bytes(SIZES_MIB[-1] * MIB)
        started = time.perf_counter()
        hashlib.sha256(value).digest()
        alone = len(value) / (time.perf_counter() - started) / 1e6
        print(f"{rounds} ABBA rounds of 64 MiB; SHA-256 alone {alone:.0f} MB/s")
        print("| value | operation | cache MB/s | bare MB/s | ratio (quartiles) |\n"
              "|---|---|---|---|---|")  # fmt: skip
        buffer = bytearray(len(value))
        for mib in SIZES_MIB:
            part = value[: mib * MIB]
            await cache.put("value", part)
            slices: dict[str, tuple[Callable[[], Awaitable[object]], bool]] = {
                "get_into": (lambda: cache.get_into("value", buffer), True),
                "get": (lambda: cache.get("value"), True),
                "put": (lambda part=part: cache.put("value", part), False),  # type: ignore[misc]
            }
            for name, (transfer, give) in slices.items():
                figures = await abba(
                    {
                        "cache": speed(transfer, len(part)),
                        "bare": speed(
                            lambda part=part, give=give: bare(client, part, give=give),  # type: ignore[misc]
                            len(part),
                        ),
                    },
                    rounds,
                )
                print(
                    f"| {mib} MiB | {name} | {spread(figures['cache']).median:.0f} | "
                    f"{spread(figures['bare']).median:.0f} | {ratios(figures, 'cache', 'bare')} |",
                    flush=True,
                )
        await client.close()


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
