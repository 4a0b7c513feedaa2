"""Values that are quicker computed than fetched stay in the archive."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from archive.fetch_time import LEAST_OBSERVED
from schemas.api import ArchiveStatus
from schemas.protocols import Answer
from tests.support.archive_service import Heard, archiving, evict
from tests.support.cache_service import Client, running, synced
from tests.support.evictions import ManualClock, evicted
from tests.support.waiting import until

pytestmark = pytest.mark.bus

CHEAP, DEAR = 1e-9, 1e6
"""Seconds to compute: less than any fetch takes, and more."""


async def fill(bus: Bus, **costs: float | None) -> None:
    """Archive one entry for each name, with that cost, and some whose fetches are watched."""
    heard = await Heard.on(bus, "archived.stored.>")
    watched = {f"watched-{number}": None for number in range(LEAST_OBSERVED)}
    for key, cost in {**watched, **costs}.items():
        await evict(bus, evicted(key, cost_seconds=cost))
    for _ in (*watched, *costs):
        await heard.stored()


async def restore(bus: Bus, key: str, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await bus.request("api.archive.restore.default", key.encode(), named, timeout_seconds=10)


async def watch(bus: Bus) -> None:
    for number in range(LEAST_OBSERVED):
        await restore(bus, f"watched-{number}")


async def status(bus: Bus) -> ArchiveStatus:
    answer = await bus.request("api.archive.status.default", timeout_seconds=10)
    return msgspec.json.decode(answer.payload, type=ArchiveStatus)


async def test_only_what_is_dearer_to_compute_than_to_fetch_comes_back(
    bus: Bus, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path / "a"):
        await fill(bus, cheap=CHEAP, dear=DEAR, unknown=None)
        await watch(bus)
        answers = {key: await restore(bus, key) for key in ("cheap", "dear", "unknown")}
        ungated = await restore(bus, "cheap", Fleet_Gate="off")
        read = await ArchiveClient(bus).get("cheap")
        counts = await status(bus)

    assert answers["cheap"].payload == b""
    assert answers["cheap"].headers["Fleet-Status"] == "miss"
    assert float(answers["cheap"].headers["Fleet-Declined-Seconds"]) > CHEAP
    assert answers["dear"].payload == answers["unknown"].payload == b"value"
    assert ungated.payload == read == b"value"
    assert counts.declined_total == 1


async def test_before_any_fetch_was_watched_everything_comes_back(bus: Bus, tmp_path: Path) -> None:
    async with archiving(bus, tmp_path / "a"):
        await fill(bus, cheap=CHEAP)
        answer = await restore(bus, "cheap")

    assert answer.payload == b"value"


async def test_a_gate_that_is_off_lets_all_through(bus: Bus, tmp_path: Path) -> None:
    async with archiving(bus, tmp_path / "a", restore_gate="off"):
        await fill(bus, cheap=CHEAP)
        await watch(bus)
        answer = await restore(bus, "cheap")

    assert answer.payload == b"value"


async def test_the_cache_counts_what_was_declined_and_what_came_back(
    bus: Bus, tmp_path: Path
) -> None:
    clock, client = ManualClock(), Client(bus)
    heard = await Heard.on(bus, "archived.stored.>")
    async with (
        archiving(bus, tmp_path / "a", clock=clock),
        running(bus, clock=clock) as service,
    ):
        await synced(service)
        costs: dict[str, Any] = {"cheap": CHEAP, "dear": 2.5}
        costs |= {f"watched-{number}": DEAR for number in range(LEAST_OBSERVED)}
        for key, cost in costs.items():
            await client.put(key, b"value", Fleet_Cost_Seconds=f"{cost:.10f}")
        await client.evict_all()
        for _ in costs:
            await heard.stored()
        await until(lambda: service.counters()["outbox_entries"] == 0)
        for number in range(LEAST_OBSERVED):
            await client.get(f"watched-{number}")
        before = await client.stats()
        values = [await client.get(key) for key in ("cheap", "dear")]
        after = await client.stats()

    assert values == [None, b"value"]
    assert (before.restores_declined, after.restores_declined) == (0, 1)
    assert after.restored_cost_seconds - before.restored_cost_seconds == pytest.approx(2.5, abs=0.1)
    assert after.restores - before.restores == 1
