"""Digests by which values are checked: BLAKE2b of 256 bits, or SHA-256 from whoever prefers it.

As text `blake2b:` and 64 hexadecimal digits (`b2sum -l 256`); of SHA-256 the digits alone.
"""

import hashlib

PATTERN = r"(blake2b:)?[0-9a-f]{64}"
_PREFIX = "blake2b:"


class Digest:
    """The digest of bytes that come bit by bit, by the algorithm of `like`: another's text."""

    def __init__(self, like: str = "") -> None:
        is_blake2b = not like or like.startswith(_PREFIX)
        self._hash = hashlib.blake2b(digest_size=32) if is_blake2b else hashlib.sha256()

    @property
    def algorithm(self) -> str:
        """`blake2b` or `sha256`."""
        return self._hash.name

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take `data`; from 2 KiB on the interpreter is free meanwhile."""
        self._hash.update(data)

    def __str__(self) -> str:
        prefix = _PREFIX if self.algorithm == "blake2b" else ""
        return prefix + self._hash.hexdigest()


def digest_of(value: bytes | bytearray | memoryview, like: str = "") -> str:
    """The digest of the whole value."""
    digest = Digest(like)
    digest.update(value)
    return str(digest)
