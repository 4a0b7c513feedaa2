"""Where the load is on a log scale, how fast it moves, and where it will be. Pure."""

import math

import msgspec

LEAST_GAIN = 0.1
TREND_GAIN = 0.3
SLOW_GAIN = 0.1


def gain_of(half_life_steps: float) -> float:
    """Weight of a new value in an exponential mean: 1 → 0.5, 6 → 0.109."""
    return 1.0 - math.pow(0.5, 1.0 / half_life_steps)


class Level(msgspec.Struct):
    """Level, trend and slow level of a series, told apart from its noise; O(1) a step.

    The gain of the level lies between a fixed 0.5 and the steady Kalman gain of a random walk
    with noise, whose variances follow from the changes' variance and lag-1 covariance: pure
    noise gives 0.35, a noiseless walk 0.65.
    """

    last: float
    level: float
    slow: float
    trend: float = 0.0
    change: float = 0.0
    variance: float = 8e-4
    covariance: float = -2e-4
    surprise: float = 0.05
    usual_surprise: float = 0.05

    @classmethod
    def at(cls, value: float) -> "Level":
        """A series that begins with `value`."""
        return cls(last=value, level=value, slow=value)

    def update(self, value: float) -> None:
        """Take the next value."""
        change = value - self.last
        # A jump tells little about noise: its influence is bounded.
        gain = gain_of(360) / (1.0 + change * change / (9.0 * self.variance + 1e-9))
        self.variance += gain * (change * change - self.variance)
        self.covariance += gain * (change * self.change - self.covariance)
        self.last, self.change = value, change
        before, miss = self.level, value - self.level
        self.level += self._gain() * miss
        self.trend += TREND_GAIN * (self.level - before - self.trend)
        self.slow += SLOW_GAIN * (value - self.slow)
        self.surprise += gain_of(6) * (abs(miss) - self.surprise)
        self.usual_surprise += gain_of(720) * (abs(miss) - self.usual_surprise)

    def ahead(self, lead_steps: int) -> float:
        """The centre of what is expected `lead_steps` + 1 steps from now.

        A rise is carried on, damped. A fall is not: what is given up for it goes at once, while
        the load is still there.
        """
        damped = max(0.0, self.trend) * (lead_steps + 1) / (1.0 + 0.15 * lead_steps)
        return self.level + 0.1 * (self.slow - self.level) + 0.4 * damped

    def _gain(self) -> float:
        noise = max(1e-12, -self.covariance)
        ratio = max(1e-12, self.variance - 2.0 * noise) / noise
        kalman = 1.0 if ratio > 1e6 else (math.sqrt(ratio * ratio + 4.0 * ratio) - ratio) / 2.0
        return min(1.0, max(LEAST_GAIN, 0.7 * 0.5 + 0.3 * kalman))
