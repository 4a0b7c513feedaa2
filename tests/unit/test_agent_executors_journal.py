"""What an executor remembers of advice, and for how long."""

import msgspec
import pytest

from agent.executors.journal import LATE_NS, Journal
from schemas.life import AboutAdvice
from schemas.protocols import Delivery
from schemas.units import to_ns
from tests.support.advice import advice, step

ONE = advice()
END_NS = to_ns(ONE.expires_at)


def journal(*told: AboutAdvice) -> Journal:
    made = Journal()
    for number, message in enumerate(told):
        payload = msgspec.json.encode(message)
        made.take(Delivery(message.subject(), payload, {}, number, END_NS))
    return made


def test_advice_stands_until_it_expires() -> None:
    of_one = journal(ONE)

    assert [life.advice for life in of_one.standing(END_NS - 1)] == [ONE]
    assert of_one.standing(END_NS) == []


@pytest.mark.parametrize(
    ("told", "is_kept"),
    [
        pytest.param([], False, id="nothing was asked"),
        pytest.param([step(ONE)], True, id="asked and not begun"),
        pytest.param([step(ONE), step(ONE, "started")], True, id="under way"),
        pytest.param([step(ONE), step(ONE, "failed")], False, id="ended"),
    ],
)
def test_what_is_to_be_ended_is_remembered_after_its_advice(
    told: list[AboutAdvice], is_kept: bool
) -> None:
    of_one = journal(ONE, *told)

    of_one.standing(END_NS + LATE_NS)
    assert set(of_one.lives) == {ONE.recommendation_id}

    of_one.standing(END_NS + LATE_NS + 1)
    assert set(of_one.lives) == ({ONE.recommendation_id} if is_kept else set())
