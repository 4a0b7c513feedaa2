"""The command `history`: metrics, judgements and advice of a time range."""

import shutil
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeAlias

import typer
from rich.markup import escape

from agent import human
from agent.bus import Bus
from agent.cli.options import AsJson, Config, NatsUrl, PasswordFile, StateDir
from agent.cli.output import print_json, print_lines
from agent.cli.start import ask, errors, fail
from agent.client import ResourceAgent
from agent.recorded_load import seconds_of
from schemas.analysis import Scope
from schemas.history import AdviceHistoryReply, AnalysisKind
from schemas.scaling import Action

What: TypeAlias = Literal[
    "gpu",
    "system",
    "engine",
    "cache",
    "utilization",
    "waste",
    "trends",
    "opportunities",
    "consolidations",
    "advice",
]

COLUMNS = 80
"""Where no terminal says otherwise."""
MOST_DAYS = 90
LIMIT_SECONDS = 20.0
_ANALYSIS: dict[str, AnalysisKind] = {
    "utilization": "utilization",
    "waste": "waste",
    "trends": "trend",
    "opportunities": "opportunity",
    "consolidations": "consolidation",
}
_TAKES: dict[str, tuple[str, ...]] = {
    "gpu": ("node", "gpu"),
    "system": ("node",),
    "engine": ("node", "engine"),
    "cache": ("instance", "namespace"),
    "advice": ("pool", "action"),
    **dict.fromkeys(_ANALYSIS, ("node", "pool", "scope")),
}
_SHOWN: dict[str, tuple[str, ...]] = {
    "gpu": (
        "utilization_ratio",
        "memory_utilization_ratio",
        "power_watts",
        "temperature_celsius",
    ),
    "system": (
        "cpu_utilization_ratio",
        "memory_utilization_ratio",
        "filesystem_max_utilization_ratio",
    ),
    "engine": (
        "requests_running",
        "requests_waiting",
        "kv_cache_usage_ratio",
        "generation_tokens_per_second",
    ),
    "cache": (
        "entries",
        "used_bytes",
        "hit_ratio",
        "token_hit_ratio",
        "hits_total",
        "misses_total",
        "evictions_total",
    ),
    "utilization": (
        "gpu_mean_ratio",
        "gpu_memory_mean_ratio",
        "kv_cache_mean_ratio",
        "cpu_mean_ratio",
        "memory_mean_ratio",
        "disk_mean_ratio",
        "network_mean_ratio",
        "efficiency_ratio",
        "bottlenecks",
        "health",
    ),
    "waste": ("usd_per_hour", "waste_usd_per_hour", "waste_ratio", "gpus"),
    "trends": (
        "utilization_ratio",
        "usd_per_hour",
        "waste_usd_per_hour",
        "tokens_per_second",
        "utilization_ratio_direction",
    ),
    "opportunities": ("saving_usd_per_month", "savings"),
    "consolidations": ("nodes", "nodes_after", "saving_usd_per_hour"),
}
_TITLES = {"gpu": "GPUs", "system": "machines", "engine": "engines", "cache": "caches"}


def history(
    what: Annotated[
        What,
        typer.Argument(
            metavar="WHAT", help="metrics (the first four), judgements, or advice with its end"
        ),
    ],
    since: Annotated[
        str, typer.Option(help="how far back, like 30m, 6h or 7d, or since when, like 2026-11-22")
    ] = "6h",
    until: Annotated[
        str | None, typer.Option(help="how long ago it ends, or when; default: now")
    ] = None,
    node: Annotated[str | None, typer.Option("--node", help="only of that machine")] = None,
    gpu: Annotated[str | None, typer.Option(help="only that GPU")] = None,
    engine: Annotated[str | None, typer.Option(help="only that engine")] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="only of that pool")] = None,
    scope: Annotated[
        Scope | None, typer.Option(help="only nodes, only pools, or the fleet alone")
    ] = None,
    instance: Annotated[str | None, typer.Option(help="only that cache")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="only that cache namespace")
    ] = None,
    action: Annotated[Action | None, typer.Option(help="only advice of that action")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="show this one instead, by its field; may be repeated; `all`: each"),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="at most so many samples; more are thinned")
    ] = 1000,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="a line a sample, a column a value")
    ] = False,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show a time range: metrics, judgements or advice, with bars, lowest, mean and highest."""
    given = {
        "node": node, "gpu": gpu, "engine": engine, "pool": pool, "scope": scope,
        "instance": instance, "namespace": namespace, "action": action,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in _TAKES[what]:
            takes = ", ".join(f"--{one}" for one in _TAKES[what])
            fail(ValueError(f"--{name} is not for `history {what}`, which takes {takes}"), code=2)
    if as_csv and as_json:
        fail(ValueError("--csv and --json: give one of them"), code=2)
    if as_csv and metric:
        fail(ValueError("--metric is for the table: --csv has all of them"), code=2)
    chosen |= _range(since, until)
    where = (config, state_dir, password_file, nats_url)
    reply = ask(
        where,
        lambda bus: _asked(bus, what, chosen | {"limit": limit}),
        quiet=as_json or as_csv,
        limit_seconds=LIMIT_SECONDS,
    )
    _print(what, reply, metric, as_json=as_json, as_csv=as_csv)


async def _asked(bus: Bus, what: What, chosen: dict[str, Any]) -> Any:  # noqa: ANN401 - by `what`
    agent = ResourceAgent(bus)
    if what in _ANALYSIS:
        return await agent.analysis_history(_ANALYSIS[what], **chosen)
    calls: dict[str, Callable[..., Awaitable[Any]]] = {
        "gpu": agent.gpu_history,
        "system": agent.system_history,
        "engine": agent.engine_history,
        "cache": agent.cache_history,
        "advice": agent.advice_history,
    }
    return await calls[what](**chosen)


def _print(
    what: What,
    reply: Any,  # noqa: ANN401 - by `what`
    metric: list[str] | None,
    *,
    as_json: bool,
    as_csv: bool,
) -> None:
    from agent.views import history_points, history_text  # noqa: PLC0415 - others start fast

    if as_csv:
        _say_what_lacks(reply)
    if as_json:
        print_json(reply)
    elif isinstance(reply, AdviceHistoryReply):
        if as_csv:
            print(history_points.advice_as_csv(reply), end="")
        else:
            print_lines(history_text.advice_lines(reply))
    elif as_csv:
        print(history_points.as_csv(reply), end="")
    else:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else COLUMNS
        try:
            lines = history_text.history_lines(
                _TITLES.get(what, what),
                reply,
                metric or _SHOWN[what],
                columns,
                all_of_them=metric == ["all"],
            )
        except history_text.NoSuchMetricError as error:
            fail(error, code=2 if metric else 1)
        for line in lines:
            print(human.printable(line))


def _say_what_lacks(reply: Any) -> None:  # noqa: ANN401 - by `what`
    """On stderr, as a line a sample does not tell: why there is none, or that more were."""
    given = len(reply.samples if hasattr(reply, "samples") else reply.rows)
    if not given:
        errors.print(escape(reply.text), soft_wrap=True)
    elif given < reply.matched:
        how = "the newest" if isinstance(reply, AdviceHistoryReply) else "thinned evenly"
        more = "a shorter time, or a higher --limit, may give more"
        errors.print(f"{given:,} of {reply.matched:,}, {how}: {more}", soft_wrap=True)


def _range(since: str, until: str | None) -> dict[str, Any]:
    """`seconds`, or `start` and `end`."""
    now = datetime.now(UTC)
    try:
        start = _when(since, now)
        end = None if until is None else _when(until, now)
    except ValueError as error:
        fail(error, code=2)
    if start >= (end or now):
        fail(
            ValueError(f"--since {since}: must be before {f'--until {until}' if until else 'now'}"),
            code=2,
        )
    if (end or now) - start > timedelta(days=MOST_DAYS):
        fail(ValueError(f"--since {since}: nothing is kept for more than {MOST_DAYS} days"), code=2)
    if end is None:
        return {"seconds": (now - start).total_seconds()}
    return {"start": start, "end": end}


def _when(text: str, now: datetime) -> datetime:
    """`6h` ago, or an instant; without a zone in UTC."""
    try:
        return now - timedelta(seconds=seconds_of(text))
    except (ValueError, OverflowError):
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r}: write a time like 90m, 12h or 7d, or an instant like 2026-11-22T08:00Z"
        ) from None
    if found.tzinfo is None:
        return found.replace(tzinfo=UTC)
    try:
        return found.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text!r}: lies outside the years 1 to 9999") from None
