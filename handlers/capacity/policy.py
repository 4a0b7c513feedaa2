"""Replicas to order for the load that comes after their start-up lead, at a risk level. Pure."""

import math

import msgspec

from handlers.capacity.hpa import Hpa
from handlers.capacity.level import Level, gain_of
from handlers.capacity.orders import Menu, Order
from handlers.capacity.price import Price
from handlers.capacity.tail import Tail

MENU_SIZE = 96
SPIKE = 4.0
"""A step counts as at most this many times the largest load of the last days."""
MARGIN = 0.73
"""Share of the risk that is aimed at: in volatile weeks more steps are short than in calm ones."""
CREDIT_STEPS, DEBT_STEPS = 8.0, 60.0
DEBT_GAIN, CREDIT_GAIN = 0.85, 1.2
LEAST_LOAD = 0.05


class CapacityPolicy(msgspec.Struct):
    """Says after each step how many replicas to order, so that few steps to come are short.

    A replica ordered after step t serves from step t + 1 + `lead_steps` and is paid from t + 1.
    The order is the count that minimises `count + price * risk`: `risk`, the probability that
    the load then exceeds the count, comes from the errors of the forecasts made so far
    (`level.py`, `tail.py`); `price`, what a short step is worth in replica-steps, is the one
    that makes about `risk_ratio` of the steps short (`price.py`). The steps that were short
    beyond that, the debt, raise it, and unused risk lowers it.

    Demand and `capacity` are in one unit per step. State only: the same steps give the same
    orders, also through `msgspec` and back. About 0.3 ms a step.
    """

    capacity: float
    lead_steps: int
    risk_ratio: float = 0.01
    min_replicas: int = 1
    max_replicas: int = 1_000_000
    day_steps: int = 1440
    level: Level | None = None
    tail: Tail = msgspec.field(default_factory=Tail)
    price: Price = msgspec.field(default_factory=Price)
    order: Order = msgspec.field(default_factory=lambda: Order(0))
    cap: Hpa = msgspec.field(default_factory=Hpa)
    mean: float = 0.0
    highest: float = 0.0
    debt: float = 0.0
    steps: int = 0
    known_steps: int = 0
    unbroken_steps: int = 0
    forecasts: list[tuple[float, float]] = []
    ordered: list[int] = []
    wanted: list[int] = []  # the orders before the cap of the first day and `max_replicas`

    @property
    def has_history(self) -> bool:
        """Whether a day was seen: before, orders are capped and not fit for advice."""
        return self.known_steps >= self.day_steps

    @property
    def expected_load(self) -> float:
        """The load in replicas expected when an order of the last step serves."""
        return max(0.0, math.exp(self.forecasts[-1][0]) - 1.0)

    def risk(self, count: int) -> float:
        """The probability that this load will be above `count` replicas."""
        return self.tail.above([math.log(count + 1.0)], *self.forecasts[-1])[0]

    def step(self, demand: float | None, ready: int | None = None) -> int:
        """The replicas to have ordered after a step.

        Args:
            demand: load of the step that is over; None, NaN, infinite or negative: not known,
                the last order holds and nothing is learned.
            ready: replicas that served in it; None: what was ordered before.
        """
        if demand is None or not 0 <= demand < math.inf:
            return self._gap()
        if self.highest:
            demand = min(demand, SPIKE * max(self.highest, self.capacity))
        self.highest = max(demand, self.highest * (1.0 - gain_of(2 * self.day_steps)))
        load = demand / self.capacity
        self.known_steps += 1
        self.unbroken_steps += 1
        value = math.log(max(load, LEAST_LOAD) + 1.0)
        centre, scale = self._forecast(value, load)
        self._charge(load, ready)
        self.price.observe(load, self.lead_steps)
        menu = self._menu(centre, scale)
        hold_steps = 5 + self.lead_steps // 10
        self.price.update(menu, hold_steps, self.lead_steps)
        wanted = max(self.order.update(menu, self._price(), hold_steps), self.min_replicas)
        capped = self.cap.step(load)
        count = wanted if self.has_history else min(wanted, max(capped, self.min_replicas))
        return self._remember(min(count, self.max_replicas), wanted, (centre, scale))

    def _gap(self) -> int:
        """A step of which nothing is known: the last order and forecast hold."""
        if not self.ordered:
            return self.min_replicas
        self.unbroken_steps = 0
        self.price.hold(self.lead_steps)
        wanted = (self.wanted or self.ordered)[-1]  # an older stored state has none wanted
        return self._remember(self.ordered[-1], wanted, self.forecasts[-1])

    def _remember(self, count: int, wanted: int, forecast: tuple[float, float]) -> int:
        self.steps += 1
        self.ordered = [*self.ordered, count][-self.lead_steps - 1 :]
        self.wanted = [*self.wanted, wanted][-self.lead_steps - 1 :]
        self.forecasts = [*self.forecasts, forecast][-self.lead_steps - 1 :]
        return count

    def _forecast(self, value: float, load: float) -> tuple[float, float]:
        """Centre and scale of the load when an order of now serves; learns from those before."""
        if self.level is None:
            self.level = Level.at(value)
            before, self.mean = value, load
        else:
            before = self.level.last
            self.level.update(value)
            gain = max(gain_of(2 * self.day_steps), 1.0 / self.known_steps)
            self.mean += gain * (load - self.mean)
        if self.unbroken_steps > self.lead_steps + 6:
            # The load of a step is judged with the one before: its end may be what was short.
            self.tail.learn(0.7 * value + 0.3 * max(value, before), *self.forecasts[0])
        return self.level.ahead(self.lead_steps), self.tail.scale(self.level)

    def _charge(self, load: float, ready: int | None) -> None:
        """Short steps against those allowed; what lies weeks back is forgiven.

        Only those count in which what was wanted would have been too little as well: where a
        bound or a rejection kept it from being there, a higher price would not have helped.
        """
        if len(self.wanted) > self.lead_steps:
            is_short = load > max(min(self.wanted), ready or 0)
            debt = self.debt * 0.9999 + is_short - MARGIN * self.risk_ratio
            self.debt = max(-CREDIT_STEPS, min(DEBT_STEPS, debt))

    def _menu(self, centre: float, scale: float) -> Menu:
        typical = math.exp(centre)
        fewest = max(1, int(typical * math.exp(-2.0 * scale) - 1.0))
        most = int(typical * math.exp(min(2.0, 14.0 * scale))) + 4
        counts = range(fewest, most + 1, max(1, (most - fewest) // MENU_SIZE))
        return Menu(counts, self.tail.above([math.log(n + 1.0) for n in counts], centre, scale))

    def _price(self) -> float:
        risk = MARGIN * self.risk_ratio
        fleet = max(self.mean, 1.0)
        # Longer leads need a higher price: a jump leaves short as many steps as the lead has.
        base = self.price.find(risk, 0.24 * (self.lead_steps + 1) ** 1.5 * fleet)
        push = self.debt * (DEBT_GAIN if self.debt > 0 else CREDIT_GAIN)
        # So near the start one short step is many percent: what debt says must not grow with it.
        return base * math.exp(push / math.sqrt(1.0 + 0.05 * min(self.steps, 7200)))
