"""The messages that an executor writes about one execution, and advice to go back. Pure."""

import dataclasses

import msgspec

from schemas.scaling import ROLLBACK, Evidence, Execution, Recommendation
from schemas.units import instant


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an execution; `error` empty = it succeeded.

    `has_acted`: False where it certainly changed nothing, whatever the pool has afterwards.
    """

    before: int | None = None
    after: int | None = None
    text: str = ""
    error: str = ""
    has_acted: bool = True


def start_step(request: Execution, by: str, before: int | None, now_ns: int) -> Execution:
    """The step that says that the change begins now."""
    return msgspec.structs.replace(
        request,
        phase="started",
        executed_by=by,
        observed_at=instant(now_ns),
        replicas_before=before,
    )


def last_step(
    request: Execution, outcome: Outcome, by: str, now_ns: int, rollback: Recommendation | None
) -> Execution:
    """The end of what `request` asked for."""
    return msgspec.structs.replace(
        request,
        phase="failed" if outcome.error else "succeeded",
        executed_by=by,
        observed_at=instant(now_ns),
        replicas_before=outcome.before,
        replicas_after=outcome.after,
        error=outcome.error or None,
        text=outcome.text,
        rollback=rollback.recommendation_id if rollback else None,
    )


def is_reached(advice: Recommendation, replicas: int | None) -> bool:
    """Whether the pool is where the advice wants it, or beyond: then nothing must be done.

    Scaling up never takes replicas away, and scaling down never adds any: `scale_up` from 3 to 4
    leaves a pool alone that somebody has brought to 5.
    """
    if replicas is None:
        return False
    if advice.action == "scale_up":
        return replicas >= advice.replicas_to
    return replicas <= advice.replicas_to


def outdated(advice: Recommendation, replicas: int | None) -> str:
    """Why the advice does not fit what the pool has; empty: it does, or that is not known.

    To scale down was found safe for the replicas there were: with others it must be found anew.
    """
    if advice.action != "scale_down" or replicas is None or replicas <= advice.replicas_from:
        return ""
    return f"{advice.pool} has {replicas} replicas, the advice was for {advice.replicas_from}"


def rollback_advice(
    advice: Recommendation, request: Execution, outcome: Outcome, now_ns: int, stands_ns: int
) -> Recommendation | None:
    """Advice to go back to what was there before; None where nothing has changed, as far as told.

    Nor is there any where it was somebody else who changed it. Where the state after is not known,
    the target counts as reached. It needs approval as any other advice; where it fails itself,
    people must look.
    """
    now_at = advice.replicas_to if outcome.after is None else outcome.after
    if not outcome.error or request.dry_run or advice.reason == ROLLBACK:
        return None
    if not outcome.has_acted:
        return None
    if outcome.before is None or now_at == outcome.before:
        return None
    name = f"{request.idempotency_key}.rollback"
    if not name.startswith(f"{advice.recommendation_id}."):
        name = f"{advice.recommendation_id}.{name}"
    is_up = outcome.before > now_at
    observed = "not observed" if outcome.after is None else f"{outcome.after} were observed after"
    return Recommendation(
        action="scale_up" if is_up else "scale_down",
        pool=advice.pool,
        recommendation_id=name,
        idempotency_key=name,
        decided_at=instant(now_ns),
        expires_at=instant(now_ns + stands_ns),
        replicas_from=now_at,
        replicas_to=outcome.before,
        reason=ROLLBACK,
        text=f"go back to {outcome.before} replicas of {advice.pool}: {advice.recommendation_id} "
        f"failed ({observed})",
        evidence=[]
        if outcome.after is None
        else [
            Evidence(
                signal="replicas_observed",
                value=float(outcome.after),
                threshold=float(advice.replicas_to),
            )
        ],
        confidence_ratio=0.0 if outcome.after is None else 1.0,
        risk="low" if is_up else "medium" if outcome.before > 1 else "high",
        effective_after_seconds=advice.effective_after_seconds if is_up else 0.0,
        simulated=advice.simulated,
    )
