"""The profile of one season: what the series did one season ago, in at most 288 bins."""

import msgspec

BINS = 288
SMOOTHING_STEPS = 4
LEAST_RATIO, MOST_RATIO = 0.5, 2.0


class Season(msgspec.Struct):
    """Means by bin of this season and of the one before; a bin never seen knows nothing.

    With a season of 1,440 steps a bin is five steps; of 60 steps, one. O(1) a step.
    """

    steps: int
    now: int = -1
    sums: list[float] = []
    counts: list[int] = []
    earlier: list[float | None] = []  # means of the season before

    def __post_init__(self) -> None:
        if not self.sums:
            bins = min(BINS, self.steps)
            self.sums, self.counts, self.earlier = [0.0] * bins, [0] * bins, [None] * bins

    def update(self, value: float) -> None:
        """Take the value of the next step."""
        self.skip(1)
        self.sums[self._bin(self.now)] += value
        self.counts[self._bin(self.now)] += 1

    def skip(self, steps: int) -> None:
        """Steps passed; of those before the last nothing is known."""
        for step in range(self.now + 1, self.now + 1 + min(steps, 2 * self.steps)):
            bin_ = self._bin(step)
            if step == 0 or bin_ != self._bin(step - 1):
                self.earlier[bin_] = self._mean(bin_)
                self.sums[bin_], self.counts[bin_] = 0.0, 0
        self.now += steps

    def ratio(self, steps_ahead: int) -> float:
        """What the last season was so far on, by what it was here; 1 where that is not known.

        Both are means of about nine steps. Cut to 0.5 … 2: a season is a hint, and what was
        near zero says nothing.
        """
        if steps_ahead >= self.steps:
            return 1.0
        here, there = self._smooth(0), self._smooth(steps_ahead)
        if not here or there is None:
            return 1.0
        return min(MOST_RATIO, max(LEAST_RATIO, there / here))

    def _smooth(self, steps_ahead: int) -> float | None:
        """The mean of the last season's bins around a step from now on."""
        bins = len(self.sums)
        width = max(1, round(SMOOTHING_STEPS * bins / self.steps))
        now = self._bin(self.now)
        middle = self._bin(self.now + steps_ahead)
        middle += bins if middle < now else 0
        known = []
        for place in range(middle - width, middle + width + 1):
            bin_ = place % bins
            # Up to now the season before; from then on this ring still holds the last one.
            value = self.earlier[bin_] if place <= now else self._mean(bin_)
            if value is not None:
                known.append(value)
        return sum(known) / len(known) if known else None

    def _mean(self, bin_: int) -> float | None:
        return self.sums[bin_] / self.counts[bin_] if self.counts[bin_] else None

    def _bin(self, step: int) -> int:
        return step % self.steps * len(self.sums) // self.steps
