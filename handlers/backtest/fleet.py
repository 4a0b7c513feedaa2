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
    """Share of the steps with a known demand in which that was above the capacity ready."""
    unserved_ratio: float
    """Demand above the capacity ready, by all demand."""
    changes_per_hour: float
    replica_hours: float
    short_steps: list[int]
    """Which steps were short, counted from the first row."""


def start_replicas(demand: Sequence[float | None], capacity: float, start: int) -> int:
    """What the fleet of every policy begins with: the first scored load at 70 %, and one more."""
    first = next((load for load in demand[start:] if load is not None), 0.0)
    return math.ceil(first / (START_TARGET_RATIO * capacity)) + 1


def score(
    demand: Sequence[float | None],
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
    3, 5, 5, 5, 4, five are ready only in the step after the third 5. A step of unknown demand
    counts neither as paid nor as short.
    """
    first = start_replicas(demand, capacity, start)
    lately = deque([first] * (lead_steps + 1), maxlen=lead_steps + 1)
    known = paid = oracle = changes = 0
    unserved = total = 0.0
    short: list[int] = []
    for step in range(start, len(demand)):
        load = demand[step]
        if load is not None:
            known += 1
            total += load
            paid += lately[-1]
            oracle += max(1, math.ceil(load / capacity))
            missing = load - min(lately) * capacity
            if missing > 0:
                short.append(step)
                unserved += missing
        order = max(1, orders[step])
        changes += order != lately[-1]
        lately.append(order)
    hours = (len(demand) - start) * step_seconds / 3600.0
    return Score(
        cost_ratio=paid / max(1, oracle),
        short_ratio=len(short) / max(1, known),
        unserved_ratio=unserved / total if total else 0.0,
        changes_per_hour=changes / hours,
        replica_hours=paid * step_seconds / 3600.0,
        short_steps=short,
    )
