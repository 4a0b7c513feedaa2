"""When nothing must be done, and what is advised after a failure."""

from typing import Any

import pytest

from agent.executors.steps import Outcome, is_reached, outdated, rollback_advice
from schemas.scaling import Recommendation
from schemas.units import SECOND_NS, to_ns
from tests.support.advice import advice, step

UP = advice(replicas_from=2, replicas_to=4)
DOWN = advice(action="scale_down", replicas_from=4, replicas_to=2)


@pytest.mark.parametrize(
    ("one", "replicas", "reached"),
    [
        *[(UP, 3, False), (UP, 4, True), (UP, 5, True), (UP, None, False)],
        *[(DOWN, 3, False), (DOWN, 2, True), (DOWN, 1, True), (DOWN, None, False)],
    ],
)
def test_what_is_reached_or_surpassed_needs_no_change(
    one: Recommendation, replicas: int | None, reached: bool
) -> None:
    assert is_reached(one, replicas) == reached


@pytest.mark.parametrize(
    ("one", "replicas", "is_outdated"),
    [(DOWN, 4, False), (DOWN, 5, True), (DOWN, 3, False), (DOWN, None, False), (UP, 9, False)],
)
def test_a_pool_that_grew_is_not_scaled_down_by_old_advice(
    one: Recommendation, replicas: int | None, is_outdated: bool
) -> None:
    assert bool(outdated(one, replicas)) == is_outdated


NOW_NS = to_ns(UP.decided_at)


def rollback(one: Recommendation, outcome: Outcome, **request: Any) -> Recommendation | None:
    return rollback_advice(one, step(one, **request), outcome, NOW_NS, 60 * SECOND_NS)


@pytest.mark.parametrize(
    ("outcome", "request_"),
    [
        pytest.param(Outcome(before=2, after=4), {}, id="success"),
        pytest.param(Outcome(before=2, after=2, error="x"), {}, id="nothing-changed"),
        pytest.param(Outcome(before=None, after=4, error="x"), {}, id="before-unknown"),
        pytest.param(Outcome(before=2, after=4, error="x"), {"dry_run": True}, id="dry-run"),
        pytest.param(Outcome(before=2, after=5, error="x", has_acted=False), {}, id="others"),
        pytest.param(Outcome(before=2, error="x", has_acted=False), {}, id="not-begun"),
    ],
)
def test_nothing_to_go_back_to(outcome: Outcome, request_: dict[str, Any]) -> None:
    assert rollback(UP, outcome, **request_) is None


def test_after_a_failure_that_changed_something_it_is_advised_to_go_back() -> None:
    back = rollback(UP, Outcome(before=2, after=3, error="x"))

    assert back is not None
    assert (back.action, back.replicas_from, back.replicas_to) == ("scale_down", 3, 2)
    assert (back.recommendation_id, back.reason) == ("chat.scale_up.1.rollback", "rollback")
    assert (back.risk, back.confidence_ratio) == ("medium", 1.0)
    assert [(one.signal, one.value, one.threshold) for one in back.evidence] == [
        ("replicas_observed", 3.0, 4.0)
    ]
    assert to_ns(back.expires_at) == NOW_NS + 60 * SECOND_NS


def test_without_a_look_afterwards_the_target_counts_as_reached_with_no_confidence() -> None:
    back = rollback(DOWN, Outcome(before=4, after=None, error="x"), idempotency_key="mine")

    assert back is not None
    assert (back.action, back.replicas_from, back.replicas_to) == ("scale_up", 2, 4)
    assert (back.confidence_ratio, back.evidence, back.risk) == (0.0, [], "low")
    assert back.recommendation_id == "chat.scale_down.1.mine.rollback"


def test_a_rollback_that_fails_gives_no_further_advice() -> None:
    back = rollback(UP, Outcome(before=2, after=3, error="x"))

    assert back is not None
    assert rollback(back, Outcome(before=3, after=4, error="x")) is None
