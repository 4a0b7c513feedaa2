"""The life of a recommendation, folded from messages in the order of the stream."""

from itertools import permutations

import msgspec
import pytest

from schemas.life import AboutAdvice, Life, decision_id, step_id
from schemas.units import to_ns
from tests.support.advice import advice, decision, step

ADVICE = advice()
NOW_NS = to_ns(ADVICE.decided_at)
AFTER_NS = to_ns(ADVICE.expires_at)
SUCCESSOR = advice(2, supersedes=ADVICE.recommendation_id)
ACCEPTED, REJECTED = decision(ADVICE), decision(ADVICE, "rejected", reason="too dear")
REQUESTED, STARTED = step(ADVICE), step(ADVICE, "started")
SUCCEEDED, FAILED = step(ADVICE, "succeeded"), step(ADVICE, "failed", error="broken")
REHEARSED = step(ADVICE, "succeeded", dry_run=True, idempotency_key="d")


def life_of(*messages: AboutAdvice) -> Life:
    life = Life(advice=ADVICE)
    for message in messages:
        life.add(message)
    return life


@pytest.mark.parametrize(
    ("messages", "state", "refusal"),
    [
        pytest.param([], "open", "nobody has accepted it", id="open"),
        pytest.param([ACCEPTED], "accepted", "", id="accepted"),
        pytest.param([REJECTED], "rejected", "operator:ann rejected it: too dear", id="rejected"),
        pytest.param([ACCEPTED, REJECTED], "accepted", "", id="the-first-decision-counts"),
        pytest.param(
            [ACCEPTED, SUCCESSOR], "superseded", "superseded by chat.scale_up.2", id="superseded"
        ),
        pytest.param(
            [decision(ADVICE, "superseded"), ACCEPTED],
            "superseded",
            "superseded by newer advice",
            id="accepted-too-late",
        ),
        pytest.param([decision(ADVICE, "expired")], "expired", "it expired at", id="told-expired"),
        pytest.param(
            [decision(ADVICE, "expired", reason="too much load")],
            "expired",
            "it was ended: too much load",
            id="ended-early",
        ),
        pytest.param([ACCEPTED, REHEARSED], "accepted", "", id="a-dry-run-changes-nothing"),
        pytest.param([ACCEPTED, REQUESTED], "requested", "", id="requested"),
        pytest.param(
            [ACCEPTED, REQUESTED, STARTED], "executing", "it is being carried out", id="started"
        ),
        pytest.param(
            [ACCEPTED, REQUESTED, STARTED, SUCCEEDED],
            "executed",
            "it was carried out already",
            id="done",
        ),
        pytest.param([ACCEPTED, REQUESTED, STARTED, FAILED], "failed", "", id="may-be-tried-again"),
        pytest.param(
            [ACCEPTED, REQUESTED, STARTED, FAILED, SUCCEEDED], "failed", "", id="first-end-counts"
        ),
    ],
)
def test_state_and_why_it_must_not_be_carried_out(
    messages: list[AboutAdvice], state: str, refusal: str
) -> None:
    life = life_of(*messages)

    assert life.state(NOW_NS) == state
    assert life.refusal(NOW_NS).startswith(refusal)
    assert bool(life.refusal(NOW_NS)) == bool(refusal)


def test_it_expires_exactly_at_its_instant() -> None:
    life = life_of(ACCEPTED)

    assert life.refusal(AFTER_NS - 1) == ""
    assert life.refusal(AFTER_NS).startswith("it expired at")
    assert life.state(AFTER_NS) == "expired"


def test_what_was_carried_out_stays_so_when_it_expires() -> None:
    assert life_of(ACCEPTED, STARTED, SUCCEEDED).state(AFTER_NS) == "executed"


def test_whoever_reads_the_same_order_comes_to_the_same_decision() -> None:
    deciders = [decision(ADVICE, decided_by=f"operator:{name}") for name in "abc"]

    for order in permutations(deciders):
        assert life_of(*order).decision == order[0]


@pytest.mark.parametrize("verdict", ["superseded", "expired"])
def test_a_decision_on_what_stood_no_more_does_not_count(verdict: str) -> None:
    assert life_of(decision(ADVICE, verdict), ACCEPTED).decision is None
    assert life_of(ACCEPTED, decision(ADVICE, verdict)).decision == ACCEPTED


def test_decisions_share_one_id_and_so_do_the_two_ends() -> None:
    assert decision_id("r") == "r.decided"
    assert step_id(SUCCEEDED) == step_id(FAILED) != step_id(STARTED) != step_id(REQUESTED)
    assert step_id(STARTED) == f"{ADVICE.recommendation_id}.execution.started"


def test_a_life_survives_the_wire() -> None:
    life = life_of(ACCEPTED, REQUESTED, STARTED, SUCCEEDED)

    assert msgspec.json.decode(msgspec.json.encode(life), type=Life) == life
