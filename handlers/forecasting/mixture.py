"""One horizon: experts weighed by what they lost to the mixture, and intervals by what missed."""

import math
from collections.abc import Sequence

import msgspec

from handlers.forecasting.experts import LAST_VALUE

MEMORY_STEPS = 720
LAST_VALUE_PRIOR = 8.0
"""Weight of the last value at the start, against 1 of each other expert."""
MISS = 0.09
"""Share of values beyond each bound that is aimed at: 0.1, less what late learning adds."""
_FADE = 0.5 ** (1.0 / MEMORY_STEPS)


class Pending(msgspec.Struct):
    """A forecast whose step has not come yet."""

    due: int
    experts: list[float]
    middle: float
    low: float
    high: float
    spread: float


class Horizon(msgspec.Struct):
    """The mixture for one distance, its interval and its error.

    Exponential weights on the linearised absolute loss, each expert with its own learning rate,
    divided by the root of the distance because errors so far apart overlap (Cesa-Bianchi and
    Lugosi, Prediction, Learning, and Games, § 2). The bounds are two quantiles of the relative
    error by its scale, each moved by its misses (Gibbs and Candès, adaptive conformal
    inference). O(experts) a step.
    """

    steps_ahead: int
    experts: int
    gains: list[float] = []  # of each expert over the mixture, faded
    squares: list[float] = []
    scale: float = 1e-9
    count: float = 0.0
    low: float = -1.3
    high: float = 1.3
    spread: float = 0.1
    loss: float = 0.0  # absolute errors, those of the last value, what came, all faded
    last_loss: float = 0.0
    total: float = 0.0
    inside: float = 0.0
    matured: int = 0

    def __post_init__(self) -> None:
        if not self.gains:
            self.gains, self.squares = [0.0] * self.experts, [1e-9] * self.experts

    @property
    def weights(self) -> list[float]:
        """The share of each expert, 1 in all."""
        rate = math.sqrt(2.0 / self.steps_ahead)
        logs = [
            rate * gain / math.sqrt(1.0 + square)
            for gain, square in zip(self.gains, self.squares, strict=True)
        ]
        logs[LAST_VALUE] += math.log(LAST_VALUE_PRIOR)
        highest = max(logs)
        raw = [math.exp(value - highest) for value in logs]
        whole = math.fsum(raw)
        return [value / whole for value in raw]

    def forecast(self, experts: Sequence[float], now: int) -> Pending:
        """The median, and the 10th and 90th percentile around it."""
        middle = math.fsum(w * value for w, value in zip(self.weights, experts, strict=True))
        return Pending(
            due=now + self.steps_ahead,
            experts=list(experts),
            middle=middle,
            low=max(0.0, middle * (1.0 + self.spread * min(0.0, self.low))),
            high=middle * (1.0 + self.spread * max(0.0, self.high)),
            spread=self.spread,
        )

    def learn(self, value: float, forecast: Pending) -> None:
        """A forecast has come to `value`."""
        self.matured += 1
        error = abs(value - forecast.middle)
        self.scale = self.scale * _FADE + error + 1e-9
        self.count = self.count * _FADE + 1.0
        self._weigh(value, forecast)
        self._widen(value, forecast)
        self.loss = self.loss * _FADE + error
        self.last_loss = self.last_loss * _FADE + abs(value - forecast.experts[LAST_VALUE])
        self.total = self.total * _FADE + value
        self.inside = self.inside * _FADE + (forecast.low <= value <= forecast.high)

    def _weigh(self, value: float, forecast: Pending) -> None:
        middle, usual = forecast.middle, self.scale / self.count
        side = (middle > value) - (middle < value)
        for place, expert in enumerate(forecast.experts):
            gain = min(5.0, max(-5.0, side * (middle - expert) / usual))
            self.gains[place] = self.gains[place] * _FADE + gain
            self.squares[place] = self.squares[place] * _FADE + gain * gain

    def _widen(self, value: float, forecast: Pending) -> None:
        middle = forecast.middle
        error = (value - middle) / middle if middle > 0.0 else 0.0
        place = error / forecast.spread
        rate = max(0.02, 1.5 / (10.0 + self.count))
        self.low += rate * (MISS - (place < self.low))
        self.high -= rate * (MISS - (place > self.high))
        gain = max(0.03, 1.0 / (self.count + 1.0))
        change = min(abs(error), 6.0 * self.spread) - self.spread
        self.spread = max(1e-4, self.spread + gain * change)
