"""What was decided and carried out, as of an instant of the metrics stream."""

from datetime import timedelta

import msgspec
import pytest

from handlers.decisions.book import EXECUTIONS_KEPT, DecisionBook
from schemas.message import Message
from schemas.protocols import Delivery
from tests.support.advice import advice, decision, delivered, step

ONE, OTHER = advice(1), advice(2)


def book(*heard: tuple[int, Message]) -> DecisionBook:
    """A book that heard each as stored at that instant."""
    made = DecisionBook()
    for ns, message in heard:
        made.heard(delivered(message, ns))
    return made


def test_a_rejection_counts_from_the_instant_at_which_it_was_stored() -> None:
    early = ONE.decided_at - timedelta(days=1)
    found = book((100, decision(ONE, "rejected", decided_at=early)))

    told = [found.rejected_ns(ONE.recommendation_id, ns) for ns in (99, 100, 101)]

    assert told == [None, 100, 100]
    assert found.rejected_ns(OTHER.recommendation_id, 101) is None


@pytest.mark.parametrize(
    ("verdicts", "rejected_ns"),
    [
        pytest.param(["accepted", "rejected"], None, id="accepted by one, then rejected"),
        pytest.param(["rejected", "accepted"], 1, id="rejected by one, then accepted"),
        pytest.param(["rejected", "rejected"], 1, id="rejected by both"),
        pytest.param(["superseded", "expired"], None, id="the handlers said so"),
    ],
)
def test_of_two_who_decide_at_once_the_first_counts(
    verdicts: list[str], rejected_ns: int | None
) -> None:
    found = book(*((ns, decision(ONE, verdict)) for ns, verdict in enumerate(verdicts, 1)))

    assert found.rejected_ns(ONE.recommendation_id, 10) == rejected_ns


def test_what_was_carried_out_last_is_told_as_of_an_instant() -> None:
    found = book(
        (100, step(ONE, "succeeded")),
        (200, step(OTHER, "succeeded")),
        (200, step(OTHER, "succeeded")),  # heard again
        (300, step(advice(3, pool="code"), "succeeded")),
    )

    told = [found.executed("chat", ns) for ns in (99, 100, 199, 200, 300)]

    first, second = (100, ONE.recommendation_id), (200, OTHER.recommendation_id)
    assert told == [None, first, first, second, second]
    assert found.executed("embed", 300) is None


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(step(ONE, "succeeded", dry_run=True), id="a dry run"),
        pytest.param(step(ONE, "failed"), id="a failure"),
        pytest.param(step(ONE, "started"), id="not ended"),
        pytest.param(decision(ONE), id="accepted"),
        pytest.param(ONE, id="advice"),
    ],
)
def test_nothing_else_carries_out_or_rejects(message: Message) -> None:
    found = book((1, message))

    assert found.executed("chat", 2) is None
    assert found.rejected_ns(ONE.recommendation_id, 2) is None


@pytest.mark.parametrize("subject", ["decision.rejected.chat", "execution.succeeded.chat"])
def test_what_cannot_be_read_is_refused(subject: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        DecisionBook().heard(Delivery(subject, b"{}", {}, 1, 1))


def test_a_flood_of_executions_keeps_the_last() -> None:
    many = [(ns, step(ONE, "succeeded")) for ns in range(1, 10 * EXECUTIONS_KEPT)]

    found = book(*many)

    assert found.executed("chat", 10**9) == (many[-1][0], ONE.recommendation_id)
    assert found.executed("chat", 1) is None  # forgotten
