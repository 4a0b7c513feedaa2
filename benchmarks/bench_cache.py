"""The cache over the bus against a bare responder, redis, memcached and a JetStream KV bucket.

`python -m benchmarks.bench_cache`: a private nats-server; every peer as a process of its own, with
the asyncio client that its users have; all clients in this process. Twelve ABBA rounds of
half-second slices for each operation, size and concurrency: operations a second, ours to theirs
round by round, and the CPU time that the answering process takes for one. A peer that is not here
is named and left out. `--charts FOLDER` draws how the rates grow.
"""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

import msgspec

from agent.bus import Bus
from agent.client import CacheClient
from agent.human import size as shown
from agent.views.charts import Axis, Series, line_chart
from benchmarks import cache_memory, cache_rates
from benchmarks.cache_rates import Cell
from benchmarks.installation import private_bus, server_pid
from benchmarks.peers import (
    MissingError,
    Peer,
    bare_responder,
    bucket,
    memcached,
    our_cache,
    redis,
)
from benchmarks.report import Report
from benchmarks.rounds import ROUNDS

SIZES = (128, 4096, 64 * 1024, 512 * 1024)
CONCURRENCIES = (1, 32)
CHARTED_CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128)
CHARTED_ENTRIES = (1_000, 10_000, 100_000)
CHARTED_ROUNDS = 3
PARTS = ("rates", "concurrency", "entries", "batches", "memory")


async def rates(report: Report, peers: list[Peer], rounds: int) -> list[Cell]:
    """Get and put, by value size, one after the other and 32 at once."""
    begin(report, f"{rounds} ABBA rounds", peers, "operation", "value", "at once")
    cells = []
    for operation in ("get", "put"):
        for size in SIZES:
            for concurrency in CONCURRENCIES:
                cell = await cache_rates.compare(peers, operation, size, concurrency, rounds)
                cells.append(cell)
                show(report, "rates", cell, operation, shown(size), concurrency)
    return cells


async def by_concurrency(report: Report, peers: list[Peer]) -> list[Cell]:
    """Gets of 4 KiB, from one at once to 128."""
    begin(report, f"Gets of 4 KiB by concurrency, {CHARTED_ROUNDS} rounds", peers, "at once")
    cells = []
    for concurrency in CHARTED_CONCURRENCIES:
        cell = await cache_rates.compare(peers, "get", 4096, concurrency, CHARTED_ROUNDS)
        cells.append(cell)
        show(report, "concurrency", cell, concurrency)
    return cells


async def by_entries(report: Report, peers: list[Peer]) -> list[tuple[int, Cell]]:
    """Gets of 128 B, 32 at once, with more and more other entries beside them."""
    title = f"Gets of 128 B, 32 at once, by entries held, {CHARTED_ROUNDS} rounds"
    begin(report, title, peers, "entries")
    cells: list[tuple[int, Cell]] = []
    held = 0
    for entries in CHARTED_ENTRIES:
        for peer in peers:
            await cache_rates.fill(peer, held, entries)
        held = entries
        cell = await cache_rates.compare(peers, "get", 128, 32, CHARTED_ROUNDS)
        cells.append((entries, cell))
        show(report, "entries", cell, f"{entries:,}")
    return cells


def begin(report: Report, title: str, peers: list[Peer], *first: str) -> None:
    """The head of a table of cells."""
    report.table(
        f"{title} of {cache_rates.SLICE_SECONDS} s slices; beside the cache's own figures its rate "
        "by each peer's (quartiles), and the peer's CPU for one",
        *first,
        *("cache", "p95", "CPU"),
        *(f"to {peer.name}" for peer in peers[1:]),
    )


def show(report: Report, part: str, cell: Cell, *first: object) -> None:
    """One row of a cell: the cache, then it against each peer."""
    for result in cell.results:
        report.rows.append(
            {
                "part": part,
                "labels": list(map(str, first)),
                "operation": cell.operation,
                "size_bytes": cell.size_bytes,
                "concurrency": cell.concurrency,
                **msgspec.to_builtins(result),
            }
        )
    ours, *others = cell.results
    cells = (
        *first,
        f"{ours.rate.median:,.0f}/s",
        f"{ours.p95_seconds * 1000:.2f} ms",
        f"{ours.cpu_seconds * 1e6:.0f} µs",
        *(f"{other.ratio}, {other.cpu_seconds * 1e6:.0f} µs" for other in others),
    )
    report.line(f"| {' | '.join(map(str, cells))} |")


async def batches(report: Report, bus: Bus, rounds: int) -> None:
    """64 values of 4 KiB by one `get_many` and by 64 gets."""
    report.table("64 values of 4 KiB at once", "how", "batches a second", "`get_many` to it")
    try:
        for how, rate, ratio in await cache_rates.batches(CacheClient(bus), rounds):
            report.row("batches", {"how": how, "rate": rate.median}, how, rate, ratio or "")
    except MissingError as error:
        report.line(f"| {error} | | |")


def draw(
    folder: Path, sizes: list[Cell], concurrencies: list[Cell], entries: list[tuple[int, Cell]]
) -> None:
    """One SVG for each way to grow, of what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    rate = Axis("operations a second", text=lambda v: f"{v:,.0f}")
    gets = [cell for cell in sizes if cell.operation == "get" and cell.concurrency == 32]
    charts = {
        "size": ("Gets by value size, 32 at once",
                 [(float(c.size_bytes), c) for c in gets],
                 Axis("value", logarithmic=True, text=shown, ticks=SIZES)),
        "concurrency": ("Gets of 4 KiB by requests at once",
                        [(float(c.concurrency), c) for c in concurrencies],
                        Axis("at once", logarithmic=True, ticks=CHARTED_CONCURRENCIES)),
        "entries": ("Gets of 128 B by entries held, 32 at once",
                    [(float(n), c) for n, c in entries],
                    Axis("entries", logarithmic=True, text=lambda v: f"{v:,.0f}",
                         ticks=CHARTED_ENTRIES)),
    }  # fmt: skip
    for name, (title, cells, x) in charts.items():
        if not cells:
            continue
        names = [result.peer for result in cells[0][1].results]
        series = [Series(one, [(at, cell.rate_of(one)) for at, cell in cells]) for one in names]
        y = Axis(rate.label, logarithmic=name == "size", text=rate.text)
        (folder / f"cache_by_{name}.svg").write_text(line_chart(title, series, x, y) + "\n")


async def measure(
    rounds: int,
    parts: tuple[str, ...] = PARTS,
    *,
    as_json: bool = False,
    charts: Path | None = None,
    redis_server: str | None = None,
    memcached_server: str | None = None,
) -> None:
    """Measure the chosen parts and print them."""
    report = Report(as_json=as_json)
    sizes: list[Cell] = []
    concurrencies: list[Cell] = []
    entries: list[tuple[int, Cell]] = []
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        async with (
            private_bus() as bus,
            our_cache(bus) as ours,
            bare_responder(bus) as bare,
            contextlib.AsyncExitStack() as stack,
        ):
            peers = [*ours, bare]
            others = (
                redis(redis_server),
                memcached(memcached_server),
                bucket(bus, server_pid(bus)),
            )
            for other in others:
                try:
                    peers.append(await stack.enter_async_context(other))
                except MissingError as error:
                    report.line(f"left out: {error}")
            if "rates" in parts:
                sizes = await rates(report, peers, rounds)
            if "concurrency" in parts:
                concurrencies = await by_concurrency(report, peers)
            if "entries" in parts:
                entries = await by_entries(report, peers)
            if "batches" in parts:
                await batches(report, bus, rounds)
        if "memory" in parts:
            report.table("Resident memory under a full random load", *cache_memory.COLUMNS)
            for row in await cache_memory.measure():
                report.row("memory", msgspec.to_builtins(row), *row.cells())
    if charts is not None:
        draw(charts, sizes, concurrencies, entries)
    if as_json:
        print(msgspec.json.encode(report.rows).decode())


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be repeated")
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout, tables beside")
    parser.add_argument("--charts", type=Path, help="folder for the charts")
    parser.add_argument("--redis-server", help="else the one on PATH")
    parser.add_argument("--memcached", help="else the one on PATH")
    asked = parser.parse_args()
    asyncio.run(
        measure(
            asked.rounds,
            tuple(asked.only or PARTS),
            as_json=asked.json,
            charts=asked.charts,
            redis_server=asked.redis_server,
            memcached_server=asked.memcached,
        )
    )


if __name__ == "__main__":
    main()
