"""What is said where nobody serves a namespace of the cache, by what health knows."""

from collections.abc import Mapping, Sequence

import pytest

from agent.bus import Bus
from agent.client import CacheClient, ResourceAgent
from agent.identity import Identity
from agent.instance import HealthSettings, Instance
from agent.namespaces import explained
from schemas.lifecycle import Component, ComponentState
from schemas.protocols import RequestError
from schemas.units import instant
from tests.support.cache_service import running

pytestmark = pytest.mark.bus

HERE = Identity(machine="gpu-1 (machine aaaa)", folder="folder-1", boot="boot-1", pid=11)
QUICK = HealthSettings(heartbeat_seconds=0.2, probe_seconds=0.05, expected_roles=("cache",))
Leases = Mapping[str, tuple[ComponentState, str]]


def cache(bus: Bus, leases: Leases) -> Instance:
    """A cache that says this of its namespaces, and serves none."""

    def parts() -> Sequence[Component]:
        return [
            Component(name="same_host", state="ok", text="no files", probed_at=instant(1)),
            *(
                Component(name=f"{name}.lease", state=state, text=text, probed_at=instant(1))
                for name, (state, text) in leases.items()
            ),
        ]

    return Instance(
        bus,
        role="cache",
        name="c1",
        node="gpu-1",
        identity=HERE,
        settings=QUICK,
        components=parts,
    )


async def refused(bus: Bus, namespace: str) -> RequestError:
    with pytest.raises(RequestError) as refusal:
        await CacheClient(bus, namespace=namespace).get("k")
    return refusal.value


@pytest.mark.parametrize(
    ("leases", "said"),
    [
        ({}, "no cache has namespace chat: none has any"),
        ({"chats": ("ok", "owner")}, "no cache has namespace chat: do you mean chats?"),
        ({"b": ("ok", "owner"), "a": ("ok", "x")}, "no cache has namespace chat; there are a, b"),
        ({"chat": ("failed", "no lease")}, "ago: failed (no lease)"),
        ({"chat": ("ok", "standby")}, "ago: ok (standby)"),
        ({f"n{number:02}": ("ok", "owner") for number in range(11)}, "n08, n09, …"),
    ],
    ids=["none", "near", "others", "failed", "standby", "many"],
)
async def test_who_there_is_is_told(bus: Bus, leases: Leases, said: str) -> None:
    async with cache(bus, leases) as there:
        await there.ready()
        error = await explained(bus, "chat", await refused(bus, "chat"))

    assert error.code == 503
    assert error.text.startswith("nobody serves fleet.v1.cache.chat.get; ")
    assert said in error.text
    assert ("cache c1, heard " in error.text) == ("chat" in leases)


async def test_where_no_cache_is_there_it_says_how_to_start_one(bus: Bus) -> None:
    settings = HealthSettings(heartbeat_seconds=0.2, probe_seconds=0.05, expected_roles=())
    async with Instance(
        bus, role="agent", name="a1", node="gpu-1", identity=HERE, settings=settings
    ) as other:
        await other.ready()
        error = await explained(bus, "chat", await refused(bus, "chat"))

    assert "no cache is there: start `resource-agent up`, or `run cache`" in error.text


async def test_where_health_does_not_answer_nothing_is_added(bus: Bus) -> None:
    error = await refused(bus, "chat")

    assert await explained(bus, "chat", error) is error


async def test_another_error_is_left_as_it_is(bus: Bus) -> None:
    async with running(bus, archive_mode="off"):
        with pytest.raises(RequestError) as refusal:
            await ResourceAgent(bus).configure_lmcache({"max_size_mb": -1})
        error = refusal.value

        assert await explained(bus, "default", error) is error
