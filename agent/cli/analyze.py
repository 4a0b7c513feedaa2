"""The command `analyze`: a whole run of the fleet, a pool or a node."""

import itertools
from typing import Annotated, get_args

import typer

from agent.bus import Bus
from agent.cli.options import AsJson, Config, NatsUrl, PasswordFile, StateDir
from agent.cli.output import counted, print_json
from agent.cli.start import ask, fail
from agent.client import ResourceAgent
from agent.views.run_text import run_lines
from schemas.run import RunReply, StepName


def analyze(
    node: Annotated[str | None, typer.Option("--node", help="only that machine")] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="only that pool")] = None,
    insight: Annotated[
        bool, typer.Option(help="have it explained in words, which takes longest")
    ] = True,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Look at everything at once: use, alerts, cost, savings, an explanation, standing advice.

    Exit code 1 where a step failed; what the others found is shown all the same.
    """
    if node is not None and pool is not None:
        fail(ValueError("--node and --pool: give one of them"), code=2)

    async def work(bus: Bus) -> RunReply:
        ended = itertools.count(1)
        with counted(len(get_args(StepName)), "analyzing") as progress:
            return await ResourceAgent(bus).analyze(
                node=node, pool=pool, insight=insight, on_step=lambda _: progress(next(ended))
            )

    where = (config, state_dir, password_file, nats_url)
    run = ask(where, work, quiet=as_json, limit_seconds=None)
    if as_json:
        print_json(run)
    else:
        for line in run_lines(run):
            print(line)
    raise SystemExit(0 if run.state == "complete" else 1)
