"""Which write waits for which, and what is kept of them."""

import asyncio
import contextlib
import sys

import pytest

from agent.asking import Deadline
from agent.write_order import Write, WriteOrder
from schemas.protocols import RequestError


@pytest.fixture
def order() -> WriteOrder:
    return WriteOrder()


def test_writes_of_other_keys_and_tags_do_not_wait(order: WriteOrder) -> None:
    with order.begin(["a", "b"], ["t"]), order.begin(["c"], ["t"]) as put:
        deletion = order.begin_deletion("other")
        with order.begin(["d"], ["third"]) as another, deletion:
            assert [put.waits, deletion.waits, another.waits] == [False] * 3


def test_a_write_waits_for_the_last_of_each_of_its_keys(order: WriteOrder) -> None:
    with order.begin(["c"]) as later:
        with order.begin(["a"]), order.begin(["b"]):
            many = order.begin(["a", "b", "c"])
        assert many.waits
    with many:
        assert not many.waits
        assert not later.waits


def test_a_deletion_by_tag_waits_for_the_puts_with_it_and_they_for_it(order: WriteOrder) -> None:
    with order.begin(["a"], ["t", "t"]):
        deletion = order.begin_deletion("t")
        after = order.begin(["b"], ["t"])
        second = order.begin_deletion("t")
        assert [deletion.waits, after.waits, second.waits] == [True] * 3
    with deletion:
        assert [deletion.waits, after.waits, second.waits] == [False, True, True]
    with after:
        assert [after.waits, second.waits] == [False, True]
    with second:
        assert not second.waits
    assert len(order) == 0


def test_nothing_is_kept_of_what_is_done(order: WriteOrder) -> None:
    first = order.begin(["a", "b"], ["t"])
    second = order.begin(["b", "c"], ["t", "u"])
    with first, second:
        pass
    with order.begin_deletion("t"):
        assert len(order) == 1

    assert len(order) == 0


def test_who_gives_up_lets_nobody_pass(order: WriteOrder) -> None:
    with order.begin(["k"]):
        with order.begin(["k"]):
            pass
        third = order.begin(["k"])
        assert third.waits
    with third:
        assert not third.waits


def test_thousands_may_give_up_one_behind_the_other(order: WriteOrder) -> None:
    with order.begin(["k"]):
        for _ in range(5_000):
            with order.begin(["k"]):
                pass
        last = order.begin(["k"])
    assert not last.waits


def _calls(puts: int) -> int:
    """Of functions, when `puts` are done that a deletion and a write of all keys gave up."""
    order, calls = WriteOrder(), 0
    with contextlib.ExitStack() as stack:
        for number in range(puts):
            stack.enter_context(order.begin([str(number)], ["t"]))
        with order.begin_deletion("t"), order.begin(map(str, range(puts))):
            pass

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            stack.close()
        finally:
            sys.setprofile(None)
    assert len(order) == 0
    return calls


def test_what_gave_up_costs_as_much_as_it_had_keys() -> None:
    assert _calls(1_000) < 2.2 * _calls(500)


async def test_a_turn_that_does_not_come_ends_by_the_deadline(order: WriteOrder) -> None:
    with (
        order.begin(["k"]),
        order.begin(["k"]) as second,
        pytest.raises(RequestError, match=r"408 not done within 0\.01 s"),
    ):
        await second.come(Deadline(0.01))


async def test_a_turn_comes_when_the_write_before_it_is_done(order: WriteOrder) -> None:
    done: list[str] = []

    async def write(name: str, turn: Write) -> None:
        with turn:
            await turn.come(Deadline(5))
            await asyncio.sleep(0)
            done.append(name)

    await asyncio.gather(*(write(name, order.begin(["k"])) for name in "abc"))

    assert done == ["a", "b", "c"]
    assert len(order) == 0


def _unanswered(write: Write) -> None:
    with contextlib.suppress(RequestError), write:
        raise RequestError(408, "no answer")


def test_after_an_answer_each_has_its_time(order: WriteOrder) -> None:
    with contextlib.suppress(RequestError), order.begin(["k"]):
        second = order.begin(["k"])
        raise RequestError(429, "busy")

    assert second.answer_seconds(5) == 5


def test_after_silence_a_write_has_what_is_left_of_its_own_time(order: WriteOrder) -> None:
    first, gave_up, third = order.begin(["k"]), order.begin(["k"]), order.begin(["k"])
    with gave_up:
        pass

    _unanswered(first)

    assert 0 < third.answer_seconds(60) < 60
    with pytest.raises(RequestError, match=r"408 no answer within 0 s .* not sent"):
        third.answer_seconds(0)


async def test_a_write_that_ended_at_its_deadline_may_only_have_been_slow(
    order: WriteOrder,
) -> None:
    with contextlib.suppress(RequestError), order.begin(["k"]) as first:
        second, deadline = order.begin(["k"]), Deadline(0)
        await first.come(deadline)
        raise deadline.error

    assert second.answer_seconds(0) == 0
