"""Poison that FLEET_DEAD has no room for: it stays in the eviction stream, in nobody's way."""

import contextlib
from pathlib import Path

import pytest

from agent.bus import Bus
from archive.unusable import Unusable
from schemas.protocols import Delivery, PublishError, RequestError
from tests.support.archive_service import Heard, archiving, evict
from tests.support.cache_service import Client, component, running, synced
from tests.support.evictions import evicted, tombstone
from tests.support.streams import take_evictions
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus

LARGEST = bytes(1024 * 1024)


async def fill_dead(bus: Bus) -> None:
    config = (await bus.jetstream.stream_info("FLEET_DEAD")).config
    config.max_bytes = 1
    await bus.jetstream.update_stream(config)


async def poison(bus: Bus, name: str, payload: bytes = b"x", namespace: str = "default") -> None:
    await bus.publish_raw(f"evicted.{namespace}", payload, message_id=name)


# --- what is worked off ----------------------------------------------------------------------


async def test_unusable_evictions_are_passed_over_and_nothing_else(bus: Bus) -> None:
    unusable = Unusable(bus, "EVICTIONS", 1.0)
    for name in ("p1", "p2", "good", "p4"):
        await poison(bus, name)
    await poison(bus, "another's", namespace="other")
    items = await take_evictions(bus, 5)
    unknown = await unusable.reached("default", 1, 4)
    for item in (items[0], items[1], items[3]):
        unusable.met(item.delivery)

    before = await unusable.reached("default", 1, 4)
    on = await unusable.reached("default", 3, 4)
    await items[2].done()
    after = await unusable.reached("default", 3, 4)
    beyond = await unusable.reached("default", 3, 5)
    elsewhere = await unusable.reached("other", 1, 5)
    unusable.gone(items[1].delivery)
    again = await unusable.reached("default", 1, 4)

    assert unknown == 0
    assert (before, on) == (2, 2)
    assert (after, beyond) == (4, 5)
    assert elsewhere == 4, "it is not known to be unusable"
    assert again == 1
    assert unusable.count == 2


async def test_a_message_of_a_stream_that_was_made_anew_is_not_taken_for_an_older_one(
    bus: Bus,
) -> None:
    unusable = Unusable(bus, "EVICTIONS", 1.0)
    await poison(bus, "new")
    (item,) = await take_evictions(bus, 1)
    now = item.delivery
    unusable.met(Delivery(now.subject, now.payload, now.headers, now.sequence, now.stored_ns - 1))

    assert await unusable.reached("default", 1, 1) == 0
    unusable.met(now)
    assert await unusable.reached("default", 1, 1) == 1


async def test_one_question_looks_at_some_of_many(bus: Bus) -> None:
    unusable = Unusable(bus, "EVICTIONS", 1.0)
    for number in range(20):
        await poison(bus, f"p{number}", LARGEST[: len(LARGEST) - 4096])
        (item,) = await take_evictions(bus, 1)
        unusable.met(item.delivery)

    assert await unusable.reached("default", 1, 20) == 16
    assert await unusable.reached("default", 17, 20) == 20


async def test_who_may_not_look_is_told_so(bus: Bus) -> None:
    unusable = Unusable(bus, "NONE", 1.0)
    unusable.met(Delivery("evicted.default", b"", {}, 1, 1))

    with pytest.raises(PublishError, match="stream FLEET_NONE"):
        await unusable.reached("default", 1, 1)


@pytest.mark.parametrize("bounds", [("x", "1"), ("1", ""), ("1", "-1")], ids=str)
async def test_bounds_that_are_no_sequences_are_refused(
    bus: Bus, tmp_path: Path, bounds: tuple[str, str]
) -> None:
    headers = dict(zip(("Fleet-From", "Fleet-Until"), bounds, strict=True))
    async with archiving(bus, tmp_path / "archive"):
        with pytest.raises(RequestError, match="are sequences"):
            await bus.request("api.archive.keys.default", b"", headers, timeout_seconds=5)


# --- a cache that starts ---------------------------------------------------------------------


@pytest.mark.parametrize("archivers", [1, 2])
async def test_a_cache_that_starts_restores_though_poison_stays_in_the_stream(
    bus: Bus, tmp_path: Path, archivers: int
) -> None:
    await fill_dead(bus)
    client = Client(bus)
    heard = await Heard.on(bus, "archived.stored.>")
    async with contextlib.AsyncExitStack() as stack:
        for number in range(archivers):
            archive = archiving(bus, tmp_path / "archive", instance=f"a{number}")
            await stack.enter_async_context(archive)
        async with running(bus):
            await client.put("key", b"value")
            await client.evict_all()
            while (await heard.stored()).key != "key":
                pass
        for number in range(40):
            await poison(bus, f"p{number}")
        await evict(bus, evicted("late", b"value", generation=1))
        while (await heard.stored()).key != "late":
            pass
        async with running(bus, instance="c2") as service:
            await synced(service)
            found = await client.get("key")
            left = await bus.depth("EVICTIONS")

    assert found == b"value"
    assert left == 40


async def test_what_a_predecessor_deleted_stays_deleted_behind_poison(
    bus: Bus, tmp_path: Path
) -> None:
    await fill_dead(bus)
    client = Client(bus)
    heard = await Heard.on(bus, "archived.stored.>")
    async with archiving(bus, tmp_path / "archive"):
        async with running(bus):
            version = await client.put("key", b"old")
            await client.evict_all()
            while (await heard.stored()).key != "key":
                pass
        await poison(bus, "poison")

        async def poison_is_alone() -> bool:
            return await bus.depth("EVICTIONS") == 1

        await until_async(poison_is_alone)
    await evict(bus, tombstone("key", f"{version}z", generation=1))
    async with running(bus, instance="c2") as service:
        await until(lambda: component(service, "default.archive")[0] == "degraded")
        early = await client.get("key")
        async with archiving(bus, tmp_path / "archive", instance="a2") as archive:
            await synced(service)
            late = await client.get("key")
            await until(
                lambda: any(
                    one.name == "backlog" and one.state == "degraded"
                    for one in archive.components()
                )
            )
            text = next(one.text for one in archive.components() if one.name == "backlog")

    assert (early, late) == (None, None)
    assert text.startswith("1 evictions wait; 1 of them cannot be archived")
