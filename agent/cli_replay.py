"""The command `replay`: a KV trace against a live cache, figures as it goes."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from agent import human
from agent.bus import Bus, connect
from agent.cli_options import AsJson, Config, Namespace, NatsUrl, PasswordFile, StateDir
from agent.cli_start import bus_found, errors, fail, load_settings, with_bus
from agent.commands import console
from agent.replay import Replay, ReplayOptions
from agent.replay_report import (
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
from agent.replay_trace import Trace, TraceError, read_trace, synthetic_sessions

LINE_SECONDS = 1.0


def replay(
    trace: Annotated[
        Path | None, typer.Option("--trace", "-t", help="JSON lines like Mooncake's; .gz too")
    ] = None,
    synthetic: Annotated[
        Literal["sessions"] | None, typer.Option(help="a made-up trace instead")
    ] = None,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    namespace: Namespace = "default",
    speed: Annotated[
        str, typer.Option(help="max, real, or how many times as fast as the trace, like 10x")
    ] = "max",
    clients: Annotated[int, typer.Option(min=1, max=256, help="connections, at once")] = 8,
    value_bytes: Annotated[
        int, typer.Option(min=1, max=512 * 1024, help="size of a block's value")
    ] = 4096,
    requests: Annotated[int | None, typer.Option(min=1, help="only the first so many")] = None,
    get_values: Annotated[
        bool, typer.Option("--get/--no-get", help="fetch what matched, or only match")
    ] = True,
    key_prefix: Annotated[
        str | None, typer.Option(help="before each block id; default: new for each replay")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="write all samples here")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="write a page with charts")] = None,
    as_json: AsJson = False,
) -> None:
    """Play a KV trace against the cache; prints hits, latency, evictions and restores."""
    played = _trace(trace, synthetic, requests)
    options = ReplayOptions(
        namespace=namespace,
        clients=clients,
        speed=_speed(speed),
        value_bytes=value_bytes,
        get_values=get_values,
        **({} if key_prefix is None else {"key_prefix": key_prefix}),
    )
    for path in (csv, html):
        if path is not None:
            path.touch()  # what cannot be written is told now, not after the replay
    settings = load_settings(config, state_dir, password_file=password_file).settings
    found = bus_found(settings, nats_url, quiet=as_json)

    async def work(bus: Bus) -> Replay:
        async with contextlib.AsyncExitStack() as stack:
            others = [
                await stack.enter_async_context(
                    await connect(found.url, name="replay", root=settings.root)
                )
                for _ in range(clients - 1)
            ]
            running = Replay([bus, *others], played, options)
            with _shown(running) as show, contextlib.suppress(asyncio.CancelledError):
                await running.run(show)
            return running

    done = with_bus(settings, found, work, limit_seconds=None)
    _report(done, csv, html, as_json=as_json)
    if done.figures.wrong_values:
        fail(RuntimeError(f"{done.figures.wrong_values} values were not those that were put"))
    raise SystemExit(1 if done.figures.errors else 0)


def _trace(path: Path | None, synthetic: str | None, requests: int | None) -> Trace:
    if (path is None) == (synthetic is None):
        fail(ValueError("give either --trace FILE or --synthetic sessions"), code=2)
    try:
        trace = synthetic_sessions() if path is None else read_trace(path)
    except (OSError, TraceError) as error:
        fail(error, code=2)
    for number, reason in trace.bad:
        errors.print(f"[yellow]line {number} left out:[/] {escape(reason)}", soft_wrap=True)
    if trace.bad_total > len(trace.bad):
        errors.print(f"[yellow]… {trace.bad_total} bad lines in all[/]")
    return msgspec.structs.replace(trace, requests=trace.requests[:requests])


def _speed(text: str) -> float:
    if text in ("max", "real"):
        return math.inf if text == "max" else 1.0
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = math.nan
    if not speed > 0:
        fail(ValueError(f"--speed {text}: max, real, or a positive number like 10x"), code=2)
    return speed


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


def _report(replay: Replay, csv: Path | None, html: Path | None, *, as_json: bool) -> None:
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
