"""The layout of a segment: frames, footer, and what is left of a torn one."""

import random
from pathlib import Path

import msgspec
import pytest

from archive import codec, frame, segment
from archive.frame import ArchiveObjectError, FrameHeader
from archive.index_entry import IndexEntry, record_of
from schemas.cache import Evicted
from schemas.units import instant
from tests.support.evictions import NOW_NS, evicted, tombstone

WIRE = Path(__file__).parent.parent / "wire"
NAME = f"7d-{0x0123456789ABCDEF:032x}"
NOISE = random.Random(1).randbytes(2000)
ENTRIES = [
    (evicted("golden/ключ", b"text " * 100, tags=["a", "b"], meta={"model": "m"}), b"text " * 100),
    (evicted("noise", NOISE, version="b1-02", expires_at=None, score=2.5), NOISE),
    (tombstone("gone", "b1-03"), b""),
    (tombstone("", "b1-04", tag="t"), b""),
]


def framed(manifest: Evicted, value: bytes, name: str = NAME) -> bytes:
    codec_name, payload = codec.compress(value, level=3, min_ratio=1.1)
    header = FrameHeader(
        manifest=manifest,
        codec=codec_name,
        stored_at=instant(NOW_NS),
        payload_bytes=len(payload),
    )
    return frame.encode(header, payload, segment.seal_of(name))


def make(entries: list[tuple[Evicted, bytes]], name: str = NAME) -> tuple[bytes, list[IndexEntry]]:
    """A segment and what its footer says."""
    content, listed = b"", []
    for manifest, value in entries:
        one = framed(manifest, value, name)
        header, _ = frame.decode_header(one, segment.seal_of(name))
        listed.append(IndexEntry.of(header, len(one), segment=name, first=len(content)))
        content += one
    return content + segment.footer(name, [record_of(entry) for entry in listed]), listed


def value_of(content: bytes, entry: IndexEntry) -> tuple[Evicted, bytes]:
    one = content[entry.first : entry.first + entry.object_bytes]
    header, value = frame.decode(one, segment.seal_of(entry.segment))
    return header.manifest, value


def test_the_footer_lists_every_entry_and_where_it_lies() -> None:
    content, listed = make(ENTRIES)

    found = segment.read_footer(NAME, content)

    assert found == listed
    assert [value_of(content, entry) for entry in found] == ENTRIES
    assert list(segment.walk(NAME, content)) == listed


def test_segments_written_by_earlier_releases_are_read() -> None:
    content = (WIRE / "archive_v2_segment.bin").read_bytes()

    found = segment.read_footer(NAME, content)

    assert [value_of(content, entry) for entry in found] == ENTRIES
    assert list(segment.walk(NAME, content)) == found


def test_the_footer_is_read_from_the_end_alone() -> None:
    content, listed = make(ENTRIES)

    needed = segment.footer_bytes(content[-100:])

    assert segment.read_footer(NAME, content[-needed:]) == listed
    with pytest.raises(ArchiveObjectError, match="shorter than its footer"):
        segment.read_footer(NAME, content[-needed + 1 :])


def test_a_segment_cut_at_any_byte_gives_the_whole_entries_before_it() -> None:
    content, listed = make(ENTRIES)

    for length in range(len(content)):
        torn = content[:length]
        with pytest.raises(ArchiveObjectError):
            segment.read_footer(NAME, torn)
        whole = [entry for entry in listed if entry.first + entry.object_bytes <= length]
        assert list(segment.walk(NAME, torn)) == whole


def test_a_flipped_byte_costs_one_entry_at_most_and_never_gives_a_wrong_one() -> None:
    content, listed = make(ENTRIES)

    for position in range(len(content)):
        broken = bytearray(content)
        broken[position] ^= 0x10
        found = list(segment.walk(NAME, bytes(broken)))

        hit = [e for e in listed if e.first <= position < e.first + e.object_bytes]
        assert [entry for entry in listed if entry not in hit] == [
            entry for entry in found if entry not in hit
        ]
        assert all(value_of(bytes(broken), entry) in ENTRIES for entry in found)


def test_a_flipped_byte_in_the_footer_is_noticed() -> None:
    content, _ = make(ENTRIES)
    footer = content[-segment.footer_bytes(content) :]

    for position in range(len(footer)):
        broken = bytearray(footer)
        broken[position] ^= 0x10
        with pytest.raises(ArchiveObjectError):
            segment.read_footer(NAME, bytes(broken))


def test_a_value_that_looks_like_an_entry_is_none() -> None:
    forged = framed(evicted("forged", b"forged"), b"forged", f"7d-{1:032x}")
    unsealed = frame.encode(
        FrameHeader(
            manifest=evicted("forged", b"x"),
            codec="raw",
            stored_at=instant(NOW_NS),
            payload_bytes=1,
        ),
        b"x",
    )
    value = NOISE + forged + unsealed + NOISE
    content, listed = make([(evicted("k", value), value), ENTRIES[1]])

    torn = bytearray(content)
    torn[listed[0].first + 30] ^= 1

    assert list(segment.walk(NAME, bytes(torn))) == listed[1:]


def test_the_footer_of_another_segment_is_refused() -> None:
    content, _ = make(ENTRIES, f"7d-{1:032x}")

    with pytest.raises(ArchiveObjectError, match="checksum"):
        segment.read_footer(NAME, content)
    assert list(segment.walk(NAME, content)) == []


def test_fields_that_newer_releases_add_to_a_record_are_passed_over() -> None:
    _, listed = make(ENTRIES)
    longer = [
        msgspec.Raw(
            msgspec.msgpack.encode([*msgspec.msgpack.decode(bytes(record_of(entry))), "new"])
        )
        for entry in listed
    ]

    assert segment.read_footer(NAME, segment.footer(NAME, longer)) == listed


def test_the_largest_footer_fits_into_a_message() -> None:
    seed = random.Random(1)
    records, size_bytes = [], 0
    while size_bytes < segment.MAX_RECORDS_BYTES:
        key = "".join(map(chr, seed.choices(range(0x4E00, 0x9FFF), k=3000)))
        entry = IndexEntry.of(
            FrameHeader(
                manifest=evicted(key, tags=[key[:1000]]),
                codec="raw",
                stored_at=instant(NOW_NS),
                payload_bytes=5,
            ),
            100,
            segment=NAME,
        )
        records.append(record_of(entry))
        size_bytes += len(bytes(records[-1]))

    assert len(segment.footer(NAME, records)) <= segment.MAX_FOOTER_BYTES
