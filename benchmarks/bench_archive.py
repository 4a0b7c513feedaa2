"""From eviction to object, and back, against the same S3 client putting the same bytes bare.

`python -m benchmarks.bench_archive --endpoint http://host:port --bucket name`, with credentials in
the AWS variables: a private nats-server, `resource-agent run archive` as a process of its own.
Timed is from the first eviction that is put into the stream until the stream is empty, so every one
is durable, announced and acknowledged.
Bare is one put per value, as many at once as the archiver may have; random bytes, which do not
compress. ABBA rounds; MB/s (10^6) or entries/s, and the ratio round by round.
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from agent.bus import Bus
from archive.s3 import S3Store
from archive.settings import S3Settings
from benchmarks.installation import private_bus, service
from benchmarks.rounds import abba, ratios, spread
from schemas.cache import (
    EVICTED_HEADER,
    INLINE_LIMIT_BYTES,
    Evicted,
    encode_header,
    part_count,
    part_range,
)
from schemas.digest import digest_of

KIB, MIB = 1024, 1024 * 1024
CASES = {"4 KiB": (4 * KIB, 8000, 300), "1 MiB": (MIB, 48, 48), "32 MiB": (32 * MIB, 3, 3)}
"""Size of a value, and how many of them a slice archives and puts bare."""
LIFE_SECONDS = 300
AT_ONCE = 16


async def evict(bus: Bus, value: bytes) -> str:
    """Publish an eviction as the cache does; returns its key."""
    key = f"bench:{secrets.token_hex(16)}"
    now = datetime.now(UTC)
    is_large = len(value) > INLINE_LIMIT_BYTES
    manifest = Evicted(
        namespace="default",
        key=key,
        version="00000000000-00000001",
        generation=1,
        evicted_at=now,
        size_bytes=len(value),
        digest=digest_of(value),
        expires_at=now + timedelta(seconds=LIFE_SECONDS),
        parts=part_count(len(value)) if is_large else 0,
        eviction=secrets.token_hex(8) if is_large else None,
    )
    for part in range(manifest.parts):
        first, end = part_range(part, len(value))
        subject = f"evicted_part.default.{manifest.eviction}.{part}"
        await bus.publish_raw(subject, value[first:end], {}, message_id=secrets.token_hex(16))
    headers = {EVICTED_HEADER: encode_header(msgspec.json.encode(manifest).decode())}
    payload = b"" if is_large else value
    await bus.publish_raw("evicted.default", payload, headers, message_id=secrets.token_hex(16))
    return key


async def each(count: int, work: Callable[[], Awaitable[object]]) -> None:
    """Do `work` so many times, `AT_ONCE` at a time."""
    left: Iterator[int] = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await work()

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def archived(bus: Bus, value: bytes, count: int) -> float:
    """Values a second from the stream into the store."""
    began = time.perf_counter()
    await each(count, lambda: evict(bus, value))
    while await bus.depth("EVICTIONS"):
        await asyncio.sleep(0.01)
    return count / (time.perf_counter() - began)


async def put_bare(store: S3Store, value: bytes, count: int) -> float:
    """Values a second by one put each."""
    names = [secrets.token_hex(32) for _ in range(count)]
    left = iter(names)
    began = time.perf_counter()
    await each(count, lambda: store.put(next(left), value))
    seconds = time.perf_counter() - began
    left = iter(names)
    await each(count, lambda: store.delete(next(left)))
    return count / seconds


@contextlib.asynccontextmanager
async def bare_store(endpoint: str, bucket: str) -> AsyncIterator[S3Store]:
    """The client that the archive uses, with its settings."""
    store = S3Store(bucket, "bare/", S3Settings(endpoint_url=endpoint))
    await store.open()
    yield store
    await store.close()


def peak_mib(pid: int) -> float:
    """Most memory the process has had at once."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


async def measure(endpoint: str, bucket: str, rounds: int, cases: list[str]) -> None:
    """Print a table of rates and ratios."""
    settings = {
        "RESOURCE_AGENT_ARCHIVE__STORE": f"s3://{bucket}/archive-{secrets.token_hex(4)}",
        "RESOURCE_AGENT_ARCHIVE__S3__ENDPOINT_URL": endpoint,
        "RESOURCE_AGENT_ARCHIVE__SWEEP_INTERVAL_SECONDS": "20",
    }
    async with (
        private_bus() as bus,
        bare_store(endpoint, bucket) as store,
        service(bus, "archive", **settings) as pid,
    ):
        for case in cases:
            size_bytes, count, bare_count = CASES[case]
            value = os.urandom(size_bytes)

            async def ours(value: bytes = value, count: int = count) -> float:
                return await archived(bus, value, count)

            async def bare(value: bytes = value, count: int = bare_count) -> float:
                return await put_bare(store, value, count)

            figures = await abba({"archive": ours, "bare": bare}, rounds)
            unit, scale = ("/s", 1.0) if size_bytes < MIB else (" MB/s", size_bytes / 1e6)
            shown = {
                name: spread([rate * scale for rate in rates]) for name, rates in figures.items()
            }
            print(
                f"{case}: archive {shown['archive']}{unit}, bare {shown['bare']}{unit}, "
                f"ratio {ratios(figures, 'archive', 'bare')}; "
                f"archiver's peak {peak_mib(pid):.0f} MiB"
            )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--case", action="append", choices=CASES)
    asked = parser.parse_args()
    asyncio.run(measure(asked.endpoint, asked.bucket, asked.rounds, asked.case or [*CASES]))


if __name__ == "__main__":
    main()
