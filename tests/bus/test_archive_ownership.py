"""Who owns the archive, and what happens when it dies: with a real server and real processes."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.bus import Bus
from agent.bus.lease import BucketLeases
from archive.store import StoredObject, StoreError
from schemas.protocols import RequestError
from schemas.units import SECOND_NS, instant
from tests.support.archive_service import DEADLINE_SECONDS, Heard, archiving, evict, until
from tests.support.evictions import NOW_NS, FailingStore, ManualClock, evicted
from tests.support.server import NatsServer

REPOSITORY = Path(__file__).parents[2]

KILL_ITSELF = """
import asyncio, os, signal, sys
from pathlib import Path

import agent.bus.work
from agent.bus import connect
from archive.folder import FolderStore
from archive.index_bucket import IndexBucket
from tests.support.archive_service import archiving

agent.bus.work.ACK_WAIT_SECONDS = 1.0

async def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Killer:
    async def publish_all(self, messages):
        await self.bus.publish_all(messages)
        await die()

if sys.argv[3] == "before the upload":
    FolderStore.put = die
elif sys.argv[3] == "before the index is written":
    IndexBucket.put = die

async def main():
    killer = Killer()
    async with await connect(sys.argv[1], name="killed") as killer.bus:
        async with archiving(killer.bus, Path(sys.argv[2]), publisher=killer):
            await asyncio.Event().wait()

asyncio.run(main())
"""


async def restored(bus: Bus, key: str) -> bytes:
    answer = await bus.request("api.archive.restore.default", key.encode(), timeout_seconds=5)
    return answer.payload


@pytest.mark.parametrize(
    "moment", ["before the upload", "before the index is written", "after the announcement"]
)
async def test_a_kill_before_the_acknowledgement_loses_and_doubles_nothing(
    bus: Bus, nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr("agent.bus.work.ACK_WAIT_SECONDS", 1.0)
    heard = await Heard.on(bus, "archived.stored.>")
    keys = [f"k{number}" for number in range(30)]
    for key in keys:
        await evict(bus, evicted(key))
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILL_ITSELF, nats.url, tmp_path / "archive", moment),
        cwd=REPOSITORY,
    )
    async with asyncio.timeout(DEADLINE_SECONDS):
        killed = await victim.wait()

    # The same instance takes its own lease over at once.
    async with archiving(bus, tmp_path / "archive") as service:
        missing = set(keys)
        while missing:
            missing.discard((await heard.stored()).key)
        values = [await restored(bus, key) for key in keys]
    counted = service.counters()

    assert killed == -signal.SIGKILL
    assert values == [b"value"] * 30
    assert (counted.get("repeated_total", 0) == 0) is (moment == "before the upload")
    assert counted["entries"] == 30
    assert counted["objects"] == len(list((tmp_path / "archive").glob("*.object"))) <= 30
    first, last = await bus.stream_bounds("EVICTIONS")
    assert first > last


async def test_a_restart_reads_the_index_from_the_objects_and_continues(
    bus: Bus, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    async with archiving(bus, tmp_path / "archive"):
        await evict(bus, evicted("before"))
        await heard.stored()
    await evict(bus, evicted("between"))

    async with archiving(bus, tmp_path / "archive"):
        between = await heard.stored()
        values = [await restored(bus, key) for key in ("before", "between")]

    assert between.key == "between"
    assert values == [b"value", b"value"]


async def test_a_second_archiver_stands_by_and_answers_nothing(bus: Bus, tmp_path: Path) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    async with (
        archiving(bus, tmp_path / "archive", instance="first") as first,
        archiving(bus, tmp_path / "archive", instance="second") as second,
    ):
        active = (first.is_active, second.is_active)
        await evict(bus, evicted())
        await heard.stored()
        values = [await restored(bus, "k") for _ in range(20)]

    assert active == (True, False)
    assert values == [b"value"] * 20


async def test_when_the_owner_leaves_the_standby_serves_the_whole_index(
    bus: Bus, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    async with archiving(bus, tmp_path / "archive", instance="first"):
        await evict(bus, evicted("old"))
        await heard.stored()
        standby = archiving(bus, tmp_path / "archive", instance="second")
        second = await standby.__aenter__()
        was_active = second.is_active
    await evict(bus, evicted("new"))
    await heard.stored()
    values = [await restored(bus, key) for key in ("old", "new")]
    await standby.__aexit__(None, None, None)

    assert not was_active
    assert values == [b"value", b"value"]


async def test_an_archiver_that_lost_its_lease_stops_serving_until_it_has_it_again(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    leases: list[Any] = []
    acquire = BucketLeases.try_acquire
    may_acquire = True

    async def noted(self: BucketLeases, name: str) -> object:
        lease = await acquire(self, name) if may_acquire else None
        leases.append(lease)
        return lease

    monkeypatch.setattr(BucketLeases, "try_acquire", noted)
    async with archiving(bus, tmp_path / "archive") as service:
        await evict(bus, evicted())
        await heard.stored()
        may_acquire = False
        leases[0].lose()
        with pytest.raises(RequestError) as caught:
            await restored(bus, "k")
        await evict(bus, evicted("later"))
        may_acquire = True
        later = await heard.stored()
        value = await restored(bus, "k")

    assert caught.value.code == 503
    assert later.key == "later"
    assert value == b"value"
    assert service.counters()["entries"] == 2


async def test_an_eviction_stored_after_the_lease_was_lost_is_left_to_the_next_owner(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.work.ACK_WAIT_SECONDS", 1.0)
    heard = await Heard.on(bus, "archived.stored.>")
    writing, may_finish = asyncio.Event(), asyncio.Event()
    store = FailingStore(tmp_path / "archive")
    put = store.put
    leases: list[Any] = []
    acquire = BucketLeases.try_acquire

    async def noted(self: BucketLeases, name: str) -> object:
        leases.append(await acquire(self, name))
        return leases[-1]

    async def slow_put(name: str, content: bytes) -> None:
        writing.set()
        await may_finish.wait()
        await put(name, content)

    monkeypatch.setattr(BucketLeases, "try_acquire", noted)
    monkeypatch.setattr(store, "put", slow_put)
    async with archiving(bus, store) as service:
        await evict(bus, evicted())
        await writing.wait()
        leases[0].lose()
        may_finish.set()
        await heard.stored()
        counted = service.counters()

    assert len(leases) > 1, "it was announced by the next owner"
    assert heard.rest() == []
    assert counted.get("stored_total", 0) == 0


async def test_who_loses_the_lease_while_it_sweeps_removes_nothing_more(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    store, clock = FailingStore(tmp_path / "archive"), ManualClock()
    delete = store.delete
    leases: list[Any] = []
    acquire = BucketLeases.try_acquire
    removed: list[str] = []

    async def noted(self: BucketLeases, name: str) -> object:
        leases.append(await acquire(self, name))
        return leases[-1]

    async def stopped_for_long(name: str) -> None:
        """As by SIGSTOP: when it goes on another archiver may need what is not needed here."""
        leases[0].lose()
        removed.append(name)
        await delete(name)

    monkeypatch.setattr(BucketLeases, "try_acquire", noted)
    monkeypatch.setattr(store, "delete", stopped_for_long)
    async with archiving(bus, store, clock=clock) as service:
        for key, days in (("a", 1), ("b", 3)):
            await evict(bus, evicted(key, expires_at=instant(NOW_NS + days * 86400 * SECOND_NS)))
            await heard.stored()
        clock.advance(4 * 86400)
        await service.sweep()

    assert len(removed) == 1


async def test_the_service_goes_on_after_the_server_was_killed(
    bus: Bus, nats: NatsServer, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    async with archiving(bus, tmp_path / "archive") as service:
        await evict(bus, evicted("before"))
        await heard.stored()
        await until(lambda: service.counters().get("stored_total") == 1)
        nats.kill()
        nats.start()
        await until(lambda: bus.counters["reconnects_total"] > 0)
        await evict(bus, evicted("after"))

        assert (await heard.stored()).key == "after"
        assert await restored(bus, "before") == b"value"


async def test_a_folder_that_cannot_be_used_fails_at_start_with_what_to_do(
    bus: Bus, tmp_path: Path
) -> None:
    (tmp_path / "archive").write_text("a file")

    with pytest.raises(StoreError, match="is a file"):
        async with archiving(bus, tmp_path / "archive"):
            pass


async def test_a_store_that_cannot_be_read_at_start_is_tried_again(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FailingStore(tmp_path / "archive")
    list_objects = store.list_objects

    async def fail() -> list[StoredObject]:
        raise StoreError("folder is away")

    monkeypatch.setattr(store, "list_objects", fail)

    async with archiving(bus, store) as service:
        await until(lambda: [c.state for c in service.components()][:2] == ["degraded", "failed"])
        lease, shown, _ = service.components()
        was_active = service.is_active
        monkeypatch.setattr(store, "list_objects", list_objects)
        await until(lambda: service.is_active)
        await until(lambda: service.components()[1].state == "ok")

    assert not was_active
    assert (lease.name, shown.name) == ("lease", "store")
    assert shown.text.startswith("folder is away (since ")


async def test_a_store_that_is_slow_to_read_holds_up_nobodys_start(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FailingStore(tmp_path / "archive")
    list_objects = store.list_objects
    may_go_on = asyncio.Event()

    async def slow() -> list[StoredObject]:
        await may_go_on.wait()
        return await list_objects()

    monkeypatch.setattr("archive.service.READY_SECONDS", 0.1)
    monkeypatch.setattr(store, "list_objects", slow)

    async with archiving(bus, store) as service:
        was_active = service.is_active
        may_go_on.set()
        await until(lambda: service.is_active)

    assert not was_active
