"""`resource-agent advise`, `approve`, `reject` and `explain`."""

import asyncio
import sys
from typing import Annotated

import typer
from rich.markup import escape

from agent import decisions
from agent.bus import Bus
from agent.cli.options import AsJson, Config, NatsUrl, PasswordFile, StateDir
from agent.cli.output import print_json, print_lines
from agent.cli.start import ask, errors, fail
from agent.client import ResourceAgent
from agent.views.advice_text import advice_lines, execution_line, held_line, story_lines
from schemas.decisions import ExecuteReply, Explanation
from schemas.protocols import RequestError
from schemas.scaling import HeldAdvice

WATCH_SECONDS = 2.0
LIMIT_SECONDS = 60.0

Id = Annotated[str, typer.Argument(metavar="ID", help="recommendation_id, as `advise` lists it")]
By = Annotated[str | None, typer.Option("--by", help="your name; default: this machine's user")]


def advise(
    pool: Annotated[str | None, typer.Option(help="only advice on this pool")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="again whenever it changes, until Ctrl-C")
    ] = False,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List the advice that stands, with what to type next; and what is not advised, and why."""

    async def work(bus: Bus) -> None:
        shown = None
        while True:
            stories, held = await _standing(bus, pool)
            news = [
                *((one.state, one.trail) for one in stories),
                *((one.pool, one.reason, one.replicas_to) for one in held or ()),
            ]
            if news != shown:
                _print_standing(stories, held, as_json=as_json)
                shown = news
            if not watch:
                return
            await asyncio.sleep(WATCH_SECONDS)

    where = (config, state_dir, password_file, nats_url)
    limit = None if watch else LIMIT_SECONDS
    ask(where, work, quiet=as_json, limit_seconds=limit)


def approve(
    recommendation_id: Id,
    reason: Annotated[str, typer.Option(help="why, for the audit trail")] = "",
    execute: Annotated[
        bool, typer.Option("--execute", help="have it carried out too: a dry run")
    ] = False,
    for_real: Annotated[
        bool, typer.Option("--for-real", help="with --execute: change the pool")
    ] = False,
    key: Annotated[
        str | None, typer.Option(help="idempotency key, for another try after a failure")
    ] = None,
    by: By = None,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Accept advice; with --execute have it carried out, and wait for the end.

    Exit code 1 where somebody else was quicker, or the execution failed.
    """
    if not execute and (for_real or key is not None):
        fail(ValueError("--for-real and --key are for --execute"), code=2)

    async def work(bus: Bus) -> tuple[Explanation, ExecuteReply | None]:
        signed = decisions.decider(bus, by)
        story = await decisions.explain(bus, recommendation_id, sources=False)
        decided = story.life.decision
        if not execute or decided is None or decided.verdict != "accepted":
            story = await decisions.decide(
                bus, recommendation_id, "accepted", by=signed, reason=reason
            )
        decision = story.life.decision
        assert decision is not None  # noqa: S101 - it was just made, or found
        if not as_json:  # before anything else can fail: this stands
            errors.print(f"accepted by {escape(decision.decided_by)}")
        if not execute:
            return story, None
        reply = await decisions.execute(
            bus,
            recommendation_id,
            dry_run=not for_real,
            idempotency_key=key,
            by=signed,
            wait_seconds=LIMIT_SECONDS,
        )
        return story, reply

    where = (config, state_dir, password_file, nats_url)
    story, reply = ask(where, work, quiet=as_json, limit_seconds=2 * LIMIT_SECONDS)
    if as_json:
        print_json({"decision": story.life.decision, "execution": reply and reply.execution})
    elif reply is not None:
        if not reply.is_new:
            errors.print("nothing was begun now: it was carried out before; --key NAME tries again")
        print(execution_line(reply.execution))
    raise SystemExit(1 if reply is not None and reply.execution.phase != "succeeded" else 0)


def reject(
    recommendation_id: Id,
    reason: Annotated[str, typer.Option(help="why, for the audit trail")],
    by: By = None,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Reject advice; exit code 1 where somebody else was quicker."""

    async def work(bus: Bus) -> Explanation:
        signed = decisions.decider(bus, by)
        return await decisions.decide(bus, recommendation_id, "rejected", by=signed, reason=reason)

    story = ask((config, state_dir, password_file, nats_url), work, quiet=as_json)
    decision = story.life.decision
    assert decision is not None  # noqa: S101 - it was just made
    if as_json:
        print_json({"decision": decision})
    else:
        errors.print(f"rejected by {escape(decision.decided_by)}")


def explain(
    recommendation_id: Id,
    nats_url: NatsUrl = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Trace one recommendation: the messages behind it, decisions and executions after it."""
    where = (config, state_dir, password_file, nats_url)
    story = ask(
        where,
        lambda bus: decisions.explain(bus, recommendation_id),
        quiet=as_json,
        limit_seconds=LIMIT_SECONDS,
    )
    if as_json:
        print_json(story)
        return
    print_lines(story_lines(story))


async def _standing(
    bus: Bus, pool: str | None
) -> tuple[list[Explanation], list[HeldAdvice] | None]:
    """What stands, with what was said about it, and what is held; what is gone is left out."""
    reply = await ResourceAgent(bus).get_scaling_recommendations(pool)
    stories = []
    for advice in reply.rows:
        try:
            stories.append(await decisions.explain(bus, advice.recommendation_id, sources=False))
        except RequestError as error:
            if error.code != 404:
                raise
    return stories, reply.held


def _print_standing(
    stories: list[Explanation], held: list[HeldAdvice] | None, *, as_json: bool
) -> None:
    if as_json:
        print_json({"advice": stories, "held": held})
        return
    for story in stories:
        print_lines((*advice_lines(story, stories), ""))
    if not stories:
        errors.print("no advice stands")
    print_lines(held_line(one) for one in held or ())
    sys.stdout.flush()
    if held is None:
        errors.print("what is not advised, and why, could not be read now")
