"""Two or more candidates measured in turns, so that a noisy machine treats them alike."""

import dataclasses
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence

ROUNDS = 12


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of a figure over the rounds."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> "Spread":
        """In another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of a single value, that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4)
    return Spread(median, low, high)


async def abba(
    slices: Mapping[str, Callable[[], Awaitable[float]]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Run each slice twice a round, in order and then in reverse: A B B A.

    A slice returns its figure; a round counts the mean of its two. What drifts slowly (heat,
    neighbours) falls on all of them alike, so ratios within a round are worth more than the
    figures themselves.
    """
    figures: dict[str, list[float]] = {name: [] for name in slices}
    for _ in range(rounds):
        pairs: dict[str, list[float]] = {name: [] for name in slices}
        for name in (*slices, *reversed(list(slices))):
            pairs[name].append(await slices[name]())
        for name, pair in pairs.items():
            figures[name].append(statistics.fmean(pair))
    return figures


def ratios(figures: Mapping[str, Sequence[float]], ours: str, theirs: str) -> Spread:
    """Of `ours` to `theirs`, round by round."""
    return spread([a / b for a, b in zip(figures[ours], figures[theirs], strict=True)])
