"""Runs scaling policies over a recorded load, step by step, as they would have run live. Pure."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import msgspec

from handlers.backtest.fleet import Score, score
from handlers.capacity import CapacityPolicy
from handlers.capacity.hpa import Hpa
from handlers.window import RollingMax

Policy: TypeAlias = Literal["ours", "hpa", "keda", "oracle"]
POLICIES: tuple[Policy, ...] = ("ours", "hpa", "keda", "oracle")
TARGETS = [round(0.30 + 0.02 * place, 2) for place in range(41)]
KEDA_MEAN_STEPS = 2
DAY_SECONDS = 86_400.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded load and the fleet that is to carry it."""

    demand: Sequence[float | None]
    """In the unit of `capacity`, each step its sum; None: not known."""
    capacity: float
    """What one replica serves in a step."""
    step_seconds: float
    lead_seconds: float
    warmup_steps: int = 0
    """Steps at the start that the policies see but that do not count."""

    @property
    def lead_steps(self) -> int:
        """Whole steps until a new replica serves; as many as there are: it never does."""
        steps = math.ceil(round(self.lead_seconds / self.step_seconds, 9))
        return min(steps, len(self.demand))

    @property
    def day_steps(self) -> int:
        """Steps of a day, at least one."""
        return max(1, round(DAY_SECONDS / self.step_seconds))

    def score(self, orders: Sequence[int]) -> Score:
        """What these orders would have come to."""
        return score(
            self.demand,
            orders,
            capacity=self.capacity,
            lead_steps=self.lead_steps,
            step_seconds=self.step_seconds,
            start=self.warmup_steps,
        )


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A policy, the order it made after each step, and what these came to."""

    policy: Policy
    target_ratio: float | None = None
    """Of HPA and KEDA; the others have none."""
    orders: list[int]
    score: Score


def backtest(
    policy: Policy,
    load: Load,
    *,
    risk_ratio: float = 0.01,
    target_ratio: float = 0.7,
    max_replicas: int = 1_000_000,
    on_step: Callable[[int], None] = lambda step: None,
) -> Outcome:
    """Let a policy order after every step of `load`; only `oracle` sees what comes later."""
    if policy == "oracle":
        seen = [min(order, max_replicas) for order in _foreseen(load)]
        return Outcome(policy=policy, orders=seen, score=load.score(seen))
    orders: list[int] = []
    order = _orderer(policy, load, risk_ratio, target_ratio, max_replicas)
    for step, demand in enumerate(load.demand):
        orders.append(order(demand))
        on_step(step)
    return Outcome(
        policy=policy,
        target_ratio=None if policy == "ours" else target_ratio,
        orders=orders,
        score=load.score(orders),
    )


def every_target(policy: Policy, load: Load, *, max_replicas: int = 1_000_000) -> list[Outcome]:
    """HPA or KEDA at each target from 0.30 to 1.10."""
    return [
        backtest(policy, load, target_ratio=target, max_replicas=max_replicas) for target in TARGETS
    ]


def cheapest(outcomes: Sequence[Outcome], short_ratio: float) -> Outcome | None:
    """The cheapest that is short at most so often; None: none is.

    Of every target that is hindsight: nobody can choose by a load that is yet to come.
    """
    allowed = [outcome for outcome in outcomes if outcome.score.short_ratio <= short_ratio]
    return min(allowed, key=lambda outcome: outcome.score.cost_ratio, default=None)


def _orderer(
    policy: Policy, load: Load, risk_ratio: float, target_ratio: float, max_replicas: int
) -> Callable[[float | None], int]:
    if policy == "ours":
        return CapacityPolicy(
            capacity=load.capacity,
            lead_steps=load.lead_steps,
            risk_ratio=risk_ratio,
            max_replicas=max_replicas,
            day_steps=load.day_steps,
        ).step
    rule = Hpa(target_ratio, mean_steps=KEDA_MEAN_STEPS if policy == "keda" else 1)

    def order(demand: float | None) -> int:
        wanted = rule.step(None if demand is None else demand / load.capacity)
        return min(max(1, wanted), max_replicas)

    return order


def _foreseen(load: Load) -> list[int]:
    """Orders with perfect foresight: the most that is needed until the next order can serve."""
    needed = [max(1, math.ceil((demand or 0.0) / load.capacity)) for demand in load.demand]
    horizon = RollingMax(load.lead_steps + 1)
    orders: list[int] = []
    ahead = [*needed[1:], *[needed[-1]] * (load.lead_steps + 1)]
    for step, count in enumerate(ahead):
        horizon.add(step, count)
        if step >= load.lead_steps:
            orders.append(int(horizon.value(step) or 1))
    return orders[: len(needed)]
