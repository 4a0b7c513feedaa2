"""Slots that are fed together: who is fed what, and who says what."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest

import handlers.slot_group
from handlers.slot_group import SlotGroup
from handlers.slots import STEP_NS, Slot, Watermark, slot_of
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.protocols import Emit, Handler, Moment
from schemas.units import SECOND_NS
from tests.support.samples import engine

SLOTS = 8


class Echo:
    """Says every message of its keys again."""

    name = "echo"
    consumes = (EngineMetrics,)
    window_ns = 60 * SECOND_NS

    def __init__(self, scope: Literal["node", "pool", "fleet"] = "node") -> None:
        self.scope: Literal["node", "pool", "fleet"] = scope

    def handle(self, message: Message, now: Moment) -> Sequence[Emit]:
        return [Emit(message, f"{self.scope} {now.sequence}")]

    def tick(self, _now: Moment) -> Sequence[Emit]:
        return ()

    def snapshot(self) -> None:
        return None

    def restore(self, _snapshot: bytes) -> None:
        return


class Failing(Echo):
    """Cannot."""

    def handle(self, message: Message, now: Moment) -> Sequence[Emit]:
        raise ValueError(now.sequence)


def slot(index: int, *handlers: Handler, **options: Any) -> Slot:
    watermark = options.pop("watermark", Watermark(sequence=0, ns=0))
    return Slot(index, SLOTS, handlers or (Echo(),), watermark, **options)


def group_of(*slots: Slot) -> SlotGroup[str]:
    group: SlotGroup[str] = SlotGroup()
    for one in slots:
        group.join(f"owner {one.index}", one)
    return group


def said(group: SlotGroup[str], node: str, sequence: int, ns: int = 1) -> dict[str, list[str]]:
    """Message ids by owner."""
    message = engine("e", node, pool="chat")
    found = group.feed(message, Moment(ns, sequence))
    return {owner: [emit.message_id for emit in emits] for owner, emits in found}


def test_a_message_goes_to_the_slots_of_its_keys() -> None:
    echoes = (Echo("node"), Echo("pool"), Echo("fleet"))
    group = group_of(*(slot(index, *echoes) for index in range(SLOTS)))

    told = said(group, "n1", 1)

    keys = {"node": "n1", "pool": "chat", "fleet": "all"}
    expected: dict[str, list[str]] = {}
    for scope, key in keys.items():
        owner = f"owner {slot_of(scope, key, SLOTS)}"
        expected.setdefault(owner, []).append(f"{scope} 1")
    assert told == expected
    assert len(told) == 3


def test_one_that_joins_is_fed_and_one_that_left_is_not() -> None:
    first, second = slot(4), slot(5)  # of n1 and n2
    group = group_of(first)
    told = [said(group, "n1", 1), said(group, "n2", 2)]

    group.join("owner 5", second)
    told += [said(group, "n1", 3), said(group, "n2", 4)]
    group.leave(first)
    group.leave(first)
    told += [said(group, "n1", 5), said(group, "n2", 6)]

    alone, joined = {"owner 4": ["node 1"]}, {"owner 4": ["node 3"]}
    assert told == [alone, {}, joined, {"owner 5": ["node 4"]}, {}, {"owner 5": ["node 6"]}]
    assert (len(group), list(group)) == (1, ["owner 5"])


def test_leaving_takes_the_slot_itself_not_a_later_one_of_its_number() -> None:
    former, present = slot(4), slot(4)
    group = group_of(present)

    group.leave(former)

    assert said(group, "n1", 1) == {"owner 4": ["node 1"]}


def test_a_message_that_comes_again_is_passed_over() -> None:
    group = group_of(slot(4))

    assert [said(group, "n1", sequence) for sequence in (7, 7, 6, 8)] == [
        {"owner 4": ["node 7"]},
        {},
        {},
        {"owner 4": ["node 8"]},
    ]


def test_up_to_its_watermark_a_slot_is_quiet() -> None:
    group = group_of(slot(4, watermark=Watermark(sequence=2, ns=0)))

    assert [said(group, "n1", sequence) for sequence in (1, 2, 3)] == [
        {},
        {},
        {"owner 4": ["node 3"]},
    ]


def test_a_snapshot_is_taken_over_before_the_first_message_after_it() -> None:
    seen: list[str] = []

    class Keeping(Echo):
        def handle(self, message: Message, now: Moment) -> Sequence[Emit]:
            seen.append(f"message {now.sequence}")
            return ()

        def restore(self, snapshot: bytes) -> None:
            seen.append(f"snapshot {snapshot.decode()}")

    watermark = Watermark(sequence=1, ns=0, snapshots={"node.echo": b"x"})
    group = group_of(slot(4, Keeping(), watermark=watermark))
    for sequence in (1, 2, 3):
        said(group, "n1", sequence)

    assert seen == ["message 1", "snapshot x", "message 2", "message 3"]


def test_a_handler_that_fails_is_told_and_the_others_go_on() -> None:
    failed: list[str] = []
    group = group_of(
        slot(4, Failing(), Echo(), on_failure=lambda _, error: failed.append(repr(error)))
    )

    assert said(group, "n1", 1) == {"owner 4": ["node 1"]}
    assert failed == ["ValueError(1)"]


def test_all_are_due_when_the_first_of_them_is() -> None:
    early, late = slot(4), slot(5)
    late.advance(10 * STEP_NS)
    group = group_of(early, late)

    due = [group.is_due(ns) for ns in (0, STEP_NS - 1, STEP_NS)]
    early.advance(3 * STEP_NS)

    assert due == [False, False, True]
    assert [group.is_due(ns) for ns in (4 * STEP_NS - 1, 4 * STEP_NS)] == [False, True]


def test_in_a_group_of_none_nothing_is_due() -> None:
    group = group_of()

    assert [group.is_due(ns) for ns in (0, STEP_NS, 1_000 * STEP_NS)] == [False, False, False]
    assert said(group, "n1", 1) == {}


def test_one_that_joins_is_due_by_its_own_clock() -> None:
    early, late = slot(4), slot(5)
    late.advance(10 * STEP_NS)
    group = group_of(late)
    before = group.is_due(STEP_NS)

    group.join("owner 4", early)

    assert (before, group.is_due(STEP_NS)) == (False, True)


def test_names_that_come_and_go_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers.slot_group, "MAX_ROUTES", 3)
    group = group_of(*map(slot, range(SLOTS)))

    told = [said(group, f"n{number % 10}", number) for number in range(1, 31)]

    assert all(len(one) == 1 for one in told)
    assert len(group._routes) <= 3


def test_a_tick_in_silence_names_the_last_message_of_the_stream_whoever_heard_it() -> None:
    ticks: list[int] = []

    class Recorder(Echo):
        def tick(self, now: Moment) -> Sequence[Emit]:
            ticks.append(now.sequence)
            return ()

    one = slot(4, Recorder())
    said(group_of(one), "n1", 7)
    one.advance(10 * STEP_NS, 9)
    one.advance(20 * STEP_NS)

    assert ticks == [9, 7]
