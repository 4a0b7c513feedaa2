"""Simple forecasters of one series, to be mixed: each knows the past and nothing of the others."""

import statistics
from collections.abc import Sequence

import msgspec

from handlers.forecasting.season import Season

GAINS = (0.7, 0.5, 0.3, 0.15, 0.07)
LAST_VALUE = 0
"""The place of the last value among the experts."""
PLAIN = 11
"""Experts without a season."""
SEASONAL = 3
"""Further experts for each season."""


class Experts(msgspec.Struct):
    """The last value, five exponential means, two damped trends, two returns to the mean, a median.

    Three more for each season: the level, the last value, or between, carried along the profile
    of one season ago. O(number of experts) a step.
    """

    last: list[float] = []
    levels: list[float] = []
    slow: float = 0.0
    trend: float = 0.0
    steps: int = 0
    seasons: list[Season] = []

    def update(self, value: float) -> None:
        """Take the value of the next step."""
        self.steps += 1
        if self.last:
            before = self.levels[1]
            self.levels = [
                level + gain * (value - level)
                for level, gain in zip(self.levels, GAINS, strict=True)
            ]
            self.trend += 0.2 * (self.levels[1] - before - self.trend)
            self.slow += max(0.01, 1.0 / self.steps) * (value - self.slow)
        else:
            self.levels, self.slow, self.trend = [value] * len(GAINS), value, 0.0
            self.steps = 1
        self.last = [*self.last, value][-3:]
        for season in self.seasons:
            season.update(value)

    def skip(self, steps: int) -> None:
        """`steps` steps passed of which nothing is known."""
        for season in self.seasons:
            season.skip(steps)

    def restart(self) -> None:
        """The past is too old to say where the series is now; the seasons stay."""
        self.last = []

    def predict(self, steps_ahead: int) -> list[float]:
        """Each expert's forecast, never negative."""
        value, quick, level = self.last[-1], self.levels[0], self.levels[1]
        damped = 0.85 * (1.0 - 0.85**steps_ahead) / 0.15
        forecasts = [
            value,
            *self.levels,
            level + damped * self.trend,
            quick + 0.5 * damped * self.trend,
            level + (1.0 - 0.97**steps_ahead) * (self.slow - level),
            self.levels[2] + (1.0 - 0.9**steps_ahead) * (self.slow - self.levels[2]),
            statistics.median(self.last),
        ]
        for season in self.seasons:
            ratio = season.ratio(steps_ahead)
            forecasts += [level * ratio, level * ratio**0.5, value * ratio**0.25]
        return [max(0.0, forecast) for forecast in forecasts]


def season_shares(weights: Sequence[float], seasons: int) -> list[float]:
    """The weight that the experts of each season hold together."""
    starts = (PLAIN + SEASONAL * place for place in range(seasons))
    return [sum(weights[start : start + SEASONAL]) for start in starts]
