"""Digests of values."""

import hashlib
import re

import pytest

from schemas.digest import PATTERN, Digest, digest_of

BLAKE2B = "blake2b:" + hashlib.blake2b(b"value", digest_size=32).hexdigest()
SHA256 = hashlib.sha256(b"value").hexdigest()


@pytest.mark.parametrize(
    ("like", "expected"),
    [("", BLAKE2B), ("blake2b:00", BLAKE2B), ("00", SHA256)],
    ids=["ours", "blake2b", "sha256"],
)
def test_a_digest_is_like_the_one_it_is_compared_with(like: str, expected: str) -> None:
    bit_by_bit = Digest(like)
    bit_by_bit.update(b"val")
    bit_by_bit.update(memoryview(b"ue"))

    assert str(bit_by_bit) == digest_of(b"value", like) == expected
    assert re.fullmatch(PATTERN, expected)
