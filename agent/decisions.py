"""Decides on advice and has it carried out, as operator or orchestrator."""

import asyncio
import time
from typing import Literal

import msgspec

from agent.bus import Bus
from agent.identity import user_name
from schemas.decisions import ExecuteReply, ExecuteRequest, ExplainRequest, Explanation
from schemas.life import decision_id
from schemas.protocols import RequestError
from schemas.scaling import Decision
from schemas.units import instant

ANSWER_SECONDS = 10.0
LOOK_SECONDS = 0.2


def decider(bus: Bus, name: str | None = None) -> str:
    """`<user of the bus>:<name>`, by default this machine's user: how a decision is signed.

    The server lets only some users publish decisions; the name is what a person gives itself.
    """
    return f"{bus.user or 'nobody'}:{user_name() if name is None else name}"


async def explain(bus: Bus, recommendation_id: str, *, sources: bool = True) -> Explanation:
    """What is known of a recommendation; without `sources` only what was said about it.

    Raises:
        RequestError: 404 there is no such recommendation; 503 the handlers cannot answer now.
    """
    request = ExplainRequest(recommendation_id=recommendation_id, sources=sources)
    answer = await bus.request(
        "api.optimize.explain", msgspec.json.encode(request), timeout_seconds=ANSWER_SECONDS
    )
    return msgspec.json.decode(answer.payload, type=Explanation)


async def decide(
    bus: Bus,
    recommendation_id: str,
    verdict: Literal["accepted", "rejected"],
    *,
    by: str,
    reason: str = "",
) -> Explanation:
    """Accept or reject a recommendation; of several who decide at once exactly one succeeds.

    All write under one message id, of which the stream keeps the first; then each reads back
    whose it was.

    Raises:
        RequestError: 409 it was decided already, or does not stand any more; 404 there is none.
        PublishError: the decision was not acknowledged: it may have been taken, `explain` tells.
    """
    explanation = await explain(bus, recommendation_id, sources=False)
    _refuse_decided(explanation)
    decision = Decision(
        verdict=verdict,
        pool=explanation.life.advice.pool,
        recommendation_id=recommendation_id,
        decided_at=instant(time.time_ns()),
        decided_by=by,
        reason=reason,
        simulated=explanation.life.advice.simulated,
    )
    await bus.publish(decision, message_id=decision_id(recommendation_id))
    explanation = await explain(bus, recommendation_id, sources=False)
    if explanation.life.decision != decision:
        _refuse_decided(explanation)
        raise RequestError(409, "another decision on it was taken meanwhile, which did not count")
    return explanation


async def execute(
    bus: Bus,
    recommendation_id: str,
    *,
    dry_run: bool = True,
    idempotency_key: str | None = None,
    by: str = "",
    wait_seconds: float = 0.0,
) -> ExecuteReply:
    """Have an accepted recommendation carried out, and wait at most so long for its end.

    The reply says how far it is; the same key asks again.

    Raises:
        RequestError: 409 it must not be carried out; 404 there is none; 503 no executor runs.
    """
    request = ExecuteRequest(
        recommendation_id=recommendation_id,
        dry_run=dry_run,
        idempotency_key=idempotency_key,
        requested_by=by,
    )
    give_up = time.monotonic() + wait_seconds
    first = reply = await _execute(bus, request)
    while not reply.has_ended and time.monotonic() < give_up:
        await asyncio.sleep(LOOK_SECONDS)
        key = reply.execution.idempotency_key
        reply = await _execute(bus, msgspec.structs.replace(request, idempotency_key=key))
    return msgspec.structs.replace(reply, is_new=first.is_new)


async def _execute(bus: Bus, request: ExecuteRequest) -> ExecuteReply:
    answer = await bus.request(
        "api.optimize.execute", msgspec.json.encode(request), timeout_seconds=ANSWER_SECONDS
    )
    return msgspec.json.decode(answer.payload, type=ExecuteReply)


def _refuse_decided(explanation: Explanation) -> None:
    """Raise 409 where somebody has decided, or there is nothing to decide any more."""
    decision = explanation.life.decision
    if decision is not None:
        why = f": {decision.reason}" if decision.reason else ""
        raise RequestError(
            409,
            f"{decision.decided_by} {decision.verdict} it at {decision.decided_at:%F %T}Z{why}",
        )
    if explanation.closed:
        raise RequestError(409, f"it does not stand any more: {explanation.closed}")
