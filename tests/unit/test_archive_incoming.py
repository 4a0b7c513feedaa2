"""A value that is read while it comes."""

import asyncio
import os
from typing import Any

import pytest

from archive import codec, frame
from archive.frame import ArchiveObjectError, FrameHeader
from archive.incoming import Incoming, IncomingFrame
from archive.index_entry import IndexEntry
from schemas.cache import PART_BYTES, Evicted
from schemas.units import instant
from tests.support.evictions import NOW_NS, evicted

SEGMENT = "1d-" + "ab" * 16
SEAL = bytes.fromhex("ab" * 16)
LARGE = os.urandom(2 * PART_BYTES + 1000)


def framed(value: bytes, codec_name: str = codec.RAW, **fields: Any) -> tuple[IndexEntry, bytes]:
    """An entry and its frame."""
    payload = value if codec_name == codec.RAW else codec.compress_as(codec_name, value, 3)
    header = FrameHeader(
        manifest=evicted(value=value, **fields),
        codec=codec_name,
        stored_at=instant(NOW_NS),
        payload_bytes=len(payload),
    )
    content = frame.encode(header, payload, SEAL)
    return IndexEntry.of(header, len(content), segment=SEGMENT), content


def come(coming: IncomingFrame, content: bytes, end: int) -> None:
    coming.content[:end] = content[:end]
    coming.came(end)


async def test_what_has_come_is_read_and_the_last_byte_once_the_rest_is_right() -> None:
    entry, content = framed(LARGE)
    incoming = Incoming()
    coming = IncomingFrame(entry, incoming)
    rest = asyncio.create_task(incoming.read(PART_BYTES, len(LARGE)))

    for end in (10, 100, len(content) - len(LARGE) + PART_BYTES):
        come(coming, content, end)
    manifest = await incoming.begun()
    first = await incoming.read(0, PART_BYTES)
    come(coming, content, len(content))
    found, value = await coming.finish()
    is_early = rest.done()
    incoming.end()

    assert manifest == found == evicted(value=LARGE)
    assert bytes(first) == LARGE[:PART_BYTES]
    assert bytes(await rest) == LARGE[PART_BYTES:]
    assert bytes(value) == LARGE
    assert not is_early


@pytest.mark.parametrize("value", [b"", b"small", b"text " * PART_BYTES], ids=len)
async def test_what_is_small_or_compressed_is_there_at_the_end(value: bytes) -> None:
    entry, content = framed(value, "zstd")
    incoming = Incoming()
    coming = IncomingFrame(entry, incoming)

    come(coming, content, len(content))
    begun_early = incoming.has_begun
    manifest, found = await coming.finish()

    assert not begun_early
    assert (manifest, bytes(found)) == (evicted(value=value), value)


@pytest.mark.parametrize("verify", [True, False])
async def test_a_wrong_digest_is_found_unless_the_reader_looks_at_it(verify: bool) -> None:
    entry, content = framed(LARGE)
    damaged = bytearray(content)
    damaged[-1] ^= 1
    coming = IncomingFrame(entry, Incoming(verify=verify))

    come(coming, bytes(damaged), len(damaged))

    if verify:
        with pytest.raises(ArchiveObjectError, match="does not match the digest"):
            await coming.finish()
    else:
        _, value = await coming.finish()
        assert bytes(value) == LARGE[:-1] + bytes([LARGE[-1] ^ 1])


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        pytest.param(10, "ends after 10 of", id="within the prefix"),
        pytest.param(100, "ends after 100 of", id="within the header"),
        pytest.param(PART_BYTES, f"ends after {PART_BYTES} of", id="within the value"),
    ],
)
async def test_a_frame_that_ends_early_is_damaged(end: int, reason: str) -> None:
    entry, content = framed(LARGE)
    coming = IncomingFrame(entry, Incoming())

    come(coming, content, end)

    with pytest.raises(ArchiveObjectError, match=reason):
        await coming.finish()
    coming.cancel()


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        pytest.param(framed(LARGE, key="other")[0], "it has", id="another length"),
        pytest.param(framed(LARGE, key="x")[0], "holds another entry", id="another key"),
        pytest.param(framed(LARGE, version="b1-02")[0], "holds another entry", id="version"),
    ],
)
def test_a_frame_of_something_else_is_not_begun(entry: IndexEntry, reason: str) -> None:
    _, content = framed(LARGE)
    incoming = Incoming()
    coming = IncomingFrame(entry, incoming)

    with pytest.raises(ArchiveObjectError, match=reason):
        come(coming, content, min(len(content), len(coming.content)))

    assert not incoming.has_begun


def test_a_frame_longer_than_its_manifest_says_is_damaged() -> None:
    entry, content = framed(LARGE, size_bytes=len(LARGE) - 1)

    with pytest.raises(ArchiveObjectError, match="longer or shorter"):
        come(IncomingFrame(entry, Incoming()), content, len(content))


async def test_who_waits_hears_how_it_ended() -> None:
    failed, absent = Incoming(), Incoming()
    waiting = [asyncio.create_task(failed.begun()), asyncio.create_task(failed.read(0, 1))]
    none: asyncio.Task[Evicted | None] = asyncio.create_task(absent.begun())

    await asyncio.sleep(0)
    failed.end(ValueError("gone"))
    failed.end()
    absent.end()

    for task in waiting:
        with pytest.raises(ValueError, match="gone"):
            await task
    assert await none is None
