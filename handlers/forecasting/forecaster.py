"""Forecasts a series step by step: experts, their mixture for each horizon, gaps, withholding."""

import math
from collections.abc import Sequence

import msgspec

from handlers.forecasting.experts import PLAIN, SEASONAL, Experts, season_shares
from handlers.forecasting.mixture import Horizon, Pending
from handlers.forecasting.outliers import Scale
from handlers.forecasting.season import Season

LEAST_MATURED = 60
"""Forecasts of a horizon that must have come true before one is given out."""
MEASURABLE_GAIN = 1e-3
"""A forecast that beats the last value by less than this share of its error is withheld."""
SEASON_SHARE = 0.25
"""A season is found when its experts hold this share of the weight."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A forecast of one horizon, with what its forecasts of late came to."""

    steps_ahead: int
    p10: float
    p50: float
    p90: float
    error_ratio: float | None
    """Absolute errors by the sum of the values (WAPE); None: nothing but zeros came."""
    last_value_error_ratio: float | None
    coverage_ratio: float
    """Share of the values that fell between p10 and p90; 0.8 is aimed at."""
    scored: int
    season_steps: int | None
    """The season that carries the forecast; None: none does."""
    is_withheld: bool
    """It has not beaten the last value, too few came true to tell, or it is doubtful."""


class Forecaster(msgspec.Struct):
    """Point forecasts, intervals and errors of one series at fixed distances, online.

    A forecast is scored against the value of the step it was made for, when that comes; it
    never sees a later value. State only: it can be stored by `msgspec` and goes on as before.
    O(horizons * experts) a step.
    """

    experts: Experts
    horizons: list[Horizon]
    now: int = 0
    gap: int = 0
    pending: list[list[Pending]] = []
    scale: Scale = msgspec.field(default_factory=Scale)

    @classmethod
    def make(cls, steps_ahead: Sequence[int], seasons: Sequence[int] = ()) -> "Forecaster":
        """A forecaster for these distances, with seasons (in steps) that may be there."""
        count = PLAIN + SEASONAL * len(seasons)
        return cls(
            experts=Experts(seasons=[Season(steps) for steps in seasons]),
            horizons=[Horizon(steps, count) for steps in steps_ahead],
            pending=[[] for _ in steps_ahead],
        )

    def update(self, value: float | None) -> None:
        """The value of the next step; None, NaN, infinite or negative: not known.

        As little is one far beyond all that came, and one that was taken and proves to be an
        error is forgotten with all before it: see `Scale`.
        """
        if value is None or not 0 <= value < math.inf or not self.scale.believes(value):
            self.skip(1)
            return
        self.now += 1
        if since := self.scale.anew():
            self._restart()
            self.now -= len(since) - 1
            for one in since[:-1]:
                self._take(one)
                self.now += 1
        self._take(value)

    def skip(self, steps: int) -> None:
        """So many steps passed of which nothing is known. O(1)."""
        self.now += steps
        self.gap += steps

    @property
    def is_doubtful(self) -> bool:
        """Whether it rests on one value that nothing has been like since."""
        return self.scale.is_doubtful

    def _restart(self) -> None:
        """Forget all that came."""
        fresh = Forecaster.make(
            [horizon.steps_ahead for horizon in self.horizons],
            [season.steps for season in self.experts.seasons],
        )
        self.experts, self.horizons, self.pending = fresh.experts, fresh.horizons, fresh.pending
        self.gap = 0

    def _take(self, value: float) -> None:
        if self.gap:
            self.experts.skip(self.gap)
            if self.gap >= max(horizon.steps_ahead for horizon in self.horizons):
                self.experts.restart()
            self.gap = 0
        self.experts.update(value)
        for horizon, pending in zip(self.horizons, self.pending, strict=True):
            while pending and pending[0].due <= self.now:
                forecast = pending.pop(0)
                if forecast.due == self.now:
                    horizon.learn(value, forecast)
            pending.append(horizon.forecast(self.experts.predict(horizon.steps_ahead), self.now))

    def estimates(self) -> list[Estimate]:
        """The forecasts of the step that was last, of each horizon; none within a gap."""
        if self.gap or not self.now:
            return []
        return [
            self._estimate(horizon, pending[-1])
            for horizon, pending in zip(self.horizons, self.pending, strict=True)
        ]

    def _estimate(self, horizon: Horizon, forecast: Pending) -> Estimate:
        total = horizon.total
        beats = horizon.loss < horizon.last_loss * (1.0 - MEASURABLE_GAIN)
        return Estimate(
            steps_ahead=horizon.steps_ahead,
            p10=forecast.low,
            p50=forecast.middle,
            p90=forecast.high,
            error_ratio=horizon.loss / total if total > 0 else None,
            last_value_error_ratio=horizon.last_loss / total if total > 0 else None,
            coverage_ratio=horizon.inside / horizon.count if horizon.count else 0.0,
            scored=horizon.matured,
            season_steps=self._season(horizon),
            is_withheld=self.is_doubtful or not beats or horizon.matured < LEAST_MATURED,
        )

    def _season(self, horizon: Horizon) -> int | None:
        shares = season_shares(horizon.weights, len(self.experts.seasons))
        best = max(range(len(shares)), key=shares.__getitem__, default=None)
        if best is None or shares[best] < SEASON_SHARE:
            return None
        return self.experts.seasons[best].steps
