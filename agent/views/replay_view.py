"""A replay on the terminal: while it goes, and what it came to."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from agent import human
from agent.bus import Bus, connect
from agent.cli.commands import console
from agent.cli.start import errors
from agent.replay.report import (
    CACHE_COLUMNS,
    HIT_COLUMNS,
    LATENCY_COLUMNS,
    cache_row,
    hit_rows,
    latency_rows,
    percent,
    seconds,
    summarize,
    write_csv,
    write_html,
)
from agent.replay.run import Replay, ReplayOptions
from agent.replay.trace import Trace, read_trace, synthetic_sessions

LINE_SECONDS = 1.0


def load(path: Path | None, requests: int | None) -> Trace:
    """The first `requests` of the trace in `path`, or of a made-up one; names the bad lines.

    Raises:
        OSError: the file cannot be read.
        TraceError: it is no trace.
    """
    trace = synthetic_sessions() if path is None else read_trace(path)
    for number, reason in trace.bad:
        errors.print(f"[yellow]line {number} left out:[/] {escape(reason)}", soft_wrap=True)
    if trace.bad_total > len(trace.bad):
        errors.print(f"[yellow]… {trace.bad_total} bad lines in all[/]")
    return msgspec.structs.replace(trace, requests=trace.requests[:requests])


async def play(bus: Bus, url: str, root: str, trace: Trace, options: ReplayOptions) -> Replay:
    """Play the trace, shown as it goes; interrupted, what was played until then."""
    async with contextlib.AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(await connect(url, name="replay", root=root))
            for _ in range(options.clients - 1)
        ]
        replay = Replay([bus, *others], trace, options)
        with _shown(replay) as show, contextlib.suppress(asyncio.CancelledError):
            await replay.run(show)
        return replay


@contextlib.contextmanager
def _shown(replay: Replay) -> Iterator[Callable[[], None]]:
    """On a terminal a live table, else one line a second; call what it gives at each sample."""
    if errors.is_terminal:
        with Live(console=errors, transient=True, auto_refresh=False) as live:
            yield lambda: live.update(_tables(replay), refresh=True)
        return
    next_seconds = 0.0

    def line() -> None:
        nonlocal next_seconds
        if replay.elapsed_seconds >= next_seconds:
            next_seconds = replay.elapsed_seconds + LINE_SECONDS
            errors.print(_line(replay), markup=False, highlight=False, soft_wrap=True)

    yield line


def _line(replay: Replay) -> str:
    figures, sample = replay.figures, replay.figures.samples[-1]
    everything = sample.classes["all"]
    return (
        f"{sample.elapsed_seconds:6.1f} s  {everything.requests:,} of "
        f"{len(replay.trace.requests):,} requests  blocks hit "
        f"{percent(everything.block_hit_ratio)}  p95 {seconds(sample.p95_seconds['all'])}  "
        f"evictions {sample.cache.evictions}  archived {sample.cache.archived}  "
        f"restores {sample.cache.restores}  errors {figures.errors.total()}"
    )


def _tables(replay: Replay) -> Group:
    summary = summarize(replay)
    done, total = summary.classes["all"].requests, len(replay.trace.requests)
    return Group(
        f"[bold]{escape(summary.trace)}[/]  {done:,} of {total:,} requests in "
        f"{human.duration(summary.elapsed_seconds)}, {summary.requests_per_second:,.0f} a second",
        _table(HIT_COLUMNS, hit_rows(summary)),
        _table(LATENCY_COLUMNS, latency_rows(summary)),
        _table(CACHE_COLUMNS, [cache_row(summary.cache)]),
    )


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def report(replay: Replay, csv: Path | None, html: Path | None, *, as_json: bool) -> None:
    """Print the final tables, or the summary as JSON, and write the files."""
    summary = summarize(replay)
    if as_json:
        print(msgspec.json.encode(summary).decode())
    else:
        console.print(_tables(replay))
        if summary.late_seconds > 1:
            console.print(
                f"up to {human.duration(summary.late_seconds)} late: the cache or these "
                "clients cannot follow at this speed"
            )
        for text, times in summary.errors.items():
            console.print(f"[red]{times:,} errors:[/] {escape(text)}")
        if summary.blocks_not_kept:
            console.print(f"{summary.blocks_not_kept:,} blocks were refused")
    if csv is not None:
        write_csv(replay, csv)
        errors.print(f"wrote {escape(str(csv))}")
    if html is not None:
        write_html(replay, html)
        errors.print(f"wrote {escape(str(html))}")
