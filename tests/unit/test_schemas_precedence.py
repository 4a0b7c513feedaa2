"""The one order of contradicting advice."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.precedence import contradict, decided_by, first, precedence
from schemas.scaling import Recommendation
from tests.support.advice import advice

BASE = advice()
anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
some_advice = st.builds(
    lambda **fields: msgspec.structs.replace(BASE, **fields),
    action=st.sampled_from(["scale_up", "scale_down", "consolidate", "right_size", "tune_cache"]),
    recommendation_id=st.text("abc", min_size=1, max_size=3),
    saving_usd_per_hour=st.none() | st.floats(-1e6, 1e6),
    confidence_ratio=st.floats(0, 1),
    risk=st.sampled_from(["low", "medium", "high"]),
    decided_at=st.datetimes(timezones=st.just(BASE.decided_at.tzinfo)),
)


@anywhere
@given(st.lists(some_advice, max_size=8), st.randoms(use_true_random=False))
def test_the_first_does_not_depend_on_who_lists_it_how(
    listed: list[Recommendation], chance: random.Random
) -> None:
    shuffled = list(listed)
    chance.shuffle(shuffled)

    winner, again = first(listed), first(shuffled)

    if winner is None or again is None:
        assert winner is again is None
        assert listed == []
    else:
        assert precedence(winner) == precedence(again)
        assert all(precedence(winner) <= precedence(other) for other in listed)


@anywhere
@given(some_advice, some_advice, some_advice)
def test_the_order_is_total(
    one: Recommendation, other: Recommendation, third: Recommendation
) -> None:
    keys = [precedence(advice) for advice in (one, other, third)]

    assert (keys[0] < keys[1]) + (keys[1] < keys[0]) + (keys[0] == keys[1]) == 1
    assert not keys[0] < keys[1] < keys[2] or keys[0] < keys[2]
    if one.recommendation_id != other.recommendation_id:
        assert keys[0] != keys[1]


@anywhere
@given(some_advice, some_advice)
def test_contradiction_goes_both_ways(one: Recommendation, other: Recommendation) -> None:
    assert contradict(one, other) == contradict(other, one)
    assert contradict(one, one)
    assert not contradict(one, msgspec.structs.replace(one, pool="another"))


DOWN = {"action": "scale_down", "saving_usd_per_hour": 2.0}


@pytest.mark.parametrize(
    ("winner", "loser", "criterion"),
    [
        pytest.param(
            {"action": "scale_up", "saving_usd_per_hour": -9.0, "risk": "high"},
            {**DOWN, "saving_usd_per_hour": 9.0},
            "priority",
            id="service-before-money",
        ),
        pytest.param(
            {**DOWN, "confidence_ratio": 0.5},
            {**DOWN, "saving_usd_per_hour": 1.0},
            "saving",
            id="more-saved",
        ),
        pytest.param(
            {**DOWN, "saving_usd_per_hour": -5.0},
            {**DOWN, "saving_usd_per_hour": None},
            "saving",
            id="a-known-price-before-none",
        ),
        pytest.param(
            {**DOWN, "risk": "high"}, {**DOWN, "confidence_ratio": 0.9}, "confidence", id="surer"
        ),
        pytest.param({**DOWN, "risk": "medium"}, {**DOWN, "risk": "high"}, "risk", id="less-risk"),
    ],
)
def test_what_goes_first_and_why(
    winner: dict[str, Any], loser: dict[str, Any], criterion: str
) -> None:
    one, other = advice(1, **winner), advice(2, **loser)

    assert first([other, one]) == first([one, other]) == one
    assert decided_by(one, other) == criterion


def test_of_equals_the_later_goes_first() -> None:
    earlier = advice(1)
    later = msgspec.structs.replace(advice(2), decided_at=earlier.expires_at)

    assert first([earlier, later]) == later
    assert decided_by(later, earlier) == "time"


def test_a_cache_can_be_tuned_while_replicas_change() -> None:
    assert not contradict(advice(1), advice(2, action="tune_cache"))
    assert contradict(advice(1), advice(2, action="scale_down"))
