"""The size-bound archive behind a real cache, with a real server and a real folder."""

from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus
from schemas.api import ArchiveStatus
from tests.support.archive_service import Heard, archiving
from tests.support.cache_service import Client, running, synced
from tests.support.evictions import FailingStore, ManualClock
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus
BUDGET = 100_000


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


async def status(bus: Bus) -> ArchiveStatus:
    answer = await bus.request("api.archive.status.default", timeout_seconds=10)
    return msgspec.json.decode(answer.payload, type=ArchiveStatus)


async def test_an_archive_above_its_budget_keeps_what_was_used_most(
    bus: Bus, client: Client, tmp_path: Path
) -> None:
    clock = ManualClock()
    store = FailingStore(tmp_path / "archive")
    heard = await Heard.on(bus, "archived.>")
    async with (
        archiving(bus, store, clock=clock, budget_bytes=BUDGET, min_ratio=1e9),
        running(bus, clock=clock) as cache,
    ):
        await synced(cache)
        for key in ("used", "unused", "newest"):
            await client.put(key, bytes(40 * 1024))
            if key == "used":
                for _ in range(3):
                    await client.get(key)
            await client.evict_all()
            while (await heard.stored()).key != key:
                pass
            await until(lambda: cache.counters()["outbox_entries"] == 0)
            clock.advance(10)
        await until_async(lambda: is_within(bus))
        found = await status(bus)
        values = {key: await client.get(key) for key in ("used", "unused", "newest")}
        stats = await client.stats()

    assert [key for key, value in values.items() if value is None] == ["unused"]
    assert (found.entries, found.dropped_total, found.budget_bytes) == (2, 1, BUDGET)
    assert stats.ttl_decisions["adaptive.archived"] == 3
    assert stats.evictions_returned == 3


async def is_within(bus: Bus) -> bool:
    return (await status(bus)).stored_bytes <= BUDGET
