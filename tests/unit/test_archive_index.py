"""What a namespace holds, as the index knows it."""

import itertools
import random

import msgspec
import pytest

from archive import packed_entry
from archive.frame import FrameHeader
from archive.index import NamespaceIndex
from archive.index_entry import IndexEntry, key_hash, object_name
from archive.ledger import Ledger
from schemas.cache import Evicted
from schemas.units import SECOND_NS, instant
from tests.support.evictions import NOW_NS, evicted, tombstone

HOUR_NS = 3600 * SECOND_NS


def entry(manifest: Evicted) -> IndexEntry:
    header = FrameHeader(manifest=manifest, codec="raw", stored_at=instant(NOW_NS), payload_bytes=0)
    return IndexEntry.of(header, object_bytes=100)


def filled(*manifests: Evicted) -> NamespaceIndex:
    index = NamespaceIndex()
    for manifest in manifests:
        index.put(entry(manifest))
    return index


def test_of_two_copies_of_a_value_the_one_stored_first_counts_in_whatever_order() -> None:
    first, later = (
        msgspec.structs.replace(entry(evicted()), segment=segment, stored_ns=NOW_NS + second)
        for second, segment in enumerate(("b", "a"))
    )
    beside = msgspec.structs.replace(first, segment="c")

    for order in itertools.permutations((first, later, beside)):
        index = NamespaceIndex()
        for one in order:
            index.put(one)
        found = index.newest(first.key)
        assert found is not None
        assert (found.segment, found.stored_ns) == ("b", NOW_NS)
        assert index.entries == 1


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        pytest.param(evicted(version="b1-01"), evicted(version="b1-02"), 2, id="higher version"),
        pytest.param(evicted(version="b1-02"), evicted(version="b1-01"), 1, id="late delivery"),
        pytest.param(evicted(version="b1-99"), evicted(version="b2-01"), 2, id="later boot"),
        pytest.param(evicted(version="b1-01"), tombstone(version="b1-02"), 2, id="deleted"),
        pytest.param(tombstone(version="b1-02"), evicted(version="b1-01"), 1, id="late value"),
        pytest.param(
            tombstone(version="b1-02"), evicted(version="b1-02"), 2, id="the put's own value"
        ),
        pytest.param(
            evicted(version="b1-02"), tombstone(version="b1-02"), 1, id="the put's late tombstone"
        ),
        pytest.param(
            evicted(version="b1-02"), evicted(version="b1-01", generation=1), 2, id="generation"
        ),
        pytest.param(evicted(), evicted(expires_at=None), 2, id="same version, lives longer"),
        pytest.param(evicted(expires_at=None), evicted(), 1, id="same version, lives shorter"),
        pytest.param(evicted(), evicted(), 1, id="the same again"),
    ],
)
def test_of_two_versions_of_a_key_the_newer_stays(
    first: Evicted, second: Evicted, winner: int
) -> None:
    index = NamespaceIndex()
    entries = [entry(first), entry(second)]

    nothing = index.put(entries[0])
    loser = index.put(entries[1])

    assert nothing is None
    assert loser == entries[2 - winner]
    assert index.newest("k") == entries[winner - 1]


@pytest.mark.parametrize(
    ("now_ns", "found"),
    [
        pytest.param(NOW_NS + HOUR_NS - 1, True, id="just before"),
        pytest.param(NOW_NS + HOUR_NS, False, id="exactly at its expiry"),
        pytest.param(NOW_NS + HOUR_NS + 1, False, id="after"),
    ],
)
def test_an_expired_value_is_not_found(now_ns: int, *, found: bool) -> None:
    index = filled(evicted())

    assert (index.find("k", now_ns) is not None) is found
    assert (index.hashes(b"", 10, now_ns) == [key_hash("k")]) is found
    assert (index.listing("", "", 10, now_ns) != []) is found
    assert (index.due(now_ns) == []) is found


def test_a_newer_generation_hides_everything_older() -> None:
    index = filled(evicted("old"), evicted("new", generation=1))

    assert index.find("old", NOW_NS) is None
    assert index.find("new", NOW_NS) is not None
    assert [due.key for due in index.due(NOW_NS)] == ["old"]


def test_a_tombstone_is_never_found_and_goes_by_its_age() -> None:
    index = filled(evicted(), tombstone())

    assert index.find("k", NOW_NS) is None
    assert index.hashes(b"", 10, NOW_NS) == []
    assert index.due(NOW_NS) == []
    assert index.guards(NOW_NS) == []
    assert len(index.guards(NOW_NS + 1)) == 1


def test_hashes_and_listing_come_in_pages() -> None:
    keys = [f"key-{number}" for number in range(10)]
    index = filled(*map(evicted, keys))

    first = index.hashes(b"", 6, NOW_NS)
    rest = index.hashes(first[-1], 6, NOW_NS)
    listed = index.listing("key-", "key-3", 4, NOW_NS)

    assert first + rest == sorted(map(key_hash, keys))
    assert [found.key for found in listed] == ["key-4", "key-5", "key-6", "key-7"]
    assert index.listing("other", "", 10, NOW_NS) == []


def test_who_asks_for_what_no_key_can_follow_looks_at_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = filled(*(evicted(f"key-{number}") for number in range(10)))
    looked: list[bytes] = []
    monkeypatch.setattr(packed_entry, "hash_of", looked.append)

    assert index.hashes(b"\xff" * 8, 10, NOW_NS) == []
    assert looked == []


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "a/b", "", "\x00", "ключ 🔑", "k" * 10 * 1024, "a\nb"]
)
def test_every_key_has_a_name_of_its_own_that_is_a_hash(key: str) -> None:
    names = {
        object_name(manifest)
        for manifest in (
            evicted(key),
            evicted(key + "x"),
            evicted(key, version="b1-02"),
            evicted(key, namespace="other"),
            evicted(key, generation=1),
            tombstone(key, version="b1-01"),
        )
    }

    assert len(names) == 6
    assert all(len(name) == 64 and set(name) <= set("0123456789abcdef") for name in names)


def test_a_key_and_version_that_share_their_letters_do_not_share_a_name() -> None:
    assert object_name(evicted("a", version="bc")) != object_name(evicted("ab", version="c"))


def test_a_damaged_value_leaves_only_the_memory_of_its_version() -> None:
    index = filled(evicted(version="b1-02"))
    known = index.newest("k")
    assert known is not None

    index.retire(known, NOW_NS, NOW_NS, guard=True)

    assert index.find("k", NOW_NS) is None
    assert index.put(entry(evicted(version="b1-01"))) is not None
    assert (index.entries, index.tombstones, index.size_bytes) == (0, 1, 0)


def test_totals_agree_with_the_entries_after_random_changes() -> None:
    seed = 20260101
    chance = random.Random(seed)
    index = NamespaceIndex()
    model: dict[str, IndexEntry] = {}

    for _ in range(5000):
        key = f"k{chance.randrange(50)}"
        known = index.newest(key)
        if known is not None and chance.random() < 0.3:
            index.remove(known)
            del model[key]
            continue
        make = tombstone if chance.random() < 0.3 else evicted
        offered = entry(make(key, version=f"{chance.randrange(1000):04}"))
        index.put(offered)
        if key not in model or offered.order > model[key].order:
            model[key] = offered

    values = [known for known in model.values() if not known.tombstone]
    assert all(index.newest(key) == known for key, known in model.items()), seed
    assert index.entries == len(values), seed
    assert index.tombstones == len(model) - len(values), seed
    assert index.size_bytes == sum(known.size_bytes for known in values), seed
    assert index.object_bytes == 100 * len(model), seed


def test_a_deleted_tag_hides_what_had_it_before() -> None:
    index = filled(
        evicted("old", version="b1-01", tags=["t", "u"]),
        evicted("new", version="b1-09", tags=["t"]),
        evicted("other", version="b1-01", tags=["u"]),
    )

    index.put(entry(tombstone("", version="b1-05", tag="t")))

    assert [index.find(key, NOW_NS) is not None for key in ("old", "new", "other")] == [
        False,
        True,
        True,
    ]
    assert [one.key for one in index.listing("", "", 10, NOW_NS)] == ["new", "other"]
    assert len(index.hashes(b"", 10, NOW_NS)) == 2
    assert [one.key for one in index.due(NOW_NS)] == ["old"]
    assert (index.entries, index.tombstones) == (3, 1)


def test_of_two_deletions_of_a_tag_the_newer_stays() -> None:
    index = NamespaceIndex()
    newer, older = (entry(tombstone("", version=v, tag="t")) for v in ("b1-05", "b1-02"))

    index.put(newer)
    loser = index.put(older)

    assert loser is older
    assert index.tombstone_of("t") is newer
    assert index.tombstones == 1


def test_a_tombstone_of_a_tag_has_a_name_of_its_own() -> None:
    names = {object_name(tombstone("", tag=tag)) for tag in (None, "a", "b")}

    assert len(names) == 3


@pytest.mark.parametrize("first", [0, 1], ids=["older first", "newer first"])
def test_of_two_versions_that_did_not_know_of_each_other_the_newer_follows_one(first: int) -> None:
    index = NamespaceIndex()
    both = [
        msgspec.structs.replace(entry(evicted(version=version)), follows=False)
        for version in ("b1-01", "b1-02")
    ]

    index.put(both[first])
    index.put(both[1 - first])

    newest = index.newest("k")
    assert newest is not None
    assert (newest.version, newest.follows) == ("b1-02", True)
    assert (index.entries, index.size_bytes) == (1, 5)


def test_what_was_said_of_an_entry_does_not_touch_the_same_version_at_another_place() -> None:
    index = NamespaceIndex()
    first = msgspec.structs.replace(entry(evicted()), segment="1d-1")
    again = msgspec.structs.replace(entry(evicted(expires_at=None)), segment="none-2")
    index.put(first)
    index.put(again)

    index.use(first, 2.0, 7)
    index.remove(first)

    assert not index.holds(first)
    assert index.newest("k") == again
    assert index.in_segments({"none-2"}) == [again]
    assert index.in_segments({"1d-1"}) == []


def test_a_segment_that_is_gone_leaves_nothing_and_its_number_to_nobody() -> None:
    ledger = Ledger()
    number = ledger.use("1d-1").number

    ledger.forget("1d-1")

    assert ledger.use("1d-2").number != number
    with pytest.raises(KeyError):
        ledger.name(number)
