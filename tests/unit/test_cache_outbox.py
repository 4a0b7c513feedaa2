"""The outbox: order, room, what is lost and what never is."""

import asyncio

import pytest

from cache.entry import Entry
from cache.outbox import ITEM_OVERHEAD_BYTES, MAX_MESSAGE_BYTES, Item, Outbox
from schemas.cache import INLINE_LIMIT_BYTES

SIZE = 10_000 + ITEM_OVERHEAD_BYTES


def value(key: str, version: str = "1") -> Item:
    """An evicted entry that takes exactly `SIZE` bytes."""
    entry = Entry(key=key, value=bytes(10_000 - len(key)), version=version)
    return Item(
        key=key, version=version, message_id=f"{key}.{version}", evicted_at_ns=0, entry=entry
    )


def tombstone(key: str, version: str = "2") -> Item:
    return Item(key=key, version=version, message_id=f"t.{key}.{version}", evicted_at_ns=0)


async def test_tombstones_go_first_then_the_oldest_and_none_twice() -> None:
    outbox = Outbox(10 * SIZE)
    outbox.add(value("a"))
    outbox.add(value("b"))
    outbox.add_tombstone(tombstone("c"))

    taken = [(await outbox.take()).message_id for _ in range(3)]

    assert taken == ["t.c.2", "a.1", "b.1"]


async def test_taking_waits_for_something_to_come() -> None:
    outbox = Outbox(SIZE)
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)

    outbox.add(value("a"))
    async with asyncio.timeout(5):
        item = await taking

    assert item.key == "a"


async def test_what_was_not_acknowledged_comes_again_with_the_same_id() -> None:
    outbox = Outbox(SIZE)
    outbox.add(value("a"))

    first = await outbox.take()
    outbox.give_back(first)
    again = await outbox.take()

    assert again.message_id == first.message_id


async def test_a_value_stays_readable_until_the_archive_confirms_its_version() -> None:
    outbox = Outbox(10 * SIZE)
    outbox.add(value("a", "7"))

    outbox.acknowledge(await outbox.take())
    outbox.confirm("a", "6")
    before = outbox.get("a")
    outbox.confirm("a", "7")

    assert before is not None
    assert outbox.get("a") is None
    assert (outbox.used_bytes, outbox.acknowledged, outbox.lost) == (0, 1, 0)


async def test_room_is_made_from_acknowledged_values_without_loss() -> None:
    outbox = Outbox(3 * SIZE)
    for key in "abc":
        outbox.add(value(key))
    await outbox.take()
    outbox.acknowledge(await outbox.take())  # b

    outbox.add(value("d"))

    assert [key for key in "abcd" if outbox.get(key)] == ["a", "c", "d"]
    assert outbox.lost == 0
    assert outbox.used_bytes == 3 * SIZE


async def test_a_full_outbox_drops_the_oldest_waiting_value_and_counts_it() -> None:
    outbox = Outbox(3 * SIZE)
    for key in "abc":
        outbox.add(value(key))
    in_flight = await outbox.take()

    outbox.add(value("d"))

    assert in_flight.key == "a"
    assert [key for key in "abcd" if outbox.get(key)] == ["a", "c", "d"]
    assert outbox.lost == 1
    assert outbox.used_bytes == 3 * SIZE


def test_the_limit_is_exact_to_the_byte() -> None:
    exact, short = Outbox(2 * SIZE), Outbox(2 * SIZE - 1)

    for outbox in (exact, short):
        outbox.add(value("a"))
        outbox.add(value("b"))

    assert (exact.lost, short.lost) == (0, 1)


def test_tombstones_displace_values_but_never_each_other() -> None:
    outbox = Outbox(2 * SIZE)
    outbox.add(value("a"))
    outbox.add(value("b"))

    for number in range(10):
        outbox.add_tombstone(tombstone(f"t{number}"))
    for key in "cde":
        outbox.add(value(key))

    assert len(list(outbox.waiting_values())) == 1
    assert outbox.pending == 11


def test_an_outbox_half_full_of_tombstones_is_crowded_until_they_are_acknowledged() -> None:
    each = tombstone("t0").size_bytes
    outbox = Outbox(8 * each)

    items = [tombstone(f"t{number}") for number in range(5)]
    for item in items[:4]:
        outbox.add_tombstone(item)
    at_half = outbox.crowded
    outbox.add_tombstone(items[4])
    above_half = outbox.crowded
    outbox.acknowledge(items[0])

    assert (at_half, above_half, outbox.crowded) == (False, True, False)


async def test_a_superseded_tombstone_is_settled_by_its_successor() -> None:
    outbox = Outbox(10 * SIZE)
    older, newer = tombstone("key", "2"), tombstone("key", "3")
    outbox.add_tombstone(older)
    waiting = asyncio.create_task(outbox.settled(older))
    await asyncio.sleep(0)

    outbox.add_tombstone(newer)
    await asyncio.sleep(0)
    before = waiting.done()
    outbox.acknowledge(await outbox.take())
    async with asyncio.timeout(5):
        await waiting

    assert not before
    assert outbox.pending == 0


async def test_an_acknowledgement_of_a_replaced_value_leaves_the_new_one_waiting() -> None:
    outbox = Outbox(10 * SIZE)
    outbox.add(value("key", "1"))
    in_flight = await outbox.take()

    outbox.add(value("key", "2"))
    outbox.acknowledge(in_flight)

    assert (await outbox.take()).version == "2"
    assert outbox.used_bytes == SIZE


def test_a_value_confirmed_before_its_acknowledgement_counts_as_acknowledged() -> None:
    outbox = Outbox(10 * SIZE)
    outbox.add(value("key", "1"))

    outbox.confirm("key", "1")

    assert (outbox.acknowledged, outbox.pending, outbox.used_bytes) == (1, 0, 0)


@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "overwritten"])
async def test_who_lends_a_value_hears_that_it_left_and_whether_the_archive_has_it(
    is_stored: bool,
) -> None:
    outbox = Outbox(10 * SIZE)
    outbox.add(value("a", "1"))
    item = await outbox.take()
    item.settled = asyncio.Event()

    early = item.settled.is_set()
    if is_stored:
        outbox.confirm("a", "1")
    else:
        outbox.drop("a")

    assert (early, item.settled.is_set(), item.stored) == (False, True, is_stored)
    assert outbox.acknowledged == 0, "who took it counts it"


async def test_drained_waits_until_everything_is_acknowledged() -> None:
    outbox = Outbox(10 * SIZE)
    outbox.add(value("a"))
    outbox.add(value("b"))
    draining = asyncio.create_task(outbox.drained())

    outbox.acknowledge(await outbox.take())
    await asyncio.sleep(0)
    early = draining.done()
    outbox.acknowledge(await outbox.take())
    async with asyncio.timeout(5):
        await draining

    assert not early


def test_forgetting_empties_to_the_last_byte() -> None:
    outbox = Outbox(10 * SIZE)
    outbox.add(value("a"))
    item = tombstone("b")
    outbox.add_tombstone(item)

    outbox.forget_values()
    outbox.forget_tombstones()

    assert (len(outbox), outbox.used_bytes, outbox.pending_bytes) == (0, 0, 0)
    assert item.acknowledged


@pytest.mark.parametrize(("waiting", "fits"), [(0, True), (60, True), (110, False)])
def test_room_is_kept_for_one_largest_message(waiting: int, fits: bool) -> None:
    outbox = Outbox(2 * 1024 * 1024)

    for number in range(waiting):  # 100 of them are 1,051,200 bytes: more than half
        outbox.add(value(str(number)))

    assert outbox.fits(0) is fits


async def test_room_is_awaited_until_enough_is_acknowledged() -> None:
    outbox = Outbox(MAX_MESSAGE_BYTES + SIZE)
    for key in "ab":
        outbox.add(value(key))
    waiting = asyncio.create_task(outbox.roomy())
    item = await outbox.take()
    early = waiting.done()

    outbox.acknowledge(item)

    async with asyncio.timeout(5):
        await waiting
    assert not early
    assert outbox.lost == 0


def large(key: str) -> Item:
    entry = Entry(key=key, value=bytes(INLINE_LIMIT_BYTES + 1), version="1")
    return Item(key=key, version="1", message_id=key, evicted_at_ns=0, entry=entry)


async def test_large_values_are_taken_apart_from_the_others() -> None:
    outbox = Outbox(4 * INLINE_LIMIT_BYTES)
    outbox.add(large("a"))
    outbox.add(value("b"))

    small = await outbox.take()
    big = await outbox.take(large=True)

    assert (small.key, big.key) == ("b", "a")


@pytest.mark.parametrize("is_large", [False, True])
async def test_who_waits_for_one_kind_is_not_woken_for_nothing(is_large: bool) -> None:
    outbox = Outbox(4 * INLINE_LIMIT_BYTES)
    taking = asyncio.create_task(outbox.take(large=is_large))
    await asyncio.sleep(0)

    outbox.add(value("b") if is_large else large("a"))
    await asyncio.sleep(0)
    too_early = taking.done()
    outbox.add(large("a") if is_large else value("b"))
    async with asyncio.timeout(20):
        item = await taking

    assert not too_early
    assert item.is_large == is_large


def test_room_is_kept_for_the_largest_entry_that_may_come() -> None:
    outbox = Outbox(10 * SIZE)
    outbox.largest_bytes = 9 * SIZE

    assert outbox.fits(SIZE)
    assert not outbox.fits(SIZE + 1)


async def test_the_tombstones_of_a_key_and_of_a_tag_of_the_same_name_are_two() -> None:
    outbox = Outbox(10 * SIZE)
    of_key = tombstone("a")
    of_tag = Item(key="", version="3", message_id="t", evicted_at_ns=0, tag="a")
    outbox.add_tombstone(of_key)
    outbox.add_tombstone(of_tag)

    outbox.acknowledge(of_tag)

    assert outbox.pending == 1
    assert "a" in outbox.waiting_tombstones()
    assert ("a",) not in outbox.waiting_tombstones()


async def test_values_are_found_by_tag_below_a_version() -> None:
    outbox = Outbox(10 * SIZE)
    for key, version, tags in (("a", "1", ("t",)), ("b", "3", ("t",)), ("c", "1", ("s",))):
        item = value(key, version)
        assert item.entry is not None
        item.entry.tags = tags
        outbox.add(item)

    assert [entry.key for entry in outbox.tagged("t", "2")] == ["a"]
