"""Where a value that is put comes from: bytes, a file, or an async iterator."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import BinaryIO, cast

from schemas.cache import PART_BYTES
from schemas.digest import Digest

Buffer = bytes | bytearray | memoryview


class Source:
    """A value to send in parts; its digest is computed meanwhile, in a thread.

    Bytes are not copied; a file is read from where it stands, a few parts ahead of what is sent.
    """

    def __init__(
        self, value: Buffer | BinaryIO | AsyncIterator[bytes], size_bytes: int | None = None
    ) -> None:
        """Take `value`, of `size_bytes`: needed of an iterator, which does not tell.

        Raises:
            ValueError: the size is missing.
            TypeError: it is nothing of that.
        """
        self._value = memoryview(value).cast("B") if isinstance(value, Buffer) else value
        self._digest = Digest()
        self._hashing: asyncio.Task[None] | None = None
        self._start = 0
        if isinstance(self._value, memoryview):
            self.size_bytes = self._value.nbytes
        elif isinstance(self._value, AsyncIterator):
            if size_bytes is None:
                raise ValueError("an iterator does not tell how long it is: give size_bytes")
            self.size_bytes = size_bytes
        elif not hasattr(self._value, "tell"):
            kind = type(value).__name__
            raise TypeError(f"a value is bytes, a binary file or an async iterator, not {kind}")
        else:
            self._start = self._value.tell()
            self.size_bytes = self._value.seek(0, 2) - self._start

    @property
    def can_repeat(self) -> bool:
        """Whether `blocks` gives the value again, from its start."""
        return not isinstance(self._value, AsyncIterator)

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Its parts in order: 512 KiB each, the last one what is left.

        Raises:
            ValueError: it is shorter or longer than was said.
        """
        self._digest = Digest()
        if isinstance(self._value, memoryview):
            # One call for all of it: as fast as the thread gets the CPU, whatever is sent.
            self._hashing = asyncio.create_task(asyncio.to_thread(self._digest.update, self._value))
        left = self.size_bytes
        async for block in self._blocks():
            left -= len(block)
            if left < 0:
                break
            if self._hashing is None:
                await asyncio.to_thread(self._digest.update, block)
            yield block
        if left:
            raise ValueError(f"the source does not have the {self.size_bytes} bytes it should")

    async def read_all(self) -> bytes:
        """The value, for one that is small."""
        return b"".join([bytes(block) async for block in self.blocks()])

    async def digest(self) -> str:
        """The digest of what `blocks` gave."""
        if self._hashing is not None:
            await self._hashing
        return str(self._digest)

    async def _blocks(self) -> AsyncIterator[bytes]:
        value = self._value
        if isinstance(value, memoryview):
            for start in range(0, value.nbytes, PART_BYTES):
                yield cast(bytes, value[start : start + PART_BYTES])
        elif isinstance(value, AsyncIterator):
            kept = bytearray()
            async for piece in value:
                kept += piece
                while len(kept) >= PART_BYTES:
                    yield bytes(kept[:PART_BYTES])
                    del kept[:PART_BYTES]
            if kept:
                yield bytes(kept)
        else:
            await asyncio.to_thread(value.seek, self._start)
            while block := await asyncio.to_thread(_read_part, value):
                yield block


def _read_part(file: BinaryIO) -> bytes:
    """The next part of `file`, shorter only at its end."""
    block = file.read(PART_BYTES)
    while len(block) < PART_BYTES and (more := file.read(PART_BYTES - len(block))):
        block += more
    return block
