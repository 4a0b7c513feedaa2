"""Approval by risk, without a person."""

from typing import Any

import pytest

from agent.executors.policy import policy_decisions
from agent.executors.settings import ApprovalSettings
from schemas.life import Life
from schemas.scaling import Recommendation
from schemas.units import to_ns
from tests.support.advice import advice, decision, step

AUTO = ApprovalSettings(low="auto", medium="auto", high="never")


def decided(
    *given: Recommendation, approval: ApprovalSettings = AUTO, late: bool = False
) -> dict[str, tuple[str, str]]:
    lives = [Life(advice=one) for one in given]
    return decided_of(lives, approval, to_ns(given[0].expires_at if late else given[0].decided_at))


def decided_of(
    lives: list[Life], approval: ApprovalSettings, now_ns: int
) -> dict[str, tuple[str, str]]:
    """Verdict and reason by recommendation."""
    return {
        one.recommendation_id: (one.verdict, one.reason)
        for one in policy_decisions(lives, approval, now_ns)
    }


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        pytest.param({"risk": "low"}, ("accepted", "low risk is accepted by itself"), id="auto"),
        pytest.param({"risk": "high"}, ("rejected", "high risk is never accepted"), id="never"),
        pytest.param(
            {"simulated": True}, ("rejected", "its evidence is simulated"), id="simulated"
        ),
    ],
)
def test_advice_is_decided_by_its_risk(fields: dict[str, Any], found: tuple[str, str]) -> None:
    one = advice(**fields)

    assert decided(one) == {one.recommendation_id: found}


def test_what_no_executor_can_do_is_left_to_people() -> None:
    assert decided(advice(action="tune_cache", risk="low")) == {}


def test_by_default_everything_is_left_to_people() -> None:
    given = [advice(number, risk=risk) for number, risk in enumerate(["low", "medium", "high"])]

    assert decided(*given, approval=ApprovalSettings()) == {}


def test_of_contradicting_advice_only_what_goes_first_is_accepted() -> None:
    up, down = advice(1), advice(2, action="scale_down", risk="medium", saving_usd_per_hour=9.0)

    assert decided(down, up) == {
        "chat.scale_up.1": ("accepted", "low risk is accepted by itself"),
        "chat.scale_down.2": (
            "rejected",
            "contradicts chat.scale_up.1, which goes first by priority",
        ),
    }


def test_other_pools_do_not_contradict() -> None:
    found = decided(advice(1), advice(1, pool="code", action="scale_down", risk="medium"))

    assert [verdict for verdict, _ in found.values()] == ["accepted", "accepted"]


def test_what_no_executor_can_do_rules_nothing_out_until_a_person_accepts_it() -> None:
    down = Life(advice=advice(1, action="scale_down", risk="medium", saving_usd_per_hour=1.0))
    size = Life(advice=advice(2, action="right_size", risk="high", saving_usd_per_hour=9.0))
    now_ns = to_ns(down.advice.decided_at)

    meanwhile = decided_of([down, size], AUTO, now_ns)
    size.add(decision(size.advice))
    accepted = decided_of([down, size], AUTO, now_ns)

    assert meanwhile == {"chat.scale_down.1": ("accepted", "medium risk is accepted by itself")}
    assert accepted["chat.scale_down.1"] == (
        "rejected",
        "contradicts chat.right_size.2, which goes first by saving",
    )


def test_what_a_person_accepted_outranks_the_rest() -> None:
    up, down = Life(advice=advice(1)), Life(advice=advice(2, action="scale_down", risk="medium"))
    up.add(decision(up.advice))

    found = decided_of([up, down], AUTO, to_ns(up.advice.decided_at))

    assert list(found) == ["chat.scale_down.2"]
    assert found["chat.scale_down.2"][0] == "rejected"


def test_what_is_expired_decided_or_done_is_left_alone() -> None:
    one = advice()
    rejected, done = Life(advice=one), Life(advice=one)
    rejected.add(decision(one, "rejected"))
    done.add(step(one, "succeeded"))

    assert decided(one, late=True) == {}
    assert decided_of([rejected], AUTO, to_ns(one.decided_at)) == {}
    assert decided_of([done], AUTO, to_ns(one.decided_at)) == {}
