"""All handlers together: same stream, same events; across a hand-over too."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec
import pytest

from handlers import default_handlers
from handlers.settings import HandlersSettings
from handlers.slot_group import SlotGroup
from handlers.slots import Routed, Slot, Watermark, replay
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import HostMetrics
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS
from tests.support.mixed_hour import SECONDS, recorded
from tests.support.samples import START_NS, at, host


def fresh(watermark: Watermark) -> Slot:
    return Slot(0, 1, default_handlers(HandlersSettings()), watermark)


@pytest.fixture(scope="module")
def whole() -> list[Emit]:
    """What all handlers say to the recorded hour."""
    return replay(recorded(), lambda: default_handlers(HandlersSettings()))


def test_the_trace_reaches_every_kind_of_event(whole: list[Emit]) -> None:
    kinds = {type(emit.message).__name__ for emit in whole}

    assert kinds == {
        *("Utilization", "Rollup", "Alert", "Waste"),
        *("Recommendation", "Decision", "HeldAdvice"),
        "Consolidation",
    }


def test_the_same_stream_gives_the_same_events(whole: list[Emit]) -> None:
    again = replay(recorded(), lambda: default_handlers(HandlersSettings()))

    assert msgspec.json.encode([(e.message_id, e.message) for e in again]) == msgspec.json.encode(
        [(e.message_id, e.message) for e in whole]
    )


def test_message_ids_never_repeat(whole: list[Emit]) -> None:
    ids = Counter(emit.message_id for emit in whole)

    assert ids.most_common(1)[0][1] == 1


@pytest.mark.parametrize("is_whole", [True, False], ids=["everything", "engines-of-before"])
def test_a_new_owner_continues_where_the_old_one_stopped(whole: list[Emit], is_whole: bool) -> None:
    messages = recorded()
    first = fresh(Watermark(sequence=0, ns=0))
    told: list[Emit] = []
    for cut in (len(messages) // 3, len(messages) * 2 // 3, len(messages)):
        for routed in messages:
            is_needed = is_whole or isinstance(routed.message, EngineMetrics)
            start_ns = first.start_ns if is_needed else first.whole_ns
            if start_ns <= routed.now.ns and routed.now.sequence <= cut:
                told += first.feed(routed)
        first = fresh(Watermark.decode(first.watermark().encode()))

    assert [emit.message_id for emit in told] == [emit.message_id for emit in whole]
    assert [emit.message for emit in told] == [emit.message for emit in whole]


def eight(watermarks: Sequence[Watermark]) -> list[Slot]:
    settings = HandlersSettings()
    slots = range(settings.slots)
    return [
        Slot(index, settings.slots, default_handlers(settings), watermarks[index])
        for index in slots
    ]


def fed_together(slots: Sequence[Slot], messages: Sequence[Routed]) -> list[list[Emit]]:
    """What each slot says to the messages, of which it is fed those that concern it."""
    group: SlotGroup[int] = SlotGroup()
    said: list[list[Emit]] = [[] for _ in slots]
    for slot in slots:
        group.join(slot.index, slot)
    for routed in messages:
        if group.is_due(routed.now.ns):
            for index in group:
                said[index] += slots[index].feed(routed)
            continue
        for index, emits in group.feed(routed.message, routed.now):
            said[index] += emits
    return said


@pytest.mark.parametrize("cuts", [1, 3])
def test_slots_that_are_fed_what_concerns_them_say_the_same(cuts: int) -> None:
    """Also after hand-overs, each slot of eight by its own watermark."""
    messages = recorded()
    length = len(messages) // cuts
    nothing = [Watermark(sequence=0, ns=0)] * 8
    everything, concerned = eight(nothing), eight(nothing)
    expected: list[list[Emit]] = [[] for _ in everything]
    told: list[list[Emit]] = [[] for _ in concerned]
    for begin in range(0, len(messages), length):
        of_now = messages[: begin + length]
        for slot in everything:
            since = [routed for routed in of_now if routed.now.ns >= slot.start_ns]
            expected[slot.index] += [emit for routed in since for emit in slot.feed(routed)]
        start_ns = min(slot.start_ns for slot in concerned)
        since = [routed for routed in of_now if routed.now.ns >= start_ns]
        for index, emits in enumerate(fed_together(concerned, since)):
            told[index] += emits
        everything = eight([slot.watermark() for slot in everything])
        concerned = eight([slot.watermark() for slot in concerned])

    assert sum(map(len, told)) > 100
    assert told == expected


def test_a_new_owner_after_a_long_silence_says_the_same() -> None:
    seconds = [0.0, *(4000.1 + index * 0.7 for index in range(60))]
    messages = [
        Routed(host(f"n{index % 7}", cpu=0.9), at(second, index + 1))
        for index, second in enumerate(seconds)
    ]
    only = fresh(Watermark(sequence=0, ns=0))
    whole = [emit for routed in messages for emit in only.feed(routed)]

    first = fresh(Watermark(sequence=0, ns=0))
    told = [emit for routed in messages[:2] for emit in first.feed(routed)]
    second = fresh(first.watermark())
    told += [emit for m in messages if m.now.ns >= second.start_ns for emit in second.feed(m)]

    assert len(whole) > 10
    assert told == whole


class EveryTick:
    """Says something at every tick."""

    name = "every_tick"
    scope: Literal["fleet"] = "fleet"
    consumes = (HostMetrics,)
    window_ns = 60 * SECOND_NS

    def handle(self, _message: Message, _now: Moment) -> Sequence[Emit]:
        return ()

    def tick(self, now: Moment) -> Sequence[Emit]:
        return [Emit(host(), str((now.ns - START_NS) // SECOND_NS))]

    def snapshot(self) -> None:
        return None

    def restore(self, _snapshot: bytes) -> None:
        return


def test_a_new_owner_does_not_repeat_the_tick_at_which_the_old_one_stopped() -> None:
    only = Routed(host(), at(1, 1))
    first = Slot(0, 1, [EveryTick()], Watermark(sequence=0, ns=0))
    list(first.feed(only))
    told = [emit.message_id for emit in first.advance(at(10).ns)]

    second = Slot(0, 1, [EveryTick()], first.watermark())
    repeated = list(second.feed(only))
    later = [emit.message_id for emit in second.advance(at(15).ns)]

    assert told == ["5", "10"]
    assert repeated == []
    assert later == ["15"]


def test_a_silent_stream_ends_in_silence() -> None:
    slot = fresh(Watermark(sequence=0, ns=0))
    for routed in recorded():
        list(slot.feed(routed))
    longest_ns = max(handler.window_ns for handler in slot.handlers)

    list(slot.advance(at(SECONDS).ns + longest_ns))

    assert list(slot.advance(at(SECONDS + 86400).ns)) == []
    for handler in slot.handlers:
        assert list(handler.tick(at(SECONDS + 86400))) == [], handler.name
