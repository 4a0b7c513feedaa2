"""Work on the whole archive on request: sweep and reindex."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from agent import archive_client
from agent.archive_client import ArchiveClient
from agent.bus import Bus
from archive.store import StoredObject, StoreError
from schemas.api import ArchiveJob, ArchiveJobRequest
from schemas.protocols import Call, RequestError, json_endpoint
from tests.support.archive_service import Heard, archiving, evict, until
from tests.support.evictions import FailingStore, ManualClock, evicted
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus

ArchiveJobState = Literal["running", "failed"]
ServedArchive = Callable[[], Awaitable[object]]


async def ask(bus: Bus, name: str, *, start: bool) -> ArchiveJob:
    payload = msgspec.json.encode(ArchiveJobRequest(start=start))
    answer = await bus.request(f"api.archive.{name}", payload, timeout_seconds=10)
    return msgspec.json.decode(answer.payload, type=ArchiveJob)


async def test_a_sweep_on_request_says_what_it_removed(bus: Bus, tmp_path: Path) -> None:
    clock = ManualClock()
    async with archiving(bus, tmp_path / "archive", clock=clock) as service:
        for number in range(3):
            await evict(bus, evicted(f"k{number}"))
        await until(lambda: service.counters()["entries"] == 3)
        clock.advance(3600)
        told: list[int] = []
        job = await ArchiveClient(bus).run("sweep", lambda job: told.append(job.done))
        again = await ArchiveClient(bus).run("sweep", lambda _job: None)

    assert (job.state, job.counts, job.done) == ("done", {"expired": 3}, 3)
    assert told[-1] == 3
    assert (again.state, again.counts) == ("done", {})


async def test_a_reindex_restores_what_was_lost_of_the_bucket(bus: Bus, tmp_path: Path) -> None:
    bucket = bus.bucket("archive")
    async with archiving(bus, tmp_path / "archive") as service:
        for number in range(3):
            await evict(bus, evicted(f"k{number}"))
        await until(lambda: service.counters()["entries"] == 3)

        async def every_object_has_its_record() -> bool:
            return len(await bucket.items()) == service.counters()["objects"]

        await until_async(every_object_has_its_record)
        before = {key: value for key, (value, _) in (await bucket.items()).items()}
        for key in before:
            await bucket.delete(key)
        job = await ArchiveClient(bus).run("reindex", lambda _job: None)
        after = {key: value for key, (value, _) in (await bucket.items()).items()}

    assert job.state == "done"
    assert job.counts["entries"] == 3
    assert after == before


async def recorded(bus: Bus) -> dict[str, bytes]:
    return {key: value for key, (value, _) in (await bus.bucket("archive").items()).items()}


async def test_a_reindex_makes_a_deleted_bucket_and_restores_it_record_by_record(
    bus: Bus, tmp_path: Path
) -> None:
    name = bus.bucket("archive").name
    made = await bus.jetstream.stream_info(f"KV_{name}")
    async with archiving(bus, tmp_path / "archive") as service:
        heard = await Heard.on(bus, "archived.stored.>")
        for number in range(5):
            await evict(bus, evicted(f"k{number}"))
            await heard.stored()

        async def every_object_has_its_record() -> bool:
            return len(await recorded(bus)) == service.counters()["objects"] > 1

        await until_async(every_object_has_its_record)
        before = await recorded(bus)
        await bus.jetstream.delete_key_value(name)
        job = await ArchiveClient(bus).run("reindex", lambda _job: None)
        after = await recorded(bus)
        await evict(bus, evicted("later"))
        await until(lambda: service.counters()["entries"] == 6)
    again = await bus.jetstream.stream_info(f"KV_{name}")

    assert (job.state, job.counts["entries"]) == ("done", 5)
    assert after == before
    assert again.config.max_bytes == made.config.max_bytes == 64 * 1024 * 1024


async def test_a_reindex_that_the_bucket_does_not_take_has_failed(bus: Bus, tmp_path: Path) -> None:
    name = f"KV_{bus.bucket('archive').name}"
    heard = await Heard.on(bus, "archived.stored.>")
    async with archiving(bus, tmp_path / "archive"):
        await evict(bus, evicted())
        await heard.stored()
        config = (await bus.jetstream.stream_info(name)).config
        await bus.jetstream.purge_stream(name)
        await bus.jetstream.update_stream(config, max_bytes=1)
        job = await ArchiveClient(bus).run("reindex", lambda _job: None)

    assert job.state == "failed"
    assert "1 records of 1 objects are not in the index bucket" in job.error


async def test_work_is_begun_once_and_asked_about(bus: Bus, tmp_path: Path) -> None:
    class Waiting(FailingStore):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self.lists, self.may_list = 0, asyncio.Event()
            self.may_list.set()

        async def list_objects(self) -> list[StoredObject]:
            self.lists += 1
            await self.may_list.wait()
            return await super().list_objects()

    store = Waiting(tmp_path / "archive")
    async with archiving(bus, store):
        never = await ask(bus, "reindex", start=False)
        store.lists = 0
        store.may_list.clear()
        states = [(await ask(bus, "reindex", start=True)).state for _ in range(2)]
        await until(lambda: store.lists > 0)
        lists = store.lists
        store.may_list.set()

        async def is_done() -> bool:
            return (await ask(bus, "reindex", start=False)).state == "done"

        await until_async(is_done)

    assert never.state == "never"
    assert states == ["running", "running"]
    assert lists == 1


async def test_work_that_fails_says_why(bus: Bus, tmp_path: Path) -> None:
    class Broken(FailingStore):
        is_broken = False

        async def list_objects(self) -> list[StoredObject]:
            if self.is_broken:
                raise StoreError("the disk is gone")
            return await super().list_objects()

    store = Broken(tmp_path / "archive")
    async with archiving(bus, store):
        store.is_broken = True
        failed = await ArchiveClient(bus).run("reindex", lambda _job: None)
        store.is_broken = False
        mended = await ArchiveClient(bus).run("reindex", lambda _job: None)

    assert (failed.state, failed.error) == ("failed", "the disk is gone")
    assert (mended.state, mended.error) == ("done", "")


class Asker(ArchiveClient):
    """Notes that nobody answered."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.refused = asyncio.Event()

    async def _ask_at(self, *request: Any) -> Any:
        try:
            return await super()._ask_at(*request)
        except RequestError:
            self.refused.set()
            raise


async def begun(bus: Bus, asker: Asker) -> tuple[asyncio.Task[ArchiveJob], ServedArchive]:
    """A sweep of an archiver that has begun it, and answers no more."""
    served = await bus.serve("archive", [], description="test")
    state: ArchiveJobState = "running"
    heard = asyncio.Event()

    def answer(_request: ArchiveJobRequest, _call: Call) -> ArchiveJob:
        return ArchiveJob(instance="a1", state=state, error="lost" if state == "failed" else "")

    endpoint = json_endpoint("sweep", "api.archive.sweep", ArchiveJobRequest, answer)
    stop = await served.add([endpoint])
    sweeping = asyncio.create_task(asker.run("sweep", lambda _job: heard.set()))
    await heard.wait()
    await stop()
    state = "failed"
    return sweeping, lambda: served.add([endpoint])


async def test_a_keeper_that_answers_again_says_what_became_of_the_sweep(bus: Bus) -> None:
    asker = Asker(bus)
    sweeping, come_back = await begun(bus, asker)
    await asker.refused.wait()
    await come_back()

    job = await sweeping

    assert (job.state, job.error) == ("failed", "lost")


async def test_an_archiver_that_does_not_come_back_is_told_as_that(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_client, "AWAY_SECONDS", 0.0)
    sweeping, _ = await begun(bus, Asker(bus))

    with pytest.raises(RequestError, match="archive a1 stopped before it was done: nobody serves"):
        await sweeping
