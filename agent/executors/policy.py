"""Approval by risk: what is decided about advice without a person. Pure."""

from collections.abc import Iterable

from agent.executors.settings import ApprovalSettings
from schemas.life import WANTED, Life
from schemas.precedence import contradict, decided_by, first
from schemas.scaling import SCALING, Decision, Recommendation
from schemas.units import instant

POLICY = "policy"


def policy_decisions(
    lives: Iterable[Life], approval: ApprovalSettings, now_ns: int
) -> list[Decision]:
    """Decisions on the advice that is open at `now_ns`, in the order in which it goes first.

    Of advice that contradicts, only what comes first is accepted; the rest is rejected where its
    risk is not left to people. What no executor can do counts once a person has accepted it: it
    may stand for a day, and must not keep pools from being scaled meanwhile. Simulated evidence is
    never accepted.
    """
    standing = [life for life in lives if life.state(now_ns) in WANTED]
    rivals = [
        life.advice
        for life in standing
        if life.advice.action in SCALING or life.decision is not None
    ]
    decisions = []
    for life in standing:
        if life.decision is not None:
            continue
        verdict = _verdict(life.advice, rivals, approval)
        if verdict is not None:
            decisions.append(_decision(life.advice, *verdict, now_ns))
    return decisions


def outranked_by(advice: Recommendation, others: Iterable[Recommendation]) -> Recommendation | None:
    """What contradicts `advice` and comes first; None when `advice` does."""
    winner = first([advice, *(other for other in others if contradict(advice, other))])
    same = winner is None or winner.recommendation_id == advice.recommendation_id
    return None if same else winner


def _verdict(
    advice: Recommendation, others: list[Recommendation], approval: ApprovalSettings
) -> tuple[bool, str] | None:
    """Whether it is accepted, and why; None: people decide, as on all that no executor can do."""
    if advice.action not in SCALING:
        return None
    what = {"low": approval.low, "medium": approval.medium, "high": approval.high}[advice.risk]
    if what == "ask":
        return None
    if what == "never":
        return False, f"{advice.risk} risk is never accepted"
    if advice.simulated:
        return False, "its evidence is simulated"
    winner = outranked_by(advice, others)
    if winner is not None:
        criterion = decided_by(winner, advice)
        return False, f"contradicts {winner.recommendation_id}, which goes first by {criterion}"
    return True, f"{advice.risk} risk is accepted by itself"


def _decision(advice: Recommendation, accepted: bool, reason: str, now_ns: int) -> Decision:
    return Decision(
        verdict="accepted" if accepted else "rejected",
        pool=advice.pool,
        recommendation_id=advice.recommendation_id,
        decided_at=instant(now_ns),
        decided_by=POLICY,
        reason=reason,
        simulated=advice.simulated,
    )
