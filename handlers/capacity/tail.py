"""How likely the load will be above so many replicas, from the errors made so far. Pure."""

import math
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from handlers.capacity.level import Level, gain_of

LOWEST, WIDTH, BINS = -6.0, 0.04, 900
PRIOR_OBSERVATIONS = 30.0
MEMORY_STEPS = 10_000
_HALF_LIVES = (30.0, 720.0, 12.0)
_GROWTH = 0.5 ** (-1.0 / MEMORY_STEPS)


def _laplace() -> list[float]:
    density = [math.exp(-abs(LOWEST + (bin_ + 0.5) * WIDTH)) for bin_ in range(BINS)]
    total = math.fsum(density)
    return [PRIOR_OBSERVATIONS * value / total for value in density]


class Tail(msgspec.Struct):
    """Errors of matured forecasts: their scale of late, and the histogram of error by scale.

    The histogram begins as a Laplace distribution worth 30 observations and forgets with a
    half-life of a week of minutes. O(`BINS`) a step.
    """

    counts: list[float] = msgspec.field(default_factory=_laplace)
    weight: float = 1.0  # of the next observation; it grows, which is cheaper than to fade all
    errors: list[float] = msgspec.field(default_factory=lambda: [0.1, 0.1, 0.1])
    matured: int = 0

    def learn(self, value: float, centre: float, scale: float) -> None:
        """A forecast around `centre` has come to `value`."""
        self.matured += 1
        error = abs(value - centre)
        for place, half_life in enumerate(_HALF_LIVES):
            gain = max(gain_of(half_life), 1.0 / self.matured)
            self.errors[place] += gain * (error - self.errors[place])
        bin_ = int(((value - centre) / scale - LOWEST) / WIDTH)
        self.weight *= _GROWTH
        self.counts[min(max(bin_, 0), BINS - 1)] += self.weight
        if self.weight > 1e6:
            self.counts = [count / self.weight for count in self.counts]
            self.weight = 1.0

    def scale(self, level: Level) -> float:
        """The mean absolute error to expect; surprises of the last minutes count at once."""
        recent, usual, instant = self.errors
        surprise = min(6.0, level.surprise / max(level.usual_surprise, 1e-6))
        return max(0.01, 0.3 * recent + 0.2 * (usual + instant) + 0.3 * usual * surprise)

    def above(self, values: Sequence[float], centre: float, scale: float) -> list[float]:
        """The probability that the value is above each of `values`."""
        above = list(accumulate(reversed(self.counts)))
        total = above[-1]
        risks = []
        for value in values:
            place = ((value - centre) / scale - LOWEST) / WIDTH
            if place <= 0:
                risks.append(1.0)
            elif place >= BINS:
                risks.append(0.0)
            else:
                bin_ = int(place)
                upper = above[BINS - 2 - bin_] if bin_ < BINS - 1 else 0.0
                lower = above[BINS - 1 - bin_]
                risks.append((lower + (place - bin_) * (upper - lower)) / total)
        return risks
