"""Who is there and how they are: names, heartbeats, and the health of the installation."""

import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from agent.bus import Bus, connect
from agent.doctor import check_services
from agent.health import NAMES
from agent.identity import Identity
from agent.instance import WORDS_SECONDS, HealthSettings, Instance
from agent.registry import NameTakenError, Registration, RegistryView
from schemas.api import HealthReply
from schemas.lifecycle import (
    ROLES,
    Component,
    ComponentState,
    Deregistered,
    Heartbeat,
    InstanceRecord,
    Registered,
    Role,
)
from schemas.protocols import RequestError
from schemas.units import SECOND_NS, instant
from tests.support.server import NatsServer
from tests.support.waiting import until, until_async

HERE = Identity(machine="gpu-1 (machine aaaa)", folder="folder-1", boot="boot-1", pid=11)
THERE = Identity(machine="gpu-2 (machine bbbb)", folder="folder-2", boot="boot-2", pid=22)
QUICK = HealthSettings(heartbeat_seconds=0.2, probe_seconds=0.05, expected_roles=("cache",))
SELDOM = HealthSettings(heartbeat_seconds=30.0, probe_seconds=0.05, expected_roles=("cache",))


class Time:
    """A wall clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def __call__(self) -> int:
        return time.time_ns() + int(self.ahead_seconds * SECOND_NS)


def instance(
    bus: Bus,
    role: Role = "cache",
    name: str = "c1",
    *,
    identity: Identity = HERE,
    settings: HealthSettings = QUICK,
    **more: Any,
) -> Instance:
    return Instance(
        bus, role=role, name=name, node="gpu-1", identity=identity, settings=settings, **more
    )


def a_record(identity: Identity, *, name: str = "c1", age_seconds: float = 0.0) -> InstanceRecord:
    beaten = instant(time.time_ns() - int(age_seconds * SECOND_NS))
    return InstanceRecord(
        role="cache",
        instance=name,
        node="gpu-1",
        machine=identity.machine,
        identity=identity.folder,
        boot=identity.boot,
        pid=identity.pid,
        version="0",
        started_at=beaten,
        heartbeat_at=beaten,
        heartbeat_seconds=1.0,
        ready=True,
    )


async def stored(bus: Bus, key: str = "cache.c1") -> InstanceRecord | None:
    found = await bus.bucket("registry").get(key)
    return None if found is None else msgspec.json.decode(found[0], type=InstanceRecord)


async def health(bus: Bus, name: str = "detailed") -> HealthReply:
    answer = await bus.request(f"api.health.{name}", timeout_seconds=2)
    return msgspec.json.decode(answer.payload, type=HealthReply)


@pytest.fixture
async def another(nats_url: str) -> AsyncIterator[Bus]:
    """A second connection, as another service has one."""
    async with await connect(nats_url, name="another") as connected:
        yield connected


# --- names ---------------------------------------------------------------------------------------


async def test_a_name_in_use_elsewhere_is_refused_and_both_are_named(bus: Bus) -> None:
    await Registration(bus, time.time_ns).register(a_record(HERE))

    with pytest.raises(NameTakenError) as refused:
        await Registration(bus, time.time_ns).register(a_record(THERE))

    for word in ("c1", HERE.machine, HERE.folder, "11", THERE.machine, THERE.folder, "--node"):
        assert word in str(refused.value)
    there = await stored(bus)
    assert there is not None
    assert there.machine == HERE.machine


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(
            msgspec.structs.replace(HERE, folder="folder-9"), id="same-machine-other-folder"
        ),
        pytest.param(
            msgspec.structs.replace(HERE, machine="gpu-9 (machine 9999)"),
            id="copied-folder-other-machine",
        ),
    ],
)
async def test_half_the_same_place_is_not_the_same_place(bus: Bus, identity: Identity) -> None:
    await Registration(bus, time.time_ns).register(a_record(HERE))

    with pytest.raises(NameTakenError):
        await Registration(bus, time.time_ns).register(a_record(identity))


async def test_a_restart_on_the_same_machine_and_folder_takes_its_name_over(bus: Bus) -> None:
    await Registration(bus, time.time_ns).register(a_record(HERE))

    restarted = msgspec.structs.replace(HERE, boot="boot-9", pid=99)
    await Registration(bus, time.time_ns).register(a_record(restarted))

    there = await stored(bus)
    assert there is not None
    assert (there.boot, there.pid) == ("boot-9", 99)


@pytest.mark.parametrize(
    ("age_seconds", "free"),
    [
        # A heartbeat a second: two may be missing.
        pytest.param(1.5, False, id="one-missing"),
        pytest.param(2.5, True, id="two-missing"),
    ],
)
async def test_a_name_is_free_when_two_heartbeats_are_missing(
    bus: Bus, age_seconds: float, free: bool
) -> None:
    await bus.bucket("registry").put(
        "cache.c1", msgspec.json.encode(a_record(THERE, age_seconds=age_seconds))
    )

    with contextlib.nullcontext() if free else pytest.raises(NameTakenError):
        await Registration(bus, time.time_ns).register(a_record(HERE))


async def test_a_record_that_nobody_can_read_does_not_block_its_name(bus: Bus) -> None:
    await bus.bucket("registry").put("cache.c1", b"not a record")

    await Registration(bus, time.time_ns).register(a_record(HERE))

    assert await stored(bus) is not None


async def test_two_that_take_a_name_at_once_do_not_both_get_it(bus: Bus, another: Bus) -> None:
    first, second = (instance(bus), instance(another, identity=THERE))

    async with first:
        with pytest.raises(NameTakenError):
            await second.__aenter__()


async def test_who_loses_the_name_says_so_and_leaves_the_new_owner_alone(bus: Bus) -> None:
    async with instance(bus) as loser:
        await bus.bucket("registry").put("cache.c1", msgspec.json.encode(a_record(THERE)))
        await until(loser.lost_name.is_set)

    there = await stored(bus)
    assert there is not None
    assert there.machine == THERE.machine


async def test_a_record_that_expired_meanwhile_is_written_anew(bus: Bus) -> None:
    async with instance(bus):
        await bus.bucket("registry").delete("cache.c1")

        async def is_back() -> bool:
            return await stored(bus) is not None

        await until_async(is_back)


# --- what is said --------------------------------------------------------------------------------


async def test_coming_beating_and_leaving_are_announced(bus: Bus, another: Bus) -> None:
    heard: list[tuple[str, bytes]] = []
    await another.subscribe("service.>", lambda subject, payload: heard.append((subject, payload)))

    async with instance(bus) as service:
        await service.ready()
        await until(lambda: sum(".heartbeat." in subject for subject, _ in heard) >= 3)
    await until(lambda: ".deregistered." in heard[-1][0])

    assert heard[0][0] == "service.registered.cache.c1"
    assert msgspec.json.decode(heard[0][1], type=Registered).record.ready is False
    assert heard[1][0] == "service.heartbeat.cache.c1"
    assert msgspec.json.decode(heard[1][1], type=Heartbeat).record.ready is True
    assert msgspec.json.decode(heard[-1][1], type=Deregistered).reason == "stopped"


async def test_a_heartbeat_carries_what_is_known_of_the_service(bus: Bus, another: Bus) -> None:
    part = Component(name="store", state="degraded", text="slow", probed_at=instant(1))
    beats: list[Heartbeat] = []
    await another.subscribe(
        "service.heartbeat.>",
        lambda subject, payload: beats.append(msgspec.json.decode(payload, type=Heartbeat)),
    )
    bus.counters["bad_messages_total"] = 7

    async with instance(
        bus,
        components=lambda: [part],
        counters=lambda: {"evictions_total": 3.0},
        labels={"pool": "a"},
    ) as service:
        await service.ready()
        await until(lambda: len(beats) >= 2)
        kept = await stored(bus)

    record = beats[0].record
    assert (record.role, record.instance, record.node) == ("cache", "c1", "gpu-1")
    assert (record.machine, record.identity, record.boot, record.pid) == (
        HERE.machine, HERE.folder, HERE.boot, HERE.pid,
    )  # fmt: skip
    assert record.heartbeat_seconds == 0.2
    counted = {name: count for name, count in record.counters.items() if count}
    assert counted == {"bus_bad_messages_total": 7.0, "evictions_total": 3.0}
    assert record.labels == {"pool": "a"}
    assert [(c.name, c.state) for c in record.components] == [("bus", "ok"), ("store", "degraded")]
    assert beats[1].record.heartbeat_at > record.heartbeat_at >= record.started_at
    assert "round trip" in beats[1].record.components[0].text
    assert kept is not None
    assert kept.boot == HERE.boot


async def test_a_part_that_turns_bad_is_seen_at_once_not_at_the_next_heartbeat(
    bus: Bus, another: Bus
) -> None:
    state: ComponentState = "ok"

    def parts() -> Sequence[Component]:
        return [Component(name="store", state=state, text="disk full", probed_at=instant(1))]

    async with instance(bus, settings=SELDOM, components=parts) as service:
        await service.ready()
        assert (await health(another)).status == "healthy"

        state = "failed"

        async def is_critical() -> bool:
            return (await health(another)).status == "critical"

        await until_async(is_critical, seconds=20)
        (role,) = (await health(another)).roles
        assert role.text == "c1: store failed (disk full)"
        doubts = await check_services(another)
        assert (doubts[0].ok, doubts[0].text) == (False, f"cache: {role.text}")
        state = "degraded"

        async def is_degraded() -> bool:
            return (await health(another)).status == "degraded"

        await until_async(is_degraded, seconds=20)
        (role,) = (await health(another)).roles
        assert role.text == "c1: store degraded (disk full)"


async def test_a_part_that_cannot_tell_its_state_at_first_does_not_stop_the_heart(
    bus: Bus, another: Bus
) -> None:
    looks = 0

    def parts() -> Sequence[Component]:
        nonlocal looks
        looks += 1
        if looks < 5:
            raise AttributeError("not started yet")
        return [Component(name="store", state="ok", text="here", probed_at=instant(1))]

    async with instance(bus, settings=SELDOM) as service:
        service.watch(parts, dict)

        async def is_told() -> bool:
            (one,) = (await health(another)).instances
            return [part.name for part in one.record.components] == ["bus", "store"]

        await until_async(is_told, seconds=20)


async def test_new_words_of_a_part_are_told_soon_though_its_state_is_the_same(
    bus: Bus, another: Bus
) -> None:
    text = "not scraped yet"

    def parts() -> Sequence[Component]:
        return [Component(name="engine", state="ok", text=text, probed_at=instant(1))]

    async with instance(bus, settings=SELDOM, components=parts) as service:
        await service.ready()
        text = "vllm: 3 reporting"

        async def is_told() -> bool:
            (one,) = (await health(another)).instances
            return one.record.components[1].text == text

        await until_async(is_told, seconds=20)  # the next heartbeat is due after 30


async def test_numbers_in_a_text_wait_for_the_next_heartbeat(bus: Bus, another: Bus) -> None:
    beats: list[str] = []
    await another.subscribe("service.heartbeat.>", lambda subject, _: beats.append(subject))
    looks = 0

    def parts() -> Sequence[Component]:
        nonlocal looks
        looks += 1
        text = f"{looks} events wait, 1.{looks} of them long"
        return [Component(name="publishing", state="ok", text=text, probed_at=instant(1))]

    async with instance(bus, settings=SELDOM, components=parts) as service:
        await service.ready()
        await until(lambda: looks > 50)
        await another.round_trip_seconds(20.0)

    assert len(beats) <= 2  # ready, and the bus that was measured for the first time


async def test_words_that_change_all_the_time_bring_no_storm_of_heartbeats(
    bus: Bus, another: Bus
) -> None:
    heard: list[float] = []
    await another.subscribe("service.heartbeat.>", lambda *_: heard.append(time.monotonic()))
    words = itertools.cycle(("red", "green"))

    def parts() -> Sequence[Component]:
        return [Component(name="engine", state="ok", text=next(words), probed_at=instant(1))]

    async with instance(bus, settings=SELDOM, components=parts):
        started = time.monotonic()
        await until(lambda: len(heard) >= 3)

    assert heard[2] - started > 2 * WORDS_SECONDS


async def test_a_heart_beats_on_after_the_server_was_away(bus: Bus, nats: NatsServer) -> None:
    async with instance(bus) as service:
        nats.kill()
        await until(lambda: service.record().components[0].state == "failed")
        nats.start()
        await until(lambda: service.record().components[0].state == "ok")
        back_at = service.record().heartbeat_at

        async def has_beaten() -> bool:
            record = await stored(bus)
            return record is not None and record.heartbeat_at > back_at

        await until_async(has_beaten)


# --- the installation ----------------------------------------------------------------------------


async def test_a_silent_instance_has_failed_after_two_missing_heartbeats(
    bus: Bus, another: Bus
) -> None:
    clock = Time()
    await Registration(bus, time.time_ns).register(a_record(THERE, name="silent"))

    async with instance(another, "agent", "watcher", clock=clock) as watcher:
        await until(lambda: "cache.silent" in watcher.registry.records())
        before = await health(bus)
        clock.ahead_seconds = 2.5  # it beats once a second
        after = await health(bus)
        clock.ahead_seconds = 95.0  # longer than the bucket keeps it
        gone = await health(bus)

    def one(reply: HealthReply) -> tuple[bool, str, str]:
        (found,) = [i for i in reply.instances if i.instance == "silent"]
        return found.ready, found.state, reply.status

    assert one(before) == (True, "ok", "healthy")
    assert one(after) == (False, "failed", "critical")
    assert after.ready is False
    assert [role.text for role in gone.roles if role.role == "cache"] == ["no cache is registered"]


async def test_the_installation_is_ready_when_every_expected_role_is(
    bus: Bus, another: Bus
) -> None:
    settings = msgspec.structs.replace(SELDOM, expected_roles=ROLES)
    seen: list[tuple[str, bool, str]] = []

    async with contextlib.AsyncExitStack() as stack:
        for role in ROLES:
            service = await stack.enter_async_context(
                instance(bus, role, f"{role}-1", settings=settings)
            )
            unready = await health(another)
            await service.ready()

            def knows(name: str = f"{role}.{role}-1", service: Instance = service) -> bool:
                record = service.registry.records().get(name)
                return record is not None and record.ready

            await until(knows)
            seen.append((role, unready.ready, unready.status))
        reply = await _agreed(another)

    assert seen == [(role, False, "critical") for role in ROLES]
    assert (reply.ready, reply.status, reply.live) == (True, "healthy", True)
    assert [(r.role, r.expected, r.instances) for r in reply.roles] == [(r, True, 1) for r in ROLES]


async def _agreed(bus: Bus) -> HealthReply:
    """The answer once every member of the queue group has heard of all: each may be asked."""
    replies: list[HealthReply] = []

    async def all_ready() -> bool:
        replies[:] = [await health(bus) for _ in range(20)]
        return all(reply.ready for reply in replies)

    await until_async(all_ready)
    return replies[-1]


@pytest.mark.parametrize("name", NAMES)
async def test_each_health_name_answers_for_all_and_for_one(
    bus: Bus, another: Bus, name: str
) -> None:
    async with instance(bus) as service:
        await service.ready()
        await until(lambda: any(r.ready for r in service.registry.records().values()))
        whole = await health(another, name)
        one = await health(another, f"{name}.cache.c1")
        with pytest.raises(RequestError, match="nobody serves"):
            await health(another, f"{name}.cache.c2")

    for reply in (whole, one):
        assert (reply.status, reply.ready, reply.answered_by) == ("healthy", True, "cache.c1")
        assert [r.role for r in reply.roles] == (
            ["cache"] if name in ("basic", "ready", "detailed") else []
        )
        assert [i.instance for i in reply.instances] == (["c1"] if name == "detailed" else [])


async def test_one_instance_answers_for_itself_with_fresh_values(bus: Bus, another: Bus) -> None:
    state: ComponentState = "ok"

    def parts() -> Sequence[Component]:
        return [Component(name="store", state=state, probed_at=instant(1))]

    never = msgspec.structs.replace(SELDOM, probe_seconds=30.0)
    async with instance(bus, settings=never, components=parts) as service:
        await service.ready()
        state = "failed"

        reply = await health(another, "detailed.cache.c1")

    assert reply.status == "critical"
    assert reply.instances[0].record.components[1].state == "failed"


async def test_every_counter_stands_in_the_statistics_of_the_service(
    bus: Bus, another: Bus
) -> None:
    async with instance(bus, counters=lambda: {"lost_total": 3.0}) as service:
        bus.counters["bad_messages_total"] += 1

        answer = await another.request_absolute("$SRV.STATS.fleet-cache", timeout_seconds=20)

        counters = service.record().counters
    endpoints = {e["name"]: e["data"] for e in msgspec.json.decode(answer.payload)["endpoints"]}
    assert endpoints["health-detailed-here"]["counters"] == counters
    assert counters["lost_total"] == 3.0
    assert counters["bus_bad_messages_total"] == 1.0


async def test_health_asked_wrongly_names_the_field(bus: Bus, another: Bus) -> None:
    async with instance(bus):
        with pytest.raises(RequestError, match="verbose") as refused:
            await another.request("api.health.root", b'{"verbose": true}', timeout_seconds=2)

    assert refused.value.code == 400


async def test_discovery_shows_the_service_with_its_place(bus: Bus, another: Bus) -> None:
    async with instance(bus):
        answer = await another.request_absolute("$SRV.INFO.fleet-cache", timeout_seconds=2)

    info = msgspec.json.decode(answer.payload)
    assert info["metadata"] == {"instance": "c1", "node": "gpu-1", "boot": "boot-1"}
    assert info["description"] == Instance.DESCRIPTIONS["cache"]
    subjects = {endpoint["subject"]: endpoint["queue_group"] for endpoint in info["endpoints"]}
    assert subjects["fleet.v1.api.health.ready"] == "health"
    assert subjects["fleet.v1.api.health.ready.cache.c1"] == "fleet-cache"


async def test_who_left_is_gone_from_registry_health_and_discovery(bus: Bus, another: Bus) -> None:
    view = RegistryView(another, time.time_ns)
    await view.open()

    async with instance(bus):
        await until(lambda: "cache.c1" in view.records())
        assert await another.gather("$SRV.PING", wait_seconds=0.1) != []

    await until(lambda: not view.records())
    await view.close()
    assert await stored(another) is None
    assert await another.gather("$SRV.PING", wait_seconds=0.1) == []
    with pytest.raises(RequestError, match="nobody serves"):
        await health(another)


# --- the view ------------------------------------------------------------------------------------


async def test_a_view_opened_late_knows_who_is_there_and_counts_the_live(bus: Bus) -> None:
    registry = bus.bucket("registry")
    for name, age_seconds in (("live", 0.0), ("late", 1.5), ("dead", 2.5)):
        record = a_record(HERE, name=name, age_seconds=age_seconds)
        await registry.put(f"cache.{name}", msgspec.json.encode(record))
    await registry.put("cache.broken", b"{")
    view = RegistryView(bus, time.time_ns)

    await view.open()
    await until(lambda: len(view.records()) == 3 and bus.counters["bad_messages_total"] == 1)
    live = view.count_live("cache"), view.count_live("agent")
    await view.close()

    assert live == (2, 0)


async def test_a_view_sees_changes_after_the_servers_return(bus: Bus, nats: NatsServer) -> None:
    view = RegistryView(bus, time.time_ns)
    await view.open()
    nats.kill()
    nats.start()
    await until(lambda: bus.counters["reconnects_total"] == 1)

    await Registration(bus, time.time_ns).register(a_record(HERE))
    await until(lambda: list(view.records()) == ["cache.c1"])

    await view.close()
