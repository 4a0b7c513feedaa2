"""What a sweep gives back, and that nothing outdated comes back for it. A real folder."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from archive.ledger import MERGED
from archive.settings import ArchiveSettings
from archive.store import StoreError
from archive.sweep import Sweeper
from archive.vault import Vault
from schemas.cache import Evicted
from schemas.units import SECOND_NS, instant
from tests.support.evictions import FailingStore, ManualClock, evicted, tombstone
from tests.support.waiting import until

KEEP_SECONDS = 7200
SETTINGS = ArchiveSettings(tombstone_keep_seconds=KEEP_SECONDS, segment_seconds=0.001)
TOGETHER = msgspec.structs.replace(SETTINGS, segment_seconds=1.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FailingStore]:
    folder = FailingStore(tmp_path / "archive")
    await folder.open()
    yield folder
    await folder.close()


async def loaded(
    store: FailingStore, clock: ManualClock, settings: ArchiveSettings = SETTINGS
) -> Vault:
    """A vault as another process would find it."""
    vault = Vault(store, settings, clock)
    await vault.load(lambda _done, _total: None)
    return vault


async def swept(vault: Vault) -> int:
    return len([entry async for entry in Sweeper(vault).sweep()])


async def fetch(vault: Vault, key: str) -> bytes | None:
    found = await vault.fetch("default", key, None)
    return None if found is None else bytes(found[1])


def on_disk(store: FailingStore) -> dict[str, int]:
    return {path.stem: path.stat().st_size for path in store.folder.glob("*.object")}


def lives(key: str, value: bytes, seconds: float | None, clock: ManualClock) -> Evicted:
    expires_at = None if seconds is None else instant(clock() + int(seconds * SECOND_NS))
    return evicted(key, value, expires_at=expires_at, evicted_at=instant(clock()))


@pytest.mark.parametrize("count", [4000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_entries_of_mixed_ttl_are_swept_in_one_pass(
    store: FailingStore, clock: ManualClock, count: int
) -> None:
    settings = ArchiveSettings(segment_bytes=256 * 1024, min_ratio=1e9)
    vault = await loaded(store, clock, settings)
    manifest = lives("k", b"value", 3600, clock)
    ends = [instant(clock() + hours * 3600 * SECOND_NS) for hours in (1, 2, 40, 400)]
    entries = [
        msgspec.structs.replace(manifest, key=f"k{number}", expires_at=ends[number % 4])
        for number in range(count)
    ]

    for first in range(0, len(entries), 10_000):
        packed = [await vault.pack(one, b"value") for one in entries[first : first + 10_000]]
        vault.packer.flush()
        await vault.settle_all(packed)
    before = sum(on_disk(store).values())
    clock.advance(7200)
    removed = await swept(vault)
    after = sum(on_disk(store).values())

    assert removed == count // 2
    assert vault.index("default").entries == count // 2
    assert [await fetch(vault, f"k{number}") for number in range(4)] == [
        None,
        None,
        b"value",
        b"value",
    ]
    assert after < 0.55 * before
    assert (await loaded(store, clock, settings)).index("default").entries == count // 2


async def test_a_segment_that_is_mostly_dead_is_written_anew_and_others_are_not(
    store: FailingStore, clock: ManualClock
) -> None:
    vault = await loaded(store, clock)
    values = {f"k{number}": os.urandom(1000) for number in range(20)}

    async def keep(first: int, end: int, dead: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(first, end):
                value = values[f"k{number}"]
                seconds = 60 if number < first + dead else 3600
                manifest = lives(f"k{number}", value, seconds, clock)
                group.create_task(vault.keep(manifest, value))

    await keep(0, 10, dead=6)
    (mostly_dead,) = on_disk(store)
    await keep(10, 20, dead=4)
    (mostly_needed,) = set(on_disk(store)) - {mostly_dead}
    clock.advance(60)
    await swept(vault)
    found = {key: await fetch(vault, key) for key in values}

    assert mostly_needed in on_disk(store)
    assert mostly_dead not in on_disk(store)
    assert len(on_disk(store)) == 2
    dead = {f"k{number}" for number in (*range(6), *range(10, 14))}
    assert found == {key: None if key in dead else value for key, value in values.items()}
    again = await loaded(store, clock)
    assert {key: await fetch(again, key) for key in values} == found


async def keep_apart(vault: Vault, clock: ManualClock, values: dict[str, bytes]) -> None:
    """Each value into a segment of its own, as where evictions are seldom."""
    for key, value in values.items():
        await vault.keep(lives(key, value, 3600, clock), value)


async def test_many_small_segments_are_merged_once_and_hold_the_same(
    store: FailingStore, clock: ManualClock
) -> None:
    vault = await loaded(store, clock)
    values = {f"k{number}": os.urandom(100 + number) for number in range(MERGED + 1)}

    await keep_apart(vault, clock, values)
    await vault.keep(tombstone("k0"), b"")
    before = on_disk(store)
    await swept(vault)
    merged = on_disk(store)
    await swept(vault)

    assert len(before) == MERGED + 2
    assert len(merged) < MERGED / 2
    assert on_disk(store) == merged
    for one in (vault, await loaded(store, clock)):
        found = {key: await fetch(one, key) for key in values}
        assert found == {**values, "k0": None}


@pytest.mark.parametrize(
    ("count", "size_bytes"),
    [(MERGED - 1, 100), (MERGED, 10_000)],
    ids=["few", "large enough"],
)
async def test_segments_that_are_few_or_large_are_left_alone(
    store: FailingStore, clock: ManualClock, count: int, size_bytes: int
) -> None:
    settings = msgspec.structs.replace(SETTINGS, segment_bytes=64 * 1024)
    vault = await loaded(store, clock, settings)

    values = {f"k{number}": os.urandom(size_bytes) for number in range(count)}
    await keep_apart(vault, clock, values)
    before = on_disk(store)
    await swept(vault)

    assert len(before) == count
    assert on_disk(store) == before


async def test_small_segments_stay_while_the_merged_one_cannot_be_written(
    store: FailingStore, clock: ManualClock
) -> None:
    vault = await loaded(store, clock, msgspec.structs.replace(SETTINGS, retry_seconds=0.01))
    values = {f"k{number}": os.urandom(100) for number in range(MERGED)}
    await keep_apart(vault, clock, values)
    before = on_disk(store)

    store.write_errno = 28
    sweeping = asyncio.create_task(swept(vault))
    await until(lambda: bool(vault.packer.store_error))
    while_failing = on_disk(store)
    crashed = await loaded(store, clock)
    found = {key: await fetch(crashed, key) for key in values}
    store.write_errno = None
    await sweeping

    assert while_failing == before
    assert found == values
    assert len(on_disk(store)) == 1


async def test_nothing_is_removed_before_what_was_moved_out_of_it_is_stored(
    store: FailingStore, clock: ManualClock
) -> None:
    vault = await loaded(store, clock)
    async with asyncio.TaskGroup() as group:
        for key, seconds in (("dead", 60), ("dead too", 60), ("needed", 3600)):
            group.create_task(vault.keep(lives(key, b"value", seconds, clock), b"value"))
    (name,) = on_disk(store)
    clock.advance(60)

    store.write_errno = 28
    sweeping = asyncio.create_task(swept(vault))
    await until(lambda: bool(vault.packer.store_error))
    sweeping.cancel()
    await asyncio.wait({sweeping})
    crashed = await loaded(store, clock)

    assert set(on_disk(store)) == {name}
    assert await fetch(crashed, "needed") == b"value"
    await vault.close()


async def test_a_crash_before_the_old_segment_is_removed_doubles_nothing(
    store: FailingStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = await loaded(store, clock)
    async with asyncio.TaskGroup() as group:
        for key, seconds in (("dead", 60), ("dead too", 60), ("needed", None)):
            group.create_task(vault.keep(lives(key, b"value", seconds, clock), b"value"))
    clock.advance(60)

    async def crash(_name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", crash)
        with pytest.raises(KeyboardInterrupt):
            await swept(vault)
    twice = len(on_disk(store))
    vault = await loaded(store, clock)
    entries = vault.index("default").entries
    await vault.keep(tombstone("needed", "b1-02"), b"")
    for _ in range(3):
        clock.advance(KEEP_SECONDS + 1)
        await swept(vault)
    vault = await loaded(store, clock)

    assert twice == 2
    assert entries == 1
    assert await fetch(vault, "needed") is None
    assert on_disk(store) == {}


async def test_what_a_former_owner_wrote_late_is_known_before_a_tombstone_is_forgotten(
    store: FailingStore, clock: ManualClock
) -> None:
    former = await loaded(store, clock)
    vault = await loaded(store, clock)
    await vault.keep(tombstone("k", "b1-02"), b"")
    await former.keep(lives("k", b"deleted", None, clock), b"deleted")

    for _ in range(3):
        clock.advance(KEEP_SECONDS + 1)
        await swept(vault)

    assert await fetch(await loaded(store, clock), "k") is None
    assert on_disk(store) == {}


async def test_a_tombstone_stays_while_what_it_outdates_cannot_be_removed(
    store: FailingStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = await loaded(store, clock)
    vault = await loaded(store, clock)
    await vault.keep(tombstone("k", "b1-02"), b"")
    _, late = await former.keep(lives("k", b"deleted", None, clock), b"deleted")
    assert late is not None
    clock.advance(KEEP_SECONDS + 1)
    delete = store.delete

    async def fail(name: str) -> None:
        if name == late.segment:
            raise StoreError("busy")
        await delete(name)

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", fail)
        with pytest.raises(StoreError):
            await swept(vault)
    crashed = await loaded(store, clock)

    assert await fetch(crashed, "k") is None
    await swept(crashed)
    assert await fetch(await loaded(store, clock), "k") is None


class Story:
    """Random changes to a vault, and what a reader may get of each key by its promises."""

    def __init__(
        self, vault: Vault, store: FailingStore, clock: ManualClock, chance: random.Random
    ) -> None:
        self.vault = vault
        self.store = store
        self.clock = clock
        self.chance = chance
        self.newest: dict[str, tuple[Evicted, bytes]] = {}
        self._sent: list[tuple[Evicted, bytes]] = []

    def value(self, key: str) -> bytes | None:
        manifest, value = self.newest.get(key, (None, b""))
        if manifest is None or manifest.tombstone:
            return None
        expires_at = manifest.expires_at
        return None if expires_at is not None and expires_at <= instant(self.clock()) else value

    async def put(self, version: str) -> None:
        sent = []
        for key in self.chance.sample(KEYS, self.chance.randrange(1, 6)):
            value = self.chance.randbytes(self.chance.randrange(2000))
            seconds = self.chance.choice([60, 3000, 20_000, None])
            manifest = msgspec.structs.replace(
                lives(key, value, seconds, self.clock),
                tags=[self.chance.choice("tuv")],
                version=version,
            )
            self.newest[key] = manifest, value
            sent.append((manifest, value))
        self._sent += sent
        await asyncio.gather(*(self.vault.keep(*one) for one in sent))

    async def delete(self, version: str) -> None:
        manifest = tombstone(self.chance.choice(KEYS), version)
        self.newest[manifest.key] = manifest, b""
        await self.vault.keep(manifest, b"")

    async def delete_tag(self, version: str) -> None:
        tag = self.chance.choice("tuv")
        for key, (manifest, _) in list(self.newest.items()):
            if tag in manifest.tags:
                self.newest[key] = tombstone(key, version), b""
        await self.vault.keep(tombstone("", version, tag=tag), b"")

    async def repeat(self, _version: str) -> None:
        """The stream delivers something of the last hour again, though a deletion came since."""
        since = instant(self.clock() - 3600 * SECOND_NS)
        again = [
            (manifest, value)
            for manifest, value in self._sent
            if manifest.evicted_at > since and self.newest[manifest.key][0].tombstone
        ]
        if again:
            await self.vault.keep(*self.chance.choice(again))

    async def wait(self, _version: str) -> None:
        self.clock.advance(self.chance.choice([1, 100, 4000, 9000]))

    async def sweep(self, _version: str) -> None:
        await swept(self.vault)

    async def restart(self, _version: str) -> None:
        await self.vault.close()
        self.vault = await loaded(self.store, self.clock, self.vault.settings)


KEYS = [f"k{number}" for number in range(25)]


@pytest.mark.parametrize("budget_bytes", [0, 20_000], ids=["no budget", "budget"])
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 40))]
)
async def test_whatever_happens_no_reader_gets_what_is_outdated(
    store: FailingStore, clock: ManualClock, seed: int, budget_bytes: int
) -> None:
    settings = msgspec.structs.replace(SETTINGS, budget_bytes=budget_bytes)
    story = Story(await loaded(store, clock, settings), store, clock, random.Random(seed))
    actions = {
        story.put: 8.0,
        story.delete: 2.0,
        story.delete_tag: 0.5,
        story.repeat: 2.0,
        story.wait: 3.0,
        story.sweep: 3.0,
        story.restart: 1.0,
    }

    for step in range(200):
        (action,) = story.chance.choices([*actions], [*actions.values()])
        await action(f"b1-{step:06}")
        for key in KEYS:
            found, expected = await fetch(story.vault, key), story.value(key)
            # With a budget, what is not outdated may be missing.
            if found is not None or not budget_bytes:
                assert found == expected, (seed, step, action, key)
    for _ in range(3):
        clock.advance(10 * KEEP_SECONDS)
        await swept(story.vault)

    index = story.vault.index("default")
    for_ever = [key for key in KEYS if story.value(key) is not None]
    assert index.tombstones == 0, seed
    assert index.entries <= len(for_ever), seed
    needed_bytes = index.object_bytes + 400 * len(on_disk(store))
    assert sum(on_disk(store).values()) <= 2 * needed_bytes, seed
    await story.vault.close()


async def test_what_is_missing_from_a_store_that_is_not_there_is_not_given_up(
    store: FailingStore, clock: ManualClock
) -> None:
    vault = await loaded(store, clock)
    noise = os.urandom(1000)
    await asyncio.gather(
        vault.keep(evicted("kept", noise), noise),
        vault.keep(evicted("gone", noise, expires_at=instant(clock() + SECOND_NS)), noise),
    )
    (path,) = store.folder.glob("*.object")
    path.rename(away := path.with_suffix(".away"))
    clock.advance(2)

    async def is_away() -> None:
        raise StoreError("it is unmounted")

    with pytest.raises(StoreError, match="unmounted"):
        async for _ in Sweeper(vault, is_away).sweep():
            pass
    away.rename(path)
    await swept(vault)

    assert await fetch(vault, "kept") == noise


async def test_what_is_damaged_on_its_way_is_read_once_more_before_it_is_given_up(
    store: FailingStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = await loaded(store, clock)
    noise = os.urandom(1000)
    await asyncio.gather(
        vault.keep(evicted("kept", noise), noise),
        vault.keep(evicted("gone", noise, expires_at=instant(clock() + SECOND_NS)), noise),
    )
    before = on_disk(store)
    clock.advance(2)
    get = store.get

    async def zeros(name: str) -> bytes | None:
        return bytes(len(await get(name) or b""))

    monkeypatch.setattr(store, "get", zeros)
    await swept(vault)

    assert on_disk(store).keys().isdisjoint(before)
    assert await fetch(vault, "kept") == noise


async def beside_the_dead(vault: Vault, clock: ManualClock, values: dict[str, bytes]) -> str:
    """Values in one segment that is mostly dead by then; its name."""
    dead = os.urandom(300_000)
    soon = instant(clock() + SECOND_NS)
    packed = [await vault.pack(evicted("dead", dead, expires_at=soon), dead)]
    for key, value in values.items():
        packed.append(await vault.pack(lives(key, value, 72_000, clock), value))
    vault.packer.flush()
    await vault.settle_all(packed)
    clock.advance(2)
    kept = vault.index("default").find("kept", clock())
    assert kept is not None
    assert len({entry.segment for _, entry in packed if entry is not None}) == 1
    return kept.segment


def spoil(content: bytes, value: bytes) -> bytes:
    """The same with the last byte of a value changed that is stored as it is."""
    at = content.index(value) + len(value) - 1
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("size", [1000, 100_000], ids=["small", "larger"])
async def test_a_value_damaged_on_its_way_is_not_stored_anew(
    store: FailingStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    vault = await loaded(store, clock, TOGETHER)
    values = {"kept": os.urandom(size), "too": os.urandom(1000)}
    name = await beside_the_dead(vault, clock, values)
    get = store.get

    async def spoiled(name: str) -> bytes | None:
        return spoil(await get(name) or b"", values["kept"])

    monkeypatch.setattr(store, "get", spoiled)
    await swept(vault)

    assert name not in on_disk(store)
    assert {key: await fetch(vault, key) for key in values} == values
    assert vault.damaged("default") == 0


async def test_a_damaged_value_is_told_and_stays_where_it_is(
    store: FailingStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = await loaded(store, clock, TOGETHER)
    values = {"kept": os.urandom(1000), "too": os.urandom(1000)}
    name = await beside_the_dead(vault, clock, values)
    path = store.folder / f"{name}.object"
    whole = path.read_bytes()
    path.write_bytes(spoil(whole, values["kept"]))
    sweeper = Sweeper(vault)

    async def sweep() -> None:
        async for _ in sweeper.sweep():
            pass

    await sweep()
    told = vault.damaged("default")
    stays = path.read_bytes()
    others = on_disk(store)
    get, read = store.get, list[str]()

    async def noted(name: str) -> bytes | None:
        read.append(name)
        return await get(name)

    monkeypatch.setattr(store, "get", noted)
    await sweep()
    path.write_bytes(whole)  # mended from a copy

    assert told == 1
    assert stays == spoil(whole, values["kept"])
    assert on_disk(store).keys() == others.keys()
    assert not read, "it is looked at once, not with each sweep"
    assert len(others) == 2
    assert {key: await fetch(vault, key) for key in values} == values
    assert vault.damaged("default") == 0


async def test_a_value_that_stays_damaged_is_given_up_in_the_end(
    store: FailingStore, clock: ManualClock
) -> None:
    vault = await loaded(store, clock, TOGETHER)
    values = {"kept": os.urandom(1000), "too": os.urandom(1000)}
    name = await beside_the_dead(vault, clock, values)
    path = store.folder / f"{name}.object"
    path.write_bytes(spoil(path.read_bytes(), values["kept"]))
    sweeper = Sweeper(vault)
    for seconds in (0, KEEP_SECONDS - 1, 2):
        clock.advance(seconds)
        async for _ in sweeper.sweep():
            pass
        assert path.exists() == (seconds != 2)

    assert await fetch(vault, "kept") is None
    assert await fetch(vault, "too") == values["too"]
    assert vault.damaged("default") == 1
