"""Pure judgements of use ratios: level, severity, efficiency, health, balance."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import fsum

from handlers.settings import Band, Thresholds
from schemas.analysis import Health, Level, Severity

LEVELS: tuple[Level, ...] = ("idle", "low", "moderate", "high", "critical")
_LEVEL_STARTS = (0.20, 0.50, 0.70, 0.90)
_PLACES = {level: place for place, level in enumerate(LEVELS)}
RANK: dict[Severity | None, int] = {None: 0, "info": 1, "warning": 2, "critical": 3}


def level_of(ratio: float, previous: Level | None, margin_ratio: float) -> Level:
    """The level of `ratio`.

    idle < 0.20 <= low < 0.50 <= moderate < 0.70 <= high < 0.90 <= critical.
    It rises at once and falls only when `ratio` is `margin_ratio` below the start of the level:
    with 0.05, moderate (from 0.50) stays moderate down to 0.45.
    """
    reached = bisect_right(_LEVEL_STARTS, ratio)
    if previous is not None and reached < _PLACES[previous]:
        reached = min(_PLACES[previous], bisect_right(_LEVEL_STARTS, ratio + margin_ratio))
    return LEVELS[reached]


def severity_of(
    ratio: float, thresholds: Thresholds, previous: Severity | None, margin_ratio: float
) -> Severity | None:
    """Warning or critical from the threshold on, and down to `margin_ratio` below it."""
    reached = _severity(ratio, thresholds)
    if RANK[reached] < RANK[previous]:
        kept = _severity(ratio + margin_ratio, thresholds)
        reached = previous if RANK[kept] >= RANK[previous] else kept
    return reached


def _severity(ratio: float, thresholds: Thresholds) -> Severity | None:
    if ratio >= thresholds.critical_ratio:
        return "critical"
    return "warning" if ratio >= thresholds.warning_ratio else None


def efficiency(ratio: float, band: Band) -> float:
    """How well a resource is used: 1 in its band, lower when idle or saturated.

    `ratio / least` below, `1 - 2 * (ratio - most)` above, not below 0. In a GPU's band of 0.7 to
    0.9: 0 → 0, 0.35 → 0.5, 0.7 → 1, 0.9 → 1, 0.95 → 0.9, 1 → 0.8. In a CPU's of 0.6 to 0.8: 0.3 →
    0.5, 0.65 → 1, 0.9 → 0.8. An idle machine is wasteful (0), yet healthy.
    """
    if ratio < band.least_ratio:
        return ratio / band.least_ratio
    return max(0.0, 1.0 - 2.0 * max(0.0, ratio - band.most_ratio))


def health_of(
    bottlenecks: Iterable[tuple[str | None, Severity]], *, parts_degrade_only: bool
) -> Health:
    """The worst of the bottlenecks, each with its part: none, a warning, something critical.

    With `parts_degrade_only` (pools and the fleet) a bottleneck of one node, GPU or engine
    degrades; critical takes the mean over all of them, whose part is None.
    """
    health: Health = "healthy"
    for part, severity in bottlenecks:
        if severity == "critical" and not (parts_degrade_only and part is not None):
            return "critical"
        health = "degraded"
    return health


def balance(ratios: Sequence[float]) -> float | None:
    """How evenly work is spread: mean by maximum (POP's load balance), 1 = evenly.

    0.9, 0.9 → 1; 0.6, 0.4 → 0.83; one of eight at 1, the others at 0 → 0.125. None for fewer
    than two, and where none reaches 0.05: nothing to spread.
    """
    highest = max(ratios, default=0.0)
    if len(ratios) < 2 or highest < 0.05:
        return None
    # Exactly: whoever takes over has them in another order.
    return min(1.0, fsum(ratios) / len(ratios) / highest)


def power_efficiency(utilization_ratio: float | None, power_ratio: float | None) -> float | None:
    """How much of the power drawn goes with work: utilization by share of the power limit.

    80 % at 700 of 700 W → 0.8, of one GPU as of eight; 90 % at 300 of 700 W → 1; 0 % → 0.
    None: one of them is not measured.
    """
    if utilization_ratio is None or not power_ratio:
        return None
    return min(1.0, utilization_ratio / power_ratio)
