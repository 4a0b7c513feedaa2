"""Digests by which values are checked: BLAKE3, or BLAKE2b or SHA-256 from whoever prefers them.

All of 256 bits. As text `blake3:` and 64 hexadecimal digits (`b3sum`), `blake2b:` and the digits
(`b2sum -l 256`); of SHA-256 the digits alone.
"""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from blake3 import blake3

Algorithm: TypeAlias = Literal["blake3", "blake2b", "sha256"]

PATTERN = r"((blake3|blake2b):)?[0-9a-f]{64}"
_MAKE: dict[Algorithm, Callable[[], Any]] = {
    "blake3": blake3,
    "blake2b": lambda: hashlib.blake2b(digest_size=32),
    "sha256": hashlib.sha256,
}


class Digest:
    """The digest of bytes that come bit by bit, by the algorithm of `like`: another's text."""

    def __init__(self, like: str = "") -> None:
        self.algorithm = _algorithm(like)
        self._hash = _MAKE[self.algorithm]()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take `data`; from 2 KiB on the interpreter is free meanwhile."""
        self._hash.update(data)

    def __str__(self) -> str:
        digits: str = self._hash.hexdigest()
        return digits if self.algorithm == "sha256" else f"{self.algorithm}:{digits}"


def _algorithm(like: str) -> Algorithm:
    if not like or like.startswith("blake3:"):
        return "blake3"
    return "blake2b" if like.startswith("blake2b:") else "sha256"


def digest_of(value: bytes | bytearray | memoryview, like: str = "") -> str:
    """The digest of the whole value."""
    digest = Digest(like)
    digest.update(value)
    return str(digest)


AT_ONCE_BYTES = 1024 * 1024
"""BLAKE3 takes so many in some 0.15 ms; to hand them to a thread may take longer."""


class RunningDigest:
    """The digest of a value whose bytes come in any order, computed as they come.

    `feed(digest, first, end)` gives a digest the bytes from `first` up to, not with, `end`; it is
    called in order, for bytes that have come: where that is quick at once, else in a thread.
    """

    def __init__(self, feed: Callable[[Digest, int, int], None], like: str = "") -> None:
        self._feed = feed
        self._digest = Digest(like)
        self._spans: dict[int, int] = {}
        self._come = self._fed = 0
        self._feeding: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    @property
    def algorithm(self) -> Algorithm:
        """As `Digest.algorithm`."""
        return self._digest.algorithm

    def came(self, first: int, end: int) -> None:
        """The bytes from `first` up to, not with, `end` are there; nothing is told twice."""
        self._spans[first] = end
        while self._come in self._spans:
            self._come = self._spans.pop(self._come)
        if self._come <= self._fed or (self._feeding is not None and not self._feeding.done()):
            return
        if self.algorithm == "blake3" and self._come - self._fed <= AT_ONCE_BYTES:
            self._feed_now()
        else:
            self._feeding = asyncio.get_running_loop().create_task(self._run())

    async def finish(self) -> str:
        """The digest of all that came, which has no gaps; raises what `feed` raised."""
        if self._feeding is not None:
            await self._feeding
        if self._error is not None:
            raise self._error
        return str(self._digest)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        if self._feeding is not None:
            self._feeding.cancel()

    def _feed_now(self) -> None:
        first, self._fed = self._fed, self._come
        try:
            self._feed(self._digest, first, self._fed)
        except Exception as error:
            self._error = self._error or error

    async def _run(self) -> None:
        while self._fed < self._come:
            first, self._fed = self._fed, self._come
            await asyncio.to_thread(self._feed, self._digest, first, self._fed)
