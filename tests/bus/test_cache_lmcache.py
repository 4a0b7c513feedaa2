"""The lmcache endpoints on a real server: what they measure, and the work they do."""

import asyncio
from typing import Any

import pytest

from agent.bus import Bus
from cache.service import CacheService
from cache.tuning import Tuning
from schemas.lmcache import LmcacheConfig
from tests.support.cache_service import Client, running
from tests.support.evictions import ManualClock
from tests.support.lmcache import Lmcache

pytestmark = pytest.mark.bus
OFF: dict[str, Any] = {"archive_mode": "off"}
MB = 1024 * 1024
METRICS = [
    "status",
    "enabled",
    "total_size_mb",
    "used_size_mb",
    "available_size_mb",
    "utilization_percent",
    "total_requests",
    "cache_hits",
    "cache_misses",
    "hit_rate_percent",
    "tokens_cached",
    "tokens_served",
    "tokens_computed",
    "avg_latency_ms",
    "cache_hit_latency_ms",
    "cache_miss_latency_ms",
    "memory_saved_mb",
    "memory_savings_percent",
    "memory_saved_formula",
]
STATUS = [
    "timestamp",
    "instance_id",
    "metrics",
    "config",
    "lmcache_version",
    "backend",
    "top_entries",
]
ENTRY = [
    "entry_id",
    "prefix_hash",
    "token_count",
    "size_mb",
    "hit_count",
    "created_at",
    "last_accessed",
]
OPTIMIZED = [
    "success",
    "message",
    "entries_before",
    "entries_after",
    "entries_evicted",
    "memory_freed_mb",
    "optimization_time_ms",
]


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


@pytest.fixture
def lmcache(bus: Bus) -> Lmcache:
    return Lmcache(bus)


async def test_status_has_every_field_and_null_for_what_was_not_measured(
    bus: Bus, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        status = await lmcache.ask("status")
        metrics = await lmcache.ask("metrics")
        config = await lmcache.ask("config")

    assert list(status) == STATUS
    assert list(metrics) == list(status["metrics"]) == METRICS
    assert list(config) == list(status["config"]) == list(LmcacheConfig.__struct_fields__)
    nulls = {name for name, value in metrics.items() if value is None}
    assert nulls == {
        *("hit_rate_percent", "memory_savings_percent"),
        *("tokens_cached", "tokens_served", "tokens_computed"),
        *("avg_latency_ms", "cache_hit_latency_ms", "cache_miss_latency_ms"),
    }
    assert (status["instance_id"], status["backend"], status["lmcache_version"]) == (
        "c1",
        "memory",
        None,
    )
    assert (metrics["status"], metrics["total_size_mb"], metrics["used_size_mb"]) == (
        "enabled",
        1,
        0,
    )


async def test_metrics_are_what_happened(bus: Bus, client: Client, lmcache: Lmcache) -> None:
    async with running(bus, **OFF):
        await client.put("a", bytes(99_999), Fleet_Prefix_Tokens="100")
        await client.put("b", bytes(99_999), Fleet_Prefix_Tokens="50")
        await client.put("c", bytes(99_999))
        for key in ("a", "a", "b", "absent"):
            await client.get(key)
        await client.ask("delete", b"b")
        metrics = await lmcache.ask("metrics")

    assert (metrics["total_requests"], metrics["cache_hits"], metrics["cache_misses"]) == (4, 3, 1)
    assert metrics["hit_rate_percent"] == 75
    assert metrics["tokens_cached"] == 100
    assert metrics["tokens_served"] == 100 + 100 + 50
    assert metrics["tokens_computed"] == 150
    assert metrics["used_size_mb"] == 200_000 / MB
    assert metrics["available_size_mb"] == (MB - 200_000) / MB
    assert metrics["utilization_percent"] == pytest.approx(100 * 200_000 / MB)
    assert metrics["memory_saved_mb"] == 3 * 99_999 / MB
    assert metrics["memory_savings_percent"] == 50
    assert "estimate" in metrics["memory_saved_formula"]
    hit_ms, miss_ms = metrics["cache_hit_latency_ms"], metrics["cache_miss_latency_ms"]
    assert metrics["avg_latency_ms"] == pytest.approx((3 * hit_ms + miss_ms) / 4)
    assert min(hit_ms, miss_ms) > 0


async def test_the_latency_of_a_miss_contains_the_wait_for_the_archive(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, restore_timeout_seconds=0.2) as service:
        service._owned["default"].namespace.archived.caught_up = True  # nobody is asked before
        await bus.subscribe("api.archive.restore.default", lambda *_: None)  # and never answers
        await client.get("absent")
        metrics = await lmcache.ask("metrics")

    assert metrics["cache_miss_latency_ms"] >= 200
    assert metrics["cache_hit_latency_ms"] is None


async def test_top_entries_are_those_with_the_most_hits(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    clock = ManualClock()
    async with running(bus, clock=clock, **OFF):
        await client.put("plain", b"1234")
        await client.put("prefix", b"1234", Fleet_Prefix_Tokens="64")
        await client.put("unread", b"1234")
        clock.advance(5)
        for key in ("plain", "prefix", "prefix"):
            await client.get(key)
        both = (await lmcache.ask("status"))["top_entries"]
        one = (await lmcache.ask("status", {"top": 1}))["top_entries"]
        await client.ask("delete", b"prefix")
        rest = (await lmcache.ask("status"))["top_entries"]

    assert [(entry["entry_id"], entry["hit_count"]) for entry in both] == [
        ("prefix", 2),
        ("plain", 1),
    ]
    assert list(both[0]) == ENTRY
    assert (both[0]["token_count"], both[1]["token_count"]) == (64, None)
    assert (len(both[0]["prefix_hash"]), both[1]["prefix_hash"]) == (16, None)
    assert both[0]["size_mb"] == 10 / MB
    assert both[0]["last_accessed"] > both[0]["created_at"]
    assert one == both[:1]
    assert [entry["entry_id"] for entry in rest] == ["plain"]


async def test_optimize_removes_expired_and_worthless_entries_and_nothing_else(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    clock = ManualClock()
    async with running(bus, clock=clock, **OFF):
        await client.put("expired", bytes(1000 - 7), Fleet_Ttl_Seconds="60")
        await client.put("worthless", bytes(2000 - 9))
        await client.put("promised", b"1", Fleet_Ttl_Seconds="100000")
        await client.put("scratch", b"1", Fleet_Ttl_Seconds="0")
        await client.put("read", b"1")
        await client.get("read")
        clock.advance(3600)  # the archive keeps what was never read for that long
        kept = await lmcache.ask("optimize")
        clock.advance(1)
        gone = await lmcache.ask("optimize", {"namespace": "default"})
        left = [
            await client.get(key) for key in ("expired", "worthless", "promised", "scratch", "read")
        ]

    assert list(gone) == OPTIMIZED
    assert (kept["entries_before"], kept["entries_after"], kept["entries_evicted"]) == (5, 4, 1)
    assert kept["memory_freed_mb"] == 1000 / MB
    assert (gone["entries_before"], gone["entries_after"], gone["entries_evicted"]) == (4, 3, 1)
    assert gone["memory_freed_mb"] == 2000 / MB
    assert gone["success"] is True
    assert gone["message"] == "removed 0 expired and 1 worthless entries"
    assert gone["optimization_time_ms"] > 0
    assert left == [None, None, b"1", b"1", b"1"]


async def test_others_have_their_turns_while_many_entries_are_optimized(
    bus: Bus, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.tuning.SWEPT_AT_ONCE", 1)
    turns = 0
    async with running(bus, **OFF) as service:
        for number in range(100):
            await client.put(f"key-{number}", b"value")
        optimizing = asyncio.create_task(tuning_of(service).optimize())
        while not optimizing.done():
            turns += 1
            await asyncio.sleep(0)

    assert turns >= 100


def tuning_of(service: CacheService) -> Tuning:
    return service._owned["default"].lmcache._tuning


async def test_clear_empties_the_namespace(bus: Bus, client: Client, lmcache: Lmcache) -> None:
    async with running(bus, **OFF):
        await client.put("a", b"1", Fleet_Prefix_Tokens="12")
        await client.get("a")
        cleared = await lmcache.ask("clear")
        value = await client.get("a")
        status = await lmcache.ask("status")

    assert cleared["entries"] == 1
    assert value is None
    assert status["metrics"]["tokens_cached"] == 0
    assert status["top_entries"] == []


@pytest.mark.parametrize(
    ("operation", "body", "code", "text"),
    [
        pytest.param("status", {"top": 101}, 400, "top", id="too many entries"),
        pytest.param("status", {"limit": 1}, 400, "limit", id="unknown field"),
        pytest.param("metrics", {"top": 1}, 400, "top", id="a field of another operation"),
        pytest.param("optimize", b"[]", 400, "optimize", id="not an object"),
        pytest.param("config", {"namespace": "a.b"}, 400, "namespace", id="no token"),
        pytest.param("config", {"namespace": 7}, 400, "namespace", id="no text"),
        pytest.param("clear", b"\xff", 400, "clear", id="not UTF-8"),
        pytest.param("clear", {"namespace": "other"}, 503, "namespace other", id="nobody's"),
        pytest.param("configure", {"size": 1}, 400, "unknown field size", id="no such setting"),
        pytest.param("configure", {"max_size_mb": 0}, 400, "max_size_mb = 0", id="no room"),
        pytest.param("configure", b'{"max_size_mb": 1e999}', 400, "", id="infinite"),
        pytest.param(
            "configure", b'{"min_prefix_length": 1' + b"0" * 400 + b"}", 400, "", id="endless"
        ),
        pytest.param("configure", b"[" * 100_000, 400, "object", id="deep"),
    ],
)
async def test_a_malformed_request_is_refused_by_name(
    bus: Bus, client: Client, lmcache: Lmcache, operation: str, body: Any, code: int, text: str
) -> None:
    async with running(bus, **OFF):
        await client.put("key", b"value")
        refused = await lmcache.refused(operation, body)
        value = await client.get("key")

    assert refused.code == code
    assert text in refused.text
    assert value == b"value"


async def test_each_namespace_answers_for_itself_by_subject_and_by_field(bus: Bus) -> None:
    async with running(bus, namespaces=["default", "two"], **OFF):
        await Client(bus, "two").put("key", b"value")
        by_field = await Lmcache(bus).ask("metrics", {"namespace": "two"})
        by_subject = await Lmcache(bus, "two").ask("metrics")
        default = await Lmcache(bus).ask("metrics")
        contradiction = await Lmcache(bus, "two").refused("metrics", {"namespace": "default"})

    assert by_field["used_size_mb"] == by_subject["used_size_mb"] == 8 / MB
    assert default["used_size_mb"] == 0
    assert (contradiction.code, "two" in contradiction.text) == (400, True)


async def test_an_instance_that_does_not_own_the_namespace_asks_the_owner(bus: Bus) -> None:
    async with (
        running(bus, instance="c1", **OFF),
        running(bus, instance="c2", **OFF) as standby,
    ):
        answers = [await Lmcache(bus).ask("status") for _ in range(20)]

    assert not standby.is_owner("default")
    assert {answer["instance_id"] for answer in answers} == {"c1"}
