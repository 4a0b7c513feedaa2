"""TTL decisions of a served namespace: explained in meta, counted in stats, told to the archive."""

import msgspec
import pytest
import structlog

from agent.bus import Bus
from schemas.cache import EVICTED_HEADER, Evicted, decode_header
from schemas.protocols import RequestError
from tests.support.cache_service import Client, component, running
from tests.support.evictions import ManualClock
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


async def test_a_decision_is_explained_counted_and_carried_in_the_manifest(
    bus: Bus, client: Client
) -> None:
    clock = ManualClock()
    async with running(bus, clock=clock, ttl={"heuristic": "reuse", "min_score": 0.2}):
        await client.clear()
        await client.put("root", b"value")
        await client.put("leaf", b"value", Fleet_Parent="root")
        await client.get("root")
        clock.advance(60)
        root, leaf = await client.meta("root"), await client.meta("leaf")
        await client.evict_all()

        async def is_out() -> bool:
            return (await bus.stream_bounds("EVICTIONS"))[1] > 0

        await until_async(is_out)
        _, last = await bus.stream_bounds("EVICTIONS")
        message = await bus.jetstream.get_msg(bus.names.stream("EVICTIONS"), last)
        await client.get("leaf", Fleet_No_Restore="1")
        stats = await client.stats()

    manifest = msgspec.json.decode(
        decode_header((message.headers or {})[EVICTED_HEADER]), type=Evicted
    )
    assert (root.archive_ttl_seconds, root.archive_score) == (3540, 1)
    assert root.archive_ttl_reason == ("reuse: used 2 times, idle 60 s, score 1 (cost x 1): 3540 s")
    assert (leaf.archive_ttl_seconds, leaf.archive_score) == (0, 0.1)
    assert leaf.archive_ttl_reason is not None
    assert leaf.archive_ttl_reason.endswith("not archived")
    assert (manifest.key, manifest.heuristic) == ("root", "reuse")
    assert manifest.score == pytest.approx(1, rel=0.05)
    assert stats.ttl_decisions["reuse.archived"] == 1
    assert stats.ttl_decisions["reuse.refused"] == 1
    assert stats.ttl_decisions["writer.refused"] >= 1
    assert stats.evictions_returned == 1


@pytest.mark.parametrize(("deadline", "value"), [("fixed", None), ("sliding", b"value")])
async def test_a_sliding_deadline_starts_anew_with_every_hit(
    bus: Bus, client: Client, deadline: str, value: bytes | None
) -> None:
    clock = ManualClock()
    async with running(bus, clock=clock, archive_mode="off", ttl={"deadline": deadline}):
        await client.put("key", b"value", Fleet_Ttl_Seconds="60")
        clock.advance(59)
        assert await client.get("key") == b"value"
        clock.advance(59)
        found = await client.get("key")
        clock.advance(60)
        after = await client.get("key")

    assert found == value
    assert after is None


async def test_in_log_mode_evictions_are_logged_and_counted_and_go_nowhere(
    bus: Bus, client: Client
) -> None:
    clock = ManualClock()
    with structlog.testing.capture_logs() as logged:
        async with running(bus, clock=clock, archive_mode="log") as service:
            await client.put("kept-for-an-hour", b"value")
            await client.put("never-archived", b"value", Fleet_Ttl_Seconds="0")
            await client.evict_all()
            stats = await client.stats()
            found = await client.get("kept-for-an-hour")
            state = component(service, "default.archive")
            with pytest.raises(RequestError, match="archive_mode is log"):
                await client.ask("warm", b'{"keys": ["k"]}')

    _, last = await bus.stream_bounds("EVICTIONS")
    lines = [line for line in logged if line["event"] == "eviction_not_archived"]
    assert [(line["key"], line["size_bytes"]) for line in lines] == [("kept-for-an-hour", 5)]
    assert (lines[0]["ttl_seconds"], lines[0]["heuristic"]) == (3600.0, "adaptive")
    assert stats.ttl_decisions["adaptive.archived"] == 1
    assert stats.ttl_decisions["writer.refused"] >= 1
    assert (last, stats.outbox_entries, stats.evictions_lost, found) == (0, 0, 0, None)
    assert state == ("off", "archive_mode is log")
