"""Why an execution must not be done, as far as the messages tell. Pure."""

from collections.abc import Iterable

from agent.executors.policy import outranked_by
from agent.executors.settings import ExecutorSettings
from agent.executors.target import Target
from schemas.life import WANTED, Life
from schemas.precedence import decided_by
from schemas.scaling import SCALING, Execution


def refusal(
    life: Life,
    request: Execution,
    others: Iterable[Life],
    settings: ExecutorSettings,
    target: Target,
    *,
    is_authenticated: bool,
    now_ns: int,
) -> str:
    """The first reason not to do what `request` asks; empty when it may be done.

    A dry run is refused for the same reasons, but for missing approval: it is there to look
    before.
    """
    advice = life.advice
    if not is_authenticated:
        return (
            "this executor is connected without authentication: anybody could have sent that; "
            "give NATS_URL a user and password"
        )
    if advice.simulated or request.simulated:
        return "its evidence is simulated"
    if advice.action not in SCALING:
        return f"an executor cannot {advice.action}: it only changes the number of replicas"
    if reason := life.closed(now_ns) if request.dry_run else life.refusal(now_ns):
        return reason
    if reason := target.refusal(advice.pool):
        return reason
    if request.dry_run:
        return ""
    if settings.dry_run:
        return "executor.dry_run is on: this executor changes nothing"
    decision = life.decision
    assert decision is not None  # noqa: S101 - else Life refuses
    role = decision.decided_by.split(":", 1)[0]
    if role not in settings.deciders:
        return f"{decision.decided_by} accepted it, a role that is not in executor.deciders"
    if decision.simulated:
        return "its decision is simulated"
    rivals = [
        other.advice
        for other in others
        if other.decision is not None
        and other.advice.recommendation_id != advice.recommendation_id
        and other.state(now_ns) in WANTED
    ]
    winner = outranked_by(advice, rivals)
    if winner is not None:
        return (
            f"it contradicts {winner.recommendation_id}, accepted too, which goes first by "
            f"{decided_by(winner, advice)}"
        )
    return ""
