"""The command line: arguments to settings, settings to a program, errors to one line."""

import asyncio
import functools
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from agent import event_loop
from agent import log as logs
from agent.assembly import Simulation
from agent.bus import Bus, BusError
from agent.cli import advice as cli_advice
from agent.cli import alerts as cli_alerts
from agent.cli import analyze as cli_analyze
from agent.cli import archive as cli_archive
from agent.cli import backtest as cli_backtest
from agent.cli import cache as cli_cache
from agent.cli import cache_values as cli_cache_values
from agent.cli import history as cli_history
from agent.cli import insights as cli_insights
from agent.cli import replay as cli_replay
from agent.cli import report as cli_report
from agent.cli import top as cli_top
from agent.cli.commands import (
    PIPED_COLUMNS,
    print_checks,
    print_health,
    print_settings,
    print_subjects,
    watch_subject,
)
from agent.cli.options import (
    AsJson,
    Config,
    Engines,
    NatsUrl,
    Node,
    PasswordFile,
    StateDir,
)
from agent.cli.start import (
    bus_found,
    fail,
    load_settings,
    password_added,
    server_address,
    with_bus,
)
from agent.discovery import Found
from agent.doctor import doctor_checks
from agent.nats_server.binary import ServerNotFoundError
from agent.nats_server.config import ServerTooOldError
from agent.nats_server.process import ServerStartError
from agent.registry import NameTakenError
from agent.settings import SettingsError
from agent.state_folder import StateFolderError
from schemas.lifecycle import Role
from schemas.protocols import PublishError, RequestError

FAILURES = (
    BusError,
    NameTakenError,
    OSError,
    PublishError,
    RequestError,
    ServerNotFoundError,
    ServerStartError,
    ServerTooOldError,
    StateFolderError,
)

app = typer.Typer(
    name="resource-agent",
    help="Watches LLM inference fleets over NATS: metrics, alerts, scaling advice, cache, archive.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Else wrong usage is told in a box, wrapped at 80 columns also where it goes into a log.
    rich_markup_mode="rich" if sys.stderr.isatty() else None,
    context_settings={} if sys.stderr.isatty() else {"terminal_width": PIPED_COLUMNS},
)
app.add_typer(cli_alerts.app)
app.add_typer(cli_alerts.silence_app)
app.add_typer(cli_cache.app)
app.add_typer(cli_archive.app)

app.add_typer(cli_cache_values.app)


def main() -> None:
    """Entry point: a failure is one line on stderr and exit code 1, wrong usage 2."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone: `settings | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except SettingsError as error:
        fail(error, code=2)
    except FAILURES as error:
        fail(error)


@app.command()
def up(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    node: Node = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="written with nats_url, pid, state_dir once all is ready")
    ] = None,
    for_: Annotated[
        float | None,
        typer.Option("--for", min=0, metavar="SECONDS", help="stop so long after ready"),
    ] = None,
    simulate_gpus: Annotated[
        str | None, typer.Option(help="simulated GPUs instead of real ones, like 8xH100")
    ] = None,
    simulate_engines: Annotated[
        str | None,
        typer.Option(help="simulated inference engines, N or N@MODEL, like 4@llama-3-70b"),
    ] = None,
    engine: Engines = None,
    nats_server: Annotated[Path | None, typer.Option(help="nats-server to run privately")] = None,
    live: Annotated[
        bool | None, typer.Option("--live/--no-live", help="live view; default: on a terminal")
    ] = None,
) -> None:
    """Run a private nats-server (or use yours) and every service, in one process."""
    from agent.up import UpOptions  # noqa: PLC0415 - the light commands must start fast
    from agent.up import up as run_up  # noqa: PLC0415

    settings = load_settings(
        config, state_dir, node, engine, password_file=password_file, least="info"
    ).settings
    simulation = _simulation(simulate_gpus, simulate_engines)
    options = UpOptions(
        nats_url=None if nats_url is None else password_added(settings, server_address(nats_url)),
        nats_server=nats_server,
        ready_file=ready_file,
        for_seconds=for_,
        simulation=simulation,
        live=live,
    )
    failure = event_loop.run(run_up(settings, options, say=functools.partial(print, flush=True)))
    if failure:
        fail(RuntimeError(failure))


def _simulation(gpus: str | None, engines: str | None) -> Simulation:
    from agent.collectors.simulated_engines import parse_engines  # noqa: PLC0415
    from agent.collectors.simulated_gpus import parse_gpus  # noqa: PLC0415

    try:
        if gpus is not None:
            parse_gpus(gpus)
        if engines is not None:
            parse_engines(engines)
    except ValueError as error:
        fail(error, code=2)
    return Simulation(gpus=gpus, engines=engines)


@app.command()
def run(
    role: Annotated[Role, typer.Argument(help="agent, handlers, cache, archive or executor")],
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    node: Node = None,
    instance: Annotated[
        str | None, typer.Option(help="name of this process; default: the node's")
    ] = None,
    for_: Annotated[
        float | None,
        typer.Option("--for", min=0, metavar="SECONDS", help="stop so long after ready"),
    ] = None,
    simulate_gpus: Annotated[str | None, typer.Option(help="like 8xH100")] = None,
    simulate_engines: Annotated[str | None, typer.Option(help="like 4@llama-3-70b")] = None,
    engine: Engines = None,
) -> None:
    """Run one service against a NATS server that is already there."""
    from agent.up import run_one  # noqa: PLC0415

    if engine and role != "agent":
        fail(ValueError(f"--engine is for the agent; {role} scrapes nothing"), code=2)
    settings = load_settings(
        config, state_dir, node, engine, password_file=password_file, least="info"
    ).settings
    found = bus_found(settings, nats_url)
    simulation = _simulation(simulate_gpus, simulate_engines)
    failure = event_loop.run(run_one(settings, found.url, role, instance, simulation, for_))
    if failure:
        fail(RuntimeError(failure))


@app.command()
def watch(
    subject: Annotated[
        str, typer.Argument(help="subject below the root, like metrics.gpu.> ; default all")
    ] = ">",
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    for_: Annotated[
        float | None, typer.Option("--for", min=0, help="stop after this many seconds")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="stop after this many")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what passes by on the bus, one line a message."""
    settings = load_settings(
        config, state_dir, password_file=password_file, least="warning"
    ).settings

    async def work(bus: Bus) -> None:
        await watch_subject(bus, subject, for_seconds=for_, count=count, as_json=as_json)

    try:
        with_bus(settings, bus_found(settings, nats_url, state_dir), work, limit_seconds=None)
    except ValueError as error:
        fail(error, code=2)


@app.command()
def health(
    role: Annotated[Role | None, typer.Option(help="only this role decides")] = None,
    here: Annotated[
        bool, typer.Option("--here", help="ask this node's own instance, which answers of itself")
    ] = False,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show the installation's health; exit code 1 when it is not ready, or a role has failed.

    With --here, for probes: 1 when this instance is not ready.
    """
    settings = load_settings(config, state_dir, password_file=password_file).settings
    if here and role is None:
        fail(ValueError("--here needs --role: a node may have one instance of each"), code=2)
    instance = settings.node_token() if here else None
    found = bus_found(settings, nats_url, state_dir, quiet=as_json)
    ready = with_bus(
        settings, found, lambda bus: print_health(bus, role, instance, as_json=as_json)
    )
    raise SystemExit(0 if ready else 1)


@app.command()
def doctor(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Check everything this installation needs; each failure with its remedy."""
    settings = load_settings(config, state_dir, password_file=password_file).settings
    found: Found | str
    try:
        found = bus_found(settings, nats_url, state_dir, quiet=True)
    except BusError as error:
        found = str(error)
    checks = asyncio.run(doctor_checks(settings, found))
    print_checks(checks, as_json=as_json)
    raise SystemExit(0 if all(check.ok for check in checks) else 1)


@app.command("settings")
def show_settings(
    state_dir: StateDir = None,
    config: Config = None,
    node: Node = None,
    as_json: AsJson = False,
) -> None:
    """List every setting with its value and where that came from."""
    print_settings(load_settings(config, state_dir, node), as_json=as_json)


@app.command()
def subjects(
    asyncapi: Annotated[
        bool, typer.Option("--asyncapi", help="an AsyncAPI 3.0 document instead")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List every subject, its message and who publishes it."""
    print_subjects(asyncapi=asyncapi, as_json=as_json)


@app.command()
def demo(
    as_json: AsJson = False,
    nats_server: Annotated[Path | None, typer.Option(help="nats-server to run")] = None,
    break_step: Annotated[str | None, typer.Option("--break", hidden=True)] = None,
) -> None:
    """Tell the whole story in a temporary folder: metrics, advice, cache, archive, restore."""
    from agent.demo.run import run_demo  # noqa: PLC0415

    logs.configure("error", "text")
    try:
        passed = asyncio.run(
            run_demo(nats_server=nats_server, as_json=as_json, break_step=break_step)
        )
    except ValueError as error:
        fail(error, code=2)
    raise SystemExit(0 if passed else 1)


# Listed after what everybody needs.
for command in (cli_advice.advise, cli_advice.approve, cli_advice.reject, cli_advice.explain):
    app.command()(command)
app.command()(cli_replay.replay)
app.command()(cli_backtest.backtest)
app.command()(cli_analyze.analyze)
app.command()(cli_history.history)
app.command()(cli_report.report)
app.command()(cli_insights.insights)
app.command()(cli_top.top)
