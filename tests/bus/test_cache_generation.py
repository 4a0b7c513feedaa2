"""A cache on a bus that has lost the record of its namespace, beside an archive that has one."""

from pathlib import Path

import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from tests.support.archive_service import Heard, archiving
from tests.support.cache_service import Client, running, synced
from tests.support.evictions import ManualClock
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


async def archive_key(client: Client, heard: Heard, key: str) -> None:
    await client.put(key, key.encode())
    await client.evict_all()
    while (await heard.stored()).key != key:
        pass


async def lose_the_record(bus: Bus, client: Client, clock: ManualClock, store: Path) -> int:
    """Archive `key` in the third generation, then forget that; returns the generation."""
    heard = await Heard.on(bus, "archived.stored.>")
    async with running(bus, clock=clock) as cache, archiving(bus, store, clock=clock):
        await synced(cache)
        await client.clear()
        cleared = await client.clear()
        await archive_key(client, heard, "key")
    await bus.bucket("state").delete("cache.default")
    clock.advance(60)
    return cleared.generation


async def test_what_the_archive_has_is_kept_and_added_to(
    bus: Bus, client: Client, tmp_path: Path
) -> None:
    clock, store = ManualClock(), tmp_path / "archive"
    generation = await lose_the_record(bus, client, clock, store)
    heard = await Heard.on(bus, "archived.stored.>")

    async with archiving(bus, store, clock=clock) as archive, running(bus, clock=clock) as cache:
        await synced(cache)
        stats = await client.stats()
        found = await client.get("key")
        await archive_key(client, heard, "new")
        superseded = archive.counters()["superseded_total"]
    async with archiving(bus, store, clock=clock), running(bus, clock=clock) as cache:
        await synced(cache)
        later = [await client.get("key"), await client.get("new")]
        generation_later = (await client.stats()).generation

    assert stats.generation == generation_later == generation == 3
    assert found == b"key"
    assert later == [b"key", b"new"]
    assert superseded == 0


async def test_what_is_cleared_before_the_archive_is_heard_of_stays_cleared(
    bus: Bus, client: Client, tmp_path: Path
) -> None:
    clock, store = ManualClock(), tmp_path / "archive"
    generation = await lose_the_record(bus, client, clock, store)
    direct = ArchiveClient(bus)

    async def is_gone() -> bool:
        return await direct.get("key") is None

    async with running(bus, clock=clock) as cache:
        cleared = await client.clear()
        async with archiving(bus, store, clock=clock):
            await synced(cache)
            found = await client.get("key")
            stats = await client.stats()
            await until_async(is_gone)

    assert cleared.generation == 2
    assert stats.generation == generation + 1
    assert found is None
