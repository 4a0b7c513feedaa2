"""A large value on its way in that a cache lends: read from its file, or asked for part by part."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Mapping

from archive import same_host
from archive.codec import SAMPLE_PIECE_BYTES, SAMPLE_PIECES
from archive.lenders import Lenders, NotLentError
from archive.parts import PartedValue
from archive.verified import verified
from schemas.cache import FILE_HEADER, LENDER_HEADER, PART_BYTES, Evicted, decode_header


def is_lent(headers: Mapping[str, str]) -> bool:
    """Whether that is so of the value of an eviction."""
    return FILE_HEADER in headers or LENDER_HEADER in headers


def lent_value(
    headers: Mapping[str, str], manifest: Evicted, lenders: Lenders
) -> "LentFile | LentParts":
    """The value of an eviction that is lent: its file where that is on this host."""
    path, lender = decode_header(headers.get(FILE_HEADER, "")), headers.get(LENDER_HEADER)
    if lender is None or (path and same_host.has_value(path)):
        return LentFile(path, manifest)
    return LentParts(lenders, lender, manifest)


class LentFile:
    """The value of a manifest, in a file of a cache, which may take the file away at any time.

    All calls raise NotLentError where the file is not here, is cut, or has another digest.
    """

    def __init__(self, path: str, manifest: Evicted) -> None:
        self._path = path
        self._manifest = manifest

    async def sample(self) -> bytes:
        """Some of it from all over, by which to choose a codec."""
        piece_bytes = min(SAMPLE_PIECE_BYTES, self._manifest.size_bytes)
        last = self._manifest.size_bytes - piece_bytes
        with contextlib.closing(self._opened()) as file:
            # They start where a number may, as those of `codec.compress`.
            step = last // (SAMPLE_PIECES - 1) // 4 * 4
            firsts = [step * number for number in range(SAMPLE_PIECES)]
            return b"".join(_read(file, first, piece_bytes) for first in firsts)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The value in order, again each time; verified at its end."""
        try:
            digest = self._manifest.digest
            async with contextlib.aclosing(verified(self._read_all(), digest)) as pieces:
                async for piece in pieces:
                    yield piece
        except NotLentError:
            raise
        except ValueError as error:
            raise NotLentError(f"the cache's file: {error}") from error

    async def _read_all(self) -> AsyncGenerator[bytes, None]:
        size_bytes = self._manifest.size_bytes
        with contextlib.closing(self._opened()) as file:
            for first in range(0, size_bytes, PART_BYTES):
                yield _read(file, first, min(PART_BYTES, size_bytes - first))

    def _opened(self) -> same_host.Lent:
        file = same_host.Lent.open(self._path, self._manifest.size_bytes)
        if file is None:
            raise NotLentError("no such file of a cache is on this host")
        return file


def _read(file: same_host.Lent, first: int, size_bytes: int) -> bytes:
    try:
        return file.read(first, size_bytes)
    except OSError as error:
        raise NotLentError(f"the cache's file: {error.strerror or error}") from error


class LentParts:
    """The value of a manifest, of which its cache, wherever it is, gives the parts.

    All calls raise NotLentError where that does not answer, does not lend it any more, or gives
    something else.
    """

    def __init__(self, lenders: Lenders, lender: str, manifest: Evicted) -> None:
        def read(part: int) -> Awaitable[bytes]:
            return lenders.part(manifest, lender, part)

        self._value = PartedValue(read, manifest)

    async def sample(self) -> bytes:
        """As that of a value in parts."""
        try:
            return await self._value.sample()
        except ValueError as error:
            raise _not_lent(error) from error

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The value in order, again each time; verified at its end."""
        try:
            async with contextlib.aclosing(self._value.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        except ValueError as error:
            raise _not_lent(error) from error


def _not_lent(error: ValueError) -> NotLentError:
    if isinstance(error, NotLentError):
        return error
    return NotLentError(f"the cache that lends it: {error}")
