"""The typed client against the real services on a real bus."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg

from agent.assembly import Place, Simulation
from agent.client import CacheClient, ResourceAgent
from agent.identity import Identity
from agent.runner import StopRequest, running
from agent.settings import AgentSettings, Settings
from schemas.lifecycle import ROLES
from schemas.protocols import RequestError
from schemas.units import token
from tests.support.waiting import until_async

NAME = "team a/1"


async def test_without_an_address_the_running_up_is_found_with_its_rights(
    nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"nats_url": nats_url, "pid": os.getpid()}))
    monkeypatch.delenv("NATS_URL", raising=False)
    monkeypatch.setenv("RESOURCE_AGENT_STATE_DIR", str(tmp_path))

    async with await CacheClient.connect() as client:
        with pytest.raises(RequestError, match="nobody serves"):
            await client.exists("key")


@pytest.fixture
async def fleet(nats_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """Every service in this process, with two simulated GPUs; gives the server's URL."""
    place = Place(
        settings=Settings(
            state_dir=str(tmp_path / "state"),
            node="n1",
            agent=AgentSettings(interval_seconds=0.2),
        ),
        identity=Identity(machine="m", folder="f", boot="b", pid=1),
        instance="n1",
        simulation=Simulation(gpus="2xH100"),
    )
    async with running(nats_url, ROLES, place, StopRequest()):
        yield nats_url


async def test_the_cache_is_looked_at_configured_optimized_and_cleared(fleet: str) -> None:
    async with (
        await CacheClient.connect(fleet) as cache,
        await ResourceAgent.connect(fleet) as agent,
    ):
        await cache.put("key", b"value", prefix_tokens=64)
        await cache.get("key")
        status = await agent.lmcache_status(top=1)
        metrics = await agent.lmcache_metrics()
        config = await agent.configure_lmcache({"enable_sharing": False})
        shown = await agent.lmcache_config()
        mine, other = cache.of("default", client="me"), cache.of("default", client="other")
        await mine.put("key", b"mine")
        await mine.put("large", bytes(600_000))
        large = [len(await mine.get("large") or b""), await other.get("large")]
        values = [await mine.get("key"), await other.get("key")]
        deleted = await mine.delete("key")
        optimized = await agent.optimize_lmcache()
        cleared = await agent.clear_lmcache()

    assert [entry.entry_id for entry in status.top_entries] == ["key"]
    assert (metrics.tokens_served, metrics.cache_hits) == (64, 1)
    assert config == shown
    assert not config.enable_sharing
    assert values == [b"mine", None]
    assert large == [600_000, None]
    assert deleted.existed
    assert (optimized.success, optimized.entries_before) == (True, 2)
    assert cleared.entries == 2


async def test_metrics_health_and_history_have_types(fleet: str) -> None:
    async with await ResourceAgent.connect(fleet) as agent:

        async def has_gpus() -> bool:
            return len((await agent.get_gpu_metrics()).rows) == 2

        await until_async(has_gpus)
        gpus = await agent.get_gpu_metrics()
        memory = await agent.system("memory")
        fresh = await agent.system("all", fresh_from="n1")
        health = await agent.health()
        history = await agent.system_history(node="n1", seconds=60)
        gpu_history = await agent.gpu_history(seconds=60)
        engine_history = await agent.engine_history(node="n1", engine="e0", seconds=60)
        cache_history = await agent.cache_history(seconds=60)
        judged = await agent.analysis_history("waste", seconds=60)
        plans = await agent.get_consolidations("chat")

    assert all(row.simulated for row in gpus.rows)
    assert memory.rows[0].values["memory"]["total_bytes"] > 0
    assert fresh.rows[0].age_seconds < 2
    assert health.ready
    assert {one.role for one in health.instances} == set(ROLES)
    assert history.source == "metrics"
    assert history.samples
    assert (plans.rows, bool(plans.text)) == ([], True)
    assert len({sample.gpu for sample in gpu_history.samples}) == 2
    assert (engine_history.source, engine_history.samples) == ("metrics", [])
    assert {sample.namespace for sample in cache_history.samples} <= {"default"}
    assert (cache_history.source, judged.kind) == ("metrics", "waste")


async def test_refusals_name_what_is_wrong(fleet: str) -> None:
    async with await ResourceAgent.connect(fleet) as agent:
        with pytest.raises(RequestError) as unknown:
            await agent.system("cpu", node="nobody")
        with pytest.raises(RequestError) as absent:
            await agent.gpu("power", fresh_from="nobody")
        with pytest.raises(RequestError) as backwards:
            await agent.system_history(
                start=datetime(2026, 1, 2, tzinfo=UTC), end=datetime(2026, 1, 1, tzinfo=UTC)
            )

    assert (unknown.value.code, absent.value.code, backwards.value.code) == (404, 503, 400)
    assert "nobody" in unknown.value.text
    assert "start" in backwards.value.text


async def test_the_cache_gives_back_what_was_put(fleet: str) -> None:
    async with await CacheClient.connect(fleet) as client:
        missing = await client.get("k")
        version = await client.put(
            "k", b"\x00value", ttl_seconds=60, tags=["a,b", "ü"], meta={"model": "x y"}
        )
        value = await client.get("k")
        with pytest.raises(RequestError) as conflict:
            await client.put("k", b"2", version="000000000000-0000000000")
        newer = await client.put("k", b"2", version=version)
        deleted = await client.delete("k")
        gone = await client.get("k")

    assert missing is None
    assert value == b"\x00value"
    assert conflict.value.code == 409
    assert newer > version
    assert deleted.existed
    assert gone is None


async def test_what_is_too_large_is_refused_before_it_is_sent(fleet: str) -> None:
    async with await CacheClient.connect(fleet) as client:
        with pytest.raises(RequestError, match=r"413 .* 67108864 bytes"):
            await client.put("k", bytes(64 * 1024 * 1024 + 1))
        with pytest.raises(ValueError, match="10240"):
            await client.get("k" * 10241)
        with pytest.raises(ValueError, match="empty"):
            await client.get("")
        largest = bytes(512 * 1024)
        await client.put("k", largest)

        assert await client.get("k") == largest


async def test_leaving_drains_every_service(nats_url: str, tmp_path: Path) -> None:
    place = Place(
        settings=Settings(state_dir=str(tmp_path / "state"), node="n1"),
        identity=Identity(machine="m", folder="f", boot="b", pid=1),
        instance="n1",
    )
    async with asyncio.timeout(10):
        async with running(nats_url, ROLES, place, StopRequest()):
            pass
    async with await ResourceAgent.connect(nats_url) as agent:
        with pytest.raises(RequestError) as nobody:
            await agent.health()

    assert nobody.value.code == 503


async def test_pools_and_nodes_may_be_asked_for_as_the_settings_name_them(nats_url: str) -> None:
    """`api.` wants tokens; a setting `pool = "team a/1"` is one in every subject."""
    asked: list[dict[str, Any]] = []
    fake = await nats.connect(nats_url)

    async def refuse(message: Msg) -> None:
        asked.append(json.loads(message.data))
        headers = {"Nats-Service-Error-Code": "400", "Nats-Service-Error": "enough"}
        await fake.publish(message.reply, b"", headers=headers)

    await fake.subscribe("fleet.v1.api.>", cb=refuse)
    await fake.flush()
    async with await ResourceAgent.connect(nats_url) as agent:
        for call in (
            agent.gpu("metrics", pool=NAME),
            agent.insights(pool=NAME),
            agent.get_scaling_recommendations(NAME),
            agent.alerts(id=NAME, pool=NAME),
            agent.alert_history(id=NAME, pool=NAME),
        ):
            with pytest.raises(RequestError, match="enough"):
                await call
    await fake.close()

    assert [one["pool"] for one in asked] == [token(NAME)] * 5
    assert [one["id"] for one in asked if "id" in one] == [token(NAME)] * 2
