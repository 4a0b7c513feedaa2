"""An index entry as bytes: of millions that are held, few are looked at.

    1   flags: tombstone, follows, has a tail
    4   generation; 0 with one that is in the tail
    8   expiry, Unix nanoseconds; the lowest number there is: never
    8   hash of the key
    11  version, `<12 hexadecimal digits>-<10 of them>` without the hyphen; 0 with one in the tail
    16  number of the segment, first byte, bytes there, size of the value
    24  when it was stored, last used (Unix nanoseconds), score (double)
    4   seconds to compute it anew (single precision); not a number: nobody said
    n   tail: MessagePack array of version, generation and tags; only where one of them is unusual

Namespace, key and the segment's name are known to who holds it. Nothing of this is ever stored.
"""

import math
import re
import struct
import sys

import msgspec

from archive.index_entry import HASH_BYTES, IndexEntry

_FIXED = struct.Struct(f">BIq{HASH_BYTES}s11sIIIIqqdf")
_LIFE = struct.Struct(">BIq")
_SEGMENT = struct.Struct(">I")
_SEGMENT_AT = _LIFE.size + HASH_BYTES + 11
_WORTH = struct.Struct(">qd")
_WORTH_AT = _FIXED.size - _WORTH.size - 4
_TOMBSTONE, _FOLLOWS, _TAIL = 1, 2, 4
_NEVER = -(2**63)
_VERSION = re.compile(r"[0-9a-f]{12}-[0-9a-f]{10}")
_LARGEST_GENERATION = 2**32 - 1

_encode_tail = msgspec.msgpack.Encoder().encode
_decode_tail = msgspec.msgpack.Decoder(tuple[str | None, int | None, list[str]]).decode


def pack(entry: IndexEntry, segment_number: int) -> bytes:
    """The entry, which is not the tombstone of a tag."""
    is_plain = _VERSION.fullmatch(entry.version) is not None
    is_low = entry.generation <= _LARGEST_GENERATION
    tail = b""
    if not is_plain or not is_low or entry.tags:
        version = None if is_plain else entry.version
        tail = _encode_tail((version, None if is_low else entry.generation, entry.tags))
    fixed = _FIXED.pack(
        _TOMBSTONE * entry.tombstone | _FOLLOWS * entry.follows | _TAIL * bool(tail),
        entry.generation if is_low else 0,
        _NEVER if entry.expires_ns is None else entry.expires_ns,
        entry.hash,
        bytes.fromhex(entry.version.replace("-", "")) if is_plain else b"",
        segment_number,
        entry.first,
        entry.object_bytes,
        entry.size_bytes,
        entry.stored_ns,
        entry.used_ns,
        entry.score,
        math.nan if entry.cost_seconds is None else entry.cost_seconds,
    )
    return fixed + tail


def unpack(record: bytes, namespace: str, key: str, segment: str) -> IndexEntry:
    """The entry again."""
    (
        flags,
        generation,
        expires_ns,
        key_hash,
        version,
        _,
        first,
        object_bytes,
        size_bytes,
        stored_ns,
        used_ns,
        score,
        cost_seconds,
    ) = _FIXED.unpack_from(record)
    digits = version.hex()
    text = f"{digits[:12]}-{digits[12:]}"
    tags: tuple[str, ...] = ()
    if flags & _TAIL:
        other_text, other_generation, listed = _decode_tail(record[_FIXED.size :])
        text = text if other_text is None else other_text
        generation = generation if other_generation is None else other_generation
        tags = tuple(map(sys.intern, listed))
    return IndexEntry(
        segment=segment,
        namespace=namespace,
        key=key,
        generation=generation,
        version=text,
        tombstone=bool(flags & _TOMBSTONE),
        size_bytes=size_bytes,
        first=first,
        object_bytes=object_bytes,
        stored_ns=stored_ns,
        expires_ns=None if expires_ns == _NEVER else expires_ns,
        score=score,
        used_ns=used_ns,
        tags=tags,
        tag=None,
        follows=bool(flags & _FOLLOWS),
        cost_seconds=None if math.isnan(cost_seconds) else cost_seconds,
        hash=key_hash,
    )


def may_be_live(record: bytes, generation: int, now_ns: int) -> bool:
    """False: a tombstone, of a generation before `generation`, or expired. Else look closer."""
    flags, its_generation, expires_ns = _LIFE.unpack_from(record)
    if flags & _TOMBSTONE or (its_generation < generation and not flags & _TAIL):
        return False
    return bool(expires_ns == _NEVER or now_ns < expires_ns)


def is_unusual(record: bytes) -> bool:
    """Whether it has tags, or a generation or version that `may_be_live` does not know."""
    return bool(record[0] & _TAIL)


def is_tombstone(record: bytes) -> bool:
    """Whether it only says that lower versions are gone."""
    return bool(record[0] & _TOMBSTONE)


def segment_number(record: bytes) -> int:
    """The number of its segment."""
    return int(_SEGMENT.unpack_from(record, _SEGMENT_AT)[0])


def hash_of(record: bytes) -> bytes:
    """The hash of its key."""
    return record[_LIFE.size : _LIFE.size + HASH_BYTES]


def used_ns(record: bytes) -> int:
    """When the value was last asked for."""
    return int(_WORTH.unpack_from(record, _WORTH_AT)[0])


def score_of(record: bytes) -> float:
    """Its score."""
    return float(_WORTH.unpack_from(record, _WORTH_AT)[1])
