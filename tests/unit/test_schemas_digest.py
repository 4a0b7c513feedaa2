"""Digests of values."""

import asyncio
import hashlib
import re
import threading

import pytest

from schemas.digest import AT_ONCE_BYTES, PATTERN, Digest, RunningDigest, digest_of

BLAKE3 = "blake3:06444a4916ee6fecd2666eb790b06edd633bb4b58287244579ad6def5fd95e0b"
"""Of `value`, by b3sum."""
BLAKE2B = "blake2b:" + hashlib.blake2b(b"value", digest_size=32).hexdigest()
SHA256 = hashlib.sha256(b"value").hexdigest()


@pytest.mark.parametrize(
    ("like", "expected"),
    [("", BLAKE3), ("blake3:00", BLAKE3), ("blake2b:00", BLAKE2B), ("00", SHA256)],
    ids=["ours", "blake3", "blake2b", "sha256"],
)
def test_a_digest_is_like_the_one_it_is_compared_with(like: str, expected: str) -> None:
    bit_by_bit = Digest(like)
    bit_by_bit.update(b"val")
    bit_by_bit.update(memoryview(b"ue"))

    assert str(bit_by_bit) == digest_of(b"value", like) == expected
    assert re.fullmatch(PATTERN, expected)


@pytest.mark.parametrize("like", ["", "0"], ids=["at once", "in a thread"])
async def test_a_digest_of_parts_in_any_order_is_that_of_the_whole(like: str) -> None:
    value = bytes(range(256)) * 8
    spans = [(1024, 2048), (0, 10), (10, 1024)]
    come = bytearray(len(value))
    fed: list[tuple[int, int]] = []

    def feed(digest: Digest, first: int, end: int) -> None:
        fed.append((first, end))
        digest.update(bytes(come[first:end]))

    running = RunningDigest(feed, like)
    for first, end in spans:
        come[first:end] = value[first:end]
        running.came(first, end)
        await asyncio.sleep(0)
    digest = await running.finish()
    nothing = await RunningDigest(feed, like).finish()

    assert digest == digest_of(value, like)
    assert nothing == digest_of(b"", like)
    assert [end for _, end in fed][:-1] == [first for first, _ in fed][1:]


async def test_what_takes_long_to_digest_is_fed_in_a_thread() -> None:
    threads = []

    def feed(digest: Digest, first: int, end: int) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        digest.update(bytes(end - first))

    for like, size in (("", AT_ONCE_BYTES), ("", AT_ONCE_BYTES + 1), ("0", 1)):
        running = RunningDigest(feed, like)
        running.came(0, size)
        assert await running.finish() == digest_of(bytes(size), like)

    assert threads == [True, False, False]


@pytest.mark.parametrize("like", ["", "0"], ids=["at once", "in a thread"])
async def test_a_digest_fails_as_reading_does(like: str) -> None:
    def fail(_digest: Digest, _first: int, _end: int) -> None:
        raise OSError("cut short")

    running = RunningDigest(fail, like)
    running.came(0, 1)

    with pytest.raises(OSError, match="cut short"):
        await running.finish()
