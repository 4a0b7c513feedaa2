"""A segment: many frames in one object, and a footer that lists them. Pure: bytes in, bytes out.

    frames, one behind the other (`archive.frame`, format 2, sealed with the segment's id)
    footer:  zstd of a MessagePack array of records (`archive.index_entry.IndexEntry`)
    trailer: 8   `FLEETEND`
             2   format, big endian (2)
             4   length of the footer in bytes, big endian
             4   its length before compression, big endian
             8   BLAKE2b, keyed with the segment's id, of the 18 bytes before and of the footer

A segment's name is its class (`archive.lifecycle`), `-`, and its id, 128 random bits in
hexadecimal: everything in it may be forgotten when the class's days since it was written are over.
Footer and trailer together are also its record in the index bucket. They are at most
`MAX_FOOTER_BYTES`, so a record fits into a message. Without a readable footer the frames are found
by walking. An object of format 1, whose name is a SHA-256, is one frame without a footer.
"""

import hashlib
import secrets
import struct
from collections.abc import Iterator, Sequence

import msgspec

from archive import codec, frame
from archive.frame import ArchiveObjectError
from archive.index_entry import IndexEntry, object_name, read_records

FORMAT = 2
ID_DIGITS = 32
MAX_RECORDS_BYTES = 480 * 1024
"""Of records in one segment, but for the last one."""
MAX_FOOTER_BYTES = 512 * 1024
TAIL_BYTES = 64 * 1024
"""Read at first for a footer: that of some thousand short records."""
FOOTER_LEVEL = 3
_MAGIC = b"FLEETEND"
_TRAILER = struct.Struct(">8sHII8s")
_CHECKED_BYTES = _TRAILER.size - 8


def new_name(ttl_class: str) -> str:
    """The name of a new segment."""
    return f"{ttl_class}-{secrets.token_hex(ID_DIGITS // 2)}"


def class_of(name: str) -> str:
    """The TTL class of the segment of this name."""
    return name.partition("-")[0]


def seal_of(name: str) -> bytes:
    """What the frames of the object of this name are sealed with; nothing in format 1."""
    return bytes.fromhex(name[-ID_DIGITS:]) if "-" in name else b""


def footer(name: str, records: Sequence[msgspec.Raw]) -> bytes:
    """Footer and trailer."""
    plain = msgspec.msgpack.encode(records)
    stored = codec.compress_as("zstd", plain, FOOTER_LEVEL)
    unchecked = _TRAILER.pack(_MAGIC, FORMAT, len(stored), len(plain), b"")[:_CHECKED_BYTES]
    return b"".join((stored, unchecked, _checksum(unchecked, stored, name)))


def footer_bytes(tail: bytes) -> int:
    """How long footer and trailer are, from the last bytes of the object.

    Raises:
        ArchiveObjectError: there is no trailer.
    """
    if len(tail) < _TRAILER.size:
        raise ArchiveObjectError("it is shorter than a trailer")
    magic, version, stored_bytes, _, _ = _TRAILER.unpack_from(tail, len(tail) - _TRAILER.size)
    if magic != _MAGIC:
        raise ArchiveObjectError("it has no footer")
    if version != FORMAT:
        raise ArchiveObjectError(f"footer of format {version} is unknown", foreign=True)
    return int(stored_bytes) + _TRAILER.size


def read_footer(name: str, tail: bytes) -> list[IndexEntry]:
    """The entries of a segment, from its footer and trailer or more of its end.

    Raises:
        ArchiveObjectError: damaged, or not of this segment.
    """
    needed = footer_bytes(tail)
    if len(tail) < needed:
        raise ArchiveObjectError("it is shorter than its footer")
    trailer_at = len(tail) - _TRAILER.size
    stored = tail[len(tail) - needed : trailer_at]
    _, _, _, plain_bytes, checksum = _TRAILER.unpack_from(tail, trailer_at)
    unchecked = tail[trailer_at : trailer_at + _CHECKED_BYTES]
    if checksum != _checksum(unchecked, stored, name):
        raise ArchiveObjectError("checksum of the footer is wrong")
    try:
        return read_records(name, bytes(codec.decompress("zstd", stored, size_bytes=plain_bytes)))
    except (ValueError, msgspec.MsgspecError) as error:
        raise ArchiveObjectError(f"footer cannot be decoded: {error}") from error


def read_record(name: str, record: bytes, object_bytes: int) -> list[IndexEntry]:
    """The entries of an object of this length, from its record in the index bucket.

    Raises:
        ArchiveObjectError: damaged, of another object, or of one of another length.
    """
    entries = read_footer(name, record)
    expected_bytes = max((entry.first + entry.object_bytes for entry in entries), default=0)
    if seal_of(name):
        expected_bytes += len(record)
    if object_bytes != expected_bytes:
        raise ArchiveObjectError(f"object is {object_bytes} bytes instead of {expected_bytes}")
    return entries


def walk(name: str, content: bytes) -> Iterator[IndexEntry]:
    """The whole entries of a segment without a readable footer: whatever it lost, these are right.

    Their values are verified. Bytes between them are passed over.
    """
    seal = seal_of(name)
    first = content.find(frame.MAGIC)
    while first >= 0:
        try:
            end = first + frame.payload_offset(content[first : first + frame.PREFIX_BYTES])
            header, frame_bytes = frame.decode_header(content[first:end], seal)
            frame.decode(content[first : first + frame_bytes], seal)
        except ArchiveObjectError:
            first = content.find(frame.MAGIC, first + 1)
            continue
        yield IndexEntry.of(header, frame_bytes, segment=name, first=first)
        first = content.find(frame.MAGIC, first + frame_bytes)


def read_alone(name: str, start: bytes, object_bytes: int) -> IndexEntry:
    """The entry of an object of format 1, from its first bytes up to the payload or more.

    Raises:
        ArchiveObjectError: foreign, damaged, or another object's.
    """
    header, frame_bytes = frame.decode_header(start)
    if frame_bytes != object_bytes:
        raise ArchiveObjectError(f"it is {object_bytes} bytes instead of {frame_bytes}")
    if object_name(header.manifest) != name:
        raise ArchiveObjectError("it lies under another object's name")
    return IndexEntry.of(header, frame_bytes, segment=name)


def _checksum(unchecked: bytes, stored: bytes, name: str) -> bytes:
    return hashlib.blake2b(unchecked + stored, digest_size=8, key=seal_of(name)).digest()
