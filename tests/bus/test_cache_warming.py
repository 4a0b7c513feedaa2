"""Warming: keys come back from a real archive before anybody asks for them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from cache.service import CacheService
from schemas.api import MatchReply, WarmReply
from schemas.cache import Warming
from schemas.protocols import Answer, RequestError
from tests.support.archive_service import Heard, archiving
from tests.support.cache_service import Client, running, synced
from tests.support.evictions import ManualClock, evicted, manifest_headers
from tests.support.slow_archive import SlowArchive
from tests.support.waiting import until

pytestmark = pytest.mark.bus
FAST: dict[str, Any] = {"warm_per_second": 10_000}


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


async def warm(client: Client, *keys: str, cancel: bool = False) -> WarmReply:
    request = msgspec.json.encode({"keys": keys, "cancel": cancel})
    return await client.reply("warm", WarmReply, request)


async def finished(heard: Heard) -> Warming:
    while (event := await heard.next(Warming)).waiting:
        pass
    return event


@contextlib.asynccontextmanager
async def cold(
    bus: Bus, client: Client, folder: Path, count: int, size: int, **settings: Any
) -> AsyncIterator[CacheService]:
    """A cache with `count` entries in its archive and none in RAM or outbox."""
    clock = ManualClock()
    heard = await Heard.on(bus, "archived.stored.>")
    async with (
        archiving(bus, folder, clock=clock),
        running(bus, clock=clock, **settings) as service,
    ):
        await synced(service)
        for number in range(count):
            await client.put(f"key-{number}", bytes(size))
        for number in range(3 * settings.get("max_memory_mb", 1)):
            await client.put(f"filler-{number}", bytes(500 * 1024), Fleet_Ttl_Seconds="0")
        for _ in range(count):
            await heard.stored()
        await until(lambda: service.counters()["outbox_entries"] == 0)
        yield service


async def test_warmed_keys_are_in_ram_before_they_are_asked_for(
    bus: Bus, client: Client, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "cache_event.warming.>")
    async with cold(bus, client, tmp_path / "a", 20, 100, warm_evict_ratio=1, **FAST) as service:
        before = (await client.stats()).cache_hits, (await client.stats()).cache_misses
        queued = await warm(client, *(f"key-{n}" for n in range(20)), "absent", "filler-2")
        event = await finished(heard)
        after = (await client.stats()).cache_hits, (await client.stats()).cache_misses
        places = {(await client.meta(f"key-{number}")).where for number in range(20)}
        status = await warm(client)
        restores = service.counters()["restores_total"]

    assert queued.accepted == 22
    assert (event.restored, event.absent, event.here) == (20, 1, 1)
    assert (event.failed, event.left_out, event.waiting) == (0, 0, 0)
    assert places == {"ram"}
    assert before == after, "warming is no use of the cache"
    assert (status.accepted, status.restored) == (0, 20)
    assert restores == 20


async def test_warming_pushes_out_no_more_than_its_share(
    bus: Bus, client: Client, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "cache_event.warming.>")
    settings = {"warm_evict_ratio": 0.5, "max_memory_mb": 2, **FAST}
    async with cold(bus, client, tmp_path / "a", 60, 40_000, **settings):
        for number in range(41):
            await client.put(f"hot-{number}", bytes(50_000), Fleet_Ttl_Seconds="0")
        keys = [f"key-{number}" for number in range(60)]
        await warm(client, *keys)
        event = await finished(heard)
        hot = [await client.meta(f"hot-{number}") for number in range(41)]

    kept = sum(one.found for one in hot)
    assert event.left_out > 0
    assert 15 <= event.restored <= 27  # half of 2 MiB by entries of 40,000 bytes
    assert 41 - kept <= 22  # half of 2 MiB by entries of 50,000 bytes, and one


async def test_only_what_needs_room_is_told_as_left_out_for_want_of_it(
    bus: Bus, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.warming.LEFT_OUT_AT_ONCE", 2)
    heard = await Heard.on(bus, "cache_event.warming.>")
    async with cold(bus, client, tmp_path / "a", 3, 100_000, warm_evict_ratio=0, **FAST):
        for number in range(11):
            await client.put(f"hot-{number}", bytes(100_000), Fleet_Ttl_Seconds="0")
        await warm(client, "key-0", "hot-10", "never-put", "key-1", "key-2")
        event = await finished(heard)

    assert (event.restored, event.here, event.absent, event.left_out) == (0, 1, 1, 3)


async def test_a_get_goes_before_all_that_waits_to_be_warmed(bus: Bus, client: Client) -> None:
    slow = SlowArchive()
    keys = [f"key-{number}" for number in range(50)]
    await slow.serve(bus, *keys, "live")
    async with running(bus, restore_timeout_seconds=20, **FAST) as service:
        await synced(service)
        getting = asyncio.create_task(client.get("live"))
        await until(lambda: slow.asked == ["live"])
        await warm(client, *keys)
        for _ in range(20):
            status = await warm(client)
        while_getting = list(slow.asked)
        slow.may_answer.set()
        await getting
        await until(lambda: len(slow.asked) == 51)

    assert while_getting == ["live"]
    assert status.waiting == 50


async def test_what_a_get_waits_for_is_kept_even_if_warming_must_not_push_anything_out(
    bus: Bus, client: Client
) -> None:
    slow = SlowArchive()
    manifest = evicted("key", b"value", version="000000000001-0000000001", generation=1)
    slow.answer = Answer(b"value", manifest_headers(manifest))
    await slow.serve(bus, "key")
    async with running(
        bus, restore_timeout_seconds=20, warm_evict_ratio=0, archive_when_full="drop", **FAST
    ) as service:
        await synced(service)
        for name in "ab":
            await client.put(name, bytes(524_287), Fleet_Ttl_Seconds="0")
        await warm(client, "key")
        await until(lambda: slow.asked == ["key"])
        getting = asyncio.create_task(client.get("key"))
        await until(lambda: service.counters()["misses_total"] == 1)
        slow.may_answer.set()
        value = await getting
        where = (await client.meta("key")).where

    assert value == b"value"
    assert where == "ram"
    assert slow.asked == ["key"]


async def test_keys_are_asked_for_one_at_a_time_and_stop_with_the_service(
    bus: Bus, client: Client
) -> None:
    slow = SlowArchive()
    keys = [f"key-{number}" for number in range(50)]
    await slow.serve(bus, *keys)
    async with running(bus, restore_timeout_seconds=20, **FAST) as service:
        await synced(service)
        await warm(client, *keys)
        await until(lambda: slow.asked != [])
        async with asyncio.timeout(20):
            await client.stats()
    slow.may_answer.set()

    assert slow.asked == ["key-0"]


async def test_what_waits_can_be_cancelled(bus: Bus, client: Client) -> None:
    heard = await Heard.on(bus, "cache_event.warming.>")
    slow = SlowArchive()
    keys = [f"key-{number}" for number in range(50)]
    await slow.serve(bus, *keys)
    async with running(bus, restore_timeout_seconds=20, **FAST) as service:
        await synced(service)
        await warm(client, *keys)
        await until(lambda: slow.asked != [])
        cancelled = await warm(client, cancel=True)
        slow.may_answer.set()
        event = await finished(heard)

    assert (cancelled.waiting, cancelled.left_out) == (0, 50)
    assert event.left_out == 50
    assert len(slow.asked) == 1
    assert event.restored == 0


async def test_counts_begin_anew_when_all_was_done(bus: Bus, client: Client) -> None:
    heard = await Heard.on(bus, "cache_event.warming.>")
    slow = SlowArchive()
    slow.may_answer.set()
    await slow.serve(bus, "a")
    async with running(bus, restore_timeout_seconds=20, **FAST) as service:
        await synced(service)
        await client.put("here", b"value")
        await warm(client, "a", "b", "here")
        first = await finished(heard)
        await warm(client, "b")
        second = await finished(heard)

    assert (first.absent, first.here) == (2, 1)
    assert (second.absent, second.here) == (1, 0)


async def test_an_archive_that_does_not_answer_is_told_as_failed(bus: Bus, client: Client) -> None:
    heard = await Heard.on(bus, "cache_event.warming.>")
    slow = SlowArchive()
    await slow.serve(bus, "a", "b")
    async with running(bus, restore_timeout_seconds=0.05, **FAST) as service:
        await synced(service)
        await warm(client, "a", "b")
        event = await finished(heard)
    slow.may_answer.set()

    assert (event.failed, event.restored, event.absent) == (2, 0, 0)


async def test_keys_wait_until_the_archive_can_be_believed(
    bus: Bus, client: Client, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "cache_event.warming.>")
    await bus.publish_raw("evicted.default", b"", message_id="left by a predecessor")
    async with running(bus, **FAST):
        await warm(client, "key")
        for _ in range(50):
            early = await warm(client)
        async with archiving(bus, tmp_path / "archive"):
            event = await finished(heard)

    assert early.waiting == 1
    assert event.absent == 1


async def test_a_full_queue_refuses_all_keys_of_a_request(bus: Bus, client: Client) -> None:
    slow = SlowArchive()
    keys = [f"key-{number}" for number in range(12)]
    await slow.serve(bus, *keys)
    async with running(bus, warm_queue_keys=10, restore_timeout_seconds=20, **FAST) as service:
        await synced(service)
        await warm(client, *keys[:9])
        with pytest.raises(RequestError, match="429 3 keys to warm, but room for 1") as full:
            await warm(client, *keys[9:])
        again = await warm(client, *keys[:9])
        one_more = await warm(client, keys[9])
    slow.may_answer.set()

    assert (again.accepted, one_more.accepted) == (0, 1)
    assert full.value.retry_after_seconds


@pytest.mark.parametrize(
    ("payload", "code", "text"),
    [
        pytest.param(b'{"keys": [""]}', 400, "key 0", id="empty key"),
        pytest.param(b'{"keys": ["a", "a"]}', 400, "keys 0 and 1", id="twice"),
        pytest.param(b'{"keys": "a"}', 400, "keys", id="no list"),
        pytest.param(b'{"names": []}', 400, "names", id="unknown field"),
        pytest.param(
            msgspec.json.encode({"keys": [str(n) for n in range(10_001)]}),
            413,
            "10001 keys are more than 10000",
            id="too many",
        ),
    ],
)
async def test_a_malformed_warming_is_refused_by_name(
    bus: Bus, client: Client, payload: bytes, code: int, text: str
) -> None:
    async with running(bus):
        with pytest.raises(RequestError) as refused:
            await client.ask("warm", payload)

    assert refused.value.code == code
    assert text in refused.value.text


async def test_without_an_archive_there_is_nothing_to_warm_from(bus: Bus, client: Client) -> None:
    async with running(bus, archive_mode="off"):
        with pytest.raises(RequestError, match=r"503 .*archive_mode is off"):
            await warm(client, "key")


async def match(client: Client, *keys: str, **headers: str) -> MatchReply:
    answer = await client.ask("match", msgspec.json.encode(keys), **headers)
    return msgspec.json.decode(answer.payload, type=MatchReply)


async def test_a_match_brings_back_the_archived_rest_of_the_chain(
    bus: Bus, client: Client, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "cache_event.warming.>")
    chain = [f"key-{number}" for number in range(6)]
    async with cold(bus, client, tmp_path / "a", 6, 100, warm_evict_ratio=1, **FAST):
        await client.get(chain[0])
        first = await match(client, *chain[:4], "never-put", *chain[4:])
        event = await finished(heard)
        second = await match(client, *chain)
        places = [(await client.meta(key)).where for key in chain[:4]]

    assert (first.matched, first.coming) == (1, 3)
    assert (event.restored, event.absent) == (3, 0), "nothing behind the gap"
    assert (second.matched, second.coming) == (4, 2)
    assert places == ["ram"] * 4


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        pytest.param({"match_prefetch": False}, {}, id="setting"),
        pytest.param({}, {"Fleet_No_Restore": "1"}, id="header"),
    ],
)
async def test_a_match_brings_back_nothing_where_that_is_not_wanted(
    bus: Bus, client: Client, tmp_path: Path, settings: dict[str, Any], headers: dict[str, str]
) -> None:
    async with cold(bus, client, tmp_path / "a", 2, 100, **settings, **FAST):
        matched = await match(client, "key-0", "key-1", **headers)
        progress = await warm(client)

    assert (matched.matched, matched.coming, progress.waiting) == (0, 0, 0)


async def test_what_a_match_wants_back_stays_within_the_queue(
    bus: Bus, client: Client, tmp_path: Path
) -> None:
    settings = {"warm_queue_keys": 2, "warm_per_second": 0.001}
    async with cold(bus, client, tmp_path / "a", 5, 100, **settings):
        first = await match(client, *(f"key-{number}" for number in range(5)))
        again = await match(client, *(f"key-{number}" for number in range(2, 5)))
        progress = await warm(client)

    assert (first.coming, again.coming) == (2, 2)
    assert progress.waiting == 2
