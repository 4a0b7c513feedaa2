"""Digests by which values are checked: BLAKE2b of 256 bits, or SHA-256 from whoever prefers it.

As text `blake2b:` and 64 hexadecimal digits (`b2sum -l 256`); of SHA-256 the digits alone.
"""

import asyncio
import hashlib
from collections.abc import Callable

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


class RunningDigest:
    """The digest of a value whose bytes come in any order, computed in a thread as they come.

    `feed(digest, first, end)` gives a digest the bytes from `first` up to, not with, `end`; it is
    called in a thread, in order, for bytes that have come.
    """

    def __init__(self, feed: Callable[[Digest, int, int], None], like: str = "") -> None:
        self._feed = feed
        self._digest = Digest(like)
        self._spans: dict[int, int] = {}
        self._come = self._fed = 0
        self._feeding: asyncio.Task[None] | None = None

    @property
    def algorithm(self) -> str:
        """As `Digest.algorithm`."""
        return self._digest.algorithm

    def came(self, first: int, end: int) -> None:
        """The bytes from `first` up to, not with, `end` are there; nothing is told twice."""
        self._spans[first] = end
        while self._come in self._spans:
            self._come = self._spans.pop(self._come)
        is_feeding = self._feeding is not None and not self._feeding.done()
        if self._come > self._fed and not is_feeding:
            self._feeding = asyncio.get_running_loop().create_task(self._run())

    async def finish(self) -> str:
        """The digest of all that came, which has no gaps; raises what `feed` raised."""
        if self._feeding is not None:
            await self._feeding
        return str(self._digest)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        if self._feeding is not None:
            self._feeding.cancel()

    async def _run(self) -> None:
        while self._fed < self._come:
            first, self._fed = self._fed, self._come
            await asyncio.to_thread(self._feed, self._digest, first, self._fed)
