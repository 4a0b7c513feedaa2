"""The command `backtest`: scaling policies on a recorded load, before anyone trusts them."""

import functools
import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.markup import escape

from agent.cli.options import AsJson, Config, NatsUrl, PasswordFile, StateDir
from agent.cli.start import bus_found, errors, fail, load_settings, with_bus
from agent.cli.writable import writable
from schemas.units import token

MOST_DAYS = 90
MOST_REPLICAS = 1_000_000
"""A load that needs more was given with a capacity in another unit."""


def backtest(
    capacity: Annotated[
        float,
        typer.Option(
            help="what one replica serves in a step; of a stream: requests at once, or of --column"
        ),
    ],
    lead: Annotated[float, typer.Option(min=0, help="seconds until a new replica serves")],
    series: Annotated[
        Path | None, typer.Option(help="CSV file with one row a step; .gz too")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="its column with the load; of a stream: which load of the pool"),
    ] = None,
    step: Annotated[float | None, typer.Option(min=1, help="seconds between two rows")] = None,
    from_stream: Annotated[
        str | None, typer.Option(help="a pool: its requests in flight, from the rollups, instead")
    ] = None,
    since: Annotated[str, typer.Option(help="how far back in the stream, like 12h or 7d")] = "7d",
    policy: Annotated[
        Literal["ours", "hpa", "keda", "oracle", "all"],
        typer.Option(help="whose orders; all compares them"),
    ] = "all",
    risk: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="share of the steps that may be short")
    ] = 0.01,
    target: Annotated[
        float, typer.Option(min=0.05, max=2, help="load by capacity that hpa and keda aim at")
    ] = 0.7,
    warmup: Annotated[
        float | None,
        typer.Option(min=0, help="seconds that do not count; default: a day, at most a fifth"),
    ] = None,
    max_replicas: Annotated[int, typer.Option(min=1, help="never order more")] = 10_000,
    decisions: Annotated[
        Path | None, typer.Option(help="write t,demand,replicas_wanted here; with all: ours")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="write a page with charts")] = None,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Try scaling policies on a recorded load: cost, short steps and changes of each."""
    from agent.backtest import (  # noqa: PLC0415
        Backtest,
        default_warmup,
        write_decisions,
        write_html,
    )
    from agent.recorded_load import STEP_SECONDS, read_pool  # noqa: PLC0415
    from agent.series_file import read_series  # noqa: PLC0415
    from agent.views import backtest_view  # noqa: PLC0415 - the light commands must start fast
    from handlers.backtest.run import Load  # noqa: PLC0415

    _check(capacity=capacity, lead=lead, step=step, warmup=warmup)
    try:
        if series is not None and column is not None and step is not None and not from_stream:
            name, read = series.name, read_series(series, column, step)
        elif from_stream and series is None:
            signal, of = _recorded(column, step)
            name, step = f"pool {from_stream}{of}, {since}", STEP_SECONDS
            settings = load_settings(config, state_dir, password_file=password_file).settings
            read = with_bus(
                settings,
                bus_found(settings, nats_url, state_dir, quiet=as_json),
                functools.partial(
                    read_pool, pool=token(from_stream), seconds=_back(since), signal=signal
                ),
                limit_seconds=None,
            )
        else:
            raise ValueError("give --series, --column and --step, or --from-stream alone")
    except (FileNotFoundError, IsADirectoryError, PermissionError, ValueError) as error:
        fail(error, code=2)
    steps = len(read.values)
    warmup_steps = default_warmup(steps, step) if warmup is None else round(warmup / step)
    if warmup_steps >= steps:
        fail(ValueError(f"--warmup {warmup:g}: the series has only {steps * step:g} s"), code=2)
    most = max((value for value in read.values if value is not None), default=0.0) / capacity
    if most > MOST_REPLICAS:
        fail(
            ValueError(
                f"--capacity {capacity:g}: the highest load would need {most:.0e} replicas; "
                "what does one serve in a step, in the unit of --column?"
            ),
            code=2,
        )
    with writable(decisions, html):
        load = Load(
            demand=read.values,
            capacity=capacity,
            step_seconds=step,
            lead_seconds=lead,
            warmup_steps=warmup_steps,
        )
        test = Backtest(
            name,
            load,
            policy,
            risk_ratio=risk,
            target_ratio=target,
            max_replicas=max_replicas,
        )
        backtest_view.run(test, quiet=as_json)
        if as_json:
            print(msgspec.json.encode(test.result).decode())
        else:
            backtest_view.show(test.result)
        if decisions is not None:
            write_decisions(test, read, decisions)
            errors.print(f"wrote {escape(str(decisions))}")
        if html is not None:
            write_html(test, html)
            errors.print(f"wrote {escape(str(html))}")


def _check(**numbers: float | None) -> None:
    """Wrong usage where one of them has no end, or the capacity is none."""
    for option, number in numbers.items():
        if number is not None and not math.isfinite(number):
            fail(ValueError(f"--{option} {number:g}: must be a finite number"), code=2)
    capacity = numbers["capacity"]
    if capacity is not None and capacity <= 0:
        fail(ValueError(f"--capacity {capacity:g}: must be above 0"), code=2)


def _recorded(column: str | None, step: float | None) -> tuple[str, str]:
    """Which load of a pool, and how that is told beside its name.

    Raises:
        ValueError: the stream has no such load, or no such steps.
    """
    from agent.recorded_load import IN_FLIGHT, PARTS, STEP_SECONDS  # noqa: PLC0415 - start fast

    signal = column or IN_FLIGHT
    if signal not in PARTS:
        raise ValueError(f"--column {signal}: a stream has {', '.join(PARTS)}")
    if step not in (None, STEP_SECONDS):
        raise ValueError(f"--step {step:g}: a stream has minutes, leave it out")
    return signal, "" if signal == IN_FLIGHT else f", {signal}"


def _back(since: str) -> float:
    """Seconds.

    Raises:
        ValueError: it is no such time, or longer than anything is kept.
    """
    from agent.recorded_load import seconds_of  # noqa: PLC0415 - the light commands start fast

    seconds = seconds_of(since)
    if seconds > MOST_DAYS * 86_400:
        raise ValueError(f"--since {since}: minutes are kept for {MOST_DAYS} days")
    return seconds
