"""Which of contradicting advice comes first: one order, the same for people, policy, executor."""

from collections.abc import Iterable
from typing import Literal, TypeAlias

from schemas.scaling import Recommendation

Criterion: TypeAlias = Literal["priority", "saving", "confidence", "risk", "time"]

_CRITERIA: tuple[Criterion, ...] = ("priority", "saving", "confidence", "risk", "time")
_RISKS = ("low", "medium", "high")


def contradict(one: Recommendation, other: Recommendation) -> bool:
    """Whether carrying out both makes no sense.

    As both change a pool's replicas, GPUs or places, or both tune its cache: a `scale_up` and a
    `scale_down` of one pool contradict; a `scale_up` and a `tune_cache` do not.
    """
    is_cache = (one.action == "tune_cache", other.action == "tune_cache")
    return one.pool == other.pool and is_cache[0] == is_cache[1]


def precedence(advice: Recommendation) -> tuple[int, float, float, int, float, str]:
    """Sorts advice: what comes first is least, and no two of different id are equal.

    In this order: priority (`scale_up` protects the service, so it goes before all others);
    saving per hour, the greater first, one without a price last; confidence, the greater first;
    risk, the lower first; then the later advice, as it knows more; at last the id, so that the
    order is total.
    """
    saving = advice.saving_usd_per_hour
    return (
        int(advice.action != "scale_up"),
        float("inf") if saving is None else -saving,
        -advice.confidence_ratio,
        _RISKS.index(advice.risk),
        -advice.decided_at.timestamp(),
        advice.recommendation_id,
    )


def first(advice: Iterable[Recommendation]) -> Recommendation | None:
    """What comes first; None of none."""
    return min(advice, key=precedence, default=None)


def decided_by(winner: Recommendation, loser: Recommendation) -> Criterion:
    """The first criterion in which two pieces of advice differ."""
    pairs = zip(_CRITERIA, precedence(winner), precedence(loser), strict=False)
    return next((name for name, mine, theirs in pairs if mine != theirs), "time")
