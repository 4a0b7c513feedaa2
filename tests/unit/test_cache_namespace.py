"""One namespace without a bus: versions, evictions, tombstones, restores, and what is refused."""

import asyncio
import itertools
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cache.archived import key_hash
from cache.contents import SHARDS
from cache.entry import Entry
from cache.files import Files
from cache.memory import MB
from cache.namespace import Namespace, VersionConflictError
from cache.reuse import group, uses
from cache.settings import CacheSettings
from cache.tombstones import OutboxCrowdedError
from cache.value_file import ValueFile
from schemas.units import SECOND_NS

HALF = MB // 2 - 100


class Clock:
    """Nanoseconds that pass only when told."""

    def __init__(self) -> None:
        self.ns = 1_000_000 * SECOND_NS

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


def namespace(
    clock: Clock,
    *,
    synced: bool = True,
    epoch_ms: int = 1,
    files: Files | None = None,
    **changes: Any,
) -> Namespace:
    settings = msgspec.convert(
        {"max_memory_mb": 1, "eviction_policy": "lru", **changes}, CacheSettings
    )
    made = Namespace(
        "default",
        settings,
        epoch_ms=epoch_ms,
        generation=1,
        message_ids=(f"test.{count}" for count in itertools.count()),
        clock=clock,
        files=files,
    )
    if synced:
        made.archived.begin_sync((), ())
        made.archived.finish_sync(())
        made.archived.caught_up = True
    return made


def entry(key: str, size: int = 10, **known: Any) -> Entry:
    return Entry(key=key, value=bytes(size), **known)


def evict(space: Namespace, key: str, **known: Any) -> Entry:
    """Put `key`, and others until it has left RAM."""
    written = entry(key, HALF, **known)
    space.put(written)
    for filler in ("filler-1", "filler-2"):
        space.put(entry(filler, HALF, ttl_seconds=0))
    return written


def test_versions_grow_as_text_and_across_owners(clock: Clock) -> None:
    first, second = namespace(clock, epoch_ms=9), namespace(clock, epoch_ms=10)
    entries = [entry("key") for _ in range(20)]

    for written in entries[:10]:
        first.put(written)
    for written in entries[10:]:
        second.put(written)

    versions = [written.version for written in entries]
    assert versions == sorted(set(versions))
    assert versions[0] == "000000000009-0000000001"


def test_compare_and_set_takes_the_version_that_is_here_and_nothing_else(clock: Clock) -> None:
    space = namespace(clock)
    old = entry("key")
    space.put(old)

    new = entry("key")
    space.put(new, old.version)

    with pytest.raises(VersionConflictError) as conflict:
        space.put(entry("key"), old.version)
    assert conflict.value.current == new.version
    with pytest.raises(VersionConflictError) as absent:
        space.put(entry("other"), old.version)
    assert absent.value.current is None
    assert space.find("key") is new


def test_compare_and_set_sees_the_version_that_waits_in_the_outbox(clock: Clock) -> None:
    space = namespace(clock)
    evicted = evict(space, "key")

    space.put(entry("key"), evicted.version)

    assert space.outbox.get("key") is None


def test_an_evicted_entry_is_found_in_the_outbox_and_returns_to_ram(clock: Clock) -> None:
    space = namespace(clock)
    evicted = evict(space, "key")

    before = space.peek("key")
    found = space.find("key")
    after = space.peek("key")

    assert before == (evicted, "outbox")
    assert found is evicted
    assert after == (evicted, "ram")
    assert evicted.access_count == 1
    assert (space.counters.hits, space.counters.misses) == (1, 0)


@pytest.mark.parametrize(
    "known",
    [
        pytest.param({"ttl_seconds": 0}, id="TTL 0: not archived"),
        pytest.param({"ttl_seconds": 5, "expires_at_ns": 1}, id="already expired"),
    ],
)
def test_entries_that_must_not_be_archived_are_not(clock: Clock, known: dict[str, Any]) -> None:
    space = namespace(clock)

    evict(space, "key", **known)

    assert space.peek("key") is None
    assert len(space.outbox) == 0
    assert not space.archived.may_hold("key")


def test_a_heuristic_of_zero_archives_nothing(clock: Clock) -> None:
    space = namespace(clock, ttl={"heuristic": "static", "base_seconds": 0})

    evict(space, "key")

    assert len(space.outbox) == 0


def test_the_archive_deadline_is_the_entrys_own_or_by_the_heuristic(clock: Clock) -> None:
    space = namespace(clock)
    own = clock.ns + 100_000 * SECOND_NS

    with_deadline = space.evictions.decide(entry("a", expires_at_ns=own), clock.ns)
    by_heuristic = space.evictions.decide(entry("b", access_count=4), clock.ns)

    assert with_deadline.deadline_ns == own
    assert by_heuristic.deadline_ns == clock.ns + 7200 * SECOND_NS


def test_only_the_last_of_a_chain_counts_as_last(clock: Clock) -> None:
    space = namespace(clock)
    chain = [entry("root"), entry("middle", parent="root"), entry("leaf", parent="middle")]

    for written in chain:
        space.put(written)

    assert [group(written) for written in chain] == [1, 1, 0]


def test_what_was_evicted_and_lost_is_known_when_it_is_written_again(clock: Clock) -> None:
    space = namespace(clock, ttl={"heuristic": "static", "base_seconds": 0.0})
    space.put(entry("key", HALF))
    space.find("key")
    for filler in ("filler-1", "filler-2"):
        space.put(entry(filler, HALF, ttl_seconds=0))
    missed = space.find("key")
    again = entry("key")

    space.put(again)

    assert missed is None
    assert uses(again) == 3  # written, read, written again
    assert space.learner.returns == 1


def test_what_waits_past_its_archive_deadline_is_not_answered(clock: Clock) -> None:
    space = namespace(clock)
    evict(space, "key")

    clock.ns += 3600 * SECOND_NS - 1
    just_before = space.peek("key")
    clock.ns += 1

    assert just_before is not None
    assert space.peek("key") is None
    assert space.find("key") is None


def test_with_the_archive_off_evictions_end_here(clock: Clock) -> None:
    space = namespace(clock, synced=False, archive_mode="off")

    evict(space, "key")

    assert space.put(entry("key")) is None
    assert space.delete("key")[2] is None
    assert len(space.outbox) == 0
    assert not space.restores.possible("key")


def test_only_keys_that_may_be_archived_need_a_tombstone(clock: Clock) -> None:
    space = namespace(clock)
    evict(space, "archived")

    new = space.put(entry("new"))
    overwritten_in_ram = space.put(entry("new"))
    overwritten = space.put(entry("archived"))
    absent = space.delete("absent")

    assert new is overwritten_in_ram is absent[2] is None
    assert overwritten is not None
    assert overwritten.entry is None


def test_before_the_first_sync_every_write_needs_a_tombstone(clock: Clock) -> None:
    space = namespace(clock, synced=False)

    put, deleted = space.put(entry("a")), space.delete("b")[2]

    assert put is not None
    assert deleted is not None
    assert not space.restores.possible("c")


def test_overwriting_and_deleting_take_the_old_value_out_of_the_outbox(clock: Clock) -> None:
    space = namespace(clock)
    evict(space, "a")
    evict(space, "b")

    space.put(entry("a"))
    existed, version, tombstone = space.delete("b")

    assert existed
    assert tombstone is not None
    assert tombstone.version == version
    assert list(space.outbox.waiting_values()) == []
    assert space.find("b") is None


def restored(key: str, version: str, **known: Any) -> Entry:
    return entry(key, version=version, **known)


def test_a_restored_entry_is_in_ram_with_its_old_version(clock: Clock) -> None:
    space = namespace(clock)
    restore = space.restores.begin("key")

    answer = space.restores.finish("key", restore, restored("key", "v"))

    assert answer is space.find("key")
    assert answer is not None
    assert answer.version == "v"
    assert restore.finished.is_set()
    assert space.restores.under_way("key") is None


def test_a_restore_is_refused_when_the_key_was_written_meanwhile(clock: Clock) -> None:
    space = namespace(clock)
    evicted = evict(space, "key")
    restore = space.restores.begin("key")

    # The whole life of a newer version passes while the old one is being read: put, tombstone
    # confirmed, evicted for good.
    space.put(entry("key", HALF, ttl_seconds=0))
    space.archived.confirm("key", "f", tombstone=True)
    evict(space, "other", ttl_seconds=0)
    answer = space.restores.finish("key", restore, restored("key", evicted.version))

    assert answer is None
    assert space.peek("key") is None
    assert space.counters.restores_refused == 1


@pytest.mark.parametrize("write", ["delete", "clear"])
async def test_a_restore_is_refused_after_delete_and_clear(clock: Clock, write: str) -> None:
    space = namespace(clock)
    restore = space.restores.begin("key")

    if write == "delete":
        space.delete("key")
    else:
        await space.clear(2)
    answer = space.restores.finish("key", restore, restored("key", "v"))

    assert answer is None
    assert space.peek("key") is None


def test_a_restore_below_an_unconfirmed_tombstone_is_refused(clock: Clock) -> None:
    space = namespace(clock)
    evicted = evict(space, "key")
    space.delete("key")

    restore = space.restores.begin("key")
    answer = space.restores.finish("key", restore, restored("key", evicted.version))

    assert answer is None


@pytest.mark.parametrize("told", ["by event", "by sync"])
@pytest.mark.parametrize("deleted", ["key", "tag"])
async def test_a_restore_below_a_tombstone_confirmed_since_it_was_asked_is_refused(
    clock: Clock, deleted: str, told: str
) -> None:
    space = namespace(clock)
    evicted = evict(space, "key", tags=("t",))
    deletion = space.delete("key")[2] if deleted == "key" else (await space.delete_tag("t"))[2]
    assert deletion is not None

    # The archive reads the old value, then the tombstone; what it says arrives the other way round.
    restore = space.restores.begin("key")
    if told == "by event":
        space.archived.confirm(deletion.target, deletion.version, tombstone=True)
    else:
        space.archived.begin_sync((), ())
        space.archived.finish_sync(())
    old = restored("key", evicted.version, tags=("t",))
    answer = space.restores.finish("key", restore, old)
    new = restored("key", "f", tags=("t",))
    later = space.restores.finish("key", space.restores.begin("key"), new)

    assert answer is None
    assert later is not None


def test_an_expired_restore_is_refused_at_its_instant(clock: Clock) -> None:
    space = namespace(clock)

    at = space.restores.finish(
        "a", space.restores.begin("a"), restored("a", "v", expires_at_ns=clock.ns)
    )
    before = space.restores.finish(
        "b", space.restores.begin("b"), restored("b", "v", expires_at_ns=clock.ns + 1)
    )

    assert at is None
    assert before is not None


def test_a_value_written_while_the_archive_was_asked_is_the_answer(clock: Clock) -> None:
    space = namespace(clock)
    restore = space.restores.begin("key")
    written = entry("key")

    space.put(written)
    answer = space.restores.finish("key", restore, restored("key", "old"))

    assert answer is written


def test_a_question_asked_after_a_write_does_not_join_the_older_one(clock: Clock) -> None:
    space = namespace(clock)
    space.restores.begin("key")

    space.delete("key")

    assert space.restores.under_way("key") is None


async def test_clear_empties_ram_and_outbox_and_leaves_the_archive_behind(clock: Clock) -> None:
    space = namespace(clock)
    evict(space, "evicted")
    tombstone = space.put(entry("evicted"))

    entries, told = await space.clear(2)

    assert entries == 3
    assert (len(space.memory), len(space.outbox)) == (0, 1)
    assert await space.outbox.take() is told
    assert tombstone is not None
    assert tombstone.acknowledged
    assert not space.restores.possible("evicted")
    assert space.generation == 2


async def test_what_waits_for_the_archive_is_gone_with_a_clear(clock: Clock) -> None:
    space = namespace(clock)
    evict(space, "evicted")
    waited = space.peek("evicted")

    await space.clear(2)

    assert waited is not None
    assert space.peek("evicted") is None


async def test_a_limit_that_ram_had_not_shrunk_to_holds_after_a_clear(clock: Clock) -> None:
    space = namespace(clock)
    space.put(entry("key", HALF))
    space.limits.configure(msgspec.structs.replace(space.limits.config, max_size_mb=0.25))
    before = space.memory.limit_bytes

    await space.clear(2)

    assert before == space.counters.put_bytes + len("key")
    assert space.memory.limit_bytes == MB // 4


async def test_others_go_on_while_much_is_cleared_and_see_nothing_of_it(clock: Clock) -> None:
    space = namespace(clock)
    for number in range(5000):
        space.put(entry(f"key-{number}"))
    seen = []

    async def look() -> None:
        while True:
            seen.append((space.generation, space.peek("key-4999"), len(space.memory)))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    cleared, _ = await space.clear(2)
    looking.cancel()

    assert cleared == 5000
    assert len(seen) > 5
    assert set(seen) == {(2, None, 0)}


def test_writes_that_need_a_tombstone_are_refused_while_too_many_wait(clock: Clock) -> None:
    space = namespace(clock, outbox_max_bytes=16 * MB)
    keys = [f"{number:04d}" + "k" * 10_000 for number in range(900)]  # 8 MiB take 798 of them
    space.archived.finish_sync(key_hash(key) for key in keys)

    for key in keys[:798]:
        space.delete(key)

    for write in (lambda: space.delete(keys[800]), lambda: space.put(entry(keys[800]))):
        with pytest.raises(OutboxCrowdedError):
            write()
    assert space.put(entry("new")) is None
    assert space.outbox.used_bytes <= space.outbox.max_bytes


def test_refusing_keeps_restores_and_returning_values_out_of_a_full_cache(clock: Clock) -> None:
    space = namespace(clock, outbox_max_bytes=16 * MB, archive_when_full="refuse")
    for number in range(40):
        if not space.limits.refuses(HALF):
            space.put(entry(f"key-{number}", HALF))
    big = entry("old", HALF, version="v")

    answer = space.restores.finish("old", space.restores.begin("old"), big)
    waiting = space.find("key-0")

    assert space.limits.refuses(HALF)
    assert space.outbox.lost == 0
    assert answer is not None
    assert space.memory.peek("old") is None
    assert waiting is not None
    assert space.memory.peek("key-0") is None


async def test_everything_in_ram_can_be_sent_to_the_outbox(clock: Clock) -> None:
    space = namespace(clock)
    for key in "abc":
        space.put(entry(key))
    space.put(entry("not archived", ttl_seconds=0))

    await space.trimming.evict_everything("stop")

    assert list(space.outbox.waiting_values()) == ["a", "b", "c"]
    assert len(space.memory) == 0


def test_a_chain_larger_than_ram_keeps_its_head_and_sends_the_rest_to_the_archive(
    clock: Clock,
) -> None:
    space = namespace(clock)
    chain = [entry(key, HALF - 200) for key in "abc"]

    tombstones = space.put_chain(chain)

    assert [space.peek(key) for key in "abc"] == [
        (chain[0], "ram"),
        (chain[1], "ram"),
        (chain[2], "outbox"),
    ]
    assert tombstones == [None] * 3
    assert space.counters.puts == 3
    assert [one.version for one in chain] == sorted({one.version for one in chain})


@pytest.mark.parametrize("policy", ["lru", "prefix"])
def test_a_match_of_a_chain_larger_than_ram_finds_its_head_again_and_again(
    clock: Clock, policy: str
) -> None:
    space = namespace(clock, eviction_policy=policy)
    keys = [f"{number}" for number in range(12)]
    size = MB // 4 - 100
    space.put_chain([entry(key, size, parent=parent) for parent, key in itertools.pairwise(keys)])

    matched = [space.match(keys[1:]) for _ in range(3)]
    clock.ns += 10 * SECOND_NS
    matched.append(space.match(keys[1:]))

    assert matched == [4] * 4
    assert [space.peek(key) is not None for key in keys[1:]] == [True] * 11


@pytest.mark.parametrize("policy", ["lru", "prefix"])
def test_reading_a_chain_larger_than_ram_leaves_its_head_there(clock: Clock, policy: str) -> None:
    space = namespace(clock, eviction_policy=policy)
    keys = [f"{number}" for number in range(50)]
    size = MB // 10 - 100
    chain = [entry(key, size, parent=parent) for parent, key in itertools.pairwise(["root", *keys])]
    space.put_chain(chain)
    space.match(keys)

    found = space.find_many(keys)

    assert found == chain
    assert [key for key in keys if space.memory.peek(key) is not None] == keys[:10]


@pytest.mark.parametrize("policy", ["lru", "prefix"])
def test_what_waits_of_a_chain_returns_to_ram_with_a_match_where_all_of_it_fits(
    clock: Clock, policy: str
) -> None:
    space = namespace(clock, eviction_policy=policy)
    space.put_chain([entry(key, HALF - 200) for key in "ab"])
    space.put_chain([entry(key, HALF - 200) for key in "cd"])

    matched = space.match(["a", "b", "absent"])

    assert matched == 2
    assert {key: space.peek(key) for key in "ab"} == {
        key: (space.memory.peek(key), "ram") for key in "ab"
    }


@pytest.mark.parametrize(("deadline", "found"), [("fixed", 0), ("sliding", 1)])
def test_a_match_is_a_hit_that_starts_a_sliding_deadline_anew(
    clock: Clock, deadline: str, found: int
) -> None:
    space = namespace(clock, ttl={"deadline": deadline})
    space.put(entry("a", ttl_seconds=10, expires_at_ns=clock.ns + 10 * SECOND_NS))
    clock.ns += 9 * SECOND_NS
    first = space.match(["a"])
    clock.ns += 9 * SECOND_NS

    matched = space.match(["a"])

    assert (first, matched) == (1, found)


def test_a_chain_with_an_entry_that_never_fits_changes_nothing(clock: Clock) -> None:
    space = namespace(clock)

    with pytest.raises(ValueError, match="exceeds cache limit"):
        space.put_chain([entry("a"), entry("b", 2 * MB)])

    assert space.peek("a") is None


def test_a_chain_supersedes_what_may_be_archived(clock: Clock) -> None:
    space = namespace(clock, synced=False)

    tombstones = space.put_chain([entry("a"), entry("b")])

    assert [one.key for one in tombstones if one is not None] == ["a", "b"]


async def test_deleting_a_tag_reaches_ram_and_outbox_and_spares_newer_entries(
    clock: Clock,
) -> None:
    space = namespace(clock)
    evict(space, "waits", tags=("t",))
    space.put(entry("old", tags=("s", "t")))
    space.put(entry("other", tags=("s",)))

    deleting = asyncio.create_task(space.delete_tag("t"))
    await asyncio.sleep(0)  # the version of the deletion is chosen
    space.put(entry("new", tags=("t",)))
    entries, version, tombstone = await deleting

    assert entries == 2
    assert [key for key in ("waits", "old", "other", "new") if space.peek(key)] == ["other", "new"]
    assert tombstone is not None
    assert (tombstone.tag, tombstone.version, tombstone.entry) == ("t", version, None)


async def test_what_is_evicted_while_its_tag_is_deleted_is_deleted(clock: Clock) -> None:
    space = namespace(clock)
    keys = (f"key-{number}" for number in itertools.count())
    last = next(key for key in keys if space.memory.shard_of(key) == SHARDS - 1)
    space.put(entry(last, HALF, tags=("t",)))

    deleting = asyncio.create_task(space.delete_tag("t"))
    await asyncio.sleep(0)  # it has looked at the first part
    for filler in ("filler-1", "filler-2"):
        space.put(entry(filler, HALF, ttl_seconds=0))
    in_ram = space.memory.peek(last)
    during = space.find(last)
    entries, version, _ = await deleting
    space.archived.confirm(("t",), version, tombstone=True)

    assert (in_ram, during) == (None, None)
    assert space.find(last) is None
    assert entries == 1


async def test_a_restore_that_was_asked_before_its_tag_was_deleted_is_refused(
    clock: Clock,
) -> None:
    space = namespace(clock)
    restores = {key: space.restores.begin(key) for key in ("tagged", "other")}

    _, version, tombstone = await space.delete_tag("t")
    assert tombstone is not None
    space.archived.confirm(tombstone.target, version, tombstone=True)
    found = {
        key: space.restores.finish(
            key, restores[key], entry(key, version="000000000000-0000000001", tags=tags)
        )
        for key, tags in (("tagged", ("t",)), ("other", ("s",)))
    }

    assert found["tagged"] is None
    assert found["other"] is not None


def test_too_many_tombstones_refuse_a_deletion_by_tag(clock: Clock) -> None:
    space = namespace(clock, synced=False, outbox_max_bytes=16 * MB)
    space.outbox.max_bytes = 0

    space.delete("one")

    with pytest.raises(OutboxCrowdedError):
        asyncio.run(space.delete_tag("t"))


async def test_a_restore_for_which_too_much_must_leave_is_answered_but_not_kept(
    clock: Clock,
) -> None:
    space = namespace(clock)
    for filler in ("filler-1", "filler-2"):
        space.put(entry(filler, HALF))
    restores = [space.restores.begin(key) for key in ("large", "small")]

    for restore, key, size in zip(restores, ("large", "small"), (100_000, 1000), strict=True):
        restore.may_evict_bytes = 50_000
        space.restores.finish(key, restore, entry(key, size, version="000000000000-0000000001"))

    assert all(restore.answer is not None for restore in restores)
    assert [space.peek(key) is not None for key in ("large", "small")] == [False, True]
    assert [restore.evicted_bytes for restore in restores] == [0, HALF + len("filler-1")]


@pytest.fixture
def files() -> Iterator[Files]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        made = Files(msgspec.convert({"same_host_folder": folder}, CacheSettings))
        yield made
        made.close()


def put_files(space: Namespace, keys: str) -> list[ValueFile]:
    values = []
    for key in keys:
        written = entry(key, 300_000)
        space.put(written)
        assert isinstance(written.value, ValueFile)
        values.append(written.value)
    return values


def put_again(space: Namespace) -> None:
    space.put(entry("a"))


def put_chain_again(space: Namespace) -> None:
    space.put_chain([entry("root"), entry("a")])


def delete(space: Namespace) -> None:
    space.delete("a")


@pytest.mark.parametrize("write", [put_again, put_chain_again, delete])
def test_a_file_loses_its_name_with_a_write_though_somebody_still_reads_it(
    clock: Clock, files: Files, write: Any
) -> None:
    space = namespace(clock, files=files)
    (read,) = put_files(space, "a")

    write(space)

    assert not os.path.exists(read.path)
    assert bytes(read) == bytes(300_000)


def test_a_file_loses_its_name_once_only_the_archive_has_it(clock: Clock, files: Files) -> None:
    space = namespace(clock, files=files)
    (sent,) = put_files(space, "a")
    for filler in ("filler-1", "filler-2"):
        space.put(entry(filler, HALF, ttl_seconds=0))
    found = space.peek("a")
    waited = have_names([sent])

    assert found is not None
    space.outbox.confirm("a", found[0].version)

    assert (found[1], waited) == ("outbox", [True])
    assert have_names([sent]) == [False]


async def test_no_descriptors_are_needed_to_clear_sweep_or_configure(
    clock: Clock, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = namespace(clock, files=files)
    kept = put_files(space, "abc")
    config = space.limits.config
    opened: list[str] = []
    really_open = os.open

    def note_open(path: str, flags: int) -> int:
        opened.append(path)
        return really_open(path, flags)

    with monkeypatch.context() as patch:
        patch.setattr("cache.value_file.os.open", note_open)
        space.limits.configure(msgspec.structs.replace(config, enable_sharing=False))
        space.limits.configure(config)
        configured = have_names(kept)
        clock.ns += 30 * 24 * 3600 * SECOND_NS
        space.trimming.sweep("a")
        swept = have_names(kept)
        await space.clear(2)

    assert configured == [True, True, True]
    assert swept == [False, True, True]
    assert have_names(kept) == [False, False, False]
    assert opened == []


def have_names(values: list[ValueFile]) -> list[bool]:
    return [os.path.exists(value.path) for value in values]


def test_a_value_that_was_replaced_while_it_was_read_is_not_lost(
    clock: Clock, files: Files
) -> None:
    space = namespace(clock, files=files)
    space.put(old := entry("a", 300_000))
    space.put(new := entry("a", 300_000))

    space.holdings.lose(old)
    kept = space.peek("a")
    space.holdings.lose(new)

    assert kept == (new, "ram")
    assert space.peek("a") is None


@pytest.mark.parametrize("why", ["waits", "has expired", "was brought back as another"])
def test_a_value_that_waits_for_the_archive_without_its_file_is_lost_in_any_case(
    clock: Clock, why: str
) -> None:
    space = namespace(clock)
    written = evict(space, "a", ttl_seconds=60, expires_at_ns=clock.ns + 60 * SECOND_NS)
    if why == "has expired":
        clock.ns += 60 * SECOND_NS
    elif why == "was brought back as another":
        space.memory.store(entry("a", 300, version=written.version))

    space.holdings.lose(written)

    assert space.outbox.get("a") is None
    assert (space.outbox.pending, space.outbox.lost) == (0, 1)
