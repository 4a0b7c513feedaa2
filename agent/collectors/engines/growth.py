"""From two pages to what happened in between: growth of counters, quantiles of histograms."""

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from schemas.units import SECOND_NS

Key: TypeAlias = tuple[str, float | None]
"""A counter's field and None, or a histogram's field and the upper bound of one bucket."""

STARTED_SLACK_SECONDS = 1.0
"""Engines that compute their start from the uptime give it a little different each time."""


class Growth(NamedTuple):
    """How much each counter and bucket grew over `seconds`."""

    seconds: float
    of: Mapping[Key, float]

    def per_second(self, field: str) -> float | None:
        """Growth of a counter per second; None where it was not on both pages."""
        grown = self.of.get((field, None))
        return None if grown is None else grown / self.seconds

    def ratio(self, part: str, whole: str) -> float | None:
        """Growth of `part` by growth of `whole`, at most 1; None where nothing happened."""
        of_part, of_whole = self.of.get((part, None)), self.of.get((whole, None))
        return min(1.0, of_part / of_whole) if of_whole and of_part is not None else None

    def quantile(self, field: str, share: float) -> float | None:
        """The value that `share` of the new observations of a histogram do not exceed."""
        buckets = {
            bound: grown
            for (name, bound), grown in self.of.items()
            if name == field and bound is not None
        }
        return quantile(buckets, share)


class Totals:
    """The counters of one engine, as last seen.

    A counter that fell, or a later start of the process, means that the engine was started anew:
    then nothing can be said about the time between. The same after a gap of `forget_seconds`: a
    mean over an outage is not what happens now.
    """

    def __init__(self, forget_seconds: float) -> None:
        self.restarts = 0
        self._forget_seconds = forget_seconds
        self._at_ns = 0
        self._of: Mapping[Key, float] = {}
        self._started_seconds: float | None = None

    def advance(
        self, now_ns: int, totals: Mapping[Key, float], started_seconds: float | None = None
    ) -> Growth | None:
        """Growth since the last call, None where it cannot be told; remembers `totals`.

        Args:
            now_ns: When they were read.
            totals: Counters and cumulative bucket counts.
            started_seconds: Unix time of the engine's start, where it says so.
        """
        seconds = (now_ns - self._at_ns) / SECOND_NS
        before, before_started = self._of, self._started_seconds
        self._at_ns, self._of, self._started_seconds = now_ns, totals, started_seconds
        grown = {key: totals[key] - before[key] for key in totals.keys() & before.keys()}
        restarted = any(growth < 0 for growth in grown.values()) or (
            started_seconds is not None
            and before_started is not None
            and started_seconds > before_started + STARTED_SLACK_SECONDS
        )
        self.restarts += restarted
        if restarted or not before or not 0 < seconds <= self._forget_seconds:
            return None
        return Growth(seconds, grown)


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The quantile `share` of cumulative bucket counts, as Prometheus' `histogram_quantile`.

    Within a bucket observations are taken as evenly spread; the first begins at 0 (or at its end,
    if that is not positive). In the bucket without end (+Inf) the answer is that bucket's begin:
    the true value is that or more. With 10 up to 1 s, 30 up to 2 s and 40 up to +Inf: 0.5 → rank
    20 → 1 + (20 - 10) / 20 = 1.5; 0.95 → rank 38 → 2. None without observations, without +Inf or
    with no other bucket.
    """
    bounds = sorted(buckets)
    if len(bounds) < 2 or bounds[-1] != math.inf:
        return None
    # Buckets are counted one after the other while requests end: a later one is never less.
    counts: list[float] = []
    for bound in bounds:
        counts.append(max(buckets[bound], counts[-1] if counts else 0.0))
    if counts[-1] <= 0:
        return None
    rank = share * counts[-1]
    index = next(place for place, count in enumerate(counts) if count >= rank)
    if index == len(bounds) - 1:
        return bounds[-2]
    end = bounds[index]
    begin = bounds[index - 1] if index else min(0.0, end)
    below = counts[index - 1] if index else 0.0
    return begin + (end - begin) * (rank - below) / (counts[index] - below)
