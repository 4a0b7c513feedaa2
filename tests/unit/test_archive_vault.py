"""Store and index together: keep, fetch, sweep, load. A real folder, a clock to set."""

import asyncio
import errno
import itertools
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from archive.index_entry import IndexEntry, object_name
from archive.settings import ArchiveSettings
from archive.store import StoreError
from archive.sweep import Sweeper
from archive.vault import PACKED_AT_ONCE, DamagedObjectError, Vault
from schemas.cache import Evicted
from schemas.units import SECOND_NS, instant
from tests.support.evictions import (
    NOW_NS,
    FailingStore,
    ManualClock,
    evicted,
    single_object,
    tombstone,
)

SETTINGS = ArchiveSettings(
    tombstone_keep_seconds=7200, segment_seconds=0.01, retry_seconds=0.01, retry_max_seconds=0.01
)


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
async def vault(store: FailingStore, clock: ManualClock) -> AsyncIterator[Vault]:
    opened = Vault(store, SETTINGS, clock)
    yield opened
    await opened.close()


async def loaded(store: FailingStore, clock: ManualClock) -> Vault:
    """A vault as another process would find it."""
    vault = Vault(store, SETTINGS, clock)
    await vault.load(lambda _done, _total: None)
    return vault


async def fetch(vault: Vault, key: str = "k", generation: int | None = None) -> bytes | None:
    found = await vault.fetch("default", key, generation)
    return None if found is None else bytes(found[1])


async def swept(vault: Vault) -> list[IndexEntry]:
    return [entry async for entry in Sweeper(vault).sweep()]


def objects(store: FailingStore) -> list[Path]:
    return sorted(store.folder.glob("*.object"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("../../etc/passwd", b"value", id="path"),
        pytest.param("a/b", b"value", id="slash"),
        pytest.param("ключ 🔑\x00\n", b"value", id="unicode"),
        pytest.param("k" * 10 * 1024, b"value", id="longest key"),
        pytest.param("k", b"", id="empty value"),
        pytest.param("k", bytes(512 * 1024), id="large value"),
    ],
)
async def test_a_kept_value_is_fetched_by_this_and_the_next_process(
    vault: Vault, store: FailingStore, clock: ManualClock, key: str, value: bytes
) -> None:
    manifest = evicted(key, value, tags=["t"], meta={"a": "b"})

    outcome, entry = await vault.keep(manifest, value)
    again = await (await loaded(store, clock)).fetch("default", key, None)

    assert outcome == "stored"
    assert entry is not None
    assert 0 < entry.object_bytes < objects(store)[0].stat().st_size
    assert await vault.fetch("default", key, None) == (manifest, memoryview(value))
    assert again == (manifest, memoryview(value))
    assert len(list(store.folder.iterdir())) == 1


async def test_only_what_a_cache_fetched_goes_first_where_the_budget_is_used_up(
    store: FailingStore, clock: ManualClock
) -> None:
    vault = Vault(store, msgspec.structs.replace(SETTINGS, budget_bytes=10**6), clock)
    await vault.keep(evicted(score=0.5), b"value")

    def score() -> float:
        entry = vault.index("default").find("k", clock())
        assert entry is not None
        return entry.score

    before = score()
    await fetch(vault)
    read_by_people = score()
    await fetch(vault, generation=0)

    handed_out = score()
    await vault.close()

    assert before == read_by_people == 0.5
    assert handed_out < 0.5


async def test_unknown_keys_and_namespaces_are_misses_and_leave_no_trace(vault: Vault) -> None:
    await vault.keep(evicted(), b"value")

    found = [
        await vault.fetch("default", "other", None),
        await vault.fetch("elsewhere", "k", None),
    ]

    assert found == [None, None]
    assert list(vault.namespaces) == ["default"]


async def test_the_same_eviction_again_changes_nothing(vault: Vault, store: FailingStore) -> None:
    first = await vault.keep(evicted(), b"value")
    written = objects(store)[0].stat().st_mtime_ns

    second = await vault.keep(evicted(), b"value")

    assert (first[0], second[0]) == ("stored", "repeated")
    assert second[1] == first[1]
    assert objects(store)[0].stat().st_mtime_ns == written


async def test_a_restored_value_that_is_evicted_anew_lives_until_its_new_expiry(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    later = instant(NOW_NS + 7200 * SECOND_NS)
    await vault.keep(evicted(), b"value")

    outcome, _ = await vault.keep(evicted(expires_at=later), b"value")
    await vault.keep(evicted(), b"value")
    clock.advance(7199)

    assert outcome == "stored"
    assert await fetch(vault) == b"value"
    assert await fetch(await loaded(store, clock)) == b"value"


@pytest.mark.parametrize("newer", [evicted(value=b"new", version="b1-02"), tombstone()])
async def test_a_newer_version_or_tombstone_removes_the_older_bytes_from_disk(
    vault: Vault, store: FailingStore, newer: Evicted
) -> None:
    await vault.keep(evicted(value=b"old secret"), b"old secret")

    await vault.keep(newer, b"" if newer.tombstone else b"new")
    late = await vault.keep(evicted(value=b"old secret"), b"old secret")
    await swept(vault)

    assert late == ("superseded", None)
    assert await fetch(vault) == (None if newer.tombstone else b"new")
    assert len(objects(store)) == 1
    assert b"old secret" not in objects(store)[0].read_bytes()


async def test_a_tombstone_for_an_unknown_key_keeps_late_values_out(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    await vault.keep(tombstone(version="b1-05"), b"")

    late = await (await loaded(store, clock)).keep(evicted(version="b1-04"), b"value")

    assert late == ("superseded", None)


async def test_concurrent_versions_of_a_key_end_with_the_highest(
    vault: Vault, store: FailingStore
) -> None:
    seed = 7
    numbers = list(range(40))
    random.Random(seed).shuffle(numbers)
    values = {number: f"value {number}".encode() for number in numbers}

    await asyncio.gather(
        *(vault.keep(evicted(value=values[n], version=f"b1-{n:02}"), values[n]) for n in numbers)
    )

    await swept(vault)
    assert await fetch(vault) == b"value 39", seed
    assert len(objects(store)) == 1, seed


@pytest.mark.parametrize(
    ("passed_seconds", "outcome"),
    [
        pytest.param(3599.999, "stored", id="just before"),
        pytest.param(3600, "expired", id="exactly at its expiry"),
    ],
)
async def test_a_value_that_expired_on_its_way_is_not_stored(
    vault: Vault, store: FailingStore, clock: ManualClock, passed_seconds: float, outcome: str
) -> None:
    clock.advance(passed_seconds)

    got, _ = await vault.keep(evicted(), b"value")

    assert got == outcome
    assert len(objects(store)) == (outcome == "stored")


async def test_a_value_with_no_time_to_live_is_not_stored(vault: Vault) -> None:
    manifest = evicted(expires_at=None, ttl_seconds=0.0)

    assert await vault.keep(manifest, b"value") == ("expired", None)


async def test_an_expired_newer_version_still_ends_the_older_one(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    await vault.keep(evicted(expires_at=None), b"value")
    clock.advance(3600)

    outcome, entry = await vault.keep(evicted(version="b1-02"), b"value")

    assert outcome == "stored"
    assert entry is not None
    assert entry.tombstone
    assert await fetch(vault) is None
    assert await fetch(await loaded(store, clock)) is None


async def test_a_value_that_expires_while_it_is_read_is_a_miss(
    vault: Vault, store: FailingStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await vault.keep(evicted(), b"value")
    read = store.get_range

    async def slow_read(name: str, first: int, end: int) -> bytes | None:
        clock.advance(3600)
        return await read(name, first, end)

    monkeypatch.setattr(store, "get_range", slow_read)

    assert await fetch(vault) is None


async def test_an_older_generation_than_asked_for_is_a_miss_and_stays(vault: Vault) -> None:
    await vault.keep(evicted(), b"value")

    answers = [await fetch(vault), await fetch(vault, generation=10**9), await fetch(vault)]
    late, _ = await vault.keep(evicted("late", version="b1-09"), b"value")
    removed = await swept(vault)

    assert answers == [b"value", None, b"value"]
    assert late == "stored"
    assert removed == []


async def test_an_eviction_of_a_newer_generation_clears_the_older_ones(
    vault: Vault, store: FailingStore
) -> None:
    await vault.keep(evicted(), b"value")

    await vault.keep(evicted("new", generation=1), b"value")
    late = await vault.keep(evicted("late", version="b1-09"), b"value")
    removed = await swept(vault)

    assert late == ("superseded", None)
    assert [entry.key for entry in removed] == ["k"]
    assert len(objects(store)) == 1


async def test_a_newer_generation_in_an_eviction_hides_everything_older(vault: Vault) -> None:
    await vault.keep(evicted("old"), b"value")

    await vault.keep(evicted("new", generation=3), b"value")

    assert await fetch(vault, "old") is None
    assert await fetch(vault, "new", generation=2) == b"value"


async def test_the_sweep_removes_what_is_over_and_nothing_else(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    await vault.keep(evicted("over"), b"value")
    await vault.keep(evicted("for ever", expires_at=None), b"value")
    await vault.keep(tombstone("young"), b"")
    early = await swept(vault)
    clock.advance(3600)

    removed = await swept(vault)

    assert early == []
    assert [entry.key for entry in removed] == ["over"]
    assert len(objects(store)) == 2
    assert await fetch(vault, "for ever") == b"value"


async def test_a_tombstone_is_dropped_after_its_time(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    await vault.keep(tombstone(), b"")
    clock.advance(7200)
    at_the_edge = await swept(vault)
    clock.advance(0.001)

    removed = await swept(vault)

    assert at_the_edge == []
    assert [entry.tombstone for entry in removed] == [True]
    assert objects(store) == []


@pytest.mark.parametrize("harm", ["flipped", "truncated", "missing", "another entry's"])
async def test_a_damaged_value_is_never_returned(
    vault: Vault, store: FailingStore, harm: str
) -> None:
    _, damaged = await vault.keep(evicted(version="b1-02"), b"value")
    _, other = await vault.keep(evicted("other"), b"value")
    assert damaged is not None
    assert other is not None
    path, other_path = (store.folder / f"{entry.segment}.object" for entry in (damaged, other))
    content = bytearray(path.read_bytes())
    if harm == "flipped":
        content[damaged.object_bytes - 1] ^= 1
        path.write_bytes(content)
    elif harm == "truncated":
        path.write_bytes(content[: damaged.object_bytes - 1])
    elif harm == "missing":
        path.unlink()
    else:
        path.write_bytes(other_path.read_bytes())

    with pytest.raises(DamagedObjectError) as caught:
        await fetch(vault)

    assert caught.value.entry.version == "b1-02"
    assert await fetch(vault) is None
    assert await fetch(vault, "other") == b"value"
    assert await vault.keep(evicted(version="b1-01"), b"value") == ("superseded", None)
    assert (await vault.keep(evicted(version="b1-02"), b"value"))[0] == "stored"
    assert await fetch(vault) == b"value"


async def test_what_is_damaged_on_its_way_is_read_once_more(
    vault: Vault, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await vault.keep(evicted(), b"value")
    read = store.get_range_to
    pieces: list[bytes] = []

    async def flip_first(name: str, first: int, end: int, take: Callable[[bytes], None]) -> bool:
        def took(piece: bytes) -> None:
            pieces.append(piece)
            take(piece if len(pieces) > 1 else piece[:-1] + bytes([piece[-1] ^ 1]))

        return await read(name, first, end, took)

    monkeypatch.setattr(store, "get_range_to", flip_first)

    assert await fetch(vault) == b"value"
    assert len(pieces) == 2
    assert vault.damaged("default") == 0


async def test_objects_of_earlier_releases_are_read_beside_segments(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    for manifest in (evicted("old"), evicted("deleted"), tombstone("deleted")):
        value = b"" if manifest.tombstone else b"value"
        await store.put(object_name(manifest), single_object(manifest, value))
    await vault.keep(evicted("new"), b"value")

    reader = await loaded(store, clock)
    await swept(reader)

    assert [await fetch(reader, key) for key in ("old", "new", "deleted")] == [
        b"value",
        b"value",
        None,
    ]
    assert len(objects(store)) == 3


async def test_loading_puts_damaged_objects_aside_and_leaves_foreign_ones_alone(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    await vault.keep(evicted("good"), b"value")
    await store.put("ab" * 32, single_object(evicted("misplaced"), b"value"))
    whole = single_object(evicted("damaged"), b"value")
    await store.put(object_name(evicted("damaged")), whole[:-1])
    await store.put(f"1d-{1:032x}", b"nothing of it is whole")
    await store.put("ef" * 32, b"FLEETARC\x00\x09" + bytes(100))
    await store.put("cd" * 32, b"another program's file")
    progress: list[tuple[int, int]] = []
    reader = Vault(store, SETTINGS, clock)

    await reader.load(lambda done, total: progress.append((done, total)))
    await reader.adopt()

    assert progress == [(6, 6)]
    assert reader.catalog.unreadable == 5
    assert reader.index("default").entries == 1
    assert await fetch(reader, "good") == b"value"
    assert len(list(store.folder.glob("*.damaged"))) == 3
    assert sorted(path.name[:2] for path in objects(store)) == ["1d", "cd", "ef"]


async def test_of_a_torn_segment_the_whole_entries_are_read(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    keys = [f"k{number}" for number in range(10)]
    kept = await asyncio.gather(*(vault.keep(evicted(key), b"value") for key in keys))
    (path,) = objects(store)
    last = max((entry for _, entry in kept if entry is not None), key=lambda entry: entry.first)
    path.write_bytes(path.read_bytes()[: last.first + 5])

    reader = await loaded(store, clock)
    found = [await fetch(reader, key) for key in keys]

    assert found == [None if key == last.key else b"value" for key in keys]


async def test_a_segment_lasts_as_long_as_what_is_in_it_and_what_that_outdates(
    vault: Vault,
) -> None:
    ten_days = instant(NOW_NS + 10 * 86400 * SECOND_NS)

    kept = [
        await vault.keep(evicted("hour"), b"value"),
        await vault.keep(evicted("days", expires_at=ten_days), b"value"),
        await vault.keep(evicted("days", version="b1-02"), b"value"),
        await vault.keep(evicted("for ever", expires_at=None), b"value"),
        await vault.keep(tombstone("gone"), b""),
    ]

    classes = [entry.segment.partition("-")[0] for _, entry in kept if entry is not None]
    assert classes == ["1d", "30d", "30d", "none", "none"]


async def test_others_have_their_turn_while_many_are_packed(vault: Vault) -> None:
    manifests = [evicted(f"k{number}") for number in range(4 * PACKED_AT_ONCE)]
    packing = asyncio.create_task(vault.pack_all([(one, b"value") for one in manifests]))
    packed = []

    while not packing.done():
        await asyncio.sleep(0)
        packed.append(vault.index("default").entries)

    steps = [later - before for before, later in itertools.pairwise([0, *packed])]
    assert [outcome for outcome, _ in await packing] == ["stored"] * len(manifests)
    assert max(steps) == PACKED_AT_ONCE


async def test_what_is_packed_can_be_fetched_before_it_is_stored(
    vault: Vault, store: FailingStore
) -> None:
    store.write_errno = errno.ENOSPC

    keeping = asyncio.create_task(vault.keep(evicted(), b"value"))
    async with asyncio.timeout(20):
        while not vault.packer.store_error:
            await asyncio.sleep(0)
    found = await fetch(vault)
    is_answered = keeping.done()
    store.write_errno = None

    assert found == b"value"
    assert not is_answered
    assert (await keeping)[0] == "stored"
    assert await fetch(vault) == b"value"


async def test_what_was_packed_and_not_stored_is_gone_after_a_crash_and_comes_again(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    await vault.keep(evicted(value=b"old"), b"old")
    store.write_errno = errno.ENOSPC
    keeping = asyncio.create_task(vault.keep(tombstone(), b""))
    async with asyncio.timeout(20):
        while not vault.packer.store_error:
            await asyncio.sleep(0)
    deleted = await fetch(vault)
    await vault.close()
    await asyncio.wait({keeping})
    store.write_errno = None

    reader = await loaded(store, clock)
    again = await reader.keep(tombstone(), b"")

    assert deleted is None
    assert keeping.cancelled()
    assert again[0] == "stored"
    assert await fetch(reader) is None


async def test_a_dead_segment_that_cannot_be_removed_now_is_removed_by_the_next_sweep(
    vault: Vault, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await vault.keep(evicted(value=b"old"), b"old")
    await vault.keep(tombstone(), b"")

    async def fail(_name: str) -> None:
        raise StoreError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", fail)
        with pytest.raises(StoreError):
            await swept(vault)
    left = len(objects(store))
    await swept(vault)

    assert left == 2
    assert len(objects(store)) == 1


async def test_a_disk_that_cannot_be_read_is_a_failure_and_not_a_miss(
    vault: Vault, store: FailingStore
) -> None:
    await vault.keep(evicted(), b"value")
    store.read_errno = errno.EIO

    with pytest.raises(StoreError):
        await fetch(vault)
    store.read_errno = None

    assert await fetch(vault) == b"value"


def test_settings_refuse_a_longest_pause_that_is_the_shorter_one() -> None:
    with pytest.raises(msgspec.ValidationError, match="must not be shorter"):
        msgspec.convert({"retry_seconds": 10, "retry_max_seconds": 5}, ArchiveSettings)


@pytest.mark.parametrize("order", ["value first", "tombstone first"])
@pytest.mark.parametrize("restarted", [False, True])
async def test_what_was_deleted_by_its_tag_never_comes_back(
    store: FailingStore, clock: ManualClock, order: str, *, restarted: bool
) -> None:
    vault = Vault(store, SETTINGS, clock)
    value = evicted(version="b1-01", tags=["t"])
    deletion = tombstone("", version="b1-02", tag="t")
    if order == "value first":
        await vault.keep(value, b"value")
        outcome, _ = await vault.keep(deletion, b"")
    else:
        await vault.keep(deletion, b"")
        outcome, _ = await vault.keep(value, b"value")

    if restarted:
        vault = await loaded(store, clock)
    again, _ = await vault.keep(value, b"value")

    assert outcome == ("stored" if order == "value first" else "superseded")
    assert again == "superseded"
    assert await fetch(vault) is None


async def test_the_sweep_removes_what_was_deleted_by_its_tag_and_in_the_end_the_tombstone(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    await vault.keep(evicted(version="b1-01", tags=["t"], expires_at=None), b"value")
    await vault.keep(tombstone("", version="b1-02", tag="t"), b"")

    first = [entry.tag async for entry in Sweeper(vault).sweep()]
    objects_after_first = len(await store.list_objects())
    clock.advance(SETTINGS.tombstone_keep_seconds + 1)
    second = [entry.tag async for entry in Sweeper(vault).sweep()]

    assert first == [None]
    assert objects_after_first == 1
    assert second == ["t"]
    assert await store.list_objects() == []


async def test_a_newer_value_with_a_deleted_tag_is_kept(vault: Vault) -> None:
    await vault.keep(tombstone("", version="b1-02", tag="t"), b"")

    outcome, _ = await vault.keep(evicted(version="b1-03", tags=["t"]), b"value")

    assert outcome == "stored"
    assert await fetch(vault) == b"value"
