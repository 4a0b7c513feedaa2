"""Many keys of one namespace at a time, by the single operations that every cache answers."""

import asyncio
from collections.abc import Sequence

from agent.client import CacheClient
from schemas.protocols import RequestError

BUSY = 429


class CacheBatches:
    """Chains of keys (root first) on a `CacheClient`."""

    def __init__(self, cache: CacheClient) -> None:
        self._cache = cache

    async def match(self, keys: Sequence[str]) -> int:
        """How many keys of the chain, from its root on, are in RAM."""
        for count, key in enumerate(keys):
            if not await self._cache.exists(key):
                return count
        return len(keys)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values, None for a miss; the archive is asked."""
        return await asyncio.gather(*map(self._cache.get, keys))

    async def put_chain(self, items: Sequence[tuple[str, bytes]], parent: str | None) -> int:
        """Put the items, the first one a child of `parent`; how many were kept."""
        kept = 0
        for key, value in items:
            try:
                await self._cache.put(key, value, parent=parent)
            except RequestError as error:
                if error.code != BUSY:
                    raise
                return kept
            kept += 1
            parent = key
        return kept
