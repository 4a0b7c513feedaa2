import math
import random

import msgspec
import pytest

from handlers.backtest.fleet import score
from handlers.capacity import CapacityPolicy
from handlers.capacity.hpa import Hpa
from handlers.capacity.level import Level
from handlers.capacity.orders import Menu, Order
from handlers.capacity.price import PRICES, Price
from handlers.capacity.tail import Tail
from tests.support.loads import service_load

DAY = 1440


def orders_for(load: list[float], *, lead_steps: int = 3, risk_ratio: float = 0.01) -> list[int]:
    policy = CapacityPolicy(capacity=100.0, lead_steps=lead_steps, risk_ratio=risk_ratio)
    return [policy.step(demand) for demand in load]


@pytest.fixture(scope="module")
def load() -> list[float]:
    return service_load(2 * DAY)


@pytest.mark.parametrize(
    ("price", "count"),
    [
        pytest.param(2.0, 4, id="a replica for 0.4 is not worth 2"),
        pytest.param(10.0, 5, id="0.4 * 10 buys one, 0.04 * 10 no second"),
        pytest.param(30.0, 6, id="0.04 * 30 buys the second"),
        pytest.param(1e9, 8, id="at any price the least risk"),
    ],
)
def test_the_menu_gives_the_cheapest_count_at_a_price(price: float, count: int) -> None:
    menu = Menu([4, 5, 6, 7, 8], [0.5, 0.1, 0.06, 0.06, 0.001])

    assert menu.order(price) == count


def test_the_menu_agrees_with_trying_every_count() -> None:
    dice = random.Random(7)
    for _ in range(300):
        counts = range(3, 3 + dice.randint(1, 40))
        risks = sorted((dice.random() for _ in counts), reverse=True)
        menu, price = Menu(counts, risks), 10 ** dice.uniform(-1, 4)

        costs = [count + price * risk for count, risk in zip(counts, risks, strict=True)]

        chosen = counts.index(menu.order(price))
        assert costs[chosen] == pytest.approx(min(costs))


@pytest.mark.parametrize(("count", "risk"), [(3, 1.0), (4, 0.5), (7, 0.1), (8, 0.01), (11, 0.0)])
def test_the_menu_tells_the_risk_of_counts_beside_its_own(count: int, risk: float) -> None:
    menu = Menu(range(4, 11, 2), [0.5, 0.1, 0.01, 0.001])

    assert menu.risk(count) == risk


def test_an_order_rises_at_once_and_falls_after_the_hold() -> None:
    order = Order(5)
    more, fewer = Menu([8, 9], [0.0, 0.0]), Menu([3, 4], [0.0, 0.0])

    risen = order.update(more, 10.0, hold_steps=3)
    fallen = [order.update(fewer, 10.0, hold_steps=3) for _ in range(3)]

    assert risen == 8
    assert fallen == [8, 8, 3]


@pytest.mark.parametrize(
    ("count", "wanted", "ordered"),
    [
        pytest.param(15, 16, 16, id="a small fleet follows every step"),
        pytest.param(100, 103, 100, id="up within 3 percent waits"),
        pytest.param(100, 104, 104, id="up beyond it"),
        pytest.param(100, 95, 100, id="down within 5 percent waits"),
        pytest.param(100, 94, 94, id="down beyond it"),
    ],
)
def test_a_large_fleet_does_not_follow_every_step(count: int, wanted: int, ordered: int) -> None:
    order = Order(count)

    assert order.update(Menu([wanted], [0.0]), 1.0, hold_steps=1) == ordered


def test_the_tail_begins_as_a_laplace_distribution() -> None:
    risks = Tail().above([0.0, math.log(2.0), -math.log(2.0), 100.0], centre=0.0, scale=1.0)

    # Half above the middle; half of that again above ln 2; the histogram ends at 30.
    assert risks == pytest.approx([0.5, 0.25, 0.75, 0.0], abs=0.005)


def test_the_tail_learns_what_errors_come() -> None:
    tail, dice = Tail(), random.Random(5)
    for _ in range(5000):
        tail.learn(dice.gauss(0.0, 1.0), 0.0, 1.0)

    # The normal distribution has 2.3 % above two deviations and 16 % above one.
    assert tail.above([1.0, 2.0], 0.0, 1.0) == pytest.approx([0.159, 0.023], abs=0.02)
    assert tail.errors[1] == pytest.approx(0.80, abs=0.06)


def test_the_tail_stays_finite_for_ever() -> None:
    tail = Tail(weight=9.9e5)
    for _ in range(1000):
        tail.learn(1.0, 0.0, 1.0)

    assert tail.weight < 1e6
    assert tail.above([0.9, 1.2], 0.0, 1.0)[0] > 0.9


@pytest.mark.parametrize(
    ("values", "gain"),
    [
        pytest.param([0.0, 1.0] * 600, 0.38, id="noise: smooth"),
        pytest.param([step * 0.01 for step in range(1200)], 0.65, id="a steady rise: follow"),
    ],
)
def test_the_level_tells_noise_from_movement(values: list[float], gain: float) -> None:
    level = Level.at(values[0])
    for value in values[1:]:
        level.update(value)
    before = level.level

    level.update(before + 1.0)

    assert level.level - before == pytest.approx(gain, abs=0.04)


def test_a_rise_is_carried_on_and_a_fall_is_not() -> None:
    rising, falling = Level.at(0.0), Level.at(0.0)
    for step in range(1, 60):
        rising.update(0.01 * step)
        falling.update(-0.01 * step)

    # Of the way back to the slow level a tenth; of a rise of 0.01 a step, damped 4.4 steps, 0.4.
    back = 0.1 * (rising.slow - rising.level)
    assert rising.ahead(10) == pytest.approx(rising.level + back + 0.4 * 0.01 * 4.4, abs=1e-4)
    assert falling.ahead(10) == pytest.approx(falling.level - back)


def test_the_price_is_the_prior_before_anything_was_seen() -> None:
    price = Price()
    price.update(Menu([1, 2], [0.5, 0.0]), 5, 3)

    assert price.find(0.01, prior=20.0) == pytest.approx(20.0, rel=0.02)


def test_the_prior_price_weighs_half_for_ever() -> None:
    price, menu = Price(), Menu(range(5, 60), [math.exp(-0.1 * count) for count in range(5, 60)])
    for _ in range(3000):
        price.update(menu, 5, 3)

    found = price.find(0.01, prior=1.0) ** 2

    assert price.find(0.01, prior=100.0) == pytest.approx(10.0 * math.sqrt(found))
    # Of these risks the price at which 1 % remains is 10 / 0.01 replica-steps.
    assert found == pytest.approx(1000.0, rel=0.1)


def test_the_price_rises_where_shadows_were_short_more_often_than_they_had_said() -> None:
    menu = Menu(range(5, 60), [math.exp(-0.1 * count) for count in range(5, 60)])
    prices = []
    for demand in (4.0, 58.0):
        price = Price()
        for _ in range(400):
            price.observe(demand, 3)
            price.update(menu, 5, 3)
        prices.append(price.find(0.01, prior=20.0))

    assert prices[1] > prices[0]
    assert PRICES[0] <= prices[0] < prices[1] <= PRICES[-1]


@pytest.mark.parametrize(
    ("order", "load", "wanted"),
    [
        pytest.param(7, 4.9, 7, id="on target"),
        pytest.param(7, 5.3, 7, id="8 percent above: within the tolerance"),
        pytest.param(7, 6.0, 9, id="22 percent above"),
        pytest.param(7, 0.0, 1, id="never fewer than one"),
        pytest.param(0, 4.9, 7, id="the first"),
    ],
)
def test_hpa_follows_the_load_by_its_target(order: int, load: float, wanted: int) -> None:
    assert Hpa(order=order).step(load) == wanted


def test_hpa_falls_only_when_five_steps_wanted_it() -> None:
    hpa = Hpa()

    wanted = [hpa.step(load) for load in (7.0, 3.5, 3.5, 3.5, 3.5, 3.5)]

    assert wanted == [10, 10, 10, 10, 10, 5]


def test_keda_looks_at_two_steps() -> None:
    keda = Hpa(mean_steps=2)

    assert [keda.step(7.0), keda.step(14.0)] == [10, 15]


@pytest.mark.parametrize("lead_steps", [0, 10])
def test_about_as_many_steps_are_short_as_may_be(load: list[float], lead_steps: int) -> None:
    orders = orders_for(load, lead_steps=lead_steps)

    done = score(load, orders, capacity=100.0, lead_steps=lead_steps, step_seconds=60.0, start=DAY)

    assert 0.0005 < done.short_ratio < 0.02
    assert done.cost_ratio < 1.35


def test_less_risk_costs_more(load: list[float]) -> None:
    scores = [
        score(
            load,
            orders_for(load, risk_ratio=risk),
            capacity=100.0,
            lead_steps=3,
            step_seconds=60.0,
            start=DAY,
        )
        for risk in (0.002, 0.05)
    ]

    assert scores[0].cost_ratio > scores[1].cost_ratio
    assert scores[0].short_ratio < scores[1].short_ratio


def test_a_stored_policy_goes_on_as_if_it_had_never_stopped(load: list[float]) -> None:
    kept = CapacityPolicy(capacity=100.0, lead_steps=3)
    for demand in load[:500]:
        kept.step(demand)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=CapacityPolicy)

    assert [stored.step(demand) for demand in load[500:700]] == [
        kept.step(demand) for demand in load[500:700]
    ]


def test_two_policies_share_nothing() -> None:
    first = CapacityPolicy(capacity=1.0, lead_steps=3)
    for _ in range(20):
        first.step(50.0)

    second = CapacityPolicy(capacity=1.0, lead_steps=3)

    assert second.ordered == []
    assert second.price.steps == 0
    assert second.step(2.0) <= 4


@pytest.mark.parametrize(
    "bad", [None, math.nan, math.inf, -math.inf, -5.0], ids=["none", "nan", "inf", "-inf", "-5"]
)
def test_an_unknown_load_holds_the_last_order_and_teaches_nothing(bad: float | None) -> None:
    policy = CapacityPolicy(capacity=100.0, lead_steps=3)
    for demand in service_load(300):
        last = policy.step(demand)
    learnt = msgspec.msgpack.encode((policy.level, policy.tail, policy.debt))

    assert [policy.step(bad) for _ in range(30)] == [last] * 30
    assert msgspec.msgpack.encode((policy.level, policy.tail, policy.debt)) == learnt


def test_unknown_from_the_start_orders_the_minimum() -> None:
    policy = CapacityPolicy(capacity=100.0, lead_steps=3, min_replicas=2)

    assert [policy.step(None), policy.step(math.nan)] == [2, 2]


def test_one_absurd_value_does_not_order_an_absurd_fleet(load: list[float]) -> None:
    policy = CapacityPolicy(capacity=100.0, lead_steps=3)
    for demand in load[:DAY]:
        before = policy.step(demand)

    spiked = policy.step(1e9)
    after = [policy.step(demand) for demand in load[DAY : DAY + 60]][-1]

    # Four times the largest load at most, and some headroom for where that may lead.
    assert spiked < 20 * before
    assert after <= 2 * before


def test_no_order_leaves_the_bounds(load: list[float]) -> None:
    policy = CapacityPolicy(capacity=100.0, lead_steps=3, min_replicas=6, max_replicas=8)

    orders = {policy.step(demand) for demand in load[:900]}

    assert orders <= {6, 7, 8}
    assert max(orders) == 8


def test_in_its_first_day_it_orders_no_more_than_hpa() -> None:
    dice = random.Random(3)
    load = [600.0 * math.exp(dice.gauss(0.0, 0.4)) for _ in range(300)]
    young = CapacityPolicy(capacity=100.0, lead_steps=10)
    old = CapacityPolicy(capacity=100.0, lead_steps=10, day_steps=1)
    hpa = Hpa()

    orders = [(young.step(demand), old.step(demand), hpa.step(demand / 100.0)) for demand in load]

    assert all(first <= theirs for first, _, theirs in orders)
    assert any(later > theirs for _, later, theirs in orders)
    assert not young.has_history
    assert old.has_history


def test_what_is_short_by_the_cap_of_the_first_day_does_not_raise_the_price() -> None:
    dice = random.Random(3)
    load = [600.0 * math.exp(dice.gauss(0.0, 0.4)) for _ in range(300)]
    capped = CapacityPolicy(capacity=100.0, lead_steps=10)
    free = CapacityPolicy(capacity=100.0, lead_steps=10, cap=Hpa(target_ratio=1e-3))

    orders = [(capped.step(demand), free.step(demand)) for demand in load]

    assert any(ours < theirs for ours, theirs in orders)
    assert capped.debt == free.debt
    assert capped.wanted == free.ordered


@pytest.mark.parametrize(
    ("most", "ready"),
    [pytest.param(3, None, id="a bound"), pytest.param(1_000_000, 3, id="what was rejected")],
)
def test_what_is_short_though_more_was_wanted_does_not_raise_the_price(
    load: list[float], most: int, ready: int | None
) -> None:
    held = CapacityPolicy(capacity=100.0, lead_steps=3, max_replicas=most)
    free = CapacityPolicy(capacity=100.0, lead_steps=3)
    for demand in load:
        held.step(demand, ready=ready)
        free.step(demand)

    assert held.debt == free.debt
    assert held.wanted == free.ordered


def test_what_was_there_beside_the_orders_spares_short_steps(load: list[float]) -> None:
    alone = CapacityPolicy(capacity=100.0, lead_steps=3)
    helped = CapacityPolicy(capacity=100.0, lead_steps=3)
    for demand in load:
        alone.step(demand)
        helped.step(demand, ready=1000)

    assert helped.debt == -8.0
    assert alone.debt > helped.debt


def test_a_state_stored_without_what_was_wanted_goes_on(load: list[float]) -> None:
    policy = CapacityPolicy(capacity=100.0, lead_steps=3)
    for demand in load[:100]:
        last = policy.step(demand)
    fields = {**msgspec.to_builtins(policy)}
    del fields["wanted"]
    stored = msgspec.convert(fields, CapacityPolicy)

    assert stored.step(None) == last
    assert stored.step(load[100]) >= 1


def test_a_day_of_unknown_load_is_no_history() -> None:
    policy = CapacityPolicy(capacity=100.0, lead_steps=3)
    policy.step(500.0)
    for _ in range(2 * DAY):
        policy.step(None)

    assert not policy.has_history


@pytest.mark.parametrize("level", [0.0, 0.5, 40.0], ids=["nothing", "half a replica", "one of 100"])
def test_next_to_no_load_needs_one_replica(level: float) -> None:
    policy = CapacityPolicy(capacity=100.0, lead_steps=3)

    assert [policy.step(level) for _ in range(400)][-1] == 1


def test_a_load_that_rises_tenfold_for_good_is_followed() -> None:
    policy = CapacityPolicy(capacity=100.0, lead_steps=3)
    for _ in range(600):
        policy.step(300.0)

    orders = [policy.step(3000.0) for _ in range(20)]

    assert orders[-1] >= 30
