"""Hot keys over a restart: remembered, archived at stop, brought back at start."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from cache.service import CacheService
from tests.support.archive_service import archiving
from tests.support.cache_service import Client, running, synced
from tests.support.lmcache import Lmcache
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus
WARM: dict[str, Any] = {"drain_timeout_seconds": 20.0}


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


@pytest.fixture
def lmcache(bus: Bus) -> Lmcache:
    return Lmcache(bus)


@contextlib.asynccontextmanager
async def warm(bus: Bus, lmcache: Lmcache, **settings: Any) -> AsyncIterator[CacheService]:
    async with running(bus, **{**WARM, **settings}) as service:
        await synced(service)
        await lmcache.configure(cache_warmup=True)
        yield service


async def is_warm(lmcache: Lmcache) -> bool:
    return bool((await lmcache.ask("metrics"))["status"] == "enabled")


async def hot_keys(bus: Bus) -> list[str] | None:
    found = await bus.bucket("state").get("cache.default.hot")
    return None if found is None else msgspec.json.decode(found[0], type=list[str])


async def test_what_was_read_is_back_in_ram_after_a_restart(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path):
        async with warm(bus, lmcache):
            for key in ("hottest", "hot", "unread"):
                await client.put(key, key.encode())
            for key in ("hottest", "hottest", "hot"):
                await client.get(key)
        remembered = await hot_keys(bus)
        async with running(bus, **WARM):
            await until_async(lambda: is_warm(lmcache))
            metas = [await client.meta(key) for key in ("hottest", "hot", "unread")]
            value = await client.get("hottest", Fleet_No_Restore="1")

    assert remembered == ["hottest", "hot"]
    assert [meta.where for meta in metas] == ["ram", "ram", None]
    assert value == b"hottest"


async def test_without_warmup_nothing_is_remembered_or_brought_back(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path):
        async with running(bus, **WARM) as service:
            await synced(service)
            await client.put("key", b"value")
            await client.get("key")
        async with running(bus, **WARM) as service:
            await synced(service)
            state = (await lmcache.ask("metrics"))["status"]
            stats = await client.stats()

    assert await hot_keys(bus) is None
    assert (state, stats.total_entries, stats.restores) == ("enabled", 0, 0)


async def test_warming_up_stops_before_it_would_evict(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path):
        async with warm(bus, lmcache, max_memory_mb=4):
            for number in range(30):
                await client.put(f"key-{number}", bytes(100_000))
                await client.get(f"key-{number}")
            await lmcache.configure(max_size_mb=1)
        async with running(bus, **WARM):
            await until_async(lambda: is_warm(lmcache))
            stats = await client.stats()

    assert 0.9 * stats.limit_bytes - 100_000 < stats.used_bytes <= stats.limit_bytes
    assert stats.evictions == 0


async def test_the_list_is_saved_while_the_cache_runs(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.warmup.SAVE_SECONDS", 0.05)
    async with archiving(bus, tmp_path), warm(bus, lmcache):
        await client.put("key", b"value")
        await client.get("key")
        await until_async(lambda: is_remembered(bus))


async def is_remembered(bus: Bus) -> bool:
    return await hot_keys(bus) == ["key"]


async def test_no_list_is_longer_than_a_message_should_be(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.warmup.MAX_SAVED_CHARACTERS", 25)
    async with archiving(bus, tmp_path), warm(bus, lmcache):
        for letter in "abcd":
            await client.put(letter * 10, b"value")
            await client.get(letter * 10)

    assert len(await hot_keys(bus) or []) == 2


@pytest.mark.parametrize("record", [b"", b"\xff", b"{}", b"[1]", b"[" * 50_000, b'["absent", ""]'])
async def test_a_bad_list_harms_nothing(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path, record: bytes
) -> None:
    await bus.bucket("config").put("cache.default", b'{"cache_warmup": true}')
    await bus.bucket("state").put("cache.default.hot", record)
    async with archiving(bus, tmp_path), running(bus, **WARM):
        await until_async(lambda: is_warm(lmcache))
        await client.put("key", b"value")
        value = await client.get("key")

    assert value == b"value"


async def test_an_archive_that_is_away_leaves_the_cache_initializing_and_serving(
    bus: Bus, client: Client, lmcache: Lmcache, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path):
        async with warm(bus, lmcache) as service:
            await client.put("key", b"value")
            await client.get("key")
        await until(lambda: True)
    async with running(bus, **WARM) as service:
        while_away = (await lmcache.ask("metrics"))["status"]
        await client.put("other", b"value")
        value = await client.get("other")
        async with archiving(bus, tmp_path):
            await until_async(lambda: is_warm(lmcache))
            await synced(service)

    assert (while_away, value) == ("initializing", b"value")
