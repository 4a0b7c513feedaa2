"""The layout of one archived entry: prefix, JSON header, payload. Pure: bytes in, bytes out.

    offset  size  content
    0       8     `FLEETARC`
    8       2     format, big endian (1 or 2)
    10      4     length of the header in bytes, big endian
    14      8     BLAKE2b of the 14 bytes before and of the header; its key is the seal
    22      n     header: JSON, `FrameHeader`
    22+n    m     payload: the value, compressed as the header says; none for a tombstone

Format 2 is a frame of a segment, sealed with the segment's id: so bytes within a value cannot pass
for a frame, nor a frame of one segment for one of another. Format 1 has no seal and is an object
of its own; it is not written any more and stays readable.

The header says how long the payload is, and the manifest in it carries the digest of the value,
so truncated or changed bytes never give a wrong value.
"""

import hashlib
import struct
from typing import Annotated

import msgspec
from msgspec import Meta

from archive import codec
from schemas.cache import Evicted
from schemas.digest import digest_of
from schemas.message import UNDECODABLE
from schemas.units import SECOND_NS, Bytes, Instant, to_ns

MAGIC = b"FLEETARC"
ALONE, SEALED = 1, 2
MAX_HEADER_BYTES = 4 * 1024 * 1024
_PREFIX = struct.Struct(">8sHI8s")
PREFIX_BYTES = _PREFIX.size
_CHECKED_BYTES = PREFIX_BYTES - 8
LAST_NS = 2**63 - 1
"""What ends later (in the year 2262) is for ever."""
WRONG_DIGEST = "value does not match the digest in its manifest"


class ArchiveObjectError(Exception):
    """Bytes in the store that cannot be read as an archived object.

    `foreign`: another program's file, or written by a newer release: not ours to touch. Otherwise
    an object of ours that is damaged. `reason` says what is wrong, without paths.
    """

    def __init__(self, reason: str, *, foreign: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.foreign = foreign


class FrameHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before the payload: the manifest as it came, and how the value is stored."""

    manifest: Evicted
    codec: Annotated[str, Meta(description="how the payload holds the value: see `archive.codec`")]
    stored_at: Instant
    payload_bytes: Bytes


_decode_header = msgspec.json.Decoder(FrameHeader).decode


def check_value(manifest: Evicted, value: bytes | memoryview) -> None:
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
        raise ValueError(WRONG_DIGEST)


def expires_ns(manifest: Evicted) -> int | None:
    """The instant (Unix nanoseconds) from which the value must not be returned; None = never."""
    if manifest.tombstone:
        return None
    if manifest.expires_at is not None:
        ns = to_ns(manifest.expires_at)
    elif manifest.ttl_seconds is None or manifest.ttl_seconds * SECOND_NS > LAST_NS:
        return None
    else:
        ns = to_ns(manifest.evicted_at) + int(manifest.ttl_seconds * SECOND_NS)
    return None if ns > LAST_NS else ns


def encode(header: FrameHeader, payload: bytes, seal: bytes = b"") -> bytes:
    """The frame, of format 2; without a `seal`, an object of format 1."""
    return head(header, seal) + payload


def head(header: FrameHeader, seal: bytes = b"") -> bytes:
    """The frame up to its payload."""
    header_json = msgspec.json.encode(header)
    version = SEALED if seal else ALONE
    unchecked = _PREFIX.pack(MAGIC, version, len(header_json), b"")[:_CHECKED_BYTES]
    return b"".join((unchecked, _checksum(unchecked, header_json, seal), header_json))


def payload_offset(content: bytes) -> int:
    """Where the payload starts, from the first `PREFIX_BYTES` of a frame or more.

    Raises:
        ArchiveObjectError: foreign, or too short for a prefix.
    """
    if len(content) < PREFIX_BYTES:
        raise ArchiveObjectError(f"{len(content)} bytes are shorter than a prefix")
    magic, version, header_bytes, _ = _PREFIX.unpack_from(content)
    if magic != MAGIC:
        raise ArchiveObjectError("not an archived object", foreign=True)
    if version not in (ALONE, SEALED):
        raise ArchiveObjectError(f"format {version} is unknown to this release", foreign=True)
    if header_bytes > MAX_HEADER_BYTES:
        raise ArchiveObjectError(f"header of {header_bytes} bytes is longer than any of ours")
    return PREFIX_BYTES + int(header_bytes)


def decode_header(start: bytes, seal: bytes = b"") -> tuple[FrameHeader, int]:
    """The header and the length of a frame, from its first bytes up to the payload or more.

    Raises:
        ArchiveObjectError: foreign or damaged.
    """
    offset = payload_offset(start)
    if len(start) < offset:
        raise ArchiveObjectError("it ends within its header")
    header_json = start[PREFIX_BYTES:offset]
    if start[_CHECKED_BYTES:PREFIX_BYTES] != _checksum(start[:_CHECKED_BYTES], header_json, seal):
        raise ArchiveObjectError("checksum of the header is wrong")
    try:
        header = _decode_header(header_json)
    except UNDECODABLE as error:
        raise ArchiveObjectError(f"header cannot be decoded: {error}") from error
    return header, offset + header.payload_bytes


def split(content: bytes, seal: bytes = b"") -> tuple[FrameHeader, bytes]:
    """Header and payload of a whole frame; of the payload only the length is verified.

    Raises:
        ArchiveObjectError: foreign or damaged.
    """
    header, frame_bytes = decode_header(content, seal)
    if len(content) != frame_bytes:
        raise ArchiveObjectError(f"it is {len(content)} bytes instead of {frame_bytes}")
    return header, content[frame_bytes - header.payload_bytes :]


def decode(content: bytes, seal: bytes = b"") -> tuple[FrameHeader, bytes]:
    """Header and value of a whole frame, the value's size and digest verified.

    Raises:
        ArchiveObjectError: foreign or damaged; never returns wrong bytes.
    """
    header, payload = split(content, seal)
    return header, bytes(value_of(header, payload))


def value_of(header: FrameHeader, payload: bytes | memoryview) -> bytes | memoryview:
    """The value in a frame's payload, its size and digest verified.

    Raises:
        ArchiveObjectError: damaged.
    """
    try:
        value = codec.decompress(header.codec, payload, size_bytes=header.manifest.size_bytes)
        check_value(header.manifest, value)
    except ValueError as error:
        raise ArchiveObjectError(str(error)) from error
    return value


def _checksum(unchecked: bytes, header: bytes, seal: bytes) -> bytes:
    return hashlib.blake2b(unchecked + header, digest_size=8, key=seal).digest()
