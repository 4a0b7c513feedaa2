"""Server and services as processes of their own, killed one after the other (`make test-long`)."""

import asyncio
import contextlib
import functools
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus, connect
from agent.client import CacheClient
from schemas.api import LatestReply
from schemas.lifecycle import ROLES, Role
from schemas.protocols import PublishError, RequestError
from schemas.units import SECOND_NS, instant
from tests.support.chaos import NAMESPACE, publish_eviction, restored
from tests.support.overload import advice, overloaded, record_fleet
from tests.support.program import DEADLINE_SECONDS, ROOT, environment, in_thread
from tests.support.server import NatsServer
from tests.support.waiting import until_async

SEED = 2026
BACK_SECONDS = 5.0
ADVISED_SECONDS = 10.0
"""With the second that the overload has to last, and the history that new handlers read first."""
EVICTIONS_A_KILL = 50
HISTORY = 20_000
"""Messages in the metrics stream that new handlers have to read before they can advise."""
FAST = environment(
    agent__interval_seconds=0.5, handlers__scaling__up_hold_seconds=1, health__probe_seconds=0.5
)

pytestmark = [pytest.mark.long, pytest.mark.bus, pytest.mark.timeout(600)]


class Fleet:
    """A server, and one process for each role; each is called by its role, or `server`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.server = NatsServer(folder / "server")
        self._processes: dict[Role, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self.server.start()
        for role in ROLES:
            self._run(role)

    def _run(self, role: Role) -> None:
        with (self._folder / f"{role}.log").open("ab") as log:
            self._processes[role] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "agent", "run", role, "--instance", "one"),
                    *("--nats-url", self.server.url, "--state-dir", str(self._folder / role)),
                ],
                cwd=ROOT,
                env=FAST,
                stdout=log,
                stderr=log,
            )

    def replace(self, victim: Role | str) -> None:
        """SIGKILL, and start anew at once."""
        if victim == "server":
            self.server.kill()
            self.server.start()
            return
        for role, process in self._processes.items():
            if role == victim:
                process.kill()
                process.wait()
                self._run(role)
                return

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(DEADLINE_SECONDS)
        self.server.stop()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.stop()


async def agent_measures(bus: Bus, since_ns: int) -> bool:
    """The handlers have a sample of the host that was taken since."""
    answer = await bus.request("api.system.memory", timeout_seconds=1)
    rows = msgspec.json.decode(answer.payload, type=LatestReply).rows
    return any(row.observed_at > instant(since_ns) for row in rows)


async def cache_serves(bus: Bus, since_ns: int) -> bool:
    client = CacheClient(bus)
    value = str(since_ns).encode()
    await client.put("probe", value)
    return await client.get("probe") == value


async def archive_serves(bus: Bus, _since_ns: int) -> bool:
    answer = await bus.request(f"api.archive.restore.{NAMESPACE}", b"key-0", timeout_seconds=1)
    return answer.payload.startswith(b"value 0")


PROBES: tuple[Callable[[Bus, int], Awaitable[bool]], ...] = (
    agent_measures,
    cache_serves,
    archive_serves,
)


async def all_work(bus: Bus, since_ns: int) -> bool:
    with contextlib.suppress(RequestError, PublishError):
        return all([await probe(bus, since_ns) for probe in PROBES])
    return False


async def overload(bus: Bus, pool: str) -> None:
    """Lost while nobody listens."""
    with contextlib.suppress(PublishError):
        await bus.publish(overloaded(pool))


async def is_advised(bus: Bus, pool: str) -> bool:
    await overload(bus, pool)
    with contextlib.suppress(PublishError, TimeoutError):
        return pool in {one.pool for one in await advice(bus)}
    return False


async def seconds_until(condition: Callable[[], Awaitable[bool]], since_ns: int) -> float:
    """How long after `since_ns` it holds."""
    await until_async(condition, seconds=60)
    return (time.time_ns() - since_ns) / SECOND_NS


async def streams_are_there(bus: Bus) -> bool:
    with contextlib.suppress(PublishError, TimeoutError):
        return await bus.stream_bounds("EVICTIONS") is not None
    return False


async def publish_evictions(bus: Bus, kill: int) -> dict[str, bytes]:
    first = 1 + kill * EVICTIONS_A_KILL
    return dict([await publish_eviction(bus, first + n) for n in range(EVICTIONS_A_KILL)])


async def test_ten_kills_of_server_and_services_lose_nothing_and_double_nothing(
    fleet: Fleet,
) -> None:
    chance = random.Random(SEED)
    victims = ["server", *ROLES] * 2
    chance.shuffle(victims)
    acknowledged: dict[str, bytes] = {}
    back_seconds: list[tuple[str, float]] = []
    advised_seconds: list[tuple[str, float]] = []
    async with await connect(fleet.server.url, name="chaos") as bus:
        await until_async(lambda: streams_are_there(bus), seconds=DEADLINE_SECONDS)
        key, acknowledged[key] = await publish_eviction(bus, 0)
        await until_async(lambda: all_work(bus, 0), seconds=DEADLINE_SECONDS)
        await record_fleet(bus, HISTORY)
        # They have worked off the history once they advise on what came after it.
        await until_async(functools.partial(is_advised, bus, "pool-before"), seconds=60)

        for kill, victim in enumerate(victims):
            await overload(bus, f"pool-{kill}")
            publishing = asyncio.create_task(publish_evictions(bus, kill))
            killed_ns = time.time_ns()
            await in_thread(fleet.replace, victim)
            working, advised = await asyncio.gather(
                seconds_until(functools.partial(all_work, bus, killed_ns), killed_ns),
                seconds_until(functools.partial(is_advised, bus, f"pool-{kill}"), killed_ns),
            )
            back_seconds.append((victim, working))
            advised_seconds.append((victim, advised))
            acknowledged |= await publishing

        async def worked_off() -> bool:
            first, last = await bus.stream_bounds("EVICTIONS")
            return first > last

        # What was in flight at a kill comes again after the 30 s it was promised to the dead.
        await until_async(worked_off, seconds=60)
        for key, value in acknowledged.items():
            assert await restored(bus, key) == value, f"{key} (seed {SEED})"
        given = Counter(one.pool for one in await advice(bus))

    assert len(acknowledged) == 1 + len(victims) * EVICTIONS_A_KILL
    assert given == {f"pool-{kill}": 1 for kill in ("before", *range(len(victims)))}
    assert [one for one in back_seconds if one[1] > BACK_SECONDS] == []
    assert [one for one in advised_seconds if one[1] > ADVISED_SECONDS] == []
