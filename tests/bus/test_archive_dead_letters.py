"""Poison that went to FLEET_DEAD: looked at, sent back, dropped; by the client and on a server."""

import os
from pathlib import Path

import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from schemas.api import DeadLetter
from schemas.cache import EVICTED_HEADER, PART_BYTES
from schemas.protocols import PublishError, RequestError
from tests.support.archive_service import Heard, archiving, evict
from tests.support.evictions import evicted, manifest_headers
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus

VALUE = b"the value"
LARGE = os.urandom(PART_BYTES + 1)


async def letters(bus: Bus, count: int, namespace: str = "default") -> list[DeadLetter]:
    """The dead letters, once there are as many."""
    found: list[DeadLetter] = []

    async def are_there() -> bool:
        found[:] = [letter async for letter in ArchiveClient(bus, namespace).dead()]
        return len(found) >= count

    await until_async(are_there)
    return found


async def send_parts(bus: Bus, *parts: bytes) -> None:
    for number, part in enumerate(parts):
        await bus.publish_raw(f"evicted_part.default.e1.{number}", part, message_id=f"p{number}")


async def test_a_letter_says_what_it_is_and_why_it_died(bus: Bus, tmp_path: Path) -> None:
    async with archiving(bus, tmp_path / "archive"):
        await evict(bus, evicted("k", VALUE), b"another value")
        await bus.publish_raw("evicted.default", b"x", {EVICTED_HEADER: "%7B"}, message_id="bad")
        await bus.publish_raw("evicted.other", b"y", message_id="other")
        wrong, illegible = await letters(bus, 2)
        (other,) = await letters(bus, 1, "other")

    assert (wrong.key, wrong.version, wrong.size_bytes) == ("k", "b1-01", len(VALUE))
    assert "13 bytes, its manifest says 9" in wrong.reason
    assert (illegible.key, illegible.size_bytes, illegible.payload_bytes) == (None, None, 1)
    assert "Fleet-Evicted" in illegible.reason
    assert other.reason == "no header Fleet-Evicted"
    assert wrong.id < illegible.id


async def test_poison_that_finds_no_room_among_the_dead_holds_up_nobody_else(
    bus: Bus, tmp_path: Path
) -> None:
    config = (await bus.jetstream.stream_info("FLEET_DEAD")).config
    config.max_bytes = 1
    await bus.jetstream.update_stream(config)
    heard = await Heard.on(bus, "archived.stored.>")
    for key in ("a", "poison", "b"):
        await evict(bus, evicted(key, VALUE), b"another value" if key == "poison" else VALUE)
    async with archiving(bus, tmp_path / "archive", retry_seconds=60.0, retry_max_seconds=60.0):
        stored = {(await heard.stored()).key for _ in "ab"}

        async def waits_alone() -> bool:
            return await bus.depth("EVICTIONS") == 1

        await until_async(waits_alone)

    assert stored == {"a", "b"}


async def test_pages_of_letters_follow_one_another(bus: Bus, tmp_path: Path) -> None:
    async with archiving(bus, tmp_path / "archive"):
        for number in range(103):
            await bus.publish_raw("evicted.default", b"", message_id=f"bad {number}")
        found = await letters(bus, 103)

    assert [letter.id for letter in found] == sorted({letter.id for letter in found})


async def test_a_letter_that_is_sent_back_is_archived_once_what_was_wrong_is_mended(
    bus: Bus, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    manifest = evicted("k", LARGE, parts=2, eviction="e1")
    async with archiving(bus, tmp_path / "archive"):
        await send_parts(bus, LARGE[:PART_BYTES])
        await bus.publish_raw("evicted.default", b"", manifest_headers(manifest), message_id="m")
        (letter,) = await letters(bus, 1)
        kept = await bus.read_last("EVICTION_PARTS", "evicted_part.default.e1.0")
        await bus.publish_raw("evicted_part.default.e1.1", LARGE[PART_BYTES:], message_id="late")
        client = ArchiveClient(bus)
        retried = await client.retry(letter.id)
        stored = await heard.stored()
        left = [one async for one in client.dead()]
        value = await client.get("k")
        depth = await bus.depth("DEAD")

    assert retried == letter
    assert (letter.reason, letter.parts) == ("part 1 of 2 is gone", 2)
    assert kept == LARGE[:PART_BYTES]
    assert stored.key == "k"
    assert (left, depth) == ([], 0)
    assert value == LARGE


async def test_poison_that_is_sent_back_dies_again_under_a_new_id(bus: Bus, tmp_path: Path) -> None:
    async with archiving(bus, tmp_path / "archive"):
        await evict(bus, evicted("k", VALUE), b"another")
        (first,) = await letters(bus, 1)
        await ArchiveClient(bus).retry(first.id)
        (second,) = await letters(bus, 1)

    assert second.id > first.id
    assert (second.key, second.reason) == (first.key, first.reason)


async def test_a_letter_that_is_dropped_goes_with_its_parts(bus: Bus, tmp_path: Path) -> None:
    manifest = evicted("k", LARGE, parts=2, eviction="e1")
    async with archiving(bus, tmp_path / "archive"):
        await send_parts(bus, LARGE[:PART_BYTES])
        await bus.publish_raw("evicted.default", b"", manifest_headers(manifest), message_id="m")
        (letter,) = await letters(bus, 1)
        await ArchiveClient(bus).drop(letter.id)
        left = [one async for one in ArchiveClient(bus).dead()]
        part = await bus.read_last("EVICTION_PARTS", "evicted_part.default.e1.0")

    assert (left, part) == ([], None)


@pytest.mark.parametrize("what", ["retry", "drop"])
async def test_only_letters_of_the_namespace_can_be_chosen(
    bus: Bus, tmp_path: Path, what: str
) -> None:
    async with archiving(bus, tmp_path / "archive"):
        await bus.publish_raw("evicted.other", b"", message_id="other")
        (letter,) = await letters(bus, 1, "other")
        for number in (letter.id, letter.id + 1):
            with pytest.raises(RequestError, match=f"404 no dead letter {number} of namespace"):
                await getattr(ArchiveClient(bus), what)(number)
        depth = await bus.depth("DEAD")

    assert depth == 1


async def test_a_letter_that_is_gone_is_not_taken_for_the_next_one(
    bus: Bus, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path / "archive"):
        for number in range(2):
            await bus.publish_raw("evicted.default", b"", message_id=f"bad {number}")
        first, second = await letters(bus, 2)
        await ArchiveClient(bus).drop(first.id)
        with pytest.raises(RequestError, match="404 no dead letter"):
            await ArchiveClient(bus).drop(first.id)
        left = await letters(bus, 1)

    assert left == [second]


async def test_a_letter_that_was_cut_cannot_be_sent_back(bus: Bus, tmp_path: Path) -> None:
    headers = {
        "Fleet-Dead-Subject": "fleet.v1.evicted.default",
        "Fleet-Dead-Reason": "too large",
        "Fleet-Dead-Cut": "2000000",
    }
    async with archiving(bus, tmp_path / "archive"):
        await bus.publish_raw("dead.FLEET_EVICTIONS.archiver", b"x", headers, message_id="cut")
        (letter,) = await letters(bus, 1)
        with pytest.raises(RequestError, match="409 dead letter 1 was cut"):
            await ArchiveClient(bus).retry(letter.id)
        await ArchiveClient(bus).drop(letter.id)
        depth = await bus.depth("DEAD")

    assert letter.is_cut
    assert depth == 0


async def test_letters_of_other_queues_are_not_the_archives(bus: Bus, tmp_path: Path) -> None:
    headers = {"Fleet-Dead-Subject": "fleet.v1.evicted.default"}
    async with archiving(bus, tmp_path / "archive"):
        await bus.publish_raw("dead.FLEET_OTHER.worker", b"", headers, message_id="1")
        await bus.publish_raw("dead.FLEET_EVICTIONS.archiver", b"", headers, message_id="2")

        assert [letter.id for letter in await letters(bus, 1)] == [2]


async def test_a_message_that_is_not_there_cannot_be_removed(bus: Bus) -> None:
    await bus.publish_raw("dead.FLEET_EVICTIONS.archiver", b"", message_id="1")

    await bus.remove("DEAD", 1)
    with pytest.raises(PublishError, match="stream FLEET_DEAD"):
        await bus.remove("DEAD", 1)

    assert await bus.depth("DEAD") == 0
