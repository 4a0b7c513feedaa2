"""Who serves a namespace: one owner, standby, take-over, versions that never repeat."""

import asyncio

import pytest

from agent.bus import Bus, connect
from agent.bus.lease import BucketLease
from cache.pump import Pump
from schemas.protocols import RequestError
from tests.support.cache_service import Client, component, running
from tests.support.evictions import ManualClock
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


async def test_one_of_two_serves_and_the_other_takes_over_empty_when_it_stops(
    bus: Bus, client: Client
) -> None:
    async with running(bus, instance="c1") as first, running(bus, instance="c2") as second:
        version = await client.put("key", b"value")
        owners = (first.is_owner("default"), second.is_owner("default"))
        standby = component(second, "default.lease")
        stopping = asyncio.create_task(first.__aexit__(None, None, None))
        await until(lambda: second.is_owner("default"), seconds=5)
        await stopping
        value = await client.get("key")
        stats = await client.stats()
        newer = await client.put("key", b"value")

    assert owners == (True, False)
    assert standby == ("ok", "standby")
    assert value is None
    assert stats.instance == "c2"
    assert newer > version


async def test_a_standby_serves_within_10_seconds_of_its_owners_death(
    nats_url: str, bus: Bus, client: Client
) -> None:
    dying = await connect(nats_url, name="dying")
    async with running(dying, instance="c1"), running(bus, instance="c2") as second:
        await client.put("key", b"value")
        await dying.close()
        await until(lambda: second.is_owner("default"), seconds=10)
        value = await client.get("key")

    assert value is None


async def test_an_owner_whose_lease_is_taken_stops_serving(
    bus: Bus, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.lease.RENEW_SECONDS", 0.1)
    async with running(bus) as service:
        await client.put("key", b"value")
        await bus.bucket("lease").put("cache.default", b"somebody else")
        await until(lambda: not service.is_owner("default"), seconds=5)
        with pytest.raises(RequestError) as refused:
            await client.get("key")
        await until(lambda: component(service, "default.lease") == ("ok", "standby"))

    assert refused.value.code == 503


async def test_an_owner_in_doubt_answers_503_even_before_it_stops_serving(
    bus: Bus, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.lease.RENEW_SECONDS", 0.1)
    monkeypatch.setattr("agent.bus.lease.BucketLease.wait_lost", notice_nothing)
    async with running(bus) as service:
        await client.put("key", b"value")
        await bus.bucket("lease").put("cache.default", b"somebody else")
        await until_async(lambda: refuses(client, "get", b"key"))
        refused = {
            operation: await refuses(client, operation, payload)
            for operation, payload in [
                ("put", b""),
                ("delete", b"key"),
                ("delete", b'{"tag": "t"}'),
                ("exists", b"key"),
                ("meta", b"key"),
                ("match", b'["key"]'),
                ("mget", b'["key"]'),
                ("mput", b"[]\n"),
                ("keys", b""),
                ("warm", b""),
                ("stats", b""),
                ("clear", b""),
            ]
        }
        still_serving = service.is_owner("default")

    assert {operation for operation, is_refused in refused.items() if not is_refused} == set()
    assert still_serving


async def notice_nothing(_lease: BucketLease) -> None:
    await asyncio.Event().wait()


async def test_a_pump_that_ends_ends_the_ownership(
    bus: Bus, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def see_the_lease_lost(pump: Pump) -> None:
        await may_end.wait()

    may_end = asyncio.Event()
    monkeypatch.setattr(Pump, "run", see_the_lease_lost)
    async with running(bus, drain_timeout_seconds=0.05) as service:
        await client.stats()
        may_end.set()

        await until(lambda: not service.is_owner("default"), seconds=5)


async def refuses(client: Client, operation: str, payload: bytes) -> bool:
    try:
        await client.ask(operation, payload, Fleet_Key="key")
    except RequestError as error:
        return error.code == 503 and "does not own namespace default" in error.text
    return False


async def test_versions_grow_over_restarts_even_when_the_clock_steps_back(
    bus: Bus, client: Client
) -> None:
    clock = ManualClock()
    versions = []
    for step_seconds in (0, -3600, 0, 7200):
        clock.advance(step_seconds)
        async with running(bus, clock=clock):
            versions += [await client.put("key", b"1"), await client.put("key", b"2")]

    assert versions == sorted(set(versions))


async def test_the_generation_outlives_a_restart(bus: Bus, client: Client) -> None:
    async with running(bus):
        cleared = await client.clear()
    async with running(bus):
        stats = await client.stats()

    assert stats.generation == cleared.generation


async def test_running_without_archive_leaves_what_was_archived_behind(
    bus: Bus, client: Client
) -> None:
    async with running(bus):
        before = await client.stats()
    async with running(bus, archive_mode="off"):
        without = await client.stats()

    assert without.generation == before.generation + 1


async def test_an_unreadable_record_keeps_the_namespace_from_being_served(
    bus: Bus, client: Client
) -> None:
    await bus.bucket("state").put("cache.default", b"not json")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1), running(bus) as service:
            pass

    async with running(bus, namespaces=["other"]) as service:
        assert service.is_owner("other")
    with pytest.raises(RequestError, match="503"):
        await client.get("key")


async def test_another_owner_that_took_over_is_not_overwritten_by_a_clear(
    bus: Bus, client: Client
) -> None:
    record = b'{"epoch_ms": 99999999999999, "generation": 7}'
    async with running(bus):
        await bus.bucket("state").put("cache.default", record)
        with pytest.raises(RequestError, match="503 nothing is cleared"):
            await client.clear()
        found = await bus.bucket("state").get("cache.default")

    assert found is not None
    assert found[0] == record


async def test_a_clear_succeeds_after_one_whose_acknowledgement_was_lost(
    bus: Bus, client: Client
) -> None:
    state = bus.bucket("state")
    async with running(bus):
        found = await state.get("cache.default")
        assert found is not None
        raised = found[0].replace(b'"generation":1', b'"generation":2')
        await state.put("cache.default", raised)
        cleared = await client.clear()

    assert cleared.generation == 3
