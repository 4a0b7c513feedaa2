"""A value in parts, as it comes from their stream."""

import os
from typing import Any

import pytest

from archive.codec import SAMPLE_PIECE_BYTES
from archive.parts import PartedValue, Parts
from schemas.cache import PART_BYTES, PARTS_IN_FLIGHT, part_count, part_range
from schemas.protocols import PublishError
from tests.support.evictions import evicted

LARGE = os.urandom(9 * PART_BYTES + 1000)


class Stream:
    """The stream of parts of one value, and how often each was read."""

    def __init__(self, value: bytes = LARGE) -> None:
        ranges = [part_range(part, len(value)) for part in range(part_count(len(value)))]
        self.parts: dict[int, bytes | None] = {
            part: value[first:end] for part, (first, end) in enumerate(ranges)
        }
        self.read: list[int] = []
        self.is_there = True

    async def read_last(self, stream: str, subject: str) -> bytes | None:
        assert stream == "EVICTION_PARTS"
        prefix, _, part = subject.rpartition(".")
        assert prefix == "evicted_part.default.e1"
        if not self.is_there:
            raise PublishError("no server")
        self.read.append(int(part))
        return self.parts[int(part)]

    async def purge(self, stream: str, subject: str) -> None:
        raise AssertionError


def parted(stream: Stream, **fields: Any) -> PartedValue:
    described = {"parts": len(stream.parts), "eviction": "e1", **fields}
    return Parts(stream).value(evicted(value=LARGE, **described))


async def whole(value: PartedValue) -> bytes:
    return b"".join([piece async for piece in value.pieces()])


async def test_a_value_comes_in_order_and_again() -> None:
    stream = Stream()
    value = parted(stream)

    once, again = await whole(value), await whole(value)

    assert once == again == LARGE
    assert sorted(stream.read) == sorted([*range(10), *range(10)])


async def test_only_a_few_parts_are_read_ahead() -> None:
    stream = Stream()

    pieces = parted(stream).pieces()
    await anext(pieces)
    ahead = len(stream.read)
    await pieces.aclose()

    assert ahead <= PARTS_IN_FLIGHT


async def test_a_sample_is_taken_from_all_over_the_value_and_read_once() -> None:
    stream = Stream()
    value = parted(stream)

    sample = await value.sample()
    content = await whole(value)

    starts = (0, 3, 6, 9)
    assert sample == b"".join(
        LARGE[part * PART_BYTES :][:SAMPLE_PIECE_BYTES] if part < 9 else LARGE[9 * PART_BYTES :]
        for part in starts
    )
    assert content == LARGE
    assert sorted(stream.read) == list(range(10))


async def test_what_is_not_the_value_is_refused_at_its_end_at_the_latest() -> None:
    stream = Stream(LARGE[:-1] + bytes([LARGE[-1] ^ 1]))

    with pytest.raises(ValueError, match="does not match the digest"):
        await whole(parted(stream))


@pytest.mark.parametrize(
    ("part", "content", "reason"),
    [
        pytest.param(4, None, "part 4 of 10 is gone", id="gone"),
        pytest.param(9, b"x", "part 9 has 1 bytes, not 1000", id="short"),
    ],
)
async def test_a_part_that_is_not_there_ends_it(
    part: int, content: bytes | None, reason: str
) -> None:
    stream = Stream()
    stream.parts[part] = content

    with pytest.raises(ValueError, match=reason):
        await whole(parted(stream))


async def test_parts_that_cannot_make_the_value_are_not_read() -> None:
    stream = Stream()

    with pytest.raises(ValueError, match="3 parts do not make"):
        await whole(parted(stream, parts=3))

    assert stream.read == []


async def test_a_server_that_is_away_is_no_fault_of_the_value() -> None:
    stream = Stream()
    stream.is_there = False

    with pytest.raises(PublishError):
        await whole(parted(stream))
