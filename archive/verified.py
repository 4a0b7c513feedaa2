"""A value that comes in pieces, compared with its digest."""

import contextlib
from collections.abc import AsyncGenerator

from archive import frame
from schemas.digest import Digest, RunningDigest


async def verified(
    pieces: AsyncGenerator[bytes, None], digest_text: str
) -> AsyncGenerator[bytes, None]:
    """The same pieces; at their end ValueError where together they have another digest."""
    undigested: dict[int, bytes] = {}

    def feed(digest: Digest, first: int, end: int) -> None:
        while first < end:
            piece = undigested.pop(first)
            digest.update(piece)
            first += len(piece)

    digest = RunningDigest(feed, like=digest_text)
    come = 0
    try:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                first, come = come, come + len(piece)
                undigested[first] = piece
                digest.came(first, come)
                yield piece
        if await digest.finish() != digest_text:
            raise ValueError(frame.WRONG_DIGEST)
    finally:
        digest.cancel()
