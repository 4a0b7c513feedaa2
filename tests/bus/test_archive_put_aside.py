"""Damaged objects are put aside only in a store that is ours, by who keeps its index."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from agent.bus.lease import BucketLeases
from archive.index_entry import object_name
from archive.marks import Mark
from archive.store import StoredObject
from schemas.protocols import RequestError
from tests.support.archive_service import archiving, until
from tests.support.evictions import FailingStore, evicted, single_object
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus

VALUE = os.urandom(1000)
OLD = evicted("old", VALUE, expires_at=None)
ANOTHERS = msgspec.json.encode(Mark(installation="another", store="its own"))


class Damaged:
    """A folder with one object of an earlier release, damaged in its header or its value."""

    def __init__(self, folder: Path, at: int) -> None:
        self.store = FailingStore(folder)
        folder.mkdir(exist_ok=True)
        content = bytearray(single_object(OLD, VALUE))
        content[at] ^= 1
        self.path = folder / f"{object_name(OLD)}.object"
        self.path.write_bytes(content)
        self.mark = folder / "owner.json"

    @property
    def is_aside(self) -> bool:
        return not self.path.exists() and self.path.with_suffix(".damaged").exists()

    def after_listing(self, monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
        """Something happens between the look at whose the store is and the reading of it."""
        listing = self.store.list_objects

        async def listed() -> list[StoredObject]:
            found = await listing()
            then()
            return found

        monkeypatch.setattr(self.store, "list_objects", listed)


@pytest.mark.parametrize("whose", ["ours", "another's"])
async def test_a_store_that_is_anothers_by_now_keeps_its_damaged_objects_at_a_start(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    damaged = Damaged(tmp_path / "archive", at=30)
    if whose != "ours":
        damaged.after_listing(monkeypatch, lambda: damaged.mark.write_bytes(ANOTHERS))
    async with archiving(bus, damaged.store) as service:
        active = service.is_active

    assert active == damaged.is_aside == (whose == "ours")


async def test_a_store_that_is_anothers_by_now_keeps_its_damaged_objects_at_a_reindex(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FailingStore(tmp_path / "archive")
    async with archiving(bus, store):
        damaged = Damaged(tmp_path / "archive", at=30)
        damaged.after_listing(monkeypatch, lambda: damaged.mark.write_bytes(ANOTHERS))
        monkeypatch.setattr(store, "list_objects", damaged.store.list_objects)
        job = await ArchiveClient(bus).run("reindex", lambda _job: None)

    assert job.state == "failed"
    assert "another" in job.error
    assert not damaged.is_aside


async def restore_error(bus: Bus) -> int:
    with pytest.raises(RequestError) as found:
        await bus.request("api.archive.restore.default", b"old", timeout_seconds=5)
    return found.value.code


async def test_who_lost_its_lease_puts_nothing_aside_that_it_reads_damaged(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = Damaged(tmp_path / "archive", at=-1)
    leases: list[Any] = []
    acquire = BucketLeases.try_acquire
    read = damaged.store.get_range_to

    async def noted(self: BucketLeases, name: str) -> object:
        leases.append(await acquire(self, name))
        return leases[-1]

    async def stopped_for_long(
        name: str, first: int, end: int, take: Callable[[bytes], None]
    ) -> bool:
        leases[-1].lose()
        return await read(name, first, end, take)

    monkeypatch.setattr(BucketLeases, "try_acquire", noted)
    async with archiving(bus, damaged.store) as service:
        assert service.is_active
        with monkeypatch.context() as patched:
            patched.setattr(damaged.store, "get_range_to", stopped_for_long)
            first = await restore_error(bus)
        lost = damaged.is_aside

        async def is_given_up() -> bool:
            return await restore_error(bus) == 500

        await until_async(is_given_up)

    assert first == 503
    assert not lost
    assert damaged.is_aside


async def test_an_adoption_puts_damaged_objects_aside(bus: Bus, tmp_path: Path) -> None:
    damaged = Damaged(tmp_path / "archive", at=30)
    damaged.mark.write_bytes(ANOTHERS)
    async with archiving(bus, damaged.store) as service:
        job = await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)
        await until(lambda: service.is_active)

    assert (job.state, job.counts["put_aside"]) == ("done", 1)
    assert damaged.is_aside
