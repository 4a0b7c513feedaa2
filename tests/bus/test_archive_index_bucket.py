"""The index in its bucket: a start reads no object, and the objects alone restore it."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from agent.bus import Bus
from agent.bus.bucket import KvBucket
from archive.catalog import Catalog
from archive.index_bucket import IndexBucket
from archive.index_entry import object_name
from archive.settings import ArchiveSettings
from archive.store import StoreError
from archive.sweep import Sweeper
from archive.vault import DamagedObjectError, Vault
from schemas.protocols import PublishError
from tests.support.evictions import FailingStore, ManualClock, evicted, single_object, tombstone

SETTINGS = ArchiveSettings(segment_seconds=0.01, tombstone_keep_seconds=7200)
KEYS = [f"k{number}" for number in range(30)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FailingStore]:
    folder = FailingStore(tmp_path / "archive")
    await folder.open()
    yield folder
    await folder.close()


@pytest.fixture
def bucket(bus: Bus) -> KvBucket:
    return bus.bucket("archive")


@pytest.fixture
async def vault(store: FailingStore, clock: ManualClock, bucket: KvBucket) -> AsyncIterator[Vault]:
    """Three segments, and an object of an earlier release."""
    old = evicted("old", expires_at=None)
    await store.put(object_name(old), single_object(old, b"value"))
    opened = await loaded(store, clock, bucket)
    for first in (0, 10, 20):
        async with asyncio.TaskGroup() as group:
            for key in KEYS[first : first + 10]:
                group.create_task(opened.keep(evicted(key, tags=["t"]), b"value"))
    yield opened
    await opened.close()


async def loaded(store: FailingStore, clock: ManualClock, bucket: KvBucket) -> Vault:
    """A vault as another process would find it."""
    vault = Vault(store, SETTINGS, clock, catalog=Catalog(store, IndexBucket(bucket)))
    await vault.load(lambda _done, _total: None)
    return vault


async def records(bucket: KvBucket) -> dict[str, bytes]:
    return {key: value for key, (value, _) in (await bucket.items()).items()}


def held(vault: Vault) -> Mapping[str, object]:
    return {entry.key: entry for entry in vault.index("default").in_segments(vault.ledger.segments)}


def names(store: FailingStore) -> set[str]:
    return {path.stem for path in store.folder.glob("*.object")}


async def test_a_start_reads_no_object(
    vault: Vault, store: FailingStore, clock: ManualClock, bucket: KvBucket
) -> None:
    store.read_errno = 5

    again = await loaded(store, clock, bucket)

    assert len(held(again)) == 31
    assert held(again) == held(vault)
    assert set(await records(bucket)) == {f"archive.{name}" for name in names(store)}


async def test_a_deleted_index_is_restored_exactly_by_the_next_start(
    vault: Vault, store: FailingStore, clock: ManualClock, bucket: KvBucket
) -> None:
    before = await records(bucket)
    for key in before:
        await bucket.purge(key)

    again = await loaded(store, clock, bucket)

    assert held(again) == held(vault)
    assert await records(bucket) == before


async def test_a_rebuild_restores_the_index_exactly_while_the_vault_works(
    vault: Vault, store: FailingStore, bucket: KvBucket
) -> None:
    before = await records(bucket)
    first, second, *_ = before
    await bucket.purge(first)
    await bucket.put(second, b"wrong")
    await bucket.put(f"archive.1d-{7:032x}", b"of an object that is gone")
    progress: list[tuple[int, int]] = []

    rebuilt = await vault.catalog.rebuild(lambda *step: progress.append(step))

    assert await records(bucket) == before
    assert rebuilt == ({"objects": 4, "entries": 31, "removed": 1}, {})
    assert progress == [(4, 4)]
    assert await vault.fetch("default", "k5", None) is not None


@pytest.mark.parametrize("harm", ["flipped", "of another object", "stale"])
async def test_a_wrong_record_is_not_believed(
    vault: Vault, store: FailingStore, clock: ManualClock, bucket: KvBucket, harm: str
) -> None:
    before = await records(bucket)
    first, second, *_ = (key for key in before if "-" in key)
    if harm == "flipped":
        await bucket.put(first, before[first][:-1] + bytes([before[first][-1] ^ 1]))
    elif harm == "of another object":
        await bucket.put(first, before[second])
    else:
        await bucket.put(f"archive.1d-{7:032x}", before[first])

    again = await loaded(store, clock, bucket)

    assert held(again) == held(vault)
    assert await records(bucket) == before


async def test_a_torn_segment_is_noticed_though_its_record_is_whole(
    vault: Vault, store: FailingStore, clock: ManualClock, bucket: KvBucket
) -> None:
    path = next(path for path in store.folder.glob("*.object") if "-" in path.stem)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    again = await loaded(store, clock, bucket)
    known = held(again)
    found, damaged = [], []
    for key in known:
        try:
            found.append(await again.fetch("default", key, None))
        except DamagedObjectError:
            damaged.append(key)

    assert again.catalog.unreadable == 1 + len(damaged)
    assert known == held(vault)
    assert all(found)
    assert len(damaged) > 0
    assert 21 < len(found) < 31


async def test_what_a_torn_segment_deleted_and_replaced_does_not_come_back(
    vault: Vault, store: FailingStore, clock: ManualClock, bucket: KvBucket
) -> None:
    deleted, replaced = list(held(vault))[:2]
    before = set(store.folder.glob("*.object"))
    await vault.keep(tombstone(deleted, "c1-01"), b"")
    await vault.keep(evicted(replaced, b"newer", version="c1-02"), b"newer")
    for path in set(store.folder.glob("*.object")) - before:
        os.truncate(path, 60)

    again = await loaded(store, clock, bucket)

    assert await again.fetch("default", deleted, None) is None
    with pytest.raises(DamagedObjectError):
        await again.fetch("default", replaced, None)
    assert await again.fetch("default", replaced, None) is None


async def test_a_removed_segment_leaves_nothing_in_the_bucket(
    bus: Bus, vault: Vault, store: FailingStore, clock: ManualClock, bucket: KvBucket
) -> None:
    await vault.keep(tombstone("", "b1-02", tag="t"), b"")
    _ = [entry async for entry in Sweeper(vault).sweep()]
    left, left_names = await records(bucket), names(store)
    clock.advance(SETTINGS.tombstone_keep_seconds + 1)
    _ = [entry async for entry in Sweeper(vault).sweep()]

    assert set(left) == {f"archive.{name}" for name in left_names}
    assert len(left) == 2
    assert set(await records(bucket)) == {f"archive.{object_name(evicted('old'))}"}
    info = await bus.jetstream.stream_info(f"KV_{bucket.name}")
    assert info.state.messages == 1


async def test_while_the_bucket_fails_values_are_kept_and_the_next_start_makes_up_for_it(
    vault: Vault,
    store: FailingStore,
    clock: ManualClock,
    bucket: KvBucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> int:
        raise PublishError("the bucket is full")

    with monkeypatch.context() as patch:
        patch.setattr(KvBucket, "put", fail)
        patch.setattr(KvBucket, "items", fail)
        outcome, _ = await vault.keep(evicted("new"), b"value")
        without = await loaded(store, clock, bucket)
    again = await loaded(store, clock, bucket)

    assert outcome == "stored"
    assert vault.catalog.bucket_failures == 1
    assert len(held(without)) == len(held(again)) == 32
    assert set(await records(bucket)) == {f"archive.{name}" for name in names(store)}


async def test_a_rebuild_says_when_the_store_cannot_be_read(
    vault: Vault, store: FailingStore
) -> None:
    store.read_errno = 5

    with pytest.raises(StoreError):
        await vault.catalog.rebuild(lambda *_: None)
