"""Where a number goes: Theil and Sen's robust slope, and this period against the last. Pure."""

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from handlers.spending.usage import HOUR_NS, figures
from schemas.spending import TrendLine, TrendMetric, Usage
from schemas.units import to_ns

METRICS: tuple[TrendMetric, ...] = (
    "utilization_ratio",
    "usd_per_hour",
    "waste_usd_per_hour",
    "tokens_per_second",
    "usd_per_million_tokens",
    "joules_per_token",
)
DAY_HOURS = 24
HISTORY_HOURS = 7 * DAY_HOURS
LEAST_HOURS = DAY_HOURS
MOST_POINTS = 56
"""Longer histories are averaged to this many: 1,540 pairs, half a millisecond."""
_WITHIN_95 = 1.96


class Slope(NamedTuple):
    """Per unit of x, with its 95 % interval."""

    value: float
    low: float
    high: float


class Point(NamedTuple):
    """What one hour came to. None: not measured."""

    hour: int
    """Hours since the Unix epoch."""
    values: tuple[float | None, ...]
    """In the order of METRICS."""
    spare_gpus: float
    """How many GPUs the work of those active would have left over at the target."""


def point(hour: Sequence[Usage]) -> Point:
    """The point of one hour, of real or simulated GPUs or both."""
    of_hour = figures(hour)
    return Point(
        hour=to_ns(hour[0].hour_at) // HOUR_NS,
        values=tuple(getattr(of_hour, metric) for metric in METRICS),
        spare_gpus=0.0
        if of_hour.gpus is None
        else of_hour.gpus * of_hour.under_used_gpu_hours / of_hour.gpu_hours,
    )


def theil_sen(points: Sequence[tuple[float, float]]) -> Slope:
    """Median of the slopes of all pairs, of at least two points; one wild value moves it little.

    The interval is Sen's (1968): of N = n(n-1)/2 ranked slopes those 1.96·√(n(n-1)(2n+5)/18)/2
    ranks from the middle. It takes the points for independent. (0, 0) (1, 1) (2, 2) (3, 9) → 2,
    where least squares say 2.8. O(n² log n).
    """
    slopes = sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(points)
        for later in points[index + 1 :]
    )
    n = len(points)
    spread = _WITHIN_95 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, round((len(slopes) - spread) / 2) - 1)
    high = min(len(slopes) - 1, round((len(slopes) + spread) / 2))
    return Slope(median(slopes), slopes[low], slopes[high])


def trend_line(
    metric: TrendMetric,
    hours: Sequence[tuple[int, float | None]],
    *,
    period_hours: int = DAY_HOURS,
    before: Sequence[float | None] | None = None,
) -> TrendLine:
    """The trend of one metric over rising hours.

    The change compares the last `period_hours` with as many before them, or, where `before` is
    given, all of `hours` with it. Both need half of their hours.
    """
    known = [(float(hour), value) for hour, value in hours if value is not None]
    last_hour, last = hours[-1] if hours else (0, None)
    if before is None:
        begin = last_hour - period_hours
        recent = [value for hour, value in known if hour > begin]
        earlier = [value for hour, value in known if begin - period_hours < hour <= begin]
    else:
        recent = [value for _, value in known]
        earlier = [value for value in before if value is not None]
    change = None
    if min(len(recent), len(earlier)) * 2 >= period_hours and fmean(earlier) > 0:
        change = fmean(recent) / fmean(earlier) - 1
    name = metric.replace("_", " ")
    if len(known) < LEAST_HOURS:
        text = f"{name}: hours known: {len(known)}, a slope needs {LEAST_HOURS}"
        slope, direction = None, "unknown"
    else:
        per_hour = theil_sen(_averaged(known))
        slope = Slope(*(DAY_HOURS * value for value in per_hour))
        direction = "rising" if slope.low > 0 else "falling" if slope.high < 0 else "steady"
        text = (
            f"{name}: {direction}, {slope.value:+.3g} a day "
            f"({slope.low:+.3g} to {slope.high:+.3g}, 95 %)"
        )
    if change is not None:
        text += f"; {change:+.1%} against the {period_hours} hours before"
    return TrendLine(
        metric=metric,
        points=len(known),
        last=last,
        slope_per_day=slope.value if slope else None,
        slope_low_per_day=slope.low if slope else None,
        slope_high_per_day=slope.high if slope else None,
        direction=direction,  # type: ignore[arg-type]  # one of the literals
        change_ratio=change,
        text=text,
    )


def trend_lines(
    points: Sequence[Point],
    *,
    period_hours: int = DAY_HOURS,
    before: Sequence[Point] | None = None,
) -> list[TrendLine]:
    """One line for each metric that was measured at all."""
    lines = []
    for index, metric in enumerate(METRICS):
        hours = [(one.hour, one.values[index]) for one in points]
        if any(value is not None for _, value in hours):
            earlier = None if before is None else [one.values[index] for one in before]
            lines.append(trend_line(metric, hours, period_hours=period_hours, before=earlier))
    return lines


def _averaged(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of as few neighbours each as leave at most MOST_POINTS."""
    size = -(-len(points) // MOST_POINTS)
    blocks = (points[start : start + size] for start in range(0, len(points), size))
    return [(fmean(x for x, _ in block), fmean(y for _, y in block)) for block in blocks]
