"""The command `replay`: a KV trace against a live cache, figures as it goes."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from agent.cli.options import AsJson, Config, Namespace, NatsUrl, PasswordFile, StateDir
from agent.cli.start import bus_found, fail, load_settings, with_bus
from agent.cli.writable import writable


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
    clients: Annotated[
        int, typer.Option(min=1, max=256, metavar="N", help="connections, at once")
    ] = 8,
    value_bytes: Annotated[
        int, typer.Option(min=1, max=512 * 1024, metavar="N", help="size of a block's value")
    ] = 4096,
    requests: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="only the first so many")
    ] = None,
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
    from agent.replay.run import ReplayOptions  # noqa: PLC0415
    from agent.replay.trace import TraceError  # noqa: PLC0415
    from agent.views import replay_view  # noqa: PLC0415 - the light commands must start fast

    if (trace is None) == (synthetic is None):
        fail(ValueError("give either --trace FILE or --synthetic sessions"), code=2)
    try:
        played = replay_view.load(trace, requests)
    except (OSError, TraceError) as error:
        fail(error, code=2)
    options = ReplayOptions(
        namespace=namespace,
        clients=clients,
        speed=_speed(speed),
        value_bytes=value_bytes,
        get_values=get_values,
        **({} if key_prefix is None else {"key_prefix": key_prefix}),
    )
    with writable(csv, html):
        settings = load_settings(config, state_dir, password_file=password_file).settings
        found = bus_found(settings, nats_url, state_dir, quiet=as_json)
        done = with_bus(
            settings,
            found,
            lambda bus: replay_view.play(bus, found.url, settings.root, played, options),
            limit_seconds=None,
        )
        replay_view.report(done, csv, html, as_json=as_json)
        if done.figures.wrong_values:
            fail(RuntimeError(f"{done.figures.wrong_values} values were not those that were put"))
        raise SystemExit(1 if done.figures.errors else 0)


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
