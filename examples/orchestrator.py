"""Decide on advice by a rule of your own, and have the executor carry it out.

    python examples/orchestrator.py [--for-real]    # with `resource-agent up` and an executor

It keeps nothing: all that was decided and done is in the stream. Kill it at any time, run two of
them beside each other, decide by hand beside both: the first decision on a recommendation counts,
and an execution is begun once. Put your own rule in place of `verdict`.
"""

import argparse
import asyncio
import sys
from typing import Literal

from agent.bus import BusError
from agent.client import ResourceAgent
from schemas.protocols import PublishError, RequestError
from schemas.scaling import SCALING, Recommendation

NAME = "example"
LOOK_SECONDS, WAIT_SECONDS = 2.0, 120.0


def verdict(advice: Recommendation) -> tuple[Literal["accepted", "rejected"] | None, str]:
    """What to say to advice, and why; None: people decide, by `resource-agent approve`."""
    if advice.action not in SCALING:
        return None, "no executor can do that"
    if advice.simulated or advice.confidence_ratio < 0.5:
        return None, "the evidence is simulated or thin"
    if advice.risk == "high":
        return "rejected", "high risk is nothing for a program"
    return "accepted", f"{advice.risk} risk, confidence {advice.confidence_ratio:.0%}"


async def settle(agent: ResourceAgent, advice: Recommendation, *, dry_run: bool) -> str:
    """Decide where nobody has, have it carried out where it was accepted; what came of it."""
    name = advice.recommendation_id
    story = await agent.explain(name)
    if story.state == "open":
        word, reason = verdict(advice)
        if word is None:
            return f"left to people: {reason}"
        decide = agent.approve if word == "accepted" else agent.reject
        story = await decide(name, reason=reason, by=NAME)
    if story.state not in ("accepted", "requested", "executing"):
        return story.closed or story.state
    reply = await agent.execute_optimization(name, dry_run=dry_run, wait_seconds=WAIT_SECONDS)
    step = reply.execution
    return f"{'dry run ' * step.dry_run}{step.phase}: {step.error or step.text}"


async def look(agent: ResourceAgent, done: set[str], *, dry_run: bool) -> None:
    """Settle what stands and is not `done`; what cannot be settled now comes again."""
    rows = (await agent.get_scaling_recommendations()).rows
    done &= {advice.recommendation_id for advice in rows}
    for advice in rows:
        name = advice.recommendation_id
        if name not in done:
            try:
                print(name, await settle(agent, advice, dry_run=dry_run), flush=True)
                done.add(name)
            except (RequestError, PublishError) as error:  # nobody answers, or one was quicker
                print(f"{name} later: {error}", file=sys.stderr)


async def main() -> None:
    parser = argparse.ArgumentParser(description="decide on advice, and have it carried out")
    parser.add_argument("--url", help="else NATS_URL, or the running `resource-agent up`")
    parser.add_argument("--for-real", action="store_true", help="else dry runs")
    asked = parser.parse_args()

    done: set[str] = set()
    async with await ResourceAgent.connect(asked.url) as agent:
        while True:
            try:
                await look(agent, done, dry_run=not asked.for_real)
            except RequestError as error:
                print(f"later: {error}", file=sys.stderr)
            await asyncio.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("stopped")
    except BusError as error:
        sys.exit(f"error: {error}")
