"""From eviction to object and back, against the same S3 client doing the same bytes bare.

`python -m benchmarks.bench_archive`: a private nats-server, an S3 server (rclone; `--s3`, or
`--endpoint` and `--bucket` of one that runs, with credentials in the AWS variables), and
`resource-agent run archive` as a process of its own. Evictions are timed from the first until
the stream is empty, so every one is durable, announced and acknowledged: large ones of a cache on
the same host, which lends them, and of one elsewhere, in parts; bare is one put per value, 16 at
once. Restores are timed one
after the other, into the RAM of a cache, and verified: one on the same host, whose file the
archiver writes, and one elsewhere, over the bus; bare is one get per value. Random bytes, which do
not compress. ABBA rounds; median and quartiles, and the ratio round by round.
"""

import argparse
import asyncio
import contextlib
import functools
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from agent.human import size as shown
from agent.views.charts import Axis, Series, line_chart
from archive.s3 import S3Store
from archive.settings import PriceSettings, S3Settings
from benchmarks.archive_cache import lender
from benchmarks.archive_rates import Rates, Row, Way, evict, evict_many
from benchmarks.installation import private_bus, service
from benchmarks.report import Report
from benchmarks.s3 import KINDS, running_s3
from schemas.cache import INLINE_LIMIT_BYTES

KIB, MIB = 1024, 1024 * 1024
EVICTED = {4 * KIB: (64_000, 400), MIB: (64, 64), 8 * MIB: (12, 12), 32 * MIB: (5, 5)}
"""Size, and how many a slice archives and puts bare: enough that the last segment's wait for more
(`archive.segment_seconds`) is a small part of it."""
WAYS: dict[Way, str] = {
    "file": "of a cache on the same host, which lends files",
    "bus": "of a cache on another host, which is asked for parts",
    "stream": "that a stream takes first",
}
PARTS_OF: dict[Way, str] = {
    "file": "evictions",
    "bus": "evictions_bus",
    "stream": "evictions_stream",
}
RESTORED = {4 * KIB: 100, MIB: 24, 8 * MIB: 6, 32 * MIB: 3}
LARGEST = (64 * MIB, 10)
PARTS = ("evictions", "restores", "memory", "cost")
ROUNDS = 4
COST_RATES = (100, 1000)
"""Evictions a second, at which requests are counted for `COST_SECONDS`."""
COST_SECONDS = 10.0
DAY_SECONDS = 86400.0
MILLION = 1_000_000
BUCKET = "bench"


@contextlib.asynccontextmanager
async def installed(endpoint: str, bucket: str) -> AsyncIterator[tuple[Bus, S3Store, int]]:
    """A fresh server and archiver, and the client that the archive uses, with its settings."""
    settings = {
        "RESOURCE_AGENT_ARCHIVE__STORE": f"s3://{bucket}/archive-{secrets.token_hex(4)}",
        "RESOURCE_AGENT_ARCHIVE__S3__ENDPOINT_URL": endpoint,
        "RESOURCE_AGENT_ARCHIVE__SWEEP_INTERVAL_SECONDS": "20",
    }
    store = S3Store(bucket, "bare/", S3Settings(endpoint_url=endpoint))
    async with private_bus() as bus, service(bus, "archive", **settings) as pid:
        await store.open()
        yield bus, store, pid
        await store.close()


def show(report: Report, part: str, row: Row) -> None:
    """One size: MB/s, below a MiB values/s."""
    size_bytes = row.size_bytes
    unit, scale = ("/s", 1.0) if size_bytes < MIB else (" MB/s", size_bytes / 1e6)
    cells = [shown(size_bytes)]
    for side in (row.archive, row.bare):
        p95 = "" if side.p95_seconds is None else f", p95 {side.p95_seconds * 1000:.1f} ms"
        cells.append(f"{side.rate.times(scale)}{unit}{p95}")
    cells.append(str(row.ratio))
    cells += [f"{side.cpu_seconds * 1000:.2f} ms" for side in (row.archive, row.bare)]
    report.row(part, msgspec.to_builtins(row), *cells)


async def evictions(report: Report, rates: Rates, rounds: int, way: Way) -> list[Row]:
    """By size."""
    columns = ("value", "archive", "bare puts", "ratio", "archiver's CPU each", "bare client's")
    report.table(f"Evictions {WAYS[way]}, {rounds} ABBA rounds", *columns)
    rows = []
    for size_bytes, counts in EVICTED.items():
        is_large = size_bytes > INLINE_LIMIT_BYTES
        if is_large or way == "file":  # small ones are in the stream always
            rows.append(
                await rates.evictions(size_bytes, counts, rounds, way if is_large else "stream")
            )
            show(report, PARTS_OF[way], rows[-1])
    return rows


async def restores(report: Report, rates: Rates, rounds: int, *, same_host: bool) -> list[Row]:
    """By size."""
    columns = ("value", "archive", "bare gets", "ratio", "archiver's CPU each", "bare client's")
    where = "the same host" if same_host else "another host"
    report.table(f"Restores to a cache on {where}, one by one, {rounds} ABBA rounds", *columns)
    rows = []
    for size_bytes, count in RESTORED.items():
        if same_host or size_bytes > INLINE_LIMIT_BYTES:  # small ones are no files
            rows.append(await rates.restores(size_bytes, count, rounds, same_host=same_host))
            show(report, "restores" if same_host else "restores_bus", rows[-1])
    return rows


async def memory(report: Report, endpoint: str, bucket: str) -> None:
    """Of archivers that never had anything else to do, by how the values come."""
    size_bytes, count = LARGEST
    value = os.urandom(size_bytes)
    report.table("Memory of the archiver", "values", "before", "peak", "at")
    for way, how in WAYS.items():
        async with installed(endpoint, bucket) as (bus, _, pid), contextlib.AsyncExitStack() as own:
            evict_all: Callable[[], Awaitable[None]]
            evict_all = functools.partial(evict_many, bus, value, count)
            if way != "stream":
                lent = lender(bus, value, count, same_host=way == "file")
                evict_all = await own.enter_async_context(lent)
            before, began = peak_mib(pid), time.perf_counter()
            await evict_all()
            rate = count * size_bytes / 1e6 / (time.perf_counter() - began)
            peak = peak_mib(pid)
        part = PARTS_OF[way].replace("evictions", "memory")
        values = {"size_bytes": size_bytes, "peak_mib": peak, "mb_per_second": rate}
        cells = (f"{before:.0f} MiB", f"{peak:.0f} MiB", f"{rate:.0f} MB/s")
        report.row(part, values, f"{count} of {shown(size_bytes)} {how}", *cells)


def peak_mib(pid: int) -> float:
    """Most memory the process has had at once."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


async def cost(report: Report, bus: Bus) -> None:
    """What a million evictions of 4 KiB that live for a day cost, by the requests of some."""
    prices = PriceSettings()
    report.table(
        f"A million evictions of 4 KiB for a day, {prices.source}, {prices.as_of}",
        *("evictions/s", "writes", "requests", "storage", "together", "one object each"),
    )
    for wanted in COST_RATES:
        count, writes, stored_bytes = await billed(bus, wanted)
        each_usd = MILLION * prices.write_usd_per_1000 / 1000
        writes_usd = writes / count * each_usd
        kept_usd = MILLION * stored_bytes / count / 2**30 * 24 / 730 * prices.gib_month_usd
        report.row(
            "cost",
            {
                "per_second": wanted,
                "writes": writes,
                "evictions": count,
                "usd": writes_usd + kept_usd,
                "one_each_usd": each_usd + kept_usd,
            },
            wanted,
            f"{writes / count * MILLION:,.0f}",
            f"${writes_usd:.4f}",
            f"${kept_usd:.4f}",
            f"${writes_usd + kept_usd:.4f}",
            f"${each_usd + kept_usd:.2f}",
        )


async def billed(bus: Bus, wanted: int) -> tuple[int, int, int]:
    """Evictions at this rate: how many, and the writes and stored bytes that they took."""
    archive, value = ArchiveClient(bus), os.urandom(4 * KIB)
    before = await archive.status()
    began, count = time.perf_counter(), 0
    async with asyncio.TaskGroup() as group:
        while (elapsed := time.perf_counter() - began) < COST_SECONDS:
            while count < elapsed * wanted:
                group.create_task(evict(bus, value, DAY_SECONDS))
                count += 1
            await asyncio.sleep(0.005)
    await evict_many(bus, value, 1, life_seconds=DAY_SECONDS)
    after = await archive.status()
    writes = after.requests["write"] - before.requests["write"]
    return count + 1, writes, after.stored_bytes - before.stored_bytes


def draw(folder: Path, evicted: list[Row], restored: list[Row]) -> None:
    """One SVG for each way, of what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, title, rows in (
        ("evictions", "From eviction to object", evicted),
        ("restores", "Restores, one after the other", restored),
    ):
        sides = {"archive": [r.archive for r in rows], "bare S3 client": [r.bare for r in rows]}
        series = [
            Series(
                side,
                [
                    (float(row.size_bytes), one.rate.median * row.size_bytes / 1e6)
                    for row, one in zip(rows, all_, strict=True)
                ],
            )
            for side, all_ in sides.items()
        ]
        x = Axis("value", logarithmic=True, text=shown, ticks=[row.size_bytes for row in rows])
        y = Axis("MB/s", logarithmic=True)
        if rows:
            (folder / f"archive_{name}.svg").write_text(line_chart(title, series, x, y) + "\n")


async def measure(
    endpoint: str, bucket: str, rounds: int, parts: tuple[str, ...], report: Report
) -> tuple[list[Row], list[Row]]:
    """Measure the chosen parts and print them; evictions and restores by size."""
    evicted: list[Row] = []
    restored: list[Row] = []
    async with installed(endpoint, bucket) as (bus, store, pid):
        rates = Rates(bus, store, pid)
        if "evictions" in parts:
            evicted = await evictions(report, rates, rounds, "file")
            await evictions(report, rates, rounds, "bus")
            await evictions(report, rates, rounds, "stream")
        if "restores" in parts:
            restored = await restores(report, rates, rounds, same_host=True)
            await restores(report, rates, rounds, same_host=False)
        if "cost" in parts:
            await cost(report, bus)
    if "memory" in parts:
        await memory(report, endpoint, bucket)
    return evicted, restored


@contextlib.contextmanager
def chosen(kind: str, endpoint: str, bucket: str) -> Iterator[str]:
    """The server that was asked for."""
    if endpoint:
        yield endpoint
        return
    with running_s3(kind, bucket) as url:
        yield url


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--s3", choices=KINDS, default="rclone", help="server to start")
    parser.add_argument("--endpoint", default="", help="a server that runs; with --bucket")
    parser.add_argument("--bucket", default=BUCKET)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be repeated")
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout, tables beside")
    parser.add_argument("--charts", type=Path, help="folder for the charts")
    asked = parser.parse_args()
    report = Report(as_json=asked.json)
    parts = tuple(asked.only or PARTS)
    with (
        contextlib.redirect_stdout(sys.stderr if asked.json else sys.stdout),
        chosen(asked.s3, asked.endpoint, asked.bucket) as endpoint,
    ):
        evicted, restored = asyncio.run(
            measure(endpoint, asked.bucket, asked.rounds, parts, report)
        )
    if asked.charts is not None:
        draw(asked.charts, evicted, restored)
    if asked.json:
        print(msgspec.json.encode(report.rows).decode())


if __name__ == "__main__":
    main()
