"""The price of a short step at which the risk comes out as asked, found by shadow orders. Pure."""

import math
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from handlers.capacity.orders import Menu, Order

PRICES = [0.5 * 10 ** (5 * place / 19) for place in range(20)]
"""Of the shadows, in replica-steps per short step: 0.5 to 50,000."""
MEMORY_STEPS = 20_000
SEEN_MEMORY_STEPS = 14_400
PRIOR_STEPS, MOST_STEPS = 240.0, 240.0
"""Weight of the prior, and the most that the steps seen can weigh: volatility comes back."""
PRIOR_SHORT = 6.0
_FADE = 0.5 ** (1.0 / MEMORY_STEPS)
_SEEN_FADE = 0.5 ** (1.0 / SEEN_MEMORY_STEPS)


class Shadow(msgspec.Struct):
    """Orders at a fixed price: the risk they were said to run, and how often they were short."""

    order: Order
    risk: float = 0.0
    said: float = 0.0
    seen: float = 0.0
    under_way: list[tuple[int, float]] = []


class Price(msgspec.Struct):
    """Which price gives the risk that is asked for.

    Each shadow's model risk tells which price should; how often the shadows near it were short
    in truth, against what the model had said, corrects the model. A prior price, worth four hours
    of minutes and never less than half, keeps calm days from making it forget that jumps come.
    O(`PRICES`) a step.
    """

    shadows: list[Shadow] = msgspec.field(
        default_factory=lambda: [Shadow(order=Order(0)) for _ in PRICES]
    )
    steps: float = 0.0

    def observe(self, demand: float, lead_steps: int) -> None:
        """The step is over in which `demand` replicas were needed: which shadows were short?"""
        for shadow in self.shadows:
            if len(shadow.under_way) > lead_steps:
                ready = min(count for count, _ in shadow.under_way)
                shadow.seen = shadow.seen * _SEEN_FADE + (demand > ready)
                shadow.said = shadow.said * _SEEN_FADE + shadow.under_way[0][1]

    def update(self, menu: Menu, hold_steps: int, lead_steps: int) -> None:
        """Let each shadow order."""
        self.steps = self.steps * _FADE + 1.0
        for price, shadow in zip(PRICES, self.shadows, strict=True):
            count = shadow.order.update(menu, price, hold_steps)
            risk = menu.risk(count)
            shadow.risk = shadow.risk * _FADE + risk
            shadow.under_way = [*shadow.under_way, (count, risk)][-lead_steps - 1 :]

    def hold(self, lead_steps: int) -> None:
        """A step of which nothing is known: all orders stand."""
        for shadow in self.shadows:
            if shadow.under_way:
                shadow.under_way = [*shadow.under_way, shadow.under_way[-1]][-lead_steps - 1 :]

    def find(self, risk: float, prior: float) -> float:
        """The price at which the risk is `risk`."""
        said = [shadow.risk / self.steps for shadow in self.shadows]
        # Rising prices never raise the risk; noise of the first steps may say so.
        said = list(accumulate(reversed(said), max))[::-1]
        found = _interpolated(said, risk / self._optimism(said, risk))
        weight = PRIOR_STEPS / (PRIOR_STEPS + min(self.steps, MOST_STEPS))
        return math.exp(weight * math.log(prior) + (1.0 - weight) * math.log(found))

    def _optimism(self, said: Sequence[float], risk: float) -> float:
        """How much oftener shadows with about this risk were short than the model had said."""
        near = [
            shadow
            for shadow, value in zip(self.shadows, said, strict=True)
            if risk / 4 < value < risk * 4
        ]
        if not near:
            return 1.0
        seen = math.fsum(shadow.seen for shadow in near) / len(near) + PRIOR_SHORT
        expected = math.fsum(shadow.said for shadow in near) / len(near) + PRIOR_SHORT
        return min(3.0, max(0.5, seen / expected))


def _interpolated(said: Sequence[float], risk: float) -> float:
    """The price at which `said`, which falls, passes `risk`; between prices by logarithms."""
    place = next((place for place, value in enumerate(said) if value <= risk), len(said))
    if place in (0, len(said)):
        return PRICES[min(place, len(said) - 1)]
    above, below = math.log(max(said[place - 1], 1e-9)), math.log(max(said[place], 1e-9))
    share = (above - math.log(risk)) / max(above - below, 1e-9)
    return math.exp(
        math.log(PRICES[place - 1]) + share * math.log(PRICES[place] / PRICES[place - 1])
    )
