"""The examples run as they are, against real streams; the orchestrator survives kill -9."""

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus
from schemas.engines import EngineMetrics
from schemas.scaling import Decision, Execution
from tests.support.advice import advice, decision, tell, told
from tests.support.cache_service import running as running_cache
from tests.support.examples import example
from tests.support.executing import Pools, executing, serving
from tests.support.waiting import until, until_async

SECONDS = 20.0
ENDED = ("succeeded", "failed")
KILLS = 3


def with_user(url: str) -> str:
    """`url` with a user; a server without users takes any."""
    return url.replace("nats://", "nats://orchestrator:secret@")


async def ended(bus: Bus, count: int) -> list[Execution]:
    """The executions that have ended, once there are so many."""
    found: list[Execution] = []

    async def are_there() -> bool:
        found[:] = [one for one in await told(bus, Execution) if one.phase in ENDED]
        return len(found) >= count

    await until_async(are_there, seconds=60.0)
    return found


async def test_published_metrics_are_engine_metrics(bus: Bus, tmp_path: Path) -> None:
    heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    await bus.subscribe("metrics.>", lambda *message: heard.put_nowait(message))

    with example("publish_metrics", bus.url, tmp_path, "--pool", "chat", "--waiting", "7"):
        async with asyncio.timeout(SECONDS):
            subject, payload = await heard.get()

    metrics = msgspec.json.decode(payload, type=EngineMetrics)
    assert metrics.subject() == subject
    assert (metrics.pool, metrics.requests_waiting, metrics.simulated) == ("chat", 7, False)
    assert datetime.now(UTC) - metrics.observed_at < timedelta(seconds=10)


async def test_the_cache_client_puts_gets_and_deletes(bus: Bus, tmp_path: Path) -> None:
    async with running_cache(bus):
        with example("cache_client", bus.url, tmp_path) as client:
            out, err = await asyncio.to_thread(client.communicate, timeout=SECONDS)

    lines = out.decode().splitlines()
    assert client.returncode == 0, err.decode()
    assert [line.split()[0] for line in lines] == ["put", "get", "delete", "get"]
    assert "b'Paris.'" in lines[1]
    assert lines[2].endswith("existed: True")
    assert lines[3].split() == ["get", "None"]


async def test_the_orchestrator_decides_and_has_it_carried_out(bus: Bus, tmp_path: Path) -> None:
    pools = Pools(chat=2)
    await tell(bus, advice())

    async with serving(bus), executing(bus, pools):
        with example("orchestrator", with_user(bus.url), tmp_path, "--for-real"):
            (end,) = await ended(bus, 1)

    (decision,) = await told(bus, Decision)
    assert (decision.verdict, decision.decided_by) == ("accepted", "orchestrator:example")
    assert (end.phase, end.replicas_before, end.replicas_after) == ("succeeded", 2, 3)
    assert pools.replicas == {"chat": 3}


async def test_the_orchestrator_does_a_dry_run_once_unless_told_otherwise(
    bus: Bus, tmp_path: Path
) -> None:
    pools = Pools(chat=2, code=2)
    await tell(bus, advice())

    async with serving(bus), executing(bus, pools):
        with example("orchestrator", with_user(bus.url), tmp_path):
            await ended(bus, 1)
            await tell(bus, advice(2, pool="code"))  # of a later look
            ends = await ended(bus, 2)

    assert [(end.pool, end.dry_run) for end in ends] == [("chat", True), ("code", True)]
    assert pools.scaled == []


async def test_the_orchestrator_leaves_to_people_what_it_is_not_for(
    bus: Bus, tmp_path: Path
) -> None:
    pools = Pools(simulated=2, thin=2, rejected=2, chat=2)
    thin, risky = advice(2, pool="thin", confidence_ratio=0.4), advice(3, pool="risky", risk="high")
    theirs = advice(4, pool="rejected")
    await tell(bus, advice(), advice(1, pool="simulated", simulated=True), thin, risky, theirs)
    no = decision(theirs, "rejected")
    await tell(bus, no)

    async with serving(bus), executing(bus, pools):
        with example("orchestrator", with_user(bus.url), tmp_path, "--for-real") as orchestrator:
            assert orchestrator.stdout is not None
            lines = [await asyncio.to_thread(orchestrator.stdout.readline) for _ in range(4)]

    said = sorted(line.decode() for line in lines)
    assert said == [
        "chat.scale_up.1 succeeded: scaled\n",
        "risky.scale_up.3 orchestrator:example rejected it: high risk is nothing for a program\n",
        "simulated.scale_up.1 left to people: the evidence is simulated or thin\n",
        "thin.scale_up.2 left to people: the evidence is simulated or thin\n",
    ]
    assert pools.scaled == ["chat.scale_up.1"]
    assert (await told(bus, Decision))[0] == no


async def test_the_orchestrator_carries_out_what_a_person_accepted_before_it(
    bus: Bus, tmp_path: Path
) -> None:
    pools, one = Pools(chat=2), advice(confidence_ratio=0.1)
    await tell(bus, one, decision(one))

    async with serving(bus), executing(bus, pools):
        with example("orchestrator", with_user(bus.url), tmp_path, "--for-real"):
            await ended(bus, 1)

    assert [found.decided_by for found in await told(bus, Decision)] == ["operator:ann"]
    assert pools.replicas == {"chat": 3}


async def test_the_orchestrator_says_what_failed_and_goes_on_without_an_executor(
    bus: Bus, tmp_path: Path
) -> None:
    pools = Pools(chat=2)
    pools.error = "no quota"
    await tell(bus, advice())

    with example("orchestrator", with_user(bus.url), tmp_path, "--for-real") as orchestrator:
        assert orchestrator.stdout is not None
        assert orchestrator.stderr is not None
        async with serving(bus, executors=0):
            while b"503 no executor runs" not in await asyncio.to_thread(
                orchestrator.stderr.readline
            ):
                pass
        async with serving(bus), executing(bus, pools):
            line = await asyncio.to_thread(orchestrator.stdout.readline)

    assert line == b"chat.scale_up.1 failed: no quota\n"


async def test_orchestrators_beside_each_other_and_killed_do_everything_once(
    bus: Bus, tmp_path: Path
) -> None:
    chance = random.Random(7)  # where the kills fall still depends on the machine
    names = [f"p{number}" for number in range(3 * KILLS)]
    pools = Pools(**dict.fromkeys(names, 2))
    heard: list[str] = []
    unsubscribe = await bus.subscribe("decision.>", lambda subject, _: heard.append(subject))
    url = with_user(bus.url)

    async with serving(bus), executing(bus, pools):
        for kill in range(KILLS):
            before = len(heard)
            await tell(bus, *(advice(1, pool=name) for name in names[3 * kill : 3 * kill + 3]))
            with (
                example("orchestrator", url, tmp_path, "--for-real") as one,
                example("orchestrator", url, tmp_path, "--for-real") as other,
            ):
                await until(lambda before=before: len(heard) > before)  # type: ignore[misc]
                await asyncio.sleep(chance.uniform(0, 0.02))  # and goes on
                one.kill()
                other.kill()
        with (
            example("orchestrator", url, tmp_path, "--for-real"),
            example("orchestrator", url, tmp_path, "--for-real"),
        ):
            await ended(bus, len(names))
    await unsubscribe()

    verdicts = Counter((one.pool, one.verdict) for one in await told(bus, Decision))
    phases = Counter((one.pool, one.phase) for one in await told(bus, Execution))
    assert verdicts == Counter((name, "accepted") for name in names)
    assert phases == Counter(
        (name, phase) for name in names for phase in ("requested", "started", "succeeded")
    )
    assert sorted(pools.scaled) == sorted(f"{name}.scale_up.1" for name in names)
    assert set(pools.replicas.values()) == {3}


async def test_the_orchestrator_acts_for_nobody_as_nobody(bus: Bus, tmp_path: Path) -> None:
    pools = Pools(chat=2)
    await tell(bus, advice())

    async with serving(bus), executing(bus, pools):
        with example("orchestrator", bus.url, tmp_path, "--for-real"):
            (end,) = await ended(bus, 1)

    assert end.phase == "failed"
    assert "nobody:example accepted it, a role that is not in executor.deciders" in str(end.error)
    assert pools.scaled == []


@pytest.mark.parametrize("name", ["cache_client", "orchestrator"])
async def test_without_a_server_an_example_says_so(tmp_path: Path, name: str) -> None:
    with example(name, "nats://127.0.0.1:9", tmp_path) as program:
        _, err = await asyncio.to_thread(program.communicate, timeout=SECONDS)

    assert program.returncode == 1
    assert err.startswith(b"error: no NATS server answers at nats://127.0.0.1:9")
