"""The layout of one archived object: prefix, JSON header, payload. Pure: bytes in, bytes out.

    offset  size  content
    0       8     `FLEETARC`
    8       2     format, big endian (1)
    10      4     length of the header in bytes, big endian
    14      8     BLAKE2b of the 14 bytes before and of the header
    22      n     header: JSON, `ObjectHeader`
    22+n    m     payload: the value, compressed as the header says; none for a tombstone

The header says how long the payload is, and the manifest in it carries the digest of the value,
so a truncated or changed object never gives wrong bytes. Objects of format 1 stay readable.
"""

import hashlib
import struct
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from archive import codec
from schemas.cache import Evicted
from schemas.digest import digest_of
from schemas.message import UNDECODABLE
from schemas.units import SECOND_NS, Bytes, Instant, to_ns

MAGIC = b"FLEETARC"
FORMAT = 1
MAX_HEADER_BYTES = 4 * 1024 * 1024
_PREFIX = struct.Struct(">8sHI8s")
PREFIX_BYTES = _PREFIX.size
_CHECKED_BYTES = PREFIX_BYTES - 8
_LAST_NS = to_ns(datetime.max.replace(tzinfo=UTC))
"""What ends later is for ever: that is beyond the calendar (year 9999)."""


class ArchiveObjectError(Exception):
    """Bytes in the store that cannot be read as an archived object.

    `foreign`: another program's file, or written by a newer release: not ours to touch. Otherwise
    an object of ours that is damaged. `reason` says what is wrong, without paths.
    """

    def __init__(self, reason: str, *, foreign: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.foreign = foreign


class ObjectHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before the payload: the manifest as it came, and how the value is stored."""

    manifest: Evicted
    codec: Annotated[str, Meta(description="how the payload holds the value: see `archive.codec`")]
    stored_at: Instant
    payload_bytes: Bytes


_decode_header = msgspec.json.Decoder(ObjectHeader).decode


def check_value(manifest: Evicted, value: bytes | bytearray) -> None:
    """Compare `value` with what `manifest` says of it.

    Raises:
        ValueError: wrong size, wrong digest, or a tombstone with a value.
    """
    if len(value) != manifest.size_bytes:
        raise ValueError(f"value is {len(value)} bytes, its manifest says {manifest.size_bytes}")
    if manifest.tombstone:
        if value:
            raise ValueError("a tombstone carries a value")
    elif digest_of(value, like=manifest.digest) != manifest.digest:
        raise ValueError("value does not match the digest in its manifest")


def expires_ns(manifest: Evicted) -> int | None:
    """The instant (Unix nanoseconds) from which the value must not be returned; None = never."""
    if manifest.tombstone:
        return None
    if manifest.expires_at is not None:
        ns = to_ns(manifest.expires_at)
    elif manifest.ttl_seconds is None or manifest.ttl_seconds * SECOND_NS > _LAST_NS:
        return None
    else:
        ns = to_ns(manifest.evicted_at) + int(manifest.ttl_seconds * SECOND_NS)
    return None if ns > _LAST_NS else ns


def encode(
    manifest: Evicted,
    value: bytes | bytearray,
    *,
    stored_at: datetime,
    level: int,
    min_ratio: float,
) -> bytes:
    """The object for `value`, which `check_value` has accepted."""
    codec_name, payload = codec.compress(
        value, dtype=manifest.meta.get("dtype", ""), level=level, min_ratio=min_ratio
    )
    header = msgspec.json.encode(
        ObjectHeader(
            manifest=manifest, codec=codec_name, stored_at=stored_at, payload_bytes=len(payload)
        )
    )
    unchecked = _PREFIX.pack(MAGIC, FORMAT, len(header), b"")[:_CHECKED_BYTES]
    return b"".join((unchecked, _checksum(unchecked, header), header, payload))


def payload_offset(content: bytes) -> int:
    """Where the payload starts, from the first `PREFIX_BYTES` of an object or more.

    Raises:
        ArchiveObjectError: foreign, or too short for a prefix.
    """
    if len(content) < PREFIX_BYTES:
        raise ArchiveObjectError(f"object is {len(content)} bytes, shorter than its prefix")
    magic, version, header_bytes, _ = _PREFIX.unpack_from(content)
    if magic != MAGIC:
        raise ArchiveObjectError("not an archived object", foreign=True)
    if version != FORMAT:
        raise ArchiveObjectError(f"format {version} is unknown to this release", foreign=True)
    if header_bytes > MAX_HEADER_BYTES:
        raise ArchiveObjectError(f"header of {header_bytes} bytes is longer than any of ours")
    return PREFIX_BYTES + int(header_bytes)


def decode_header(start: bytes, object_bytes: int) -> ObjectHeader:
    """The header of an object of `object_bytes`, from its first bytes up to the payload or more.

    Raises:
        ArchiveObjectError: foreign or damaged.
    """
    offset = payload_offset(start)
    if len(start) < offset:
        raise ArchiveObjectError("object ends within its header")
    header_json = start[PREFIX_BYTES:offset]
    if start[_CHECKED_BYTES:PREFIX_BYTES] != _checksum(start[:_CHECKED_BYTES], header_json):
        raise ArchiveObjectError("checksum of the header is wrong")
    try:
        header = _decode_header(header_json)
    except UNDECODABLE as error:
        raise ArchiveObjectError(f"header cannot be decoded: {error}") from error
    if object_bytes != offset + header.payload_bytes:
        raise ArchiveObjectError(
            f"object is {object_bytes} bytes instead of {offset + header.payload_bytes}"
        )
    return header


def decode(content: bytes) -> tuple[ObjectHeader, bytes]:
    """Header and value of a whole object, the value's size and digest verified.

    Raises:
        ArchiveObjectError: foreign or damaged; never returns wrong bytes.
    """
    header = decode_header(content, len(content))
    payload = content[len(content) - header.payload_bytes :]
    try:
        value = codec.decompress(header.codec, payload, size_bytes=header.manifest.size_bytes)
        check_value(header.manifest, value)
    except ValueError as error:
        raise ArchiveObjectError(str(error)) from error
    return header, value


def _checksum(unchecked: bytes, header: bytes) -> bytes:
    return hashlib.blake2b(unchecked + header, digest_size=8).digest()
