"""The command `insights`: what is going on, in words."""

from typing import Annotated

import typer
from rich.markup import escape

from agent import human
from agent.cli.commands import console
from agent.cli.options import AsJson, Config, NatsUrl, PasswordFile, StateDir
from agent.cli.output import print_json
from agent.cli.start import ask, fail
from agent.client import INSIGHT_TIMEOUT_SECONDS, ResourceAgent
from schemas.insights import Insight, InsightsReply

COLOURS = {"info": "dim", "warning": "yellow", "critical": "red"}


def insights(
    node: Annotated[str | None, typer.Option("--node", help="only that machine's")] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="only that pool's")] = None,
    now: Annotated[
        bool, typer.Option("--now", help="write one now; without node and pool the fleet's")
    ] = False,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show what is going on, in words: alerts, utilization and advice, explained."""
    if node is not None and pool is not None:
        fail(ValueError("--node and --pool: give one of them"), code=2)
    reply: InsightsReply = ask(
        (config, state_dir, password_file, nats_url),
        lambda bus: ResourceAgent(bus).insights(node=node, pool=pool, now=now),
        quiet=as_json,
        limit_seconds=INSIGHT_TIMEOUT_SECONDS,
    )
    if as_json:
        print_json(reply)
        return
    for row in reply.rows:
        _show(row)
    if reply.text:
        console.print(escape(reply.text))


def _show(insight: Insight) -> None:
    what = "fleet" if insight.scope == "fleet" else f"{insight.scope} {insight.id}"
    by = "by template" if insight.source == "template" else f"by {insight.model}"
    at = f"{insight.decided_at:%Y-%m-%d %H:%M:%S} UTC"
    simulated = ", simulated" if insight.simulated else ""
    console.print(f"[bold]{escape(what)}[/]  [dim]{at}, {escape(by)}{simulated}[/]")
    if insight.template_reason is not None:
        console.print(f"[dim]{escape(human.printable(insight.template_reason))}[/]")
    if insight.source == "llm":
        console.print(escape(human.printable(insight.text)), soft_wrap=True)
    for finding in insight.findings:
        word = f"[{COLOURS[finding.severity]}]{finding.severity:8}[/]"
        console.print(f"{word} {escape(human.printable(finding.text))}", soft_wrap=True)
    console.print()
