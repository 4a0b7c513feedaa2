"""The cheapest order at a price on short steps, and orders that do not flap. Pure."""

import math
from bisect import bisect_left
from collections.abc import Sequence

import msgspec

KEEP = 4.0
"""A replica is kept while it pays at this many times the price at which it was ordered."""
RISE_BAND, FALL_BAND = 0.03, 0.05
"""Smaller changes than these shares of the fleet wait: of 15 replicas none, of 100 up to 3 and 5.

Without them a fleet of 200 changes 15 times an hour, one of 7 four times.
"""


class Menu:
    """Counts of replicas worth ordering, each with its risk: the lower convex hull of both.

    `order(price)` minimises `count + price * risk`: with risks 0.5, 0.1, 0.06 at 4, 5, 6
    replicas, a price of 2 gives 4, of 10 gives 5, of 30 gives 6. O(n) to make, O(log n) to ask.
    """

    def __init__(self, counts: Sequence[int], risks: Sequence[float]) -> None:
        self.counts, self.risks = counts, risks
        self._chosen: list[int] = []
        self._prices: list[float] = []  # from this price on the next choice is the cheaper one
        for place, (count, risk) in enumerate(zip(counts, risks, strict=True)):
            if self._chosen and risk >= risks[self._chosen[-1]]:
                continue
            while self._chosen:
                last = self._chosen[-1]
                price = (count - counts[last]) / (risks[last] - risk)
                if not self._prices or price > self._prices[-1]:
                    self._prices.append(price)
                    break
                self._chosen.pop()
                self._prices.pop()
            self._chosen.append(place)

    def order(self, price: float) -> int:
        """The cheapest count at this price."""
        return self.counts[self._chosen[bisect_left(self._prices, price)]]

    def risk(self, count: int) -> float:
        """The risk of the largest known count of at most `count`; 1 below all, 0 above all."""
        if count < self.counts[0]:
            return 1.0
        if count > self.counts[-1]:
            return 0.0
        step = self.counts[1] - self.counts[0] if len(self.counts) > 1 else 1
        return self.risks[min((count - self.counts[0]) // step, len(self.risks) - 1)]


class Order(msgspec.Struct):
    """What is ordered, and the counts of the last steps that were still worth keeping."""

    count: int
    kept: list[int] = []

    def update(self, menu: Menu, price: float, hold_steps: int) -> int:
        """The next order: up at once, down to the most that was worth keeping of late."""
        up = menu.order(price)
        self.kept = [*self.kept, menu.order(KEEP * price)][-hold_steps:]
        most = max(self.kept)
        if up > self.count:
            if up - self.count > math.floor(RISE_BAND * self.count):
                self.count = up
        elif self.count - most > math.floor(FALL_BAND * self.count):
            self.count = max(up, most)
        return self.count
