"""Hours of the archive from counters: restarts, several archivers, what was there before."""

from collections.abc import Sequence

import msgspec
import pytest

from handlers.slots import Routed, Slot, Watermark
from handlers.spending.archive_use import ArchiveUseHandler
from handlers.spending.usage import HOUR_NS
from schemas.archive_money import (
    GIB,
    NOTHING_USED,
    ArchiveMetrics,
    ArchivePrices,
    ArchiveSpending,
    ArchiveUsage,
    ArchiveUse,
)
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant

START_NS = 1_800_000_000 * SECOND_NS
"""A whole hour."""
PRICES = ArchivePrices(
    source="ours",
    as_of="2026-11",
    gib_month_usd=730.0,
    write_usd_per_1000=5.0,
    list_usd_per_1000=5.0,
    read_usd_per_1000=0.4,
)


def told(
    second: float,
    restored: int,
    *,
    instance: str = "a1",
    since: float = 0.0,
    gib_hours: float = 0.0,
    writes: float = 0.0,
    namespace: str = "default",
    held: int = GIB,
    prices: ArchivePrices | None = PRICES,
) -> tuple[float, ArchiveMetrics]:
    use = ArchiveUse(
        entries=1,
        held_bytes=held,
        held_byte_hours=gib_hours * GIB,
        stored_total=1,
        stored_bytes_total=GIB,
        restored_total=restored,
        restored_bytes_total=restored * 5,
        avoided_seconds_total=restored * 2.0,
        requests={"write": writes},
    )
    return second, ArchiveMetrics(
        instance=instance,
        namespace=namespace,
        observed_at=instant(START_NS + int(second * SECOND_NS)),
        counted_since=instant(START_NS + int(since * SECOND_NS)),
        store="folder",
        classes={"1d": use},
        prices=prices,
    )


def routed(samples: Sequence[tuple[float, ArchiveMetrics]]) -> list[Routed]:
    return [
        Routed(message, Moment(START_NS + int(second * SECOND_NS), number))
        for number, (second, message) in enumerate(samples, 1)
    ]


def said(
    samples: Sequence[tuple[float, ArchiveMetrics]], until: float, slot: Slot | None = None
) -> list[Emit]:
    slot = slot or Slot(0, 1, [ArchiveUseHandler()], Watermark(sequence=0, ns=0))
    emits: list[Emit] = []
    for one in routed(samples):
        emits += slot.feed(one)
    return [*emits, *slot.advance(START_NS + int(until * SECOND_NS))]


def hours(emits: Sequence[Emit]) -> list[ArchiveUsage]:
    return [emit.message for emit in emits if isinstance(emit.message, ArchiveUsage)]


def last(emits: Sequence[Emit]) -> ArchiveUsage:
    """The running hour, as told last."""
    return [e.message for e in emits if isinstance(e.message, ArchiveSpending)][-1].hours[-1]


def restored(emits: Sequence[Emit]) -> int:
    return last(emits).classes["1d"].restored_total


def test_growth_is_booked_into_the_hour_of_its_sample_and_told_once() -> None:
    emits = said(
        [
            told(10, 1, gib_hours=0.0, writes=1),
            told(3590, 3, gib_hours=1.0, writes=1.5),
            told(3610, 4, gib_hours=1.5, writes=3, held=2 * GIB),
            told(7190, 4, gib_hours=2.5, writes=3, held=2 * GIB),
        ],
        7205,
    )

    first, second = hours(emits)
    assert (first.hour_at, second.hour_at) == (instant(START_NS), instant(START_NS + HOUR_NS))
    assert (first.minutes, second.minutes) == (2, 2)
    use, then = first.classes["1d"], second.classes["1d"]
    assert (use.restored_total, then.restored_total) == (3, 1)
    assert (use.avoided_seconds_total, then.avoided_seconds_total) == (6.0, 2.0)
    assert (use.held_byte_hours, then.held_byte_hours) == (GIB, 1.5 * GIB)
    assert (use.stored_total, then.stored_total) == (1, 0)
    assert (use.requests, then.requests) == ({"write": 1.5}, {"write": 1.5})
    assert (use.held_bytes, then.held_bytes) == (GIB, 2 * GIB)
    assert use.cost is not None
    # A GiB for an hour at 730 a month of 730 hours, and 1.5 writes at 5 a thousand.
    assert use.cost.storage_usd == pytest.approx(1.0)
    assert use.cost.requests_usd == pytest.approx(0.0075)
    assert len({emit.message_id for emit in emits}) == len(emits)


def test_the_running_hour_is_told_each_minute_while_there_are_samples() -> None:
    emits = said([told(10, 1), told(70, 2)], 600)

    told_at = [e.message.decided_at for e in emits if isinstance(e.message, ArchiveSpending)]
    assert told_at == [instant(START_NS + second * SECOND_NS) for second in (60, 120)]
    assert restored(emits) == 2


def test_a_restart_begins_at_0_and_loses_nothing() -> None:
    emits = said([told(10, 5), told(20, 7), told(40, 3, since=30)], 60)

    assert restored(emits) == 10


def test_archivers_that_take_turns_add_up() -> None:
    emits = said(
        [
            told(10, 5),
            told(20, 2, instance="a2", since=15),
            told(30, 5),
            told(40, 3, instance="a2", since=15),
        ],
        60,
    )

    assert restored(emits) == 8


def test_of_one_that_was_there_before_only_the_growth_counts() -> None:
    emits = said([told(10, 500, since=-86_400), told(20, 501, since=-86_400)], 60)

    assert restored(emits) == 1


def test_a_message_that_comes_twice_counts_once() -> None:
    emits = said([told(10, 5), told(10, 5), told(15, 6)], 60)

    assert restored(emits) == 6


def test_namespaces_are_apart_and_without_prices_there_is_no_cost() -> None:
    emits = said([told(10, 5), told(11, 2, namespace="b", prices=None)], 60)

    spendings = [e.message for e in emits if isinstance(e.message, ArchiveSpending)]
    assert [one.namespace for one in spendings] == ["b", "default"] or [
        one.namespace for one in spendings
    ] == ["default", "b"]
    by_name = {one.namespace: one.hours[-1].classes["1d"] for one in spendings}
    assert by_name["b"].cost is None
    assert by_name["default"].cost is not None
    assert (by_name["b"].restored_total, by_name["default"].restored_total) == (2, 5)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_another_owner_goes_on_where_the_first_one_stopped(cut: int) -> None:
    samples = [told(10, 1), told(100, 2), told(3605, 4), told(3620, 5, since=3610)]
    whole = said(samples, 3700)
    owner = Slot(0, 1, [ArchiveUseHandler()], Watermark(sequence=0, ns=0))
    emits: list[Emit] = []
    messages = routed(samples)
    for one in messages[:cut]:
        emits += owner.feed(one)
    watermark = owner.watermark()
    heir = Slot(0, 1, [ArchiveUseHandler()], watermark)
    for one in messages:
        if one.now.ns >= heir.start_ns:
            emits += heir.feed(one)
    emits += heir.advance(START_NS + 3700 * SECOND_NS)

    assert {e.message_id: e.message for e in emits} == {e.message_id: e.message for e in whole}


@pytest.mark.parametrize("instance", ["a1", "a2"])
def test_a_class_that_nothing_holds_after_a_take_over_has_no_size(instance: str) -> None:
    _, first = told(10, 5, gib_hours=2.0)
    _, later = told(20, 1, instance=instance, since=15)
    taken_over = msgspec.structs.replace(later, classes={"7d": later.classes["1d"]})
    emits = said([(10, first), (20, taken_over)], 60)

    gone, held = last(emits).classes["1d"], last(emits).classes["7d"]
    assert (gone.entries, gone.held_bytes) == (0, 0)
    assert (gone.restored_total, gone.held_byte_hours) == (5, 2.0 * GIB)
    assert (held.entries, held.held_bytes) == (1, GIB)


def test_a_class_that_is_held_again_has_its_size_again() -> None:
    _, first = told(10, 5)
    _, later = told(20, 1, instance="a2", since=15)
    none = msgspec.structs.replace(later, classes={})
    emits = said([(10, first), (20, none), told(30, 2, instance="a2", since=15)], 60)

    use = last(emits).classes["1d"]
    assert (use.entries, use.held_bytes, use.restored_total) == (1, GIB, 7)


def test_a_class_that_is_new_counts_from_0() -> None:
    _, first = told(10, 1)
    second, later = told(20, 1)
    more = {**later.classes, "7d": NOTHING_USED}
    grown = ArchiveMetrics(
        instance="a1",
        namespace="default",
        observed_at=later.observed_at,
        counted_since=first.counted_since,
        store="folder",
        classes={**more, "7d": later.classes["1d"]},
    )
    emits = said([(10, first), (second, grown)], 60)

    assert last(emits).classes["7d"].restored_total == 1
