"""The cache's endpoints on a real server: what they answer, and what they refuse."""

import asyncio
from typing import Any

import pytest

from agent.bus import Bus
from schemas.api import CacheReply
from schemas.cache import CacheEvent, encode_header
from schemas.engines import CacheMetrics
from schemas.protocols import RequestError
from tests.support.archive_service import Heard
from tests.support.cache_service import Client, component, running
from tests.support.evictions import ManualClock
from tests.support.waiting import until

pytestmark = pytest.mark.bus
OFF: dict[str, Any] = {"archive_mode": "off"}


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("key", b"value", id="plain"),
        pytest.param("a b%41\n\u00e9\U0001f511 ", b"", id="any key, empty value"),
        pytest.param("k" * 10240, bytes(512 * 1024), id="longest key, largest value"),
        pytest.param("\u00e9" * 5120, bytes(range(256)), id="longest key in two-byte letters"),
    ],
)
async def test_a_value_is_kept_and_answered(
    bus: Bus, client: Client, key: str, value: bytes
) -> None:
    async with running(bus, **OFF):
        version = await client.put(key, value)
        answer = await client.ask("get", key.encode())
        exists = await client.reply("exists", CacheReply, key.encode())

    assert answer.payload == value
    assert answer.headers["Fleet-Version"] == version
    assert exists == CacheReply(existed=True, version=version)


async def test_a_miss_is_empty_and_says_so(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF):
        answer = await client.ask("get", b"absent")
        exists = await client.reply("exists", CacheReply, b"absent")
        meta = await client.meta("absent")

    assert (answer.payload, answer.headers) == (b"", {"Fleet-Status": "miss"})
    assert exists == CacheReply(existed=False)
    assert not meta.found


async def test_delete_removes_and_says_whether_it_was_there(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF):
        await client.put("key", b"value")
        first = await client.reply("delete", CacheReply, b"key")
        second = await client.reply("delete", CacheReply, b"key")
        value = await client.get("key")

    assert (first.existed, second.existed) == (True, False)
    assert value is None


async def test_meta_tells_what_came_with_the_entry(bus: Bus, client: Client) -> None:
    clock = ManualClock()
    async with running(bus, clock=clock, **OFF):
        await client.put(
            "key",
            b"value",
            Fleet_Prefix_Tokens="12",
            Fleet_Parent=encode_header("p/1"),
            Fleet_Cost_Seconds="0.5",
            Fleet_Ttl_Seconds="60",
            Fleet_Class="chat",
            Fleet_Tags="a,b%2Cc",
            Fleet_Meta=encode_header('{"m": "x y"}'),
        )
        await client.get("key")
        clock.advance(10)
        meta = await client.meta("key")

    assert (meta.where, meta.size_bytes, meta.access_count) == ("ram", 5, 1)
    assert (meta.prefix_tokens, meta.parent, meta.cost_seconds) == (12, "p/1", 0.5)
    assert (meta.request_class, meta.tags, meta.meta) == ("chat", ["a", "b,c"], {"m": "x y"})
    assert (meta.ttl_seconds, meta.archive_ttl_seconds) == (60, 50)
    assert meta.expires_at is not None
    assert meta.inserted_at is not None
    assert (meta.expires_at - meta.inserted_at).total_seconds() == 60


async def test_an_entry_is_gone_at_the_instant_of_its_ttl(bus: Bus, client: Client) -> None:
    clock = ManualClock()
    async with running(bus, clock=clock, **OFF):
        await client.put("key", b"value", Fleet_Ttl_Seconds="60")
        clock.advance(59.999)
        before = await client.get("key")
        clock.advance(0.001)
        after = await client.get("key")

    assert (before, after) == (b"value", None)


async def test_compare_and_set_replaces_only_the_named_version(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF):
        first = await client.put("key", b"1")
        second = await client.put("key", b"2", Fleet_Version=first)
        with pytest.raises(RequestError, match=rf"409 .*{second} is here"):
            await client.put("key", b"3", Fleet_Version=first)
        with pytest.raises(RequestError, match=r"409 .*no such entry"):
            await client.put("other", b"3", Fleet_Version=first)
        value = await client.get("key")

    assert second > first
    assert value == b"2"


@pytest.mark.parametrize(
    ("operation", "payload", "headers", "code", "text"),
    [
        pytest.param("put", b"", {}, 400, "Fleet-Key is missing", id="put without key"),
        pytest.param("put", b"", {"Fleet_Key": "%"}, 400, "Fleet-Key", id="broken escape"),
        pytest.param(
            "put",
            b"",
            {"Fleet_Key": "k", "Fleet_Ttl_Seconds": "-1"},
            400,
            "Fleet-Ttl-Seconds",
            id="negative TTL",
        ),
        pytest.param(
            "put", bytes(524289), {"Fleet_Key": "k"}, 413, "limit of 524288", id="too large"
        ),
        pytest.param("get", b"\xff", {}, 400, "UTF-8", id="get of no text"),
        pytest.param("get", b"", {}, 400, "1 to 10240 bytes", id="get of nothing"),
        pytest.param("delete", b"k" * 10241, {}, 400, "1 to 10240 bytes", id="key too long"),
        pytest.param("exists", b"", {}, 400, "1 to 10240 bytes", id="exists of nothing"),
        pytest.param("meta", b"\xc3", {}, 400, "UTF-8", id="meta of half a letter"),
        pytest.param("stats", b'{"top": 3}', {}, 400, "top", id="unknown field"),
        pytest.param("clear", b"[]", {}, 400, "clear", id="not an object"),
    ],
)
async def test_a_malformed_request_is_refused_by_name_and_the_service_lives(
    bus: Bus,
    client: Client,
    operation: str,
    payload: bytes,
    headers: dict[str, str],
    code: int,
    text: str,
) -> None:
    async with running(bus, **OFF):
        await client.put("key", b"value")
        with pytest.raises(RequestError) as refused:
            await client.ask(operation, payload, **headers)
        value = await client.get("key")

    assert refused.value.code == code
    assert text in refused.value.text
    assert value == b"value"


async def test_statistics_and_metrics_count_what_happened(bus: Bus, client: Client) -> None:
    heard = await Heard.on(bus, "metrics.cache.c1")
    async with running(bus, metrics_interval_seconds=0.05, **OFF) as service:
        await client.put("key", b"value")
        await client.get("key")
        await client.get("key")
        await client.get("absent")
        stats = await client.stats()
        counters = service.counters()
        metrics = await heard.next(CacheMetrics)
        while not metrics.misses_total:
            metrics = await heard.next(CacheMetrics)

    assert (stats.cache_hits, stats.cache_misses, stats.puts) == (2, 1, 1)
    assert stats.hit_rate == 2 / 3
    assert (stats.total_entries, stats.used_bytes, stats.limit_bytes) == (1, 8, 1024 * 1024)
    assert stats.memory_used_mb == 8 / 1024 / 1024
    assert (stats.namespace, stats.instance, stats.policy) == ("default", "c1", "lru")
    assert (metrics.hits_total, metrics.puts_total, metrics.used_bytes) == (2, 1, 8)
    assert (metrics.is_enabled, metrics.evictions_returned_total) == (True, 0)
    assert (metrics.expired_lookups_total, metrics.expired_idle_byte_seconds_total) == (0, 0.0)
    assert (counters["hits_total"], counters["entries"]) == (2, 1)


async def test_clear_empties_raises_the_generation_and_announces_it(
    bus: Bus, client: Client
) -> None:
    heard = await Heard.on(bus, "cache_event.cleared.>")
    async with running(bus):
        await client.put("a", b"1")
        await client.put("b", b"2")
        before = await client.stats()
        cleared = await client.clear()
        event = await heard.next(CacheEvent)
        values = [await client.get("a"), await client.get("b")]
        after = await client.stats()

    assert cleared.entries == 2
    assert cleared.generation == before.generation + 1 == after.generation
    assert (event.kind, event.namespace, event.entries) == ("cleared", "default", 2)
    assert event.generation == cleared.generation
    assert values == [None, None]
    assert (after.total_entries, after.used_bytes) == (0, 0)


async def test_a_clear_that_cannot_be_made_durable_clears_nothing(bus: Bus, client: Client) -> None:
    async with running(bus):
        await client.put("key", b"value")
        await bus.jetstream.delete_stream("KV_fleet-state")
        with pytest.raises(RequestError, match="503 nothing is cleared"):
            await client.clear()
        value = await client.get("key")

    assert value == b"value"


async def test_concurrent_clears_each_raise_the_generation(bus: Bus, client: Client) -> None:
    async with running(bus):
        before = await client.stats()
        replies = await asyncio.gather(*(client.clear() for _ in range(5)))

    generations = sorted(reply.generation for reply in replies)
    assert generations == [before.generation + step for step in range(1, 6)]


async def test_namespaces_do_not_see_each_other(bus: Bus) -> None:
    one, two = Client(bus, "one"), Client(bus, "two")
    async with running(bus, namespaces=["one", "two"]):
        await one.put("key", b"1")
        await two.put("key", b"2")
        await one.clear()
        values = [await one.get("key"), await two.get("key")]

    assert values == [None, b"2"]


async def test_an_archive_that_is_off_says_so_and_evictions_end(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF) as service:
        await client.put("key", b"value")
        await client.evict_all()
        value = await client.get("key")
        stats = await client.stats()
        state = component(service, "default.archive")
        bounds = await bus.stream_bounds("EVICTIONS")

    assert value is None
    assert stats.evictions > 0
    assert stats.outbox_entries == 0
    assert state == ("off", "archive_mode is off")
    assert bounds[1] == 0


async def test_components_tell_the_lease_the_outbox_and_the_archive(bus: Bus) -> None:
    async with running(bus, same_host=False) as service:
        await until(lambda: "api.archive.keys" in component(service, "default.archive")[1])
        states = {c.name: c.state for c in service.components()}
        text = component(service, "default.archive")[1]

    assert states == {
        "same_host": "off",
        "default.lease": "ok",
        "default.outbox": "ok",
        "default.archive": "degraded",
        "default.configuration": "ok",
    }
    assert "nobody serves" in text


async def test_statistics_tell_classes_apart(bus: Bus, client: Client) -> None:
    heard = await Heard.on(bus, "metrics.cache.c1")
    async with running(bus, metrics_interval_seconds=0.05, **OFF):
        await client.put("a", b"12345", Fleet_Class="chat", Fleet_Cost_Seconds="0.5")
        await client.put("b", b"1", Fleet_Class="agents")
        await client.get("a")
        await client.get("a", Fleet_Class="agents")
        await client.get("absent", Fleet_Class="chat")
        await client.ask("mget", b'["a", "b", "absent"]', Fleet_Class="chat")
        with pytest.raises(RequestError, match="400 header Fleet-Class"):
            await client.get("a", Fleet_Class="no class")
        classes = (await client.stats()).classes
        metrics = await heard.next(CacheMetrics)
        while metrics.classes is None or "chat" not in metrics.classes:
            metrics = await heard.next(CacheMetrics)

    chat, agents = classes["chat"], classes["agents"]
    assert (chat.puts_total, chat.hits_total, chat.misses_total) == (1, 3, 2)
    assert (agents.puts_total, agents.hits_total, agents.misses_total) == (1, 1, 0)
    assert (chat.answered_bytes_total, agents.answered_bytes_total) == (5 + 6, 5)
    assert (chat.cost_saved_seconds_total, agents.cost_saved_seconds_total) == (1.0, 0.5)
    assert chat.latency_p50_seconds is not None
    assert chat.latency_p95_seconds is not None
    assert 0 < chat.latency_p50_seconds <= chat.latency_p95_seconds


async def test_a_namespace_has_limits_of_its_own(bus: Bus) -> None:
    own = {"max_memory_mb": 2, "eviction_policy": "fifo", "archive_mode": "off"}
    async with running(bus, namespaces=["chat", "agents"], namespace={"chat": own}) as service:
        chat = await Client(bus, "chat").stats()
        agents = await Client(bus, "agents").stats()
        states = component(service, "chat.archive")[0], component(service, "agents.archive")[0]

    assert (chat.limit_bytes, chat.policy) == (2 * 1024 * 1024, "fifo")
    assert (agents.limit_bytes, agents.policy) == (1024 * 1024, "lru")
    assert states == ("off", "degraded")
