"""`resource-agent top`: the fleet, live."""

import sys
from typing import Annotated

import typer

from agent.bus import Bus
from agent.cli.options import AsJson, Config, NatsUrl, PasswordFile, StateDir
from agent.cli.output import print_json
from agent.cli.start import ask, fail
from agent.fleet import SORTS, Choice


def top(
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    node: Annotated[str | None, typer.Option("--node", help="only this node")] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="only this pool")] = None,
    section: Annotated[
        str, typer.Option(help="only nodes, gpus, engines, pools, alerts or advice")
    ] = "",
    sort: Annotated[
        str, typer.Option(help="like busy_ratio, waiting, kv_ratio, memory_ratio")
    ] = "",
    reverse: Annotated[bool, typer.Option("--reverse", help="the other way round")] = False,
    once: Annotated[bool, typer.Option("--once", help="print one picture and end")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the fleet live: nodes, GPUs, engines, pools, caches, open alerts, standing advice."""
    from agent.views.live import show_fleet  # noqa: PLC0415 - the light commands must start fast
    from agent.views.live_tables import SECTIONS  # noqa: PLC0415

    if section not in ("", *SECTIONS):
        fail(ValueError(f"--section {section}: choose {', '.join(SECTIONS)}"), code=2)
    known = sorted({name for names in SORTS.values() for name in names if name})
    if sort not in ("", *known):
        fail(ValueError(f"--sort {sort}: choose {', '.join(known)}"), code=2)
    is_once = once or as_json or not sys.stdout.isatty()
    choice = Choice(node=node, pool=pool, sort=sort, reverse=reverse)

    async def work(bus: Bus) -> None:
        await show_fleet(bus, choice, only=section, once=is_once, as_json=as_json, say=print_json)

    where = (config, state_dir, password_file, nats_url)
    ask(where, work, quiet=True, limit_seconds=30.0 if is_once else None)
