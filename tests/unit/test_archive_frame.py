"""The layout of an archived object."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive import frame
from archive.frame import ArchiveObjectError
from schemas.cache import Evicted
from schemas.units import SECOND_NS, instant
from tests.support.evictions import NOW_NS, evicted, single_object, tombstone
from tests.support.tensors import bf16, fp32

LAST = datetime.max.replace(tzinfo=UTC)
WIRE = Path(__file__).parent.parent / "wire"
# Lone surrogates have no UTF-8 form, so no key can hold them.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(
    key=TEXTS,
    value=st.binary(max_size=200) | st.binary(max_size=20).map(lambda piece: piece * 100),
    meta=st.dictionaries(TEXTS, TEXTS, max_size=3),
)
def test_every_object_reads_back_as_it_was(key: str, value: bytes, meta: dict[str, str]) -> None:
    manifest = evicted(key, value, meta=meta, tags=list(meta))

    header, found = frame.decode(single_object(manifest, value))

    assert found == value
    assert header.manifest == manifest
    assert header.stored_at == instant(NOW_NS)


@pytest.mark.parametrize(
    "value", [pytest.param(b"short", id="raw"), pytest.param(b"long" * 100, id="zstd")]
)
def test_an_object_cut_at_any_byte_is_an_error(value: bytes) -> None:
    content = single_object(evicted(value=value), value)

    for length in range(len(content)):
        with pytest.raises(ArchiveObjectError):
            frame.decode(content[:length])


@pytest.mark.parametrize(
    "value", [pytest.param(b"short", id="raw"), pytest.param(b"long" * 100, id="zstd")]
)
def test_an_object_with_any_flipped_bit_never_gives_wrong_bytes(value: bytes) -> None:
    content = single_object(evicted(value=value), value)
    undetected = 0

    for bit in range(len(content) * 8):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            assert frame.decode(bytes(broken))[1] == value
            undetected += 1
        except ArchiveObjectError:
            continue

    assert undetected <= 1  # a zstd frame has one bit that its decoder must ignore (RFC 8878)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_an_error(content: bytes) -> None:
    with pytest.raises(ArchiveObjectError):
        frame.decode(content)


def test_bytes_behind_an_object_are_an_error() -> None:
    content = single_object(evicted(), b"value")

    with pytest.raises(ArchiveObjectError, match="instead of"):
        frame.decode(content + b"x")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"PNG" * 10, "not an archived object", id="another program's"),
        pytest.param(
            frame.MAGIC + b"\x00\x09" + bytes(12), "format 9 is unknown", id="a newer release's"
        ),
    ],
)
def test_foreign_objects_are_told_apart_from_damaged_ones(content: bytes, reason: str) -> None:
    with pytest.raises(ArchiveObjectError, match=reason) as caught:
        frame.decode(content)

    assert caught.value.foreign


def test_damaged_objects_are_not_foreign() -> None:
    content = bytearray(single_object(evicted(), b"value"))
    content[-1] ^= 1

    with pytest.raises(ArchiveObjectError, match="digest") as caught:
        frame.decode(bytes(content))

    assert not caught.value.foreign


def test_a_header_that_claims_to_be_huge_is_refused_before_it_is_read() -> None:
    content = frame.MAGIC + b"\x00\x01" + b"\xff\xff\xff\xff" + bytes(8)

    with pytest.raises(ArchiveObjectError, match="longer than any"):
        frame.payload_offset(content)


@pytest.mark.parametrize(
    ("manifest", "value", "reason"),
    [
        pytest.param(evicted(value=b"abc"), b"abd", "digest", id="other bytes"),
        pytest.param(evicted(value=b"abc"), b"ab", "2 bytes", id="too short"),
        pytest.param(tombstone(size_bytes=1), b"x", "tombstone", id="tombstone with a value"),
    ],
)
def test_a_value_that_is_not_its_manifests_is_refused(
    manifest: Evicted, value: bytes, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        frame.check_value(manifest, value)


@pytest.mark.parametrize(
    ("manifest", "expected_ns"),
    [
        pytest.param(evicted(expires_at=None), None, id="never"),
        pytest.param(
            evicted(expires_at=None, ttl_seconds=1.5), NOW_NS + 3 * SECOND_NS // 2, id="by ttl"
        ),
        pytest.param(
            evicted(expires_at=instant(NOW_NS), ttl_seconds=9.0), NOW_NS, id="the instant decides"
        ),
        pytest.param(evicted(expires_at=None, ttl_seconds=1e300), None, id="beyond the calendar"),
        pytest.param(
            evicted(evicted_at=LAST, expires_at=None, ttl_seconds=1.0), None, id="just beyond it"
        ),
        pytest.param(
            evicted(expires_at=LAST.replace(tzinfo=timezone(-timedelta(hours=1)))),
            None,
            id="an hour beyond it in UTC",
        ),
        pytest.param(tombstone(ttl_seconds=1.0), None, id="tombstone"),
    ],
)
def test_the_expiry_follows_from_the_manifest(manifest: Evicted, expected_ns: int | None) -> None:
    assert frame.expires_ns(manifest) == expected_ns


@pytest.mark.parametrize(
    ("file", "value"),
    [
        pytest.param("archive_v1_zstd.bin", b"The quick brown fox. " * 20, id="zstd"),
        pytest.param("archive_v1_raw.bin", bytes(range(256)), id="raw"),
        pytest.param("archive_v1_shuffle2-zstd.bin", bf16(1001) + b"x", id="bf16"),
        pytest.param("archive_v1_shuffle4-zstd.bin", fp32(1001) + b"xyz", id="fp32"),
        pytest.param("archive_v1_tombstone.bin", b"", id="tombstone"),
    ],
)
def test_objects_written_by_earlier_releases_are_read(file: str, value: bytes) -> None:
    header, found = frame.decode((WIRE / file).read_bytes())

    assert found == value
    assert header.codec == file.removesuffix(".bin").replace("tombstone", "raw").split("_")[2]
    assert header.manifest.key == "golden/ключ"
    assert header.manifest.tombstone is ("tombstone" in file)
    assert header.manifest.tags == ["a", "b"]


def test_the_writers_dtype_decides_the_codec() -> None:
    value = b"long" * 100

    header, found = frame.decode(single_object(evicted(value=value, meta={"dtype": "bf16"}), value))

    assert header.codec == "shuffle2-zstd"
    assert found == value


def test_fields_of_newer_releases_in_a_header_are_ignored() -> None:
    header = msgspec.json.decode(msgspec.json.encode(evicted()))
    header["invented_later"] = 1

    assert msgspec.json.decode(msgspec.json.encode(header), type=Evicted) == evicted()
