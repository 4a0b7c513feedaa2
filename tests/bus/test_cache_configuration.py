"""The configuration of a namespace: each field acts, at once, over restarts and take-overs."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from agent.client import CacheClient
from cache.configuration import Configuration, ConfigurationConflictError
from schemas.cache import CacheEvent
from schemas.lmcache import LmcacheConfig
from schemas.protocols import Delivery, RequestError
from tests.support.archive_service import Heard, archiving
from tests.support.cache_service import Client, component, running, synced
from tests.support.lmcache import Lmcache
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus
OFF: dict[str, Any] = {"archive_mode": "off"}
MB = 1024 * 1024


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


@pytest.fixture
def lmcache(bus: Bus) -> Lmcache:
    return Lmcache(bus)


async def refused_put(client: Client, key: str, value: bytes, **headers: str) -> RequestError:
    with pytest.raises(RequestError) as refused:
        await client.put(key, value, **headers)
    return refused.value


# --- each field acts -------------------------------------------------------------------------


async def test_a_disabled_cache_misses_refuses_puts_and_keeps_what_it_has(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        await client.put("key", b"value")
        await client.put("old", b"value")
        await lmcache.configure(enabled=False)
        miss = await client.ask("get", b"key")
        refused = await refused_put(client, "key", b"newer")
        await client.ask("delete", b"old")
        metrics = await lmcache.ask("metrics")
        await lmcache.configure(enabled=True)
        values = [await client.get("key"), await client.get("old")]

    assert miss.headers["Fleet-Status"] == "miss"
    assert (refused.code, "enabled is off" in refused.text) == (503, True)
    assert (metrics["status"], metrics["enabled"]) == ("disabled", False)
    assert (metrics["total_requests"], metrics["avg_latency_ms"]) == (0, None)
    assert values == [b"value", None]


@pytest.mark.parametrize("change", [{"enabled": False}, {"enable_sharing": False}])
async def test_files_that_clients_keep_open_are_given_up_where_the_answer_changes(
    bus: Bus, lmcache: Lmcache, change: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.same_host.TRUST_SECONDS", 3600.0)  # told, not forgotten

    async def misses() -> bool:
        return await cache.get("key") is None

    async with running(bus, **OFF), CacheClient(bus, client="me") as cache:
        await cache.put("key", bytes(600_000))
        before = [await cache.get("key"), await cache.get("key")]
        kept = cache.same_host.kept(b"key")
        await lmcache.configure(**change)
        await until_async(misses)
        await lmcache.configure(enabled=True, enable_sharing=True)
        after = await cache.get("key")

    assert before == [bytes(600_000)] * 2
    assert kept is not None
    assert after == bytes(600_000)


async def test_a_disabled_cache_asks_no_archive(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with running(bus) as service, archiving(bus, tmp_path):
        await synced(service)
        await client.put("key", b"value")
        await client.evict_all()
        while (await heard.stored()).key != "key":
            pass
        await until(lambda: service.counters()["outbox_entries"] == 0)
        await lmcache.configure(enabled=False)
        off = await client.get("key")
        await lmcache.configure(enabled=True)
        on = await client.get("key")

    assert (off, on) == (None, b"value")


async def test_a_smaller_size_evicts_at_once_what_is_used_least(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        for number in range(8):
            await client.put(f"key-{number}", bytes(100_000))
        await client.get("key-0")
        config = await lmcache.configure(max_size_mb=0.25)
        stats = await client.stats()
        values = [await client.get(f"key-{number}") is not None for number in range(8)]
        refused = await refused_put(client, "large", bytes(300_000))

    assert config["max_size_mb"] == 0.25
    assert stats.limit_bytes == MB // 4
    assert stats.used_bytes == 2 * 100_005
    assert stats.evictions == 6
    assert values == [True, False, False, False, False, False, False, True]
    assert (refused.code, "exceeds cache limit of 262144 bytes" in refused.text) == (413, True)


async def test_a_smaller_size_is_reached_before_the_answer(
    bus: Bus, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.tuning.STEP_SECONDS", 0.0)  # a turn for others at every entry
    async with running(bus, **OFF) as service:
        for number in range(100):
            await client.put(f"key-{number}", bytes(1_000))
        owned = service._owned["default"]
        await owned.lmcache._tuning.configure({"max_size_mb": 0.01}, None)
        used_bytes = owned.namespace.memory.used_bytes

    assert 0 < used_bytes <= 0.01 * MB


async def test_what_shrinking_evicts_goes_to_the_archive_and_comes_back(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with running(bus, max_memory_mb=4) as service, archiving(bus, tmp_path):
        await synced(service)
        for number in range(30):
            await client.put(f"key-{number}", bytes([number]) * 100_000)
        await lmcache.configure(max_size_mb=0.5)
        archived: set[str] = set()
        while len(archived) < 25:
            archived.add((await heard.stored()).key)
        await lmcache.configure(max_size_mb=4)
        values = [await client.get(f"key-{number}") for number in range(30)]
        stats = await client.stats()

    assert values == [bytes([number]) * 100_000 for number in range(30)]
    assert stats.evictions_lost == 0


async def test_shrinking_waits_for_a_full_outbox_and_loses_nothing(
    bus: Bus, client: Client, lmcache: Lmcache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.tuning.SETTLE_SECONDS", 0.05)
    name = bus.names.stream("EVICTIONS")
    limits = (await bus.jetstream.stream_info(name)).config
    room, limits.max_bytes = limits.max_bytes, 100_000
    await bus.jetstream.update_stream(limits)
    async with running(bus, max_memory_mb=24, outbox_max_bytes=16 * MB) as service:
        await client.clear()
        for number in range(45):
            await client.put(f"key-{number}", bytes(500_000))
        config = await lmcache.configure(max_size_mb=1)
        stuck = await client.stats()
        state = component(service, "default.configuration")
        first = await client.get("key-0")
        limits.max_bytes = room
        await bus.jetstream.update_stream(limits)
        await until_async(lambda: has_at_most(client, MB))
        done = await client.stats()

    assert config["max_size_mb"] == 1
    assert stuck.used_bytes > MB
    assert stuck.limit_bytes == stuck.used_bytes
    assert (state[0], "above max_size_mb" in state[1]) == ("degraded", True)
    assert first is not None
    assert done.limit_bytes == MB
    assert done.evictions_lost == 0


async def has_at_most(client: Client, limit_bytes: int) -> bool:
    return (await client.stats()).used_bytes <= limit_bytes


async def test_another_policy_keeps_every_entry_and_shows_in_the_statistics(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        for number in range(5):
            await client.put(f"key-{number}", bytes(200_000))
        await lmcache.configure(eviction_policy="fifo")
        await client.get("key-0")
        stats = await client.stats()
        await client.put("one more", bytes(200_000))
        values = [await client.get(f"key-{number}") is not None for number in range(5)]

    assert (stats.policy, stats.total_entries) == ("fifo", 5)
    assert values == [False, True, True, True, True]


async def test_an_entry_with_too_short_a_prefix_is_not_cached_and_voids_its_key(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        await client.put("key", b"older")
        short = await client.ask("put", b"v", Fleet_Key="key", Fleet_Prefix_Tokens="9")
        after = await client.get("key")
        await client.put("key", b"enough", Fleet_Prefix_Tokens="10")
        enough = await client.get("key")
        await lmcache.configure(min_prefix_length=11)
        await client.put("key", b"v", Fleet_Prefix_Tokens="10")
        below = await client.get("key")
        await client.put("unknown length", b"v")
        plain = await client.get("unknown length")

    assert short.headers["Fleet-Status"] == "not-cached"
    assert [after, enough, below, plain] == [None, b"enough", None, b"v"]


async def test_an_uncached_put_voids_the_archived_value_too(
    bus: Bus, client: Client, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with running(bus) as service, archiving(bus, tmp_path):
        await synced(service)
        await client.put("key", b"older")
        await client.evict_all()
        while (await heard.stored()).key != "key":
            pass
        await client.put("key", b"newer", Fleet_Prefix_Tokens="1")
        value = await client.get("key")

    assert value is None


async def test_without_prefix_caching_chains_are_plain_entries(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        await lmcache.configure(enable_prefix_caching=False)
        await client.put("key", b"v", Fleet_Parent="root", Fleet_Prefix_Tokens="1")
        meta = await client.meta("key")

    assert (meta.found, meta.parent, meta.prefix_tokens) == (True, None, 1)


async def test_without_eviction_a_put_into_a_full_cache_is_refused_with_the_way_out(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        await lmcache.configure(auto_eviction=False)
        await client.put("a", bytes(500_000))
        await client.put("b", bytes(500_000))
        refused = await refused_put(client, "c", bytes(100_000))
        await client.put("a", bytes(510_000))
        too_large = await refused_put(client, "a", bytes(560_000), Fleet_Class="x")
        await client.ask("delete", b"b")
        await client.put("c", bytes(100_000))
        stats = await client.stats()

    assert refused.code == too_large.code == 413
    assert "auto_eviction is off" in refused.text
    assert "max_size_mb" in refused.text
    assert (stats.evictions, stats.total_entries) == (0, 2)


async def test_without_eviction_a_restore_answers_and_evicts_nothing(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with running(bus) as service, archiving(bus, tmp_path):
        await synced(service)
        await client.put("key", bytes(400_000))
        await client.evict_all()
        while (await heard.stored()).key != "key":
            pass
        await until(lambda: service.counters()["outbox_entries"] == 0)
        before = await client.stats()
        await lmcache.configure(auto_eviction=False)
        value = await client.get("key")
        after = await client.stats()

    assert value == bytes(400_000)
    assert after.evictions == before.evictions
    assert after.total_entries == before.total_entries


async def test_without_sharing_a_key_is_private_to_its_client(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        await client.put("key", b"shared")
        await lmcache.configure(enable_sharing=False)
        await client.put("key", b"a's", Fleet_Client="a")
        await client.put("key", b"b's", Fleet_Client="b")
        values = [await client.get("key", Fleet_Client=name) for name in "abc"]
        await client.ask("delete", b"key", Fleet_Client="a")
        after = [await client.get("key", Fleet_Client=name) for name in "ab"]
        exists = await client.ask("exists", b"key", Fleet_Client="a")
        with pytest.raises(RequestError) as anonymous:
            await client.get("key")
        await lmcache.configure(enable_sharing=True)
        shared = await client.get("key")

    assert values == [b"a's", b"b's", None]
    assert after == [None, b"b's"]
    assert b'"existed":false' in exists.payload
    assert (anonymous.value.code, "Fleet-Client" in anonymous.value.text) == (400, True)
    assert shared == b"shared"


async def test_private_entries_come_back_from_the_archive_to_their_client_alone(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with running(bus) as service, archiving(bus, tmp_path):
        await synced(service)
        await lmcache.configure(enable_sharing=False)
        await client.put("key", b"a's", Fleet_Client="a")
        await lmcache.configure(max_size_mb=0.00001)
        while not (await heard.stored()).key.endswith("key"):
            pass
        await lmcache.configure(max_size_mb=1)
        await until(lambda: service.counters()["outbox_entries"] == 0)
        values = [await client.get("key", Fleet_Client=name) for name in "ab"]

    assert values == [b"a's", None]


async def test_more_clients_than_allowed_are_told_to_come_later(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        await lmcache.configure(max_concurrent_users=2)
        await client.put("key", b"value", Fleet_Client="a")
        await client.get("key", Fleet_Client="b")
        with pytest.raises(RequestError) as get:
            await client.get("key", Fleet_Client="c")
        put = await refused_put(client, "key", b"newer", Fleet_Client="c")
        known = await client.get("key", Fleet_Client="b")
        await lmcache.configure(max_concurrent_users=3)
        now = await client.get("key", Fleet_Client="c")

    assert get.value.code == put.code == 429
    assert "try again in" in put.text
    assert known == now == b"value"


# --- stored, announced, taken over -----------------------------------------------------------


async def test_a_change_is_merged_announced_and_kept_over_restarts(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    heard = await Heard.on(bus, "cache_event.config.>")
    async with running(bus, **OFF):
        first = await lmcache.answer("configure", {"max_size_mb": 2, "cache_warmup": False})
        second = await lmcache.answer("configure", {"enable_sharing": False})
        events = [await heard.next(CacheEvent) for _ in range(2)]
    async with running(bus, **OFF):
        after = await lmcache.answer("config")
        stats = await client.stats()

    config = msgspec.json.decode(after.payload)
    assert (config["max_size_mb"], config["enable_sharing"]) == (2, False)
    assert after.payload == second.payload
    assert stats.limit_bytes == 2 * MB
    versions = [answer.headers["Fleet-Version"] for answer in (first, second, after)]
    assert versions[0] != versions[1] == versions[2]
    assert [(event.kind, str(event.version)) for event in events] == [
        ("config", versions[0]),
        ("config", versions[1]),
    ]


async def test_what_was_not_changed_follows_the_settings(bus: Bus, lmcache: Lmcache) -> None:
    async with running(bus, **OFF):
        await lmcache.configure(enable_sharing=False)
    async with running(bus, max_memory_mb=3, **OFF):
        config = await lmcache.ask("config")

    assert (config["max_size_mb"], config["enable_sharing"]) == (3, False)


async def test_the_cache_subject_is_the_same_code(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF):
        changed = await client.ask("config", b'{"max_size_mb": 2}')
        shown = await client.ask("config")
        optimized = await client.ask("optimize")

    assert changed.payload == shown.payload
    assert changed.headers == shown.headers
    assert b'"entries_before":0' in optimized.payload


async def test_only_the_expected_version_is_replaced(bus: Bus, lmcache: Lmcache) -> None:
    async with running(bus, **OFF):
        version = (await lmcache.answer("configure", {"max_size_mb": 2})).headers["Fleet-Version"]
        await lmcache.answer("configure", {"max_size_mb": 3}, Fleet_Version=version)
        refused = await lmcache.refused("configure", {"max_size_mb": 4}, Fleet_Version=version)
        malformed = await lmcache.refused("configure", {"max_size_mb": 4}, Fleet_Version="x")
        config = await lmcache.ask("config")

    assert (refused.code, malformed.code) == (409, 400)
    assert config["max_size_mb"] == 3


async def test_changes_at_the_same_time_are_all_kept(bus: Bus, lmcache: Lmcache) -> None:
    async with running(bus, **OFF):
        await asyncio.gather(
            lmcache.configure(max_size_mb=2),
            lmcache.configure(min_prefix_length=5),
            lmcache.configure(enable_sharing=False),
            lmcache.configure(max_concurrent_users=7),
        )
        config = await lmcache.ask("config")
    stored = await bus.bucket("config").get("cache.default")

    assert stored is not None
    assert msgspec.json.decode(stored[0]) == {
        "max_size_mb": 2,
        "min_prefix_length": 5,
        "enable_sharing": False,
        "max_concurrent_users": 7,
    }
    assert [config[name] for name in msgspec.json.decode(stored[0])] == list(
        msgspec.json.decode(stored[0]).values()
    )


async def test_two_writers_that_do_not_hear_each_other_lose_nothing(bus: Bus) -> None:
    one, two = (
        Configuration(bus.bucket("config"), bus.bucket("state"), "default", LmcacheConfig())
        for _ in range(2)
    )
    await one.change({"max_size_mb": 2.0}, None)
    await two.change({"enable_sharing": False}, None)
    with pytest.raises(ConfigurationConflictError, match="version 1 expected, 2 is here"):
        await one.change({"max_size_mb": 3.0}, 1)

    assert one.current == two.current == LmcacheConfig(max_size_mb=2.0, enable_sharing=False)


async def test_a_late_word_of_an_older_version_is_ignored(bus: Bus) -> None:
    configuration = Configuration(
        bus.bucket("config"), bus.bucket("state"), "default", LmcacheConfig()
    )
    await configuration.change({"max_size_mb": 2.0}, None)
    await configuration.change({"max_size_mb": 3.0}, None)
    configuration.heard(Delivery("", b'{"max_size_mb": 2}', {}, sequence=1, stored_ns=0))

    assert (configuration.current.max_size_mb, configuration.version) == (3, 2)


async def test_a_refused_change_changes_nothing(bus: Bus, lmcache: Lmcache) -> None:
    async with running(bus, **OFF):
        refused = await lmcache.refused("configure", {"enable_sharing": False, "max_size_mb": -1})
        config = await lmcache.ask("config")
    stored = await bus.bucket("config").get("cache.default")

    assert (
        refused.text
        == "max_size_mb = -1 is refused: it must be a positive number, at most 1000000000"
    )
    assert config["enable_sharing"] is True
    assert stored is None


async def test_a_change_that_cannot_be_stored_changes_nothing(bus: Bus, lmcache: Lmcache) -> None:
    async with running(bus, **OFF):
        await bus.jetstream.delete_stream("KV_fleet-config")
        refused = await lmcache.refused("configure", {"max_size_mb": 2})
        config = await lmcache.ask("config")

    assert refused.code == 503
    assert config["max_size_mb"] == 1


async def test_a_standby_that_takes_over_has_the_configuration(bus: Bus, lmcache: Lmcache) -> None:
    async with (
        running(bus, instance="c1", **OFF) as first,
        running(bus, instance="c2", **OFF) as second,
    ):
        await lmcache.configure(max_size_mb=7)
        stopping = asyncio.create_task(first.__aexit__(None, None, None))
        await until(lambda: second.is_owner("default"))
        await stopping
        status = await lmcache.ask("status")

    assert (status["instance_id"], status["config"]["max_size_mb"]) == ("c2", 7)


async def test_what_an_operator_writes_into_the_bucket_is_in_force_at_once(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    heard = await Heard.on(bus, "cache_event.config.>")
    async with running(bus, **OFF):
        version = await bus.bucket("config").put("cache.default", b'{"max_size_mb": 5}')
        event = await heard.next(CacheEvent)
        stats = await client.stats()
        await bus.bucket("config").delete("cache.default")
        await heard.next(CacheEvent)
        again = await client.stats()
        after = await lmcache.configure(max_size_mb=6)

    assert event.version == version
    assert (stats.limit_bytes, again.limit_bytes, after["max_size_mb"]) == (5 * MB, MB, 6)


HOSTILE = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\xff\xfe\x00", id="not text"),
    pytest.param(b"[" * 50_000, id="deep"),
    pytest.param(b'"enabled"', id="no object"),
    pytest.param(b'{"max_size_mb": -1}', id="a value against its rule"),
    pytest.param(b'{"eviction_policy": "of the future"}', id="a policy of the future"),
]


@pytest.mark.parametrize("record", HOSTILE)
async def test_a_bad_record_changes_nothing_and_health_says_so(
    bus: Bus, client: Client, lmcache: Lmcache, record: bytes
) -> None:
    async with running(bus, **OFF) as service:
        await lmcache.configure(max_size_mb=2)
        await bus.bucket("config").put("cache.default", record)
        await until(lambda: component(service, "default.configuration")[0] == "degraded")
        text = component(service, "default.configuration")[1]
        status = await lmcache.ask("status")
        await client.put("key", b"value")
        mended = await lmcache.configure(enable_sharing=False)
        state = component(service, "default.configuration")[0]

    assert "the last good one is in force" in text
    assert (status["metrics"]["status"], status["config"]["max_size_mb"]) == ("error", 2)
    assert (mended["max_size_mb"], mended["enable_sharing"]) == (2, False)
    assert state == "ok"


@pytest.mark.parametrize("record", HOSTILE)
async def test_a_bad_record_found_at_start_gives_way_to_the_last_good_one(
    bus: Bus, client: Client, lmcache: Lmcache, record: bytes
) -> None:
    async with running(bus, **OFF):
        await lmcache.configure(max_size_mb=2)
    await bus.bucket("config").put("cache.default", record)
    async with running(bus, **OFF) as service:
        config = await lmcache.ask("config")
        state = component(service, "default.configuration")[0]
        mended = await lmcache.configure(enable_sharing=False)

    assert (config["max_size_mb"], state) == (2, "degraded")
    assert (mended["max_size_mb"], mended["enable_sharing"]) == (2, False)


async def test_without_a_last_good_one_the_settings_are_in_force(
    bus: Bus, lmcache: Lmcache
) -> None:
    await bus.bucket("config").put("cache.default", b"{")
    await bus.bucket("state").put("cache.default.configuration", b"\xff")
    async with running(bus, max_memory_mb=3, **OFF):
        config = await lmcache.ask("config")

    assert config["max_size_mb"] == 3


async def test_fields_of_a_newer_release_do_nothing_are_told_and_stay(
    bus: Bus, lmcache: Lmcache
) -> None:
    record = b'{"max_size_mb": 2, "field_of_the_future": [1]}'
    await bus.bucket("config").put("cache.default", record)
    async with running(bus, **OFF) as service:
        status = await lmcache.ask("status")
        state = component(service, "default.configuration")
        await lmcache.configure(max_size_mb=3)
    stored = await bus.bucket("config").get("cache.default")

    assert (status["metrics"]["status"], status["config"]["max_size_mb"]) == ("enabled", 2)
    assert (state[0], "field_of_the_future" in state[1]) == ("degraded", True)
    assert stored is not None
    assert msgspec.json.decode(stored[0]) == {"max_size_mb": 3, "field_of_the_future": [1]}


async def test_the_record_of_an_older_release_with_fewer_fields_is_read(
    bus: Bus, lmcache: Lmcache
) -> None:
    await bus.bucket("config").put("cache.default", b'{"enabled": true}')
    async with running(bus, **OFF) as service:
        config = await lmcache.ask("config")
        state = component(service, "default.configuration")[0]

    assert (config["enabled"], config["max_concurrent_users"], state) == (True, 100, "ok")
