"""Entries as the index holds them: nothing is lost on the way there and back."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive import packed_entry
from archive.index import NamespaceIndex
from archive.index_entry import IndexEntry, key_hash
from tests.support.evictions import NOW_NS

INSTANTS = st.integers(-(2**62), 2**63 - 1)
BYTES = st.integers(0, 2**32 - 1)
PLAIN = IndexEntry(
    segment="1d-0",
    namespace="default",
    key="user-1/chat/0000000000000000000000001",
    generation=3,
    version="01a1fbfee017-0000000001",
    tombstone=False,
    size_bytes=4096,
    first=12345,
    object_bytes=4500,
    stored_ns=NOW_NS,
    expires_ns=NOW_NS + 1,
    score=1.5,
    used_ns=NOW_NS - 1,
    tags=(),
    tag=None,
    follows=True,
    cost_seconds=None,
    hash=key_hash("user-1/chat/0000000000000000000000001"),
)


@st.composite
def entries(draw: st.DrawFn) -> IndexEntry:
    key = draw(st.text(st.characters(exclude_categories=["Cs"])))
    version = st.from_regex(r"[0-9a-f]{12}-[0-9a-f]{10}", fullmatch=True) | st.text(max_size=40)
    return IndexEntry(
        segment="1d-0",
        namespace="default",
        key=key,
        generation=draw(st.integers(0, 2**40)),
        version=draw(version),
        tombstone=draw(st.booleans()),
        size_bytes=draw(BYTES),
        first=draw(BYTES),
        object_bytes=draw(BYTES),
        stored_ns=draw(INSTANTS),
        expires_ns=draw(st.none() | INSTANTS),
        score=draw(st.floats(2**-20, 2**20)),
        used_ns=draw(INSTANTS),
        tags=tuple(draw(st.lists(st.text(), max_size=3))),
        tag=None,
        follows=draw(st.booleans()),
        cost_seconds=draw(st.none() | st.floats(0, 1e6, width=32)),
        hash=key_hash(key),
    )


@given(entries())
def test_an_entry_comes_back_as_it_was(entry: IndexEntry) -> None:
    record = packed_entry.pack(entry, 7)

    back = packed_entry.unpack(record, entry.namespace, entry.key, entry.segment)

    assert back == entry
    assert packed_entry.segment_number(record) == 7
    assert packed_entry.hash_of(record) == entry.hash
    assert packed_entry.is_tombstone(record) == entry.tombstone
    assert packed_entry.used_ns(record) == entry.used_ns
    assert packed_entry.score_of(record) == entry.score


@given(entries(), st.integers(0, 2**40), INSTANTS)
def test_what_may_not_be_live_is_not(entry: IndexEntry, generation: int, now_ns: int) -> None:
    record = packed_entry.pack(entry, 0)
    is_live = (
        not entry.tombstone and entry.generation >= generation and not entry.is_expired(now_ns)
    )

    may_be = packed_entry.may_be_live(record, generation, now_ns)

    assert may_be == is_live or (may_be and packed_entry.is_unusual(record))


def test_an_ordinary_entry_takes_few_bytes() -> None:
    assert len(packed_entry.pack(PLAIN, 2**32 - 1)) == 76
    assert not packed_entry.is_unusual(packed_entry.pack(PLAIN, 0))


@pytest.mark.parametrize(
    "change",
    [
        {"tags": ("a", "b")},
        {"version": "b1-02"},
        {"version": "01A1FBFEE017-0000000001"},
        {"generation": 2**32},
    ],
    ids=["tags", "another's version", "upper case", "a high generation"],
)
def test_the_unusual_is_held_too(change: dict[str, object]) -> None:
    index = NamespaceIndex()
    entry = msgspec.structs.replace(PLAIN, **change)

    index.put(entry)

    assert index.find(entry.key, NOW_NS) == entry
    assert index.find(entry.key, NOW_NS + 1) is None
