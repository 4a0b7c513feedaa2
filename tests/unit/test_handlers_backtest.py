import math
import random
from collections.abc import Sequence

import pytest

from handlers.backtest import backtest
from handlers.backtest.fleet import Score, score
from handlers.backtest.run import Load, Policy, cheapest, every_target
from handlers.capacity import CapacityPolicy
from tests.support.loads import service_load

CAPACITY = 100.0


def load_of(
    demand: Sequence[float | None], *, lead_seconds: float = 180.0, warmup: int = 0
) -> Load:
    return Load(
        demand=demand,
        capacity=CAPACITY,
        step_seconds=60.0,
        lead_seconds=lead_seconds,
        warmup_steps=warmup,
    )


def slow_score(demand: list[float], orders: list[int], lead: int) -> tuple[float, float, float]:
    """Cost, short and unserved by counting each replica that starts and stops."""
    ordered = ready = math.ceil(demand[0] / (0.7 * CAPACITY)) + 1
    starting: list[int] = []  # when each replica that was ordered begins to serve
    short = paid = unserved = oracle = 0.0
    for step, (load, order) in enumerate(zip(demand, orders, strict=True)):
        ready += sum(at <= step for at in starting)
        starting = [at for at in starting if at > step]
        short += load > ready * CAPACITY
        unserved += max(0.0, load - ready * CAPACITY)
        paid += ordered
        oracle += max(1, math.ceil(load / CAPACITY))
        for _ in range(order - ordered):
            starting.append(step + 1 + lead)
        for _ in range(ordered - order):
            if starting:
                starting.pop()
            else:
                ready -= 1
        ordered = order
    return paid / oracle, short / len(demand), unserved / sum(demand)


@pytest.mark.parametrize("lead", [0, 1, 3, 10])
def test_the_fleet_agrees_with_one_that_counts_every_replica(lead: int) -> None:
    dice = random.Random(lead)
    demand = [dice.uniform(0.0, 1200.0) for _ in range(400)]
    orders = [dice.randint(1, 14) for _ in range(400)]

    fast = score(demand, orders, capacity=CAPACITY, lead_steps=lead, step_seconds=60.0, start=0)

    assert (fast.cost_ratio, fast.short_ratio, fast.unserved_ratio) == pytest.approx(
        slow_score(demand, orders, lead)
    )


def test_a_replica_serves_after_its_lead_and_is_paid_at_once() -> None:
    # Begins with ceil(140 / 70) + 1 = 3. Five are ordered after step 0, and serve from step 3.
    done = score(
        [140.0, 400.0, 400.0, 400.0],
        [5, 5, 5, 5],
        capacity=CAPACITY,
        lead_steps=2,
        step_seconds=60.0,
        start=0,
    )

    assert done == Score(
        cost_ratio=(3 + 5 + 5 + 5) / (2 + 4 + 4 + 4),
        short_ratio=0.5,
        unserved_ratio=200.0 / 1340.0,
        changes_per_hour=15.0,
        replica_hours=18 / 60,
        short_steps=[1, 2],
    )


def test_the_warm_up_is_seen_but_does_not_count() -> None:
    demand = [50.0] * 10 + [500.0] * 10

    done = backtest("hpa", load_of(demand, warmup=10))

    assert len(done.orders) == 20
    # Begins with ceil(500 / 70) + 1 = 9 replicas, one more than HPA then orders.
    assert done.score.cost_ratio == pytest.approx((9 + 9 * 8) / (10 * 5))
    assert done.score.short_steps == []


@pytest.mark.parametrize("policy", ["ours", "hpa", "keda"])
def test_what_comes_later_does_not_change_what_was_ordered(policy: Policy) -> None:
    demand = service_load(700)
    other = [*demand[:400], *[demand_ * 7.0 for demand_ in demand[400:]]]

    orders, others = backtest(policy, load_of(demand)), backtest(policy, load_of(other))

    assert orders.orders[:400] == others.orders[:400]
    assert orders.orders[400:] != others.orders[400:]


def test_the_back_test_runs_the_policy_that_runs_live() -> None:
    demand = service_load(500)
    live = CapacityPolicy(capacity=CAPACITY, lead_steps=3, risk_ratio=0.02)

    tested = backtest("ours", load_of(demand), risk_ratio=0.02)

    assert tested.orders == [live.step(value) for value in demand]


@pytest.mark.parametrize("lead_seconds", [0.0, 180.0, 600.0])
def test_the_oracle_is_short_only_before_its_first_order_serves(lead_seconds: float) -> None:
    load = load_of(service_load(600), lead_seconds=lead_seconds)

    foreseen = backtest("oracle", load)

    assert all(step <= load.lead_steps for step in foreseen.score.short_steps)
    assert foreseen.score.cost_ratio < 1.2
    assert len(foreseen.orders) == 600


@pytest.mark.parametrize(
    ("lead_seconds", "lead_steps"), [(0.0, 0), (60.0, 1), (61.0, 2), (179.9, 3), (180.0, 3)]
)
def test_a_lead_is_as_many_steps_as_it_touches(lead_seconds: float, lead_steps: int) -> None:
    assert load_of([1.0] * 3, lead_seconds=lead_seconds).lead_steps == lead_steps


def test_a_lead_beyond_the_series_costs_no_more_than_one_as_long() -> None:
    never = load_of([50.0, 950.0, 950.0], lead_seconds=1e12)

    outcome = backtest("hpa", never)

    assert never.lead_steps == 3
    assert outcome.score.short_steps == [1, 2]
    assert backtest("oracle", never).score.short_steps == [1, 2]


@pytest.mark.parametrize("policy", ["ours", "hpa", "keda", "oracle"])
def test_no_policy_orders_more_than_it_may(policy: Policy) -> None:
    load = load_of(service_load(400))

    orders = backtest(policy, load, max_replicas=3).orders

    assert max(orders) == 3 < max(backtest(policy, load).orders)


def test_no_target_orders_more_than_it_may() -> None:
    tried = every_target("keda", load_of(service_load(400)), max_replicas=3)

    assert {max(outcome.orders) for outcome in tried} == {3}


def test_hindsight_takes_the_cheapest_target_within_the_share() -> None:
    tried = every_target("hpa", load_of(service_load(400)))

    best = cheapest(tried, 0.02)

    assert best is not None
    assert best.score.short_ratio <= 0.02
    assert all(
        one.score.cost_ratio >= best.score.cost_ratio
        for one in tried
        if one.score.short_ratio <= 0.02
    )
    assert cheapest(tried, -1.0) is None


@pytest.mark.parametrize("policy", ["ours", "hpa", "keda"])
def test_a_bound_is_kept_by_every_policy(policy: Policy) -> None:
    tested = backtest(policy, load_of([2000.0] * 50), max_replicas=7)

    assert max(tested.orders) == 7


@pytest.mark.parametrize("policy", ["ours", "hpa", "keda", "oracle"])
def test_steps_of_unknown_load_count_neither_as_paid_nor_as_short(policy: Policy) -> None:
    known = [450.0] * 30
    gapped = [*known, *[None] * 20, *known]

    tested = backtest(policy, load_of(gapped))

    assert len(tested.orders) == 80
    assert all(order >= 1 for order in tested.orders)
    assert not any(30 <= step < 50 for step in tested.score.short_steps)
    assert tested.score.replica_hours <= 60 * max(8, *tested.orders) / 60


def test_a_load_that_is_never_known_costs_nothing() -> None:
    score_ = backtest("ours", load_of([None] * 20)).score

    assert (score_.cost_ratio, score_.short_ratio, score_.replica_hours) == (0.0, 0.0, 0.0)


def test_steps_longer_than_a_day_are_a_day_each() -> None:
    weekly = Load(demand=[450.0] * 30, capacity=100.0, step_seconds=604_800.0, lead_seconds=180.0)

    assert (weekly.day_steps, weekly.lead_steps) == (1, 1)
    assert backtest("ours", weekly).score.short_ratio == 0.0
