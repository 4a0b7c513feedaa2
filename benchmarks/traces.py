"""Public load traces of the folder that `--data` names, as series of equal steps."""

import bisect
import csv
import dataclasses
import gzip
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

HOLE_SHARE = 0.02
"""Rates of `servegen` at or below this share of their median are holes in the published data."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """A column of a published table, and how long its steps are."""

    name: str
    path: str
    column: str
    step_seconds: float

    def read(self, data: Path) -> list[float]:
        """Its values; empty cells, and holes of `servegen`, interpolated."""
        values = column(data / self.path, self.column)
        if self.path.startswith("servegen") and self.column == "rate_rps":
            least = HOLE_SHARE * statistics.median(v for v in values if v is not None)
            values = [v if v is not None and v > least else None for v in values]
        return interpolated(values)


def column(path: Path, name: str) -> list[float | None]:
    """A column of a CSV file; None where a cell is empty."""
    with gzip.open(path, "rt", newline="") as opened:
        return [float(row[name]) if row[name] else None for row in csv.DictReader(opened)]


def interpolated(values: Sequence[float | None]) -> list[float]:
    """Holes as straight lines between their neighbours; at the ends the nearest value."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    places = [place for place, _ in known]
    filled = []
    for place in range(len(values)):
        right = bisect.bisect_left(places, place)
        (x0, y0), (x1, y1) = known[max(0, right - 1)], known[min(right, len(known) - 1)]
        filled.append(y0 + (y1 - y0) * (place - x0) / (x1 - x0) if x1 > x0 else y1)
    return filled


def line(values: Sequence[float], at: float) -> float:
    """The straight lines through `values` at 0, 1, 2, …, at `at`; beyond them the nearest."""
    at = min(max(at, 0.0), len(values) - 1.0)
    left = min(int(at), len(values) - 2)
    return values[left] + (values[left + 1] - values[left]) * (at - left)


def servegen_minutes(data: Path, service: str, seed: int) -> list[float]:
    """Requests a minute, drawn around the measured rates of ten minutes each.

    Between their centres the rates are straight lines; the counts are gamma-Poisson with the
    measured dispersion, as in the study that set the targets, from other random numbers.
    """
    rates, spread = servegen(data, service, "rate_rps", "cv2_weighted")
    return drawn_minutes(rates, spread, seed)


def servegen(data: Path, service: str, *columns: str) -> list[list[float]]:
    """Columns of a service's ten-minute windows, holes filled."""
    path = f"servegen/{service}_10min.csv.gz"
    return [Trace(service, path, name, 600.0).read(data) for name in columns]


def drawn_minutes(rates: Sequence[float], spread: Sequence[float], seed: int) -> list[float]:
    """Counts a minute around rates a second of ten minutes each, with their dispersion."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    counts = []
    for minute in range(10 * len(rates)):
        at = (minute + 0.5 - 5.0) / 10.0
        counts.append(drawn(dice, 60.0 * line(rates, at), line(spread, at)))
    return counts


def drawn(dice: random.Random, rate: float, spread: float) -> float:
    """A gamma-Poisson count of mean `rate` whose variance is `spread` times that, above 1."""
    excess = max(spread, 1.001) - 1.0
    return _poisson(dice, dice.gammavariate(max(rate, 1e-6) / excess, excess))


def _poisson(dice: random.Random, mean: float) -> float:
    """A Poisson count; above 100 the rounded normal distribution, which is as good."""
    if mean > 100.0:
        return float(max(0, round(dice.gauss(mean, math.sqrt(mean)))))
    count, product, limit = 0, dice.random(), math.exp(-mean)
    while product > limit:
        count += 1
        product *= dice.random()
    return float(count)
