"""The fleet of a back-test: when an order serves, what it costs, and where it falls short. Pure."""

import math
from collections import deque
from collections.abc import Sequence

import msgspec

START_TARGET_RATIO = 0.7


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What the orders of a policy came to over the scored steps."""

    cost_ratio: float
    """Replica-steps paid, by those of an oracle that has `ceil(demand / capacity)` every step."""
    short_ratio: float
    """Share of the steps whose demand was above the capacity ready."""
    unserved_ratio: float
    """Demand above the capacity ready, by all demand."""
    changes_per_hour: float
    replica_hours: float
    short_steps: list[int]
    """Which steps were short, counted from the first row."""


def start_replicas(demand: float, capacity: float) -> int:
    """What the fleet of every policy begins with: the first scored load at 70 %, and one more."""
    return math.ceil(demand / (START_TARGET_RATIO * capacity)) + 1


def score(
    demand: Sequence[float],
    orders: Sequence[int],
    *,
    capacity: float,
    lead_steps: int,
    step_seconds: float,
    start: int,
) -> Score:
    """Run a fleet on `orders`, one made after each step, and score the steps from `start`.

    An order made after step t is paid from t + 1. What it adds serves from t + 1 + `lead_steps`;
    what it takes away goes at once, first from what is still starting. So the replicas ready in
    step m are the fewest ordered after m - 1 - `lead_steps` … m - 1. With a lead of 2 and orders
    3, 5, 5, 5, 4, five are ready only in the step after the third 5.
    """
    first = start_replicas(demand[start], capacity)
    lately = deque([first] * (lead_steps + 1), maxlen=lead_steps + 1)
    paid = oracle = changes = 0
    unserved = total = 0.0
    short: list[int] = []
    for step in range(start, len(demand)):
        missing = demand[step] - min(lately) * capacity
        if missing > 0:
            short.append(step)
            unserved += missing
        total += demand[step]
        paid += lately[-1]
        oracle += max(1, math.ceil(demand[step] / capacity))
        order = max(1, orders[step])
        changes += order != lately[-1]
        lately.append(order)
    steps = len(demand) - start
    return Score(
        cost_ratio=paid / oracle,
        short_ratio=len(short) / steps,
        unserved_ratio=unserved / total if total else 0.0,
        changes_per_hour=changes * 3600.0 / (steps * step_seconds),
        replica_hours=paid * step_seconds / 3600.0,
        short_steps=short,
    )
