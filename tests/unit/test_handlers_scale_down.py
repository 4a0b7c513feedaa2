"""Scaling down only to what survives a failure, and only where it is worth it."""

from typing import Any

import msgspec
import pytest

from handlers.scaling.cache_loss import Caches
from handlers.scaling.demand import Demand, Expected
from handlers.scaling.replicas import measure
from handlers.scaling.scale_down import Held, scale_down
from handlers.settings import ScalingSettings
from tests.support.samples import engine
from tests.support.scaling import replica_loads


def pool(replicas: int, p90: float | None = None, **load: Any) -> Demand:
    """Replicas with the same load each, half of the KV cache used by default."""
    load = {"waiting": 0, "kv": 0.5, "running": 10} | load
    loads = replica_loads([engine(f"e{number}", **load) for number in range(replicas)])
    expected = None if p90 is None else Expected(p90, 900.0)
    return Demand(loads, measure(loads, ScalingSettings()), expected)


NOTHING_KNOWN = Caches([engine(kv=None)], None, None)


def judged(
    demand: Demand, asked: int, *, downs: int = 0, caches: Caches = NOTHING_KNOWN, **settings: Any
) -> int | Held:
    return scale_down(msgspec.convert(settings, ScalingSettings), demand, caches, asked, downs)


@pytest.mark.parametrize(
    ("kv", "replicas", "failures", "target"),
    [
        pytest.param(0.5, 8, 0, 5, id="4.0 / 0.85 = 4.7"),
        pytest.param(0.5, 8, 1, 6, id="and one to lose"),
        pytest.param(0.5, 8, 2, 7, id="and two to lose"),
        pytest.param(0.1, 2, 0, 1, id="one carries it, no spare asked for"),
        pytest.param(0.0, 2, 1, 1, id="nothing to carry: one without a spare"),
        pytest.param(0.0, 8, 3, 1, id="nothing to lose either"),
    ],
)
def test_what_is_left_survives_failures(
    kv: float, replicas: int, failures: int, target: int
) -> None:
    demand = pool(replicas, kv=kv, running=0 if kv == 0 else 10)

    assert judged(demand, 1, failures_survived=failures) == target


@pytest.mark.parametrize(
    ("kv", "replicas", "failures"),
    [
        pytest.param(0.5, 8, 3, id="5 and 3 to lose are all there are"),
        pytest.param(0.1, 2, 1, id="one carries it, the other is its spare"),
        pytest.param(0.5, 4, 100, id="more to lose than there are"),
    ],
)
def test_without_a_survivor_too_many_nothing_is_advised(
    kv: float, replicas: int, failures: int
) -> None:
    held = judged(pool(replicas, kv=kv), 1, failures_survived=failures)

    assert isinstance(held, Held)
    assert (held.reason, held.target) == ("failure", 1)
    assert f"and {failures} more to survive as many failures: 1 are too few" in held.text


def test_what_is_expected_counts_not_what_is_there_now() -> None:
    calm, rising = pool(8), pool(8, p90=120.0)

    assert judged(calm, 5) == 6
    assert judged(rising, 5) == Held(
        "scale_down",
        5,
        "failure",
        "120 requests in flight (p90 of the next 900 s) needs 8 replicas within the targets, and "
        "1 more to survive as many failures: 5 are too few",
    )


def test_what_a_replica_would_carry_must_be_known() -> None:
    held = judged(pool(4, p90=20.0, kv=0.0, running=0), 2)

    assert isinstance(held, Held)
    assert held.reason == "unknown"


def test_a_signal_that_has_a_target_must_be_known() -> None:
    demand = pool(8)
    blind = Demand(
        replica_loads(engine(f"e{i}") for i in range(8)),
        demand.signals,
        None,
        optional=["gpu_busy_ratio"],
    )

    assert judged(demand, 5) == 6
    assert judged(blind, 5) == Held(
        "scale_down", 5, "unknown", "gpu_busy_ratio has a target, but is not measured"
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        pytest.param({"least_saving_ratio": 0.3}, "2 of 8 replicas are less than 30%", id="share"),
        pytest.param(
            {"usd_per_replica_hour": 0.04},
            "it saves $0.08 an hour, less than $0.10",
            id="money: 2 * 0.04",
        ),
    ],
)
def test_too_small_a_saving_is_held(settings: dict[str, Any], text: str) -> None:
    assert judged(pool(8), 5, **settings) == Held("scale_down", 6, "saving", text)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"least_saving_ratio": 0.25}, id="exactly the least share: 2 of 8"),
        pytest.param({"usd_per_replica_hour": 0.05}, id="exactly the least money: 2 * 0.05"),
        pytest.param({"usd_per_replica_hour": None}, id="without a price"),
    ],
)
def test_enough_of_a_saving_is_advised(settings: dict[str, Any]) -> None:
    assert judged(pool(8), 5, **settings) == 6


@pytest.mark.parametrize(("downs", "is_held"), [(1, False), (2, True), (3, True)])
def test_too_many_changes_are_held(downs: int, is_held: bool) -> None:
    held = judged(pool(8), 5, downs=downs, downs_per_hour_max=2)

    assert (isinstance(held, Held) and held.reason == "churn") == is_held


@pytest.mark.parametrize(
    ("pace", "held"),
    [
        # 2 of 8 go, with 14,400 tokens in use each, half of them found again: 14,400 tokens.
        pytest.param(2.0, False, id="2 replica-hours of 2 replicas: just an hour"),
        pytest.param(1.999, True, id="more than an hour"),
        pytest.param(None, False, id="not measured"),
    ],
)
def test_a_cache_that_takes_too_long_to_make_up_for_is_kept(pace: float | None, held: bool) -> None:
    engines = [engine(kv=0.5, kv_cache_capacity_tokens=28_800)]

    found = judged(pool(8), 5, caches=Caches(engines, 0.5, pace), usd_per_replica_hour=None)

    if held:
        assert isinstance(found, Held)
        assert (found.reason, found.target) == ("payback", 6)
        assert "At most 14,400 tokens of KV cache have to be computed anew" in found.text
    else:
        assert found == 6
