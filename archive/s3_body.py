"""What an upload sends."""

import hashlib
import io
from types import TracebackType
from typing import Any, Self

PIECE_BYTES = 1024 * 1024
LEAST_BYTES = 256 * 1024
"""What is shorter is joined with what follows: each write by itself costs as much as copying it."""


class Body(io.BytesIO):
    """Pieces that are sent one behind the other, uncopied, a MiB at most for each turn of the loop.

    aiohttp reads 64 KiB, whatever there is, and then gives way: where each turn takes 10 ms, as
    beside a full stream of evictions, 16 MiB would take 2.5 s.
    """

    def __init__(self, *pieces: bytes | memoryview) -> None:
        super().__init__()
        self._pieces = [memoryview(piece) for piece in pieces if piece]
        self.size_bytes = sum(map(len, self._pieces))
        self._at = 0

    def read(self, size: int | None = -1) -> bytes:
        """About the next `size` bytes, or a MiB where that is more; less at the end of a piece."""
        if size is None or size < 0:
            return self._cut(self.size_bytes, self.size_bytes)
        return self._cut(max(size, PIECE_BYTES), max(size, LEAST_BYTES)) if size else b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size_bytes}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """As of any file."""
        return self._at

    def getvalue(self) -> bytes:
        """All of it: a copy, where it is more than one piece."""
        return b"".join(self._pieces)

    def getbuffer(self) -> Any:  # noqa: ANN401 - aiohttp asks it for its length alone
        """What has its length: of a `BytesIO` this is a copy of all it holds."""
        return _Length(self.size_bytes)

    def sha256(self) -> str:
        """The digest of all of it; slow, so in a thread."""
        digest = hashlib.sha256()
        for piece in self._pieces:
            digest.update(piece)
        return digest.hexdigest()

    def _cut(self, most: int, least: int) -> bytes:
        cut: list[memoryview] = []
        taken = begin = 0
        for piece in self._pieces:
            if self._at < begin + len(piece) and taken < least:
                cut.append(piece[self._at - begin :][: most - taken])
                taken += len(cut[-1])
                self._at += len(cut[-1])
            begin += len(piece)
        if len(cut) == 1 and isinstance(cut[0].obj, bytes) and len(cut[0]) == len(cut[0].obj):
            return cut[0].obj
        return b"".join(cut)


class _Length:
    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing was taken."""
