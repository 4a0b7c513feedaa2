"""The caches that lend large values, asked for their parts over the bus."""

import re
from collections.abc import Mapping

from schemas.cache import LENDER_HEADER, Evicted, part_range
from schemas.protocols import Requester, RequestError

PART_SECONDS = 5.0
HEARD_SECONDS = 0.5
_NAMES = re.compile(r"[A-Za-z0-9_-]{1,128} [A-Za-z0-9_-]{1,128}")
"""Of a namespace and a cache: the server closes the connection at a subject of 4 KiB."""


class NotLentError(ValueError):
    """It cannot be read, or is not the value any more: its cache still has that, and sends it."""


class Lenders:
    """Asks caches for what they lend.

    One that did not answer in time, as its host is gone and the server has not noticed yet, is
    waited for only `HEARD_SECONDS` until it answers: what else it has lent comes next.
    """

    def __init__(self, requester: Requester) -> None:
        self._requester = requester
        self._silent: set[str] = set()

    async def gives_parts(self, namespace: str, lender: str) -> bool:
        """Whether that cache can be asked for what it lends."""
        try:
            await self._ask(namespace, lender, {}, HEARD_SECONDS)
        except NotLentError:
            return False
        return True

    async def part(self, manifest: Evicted, lender: str, part: int) -> bytes:
        """Part 0, 1, … of the value of a manifest.

        Raises:
            NotLentError: it does not lend it any more, or does not answer.
        """
        namespace = manifest.namespace
        if lender in self._silent and not await self.gives_parts(namespace, lender):
            raise NotLentError(f"the cache that lends it: {lender} does not answer, nor did before")
        first, end = part_range(part, manifest.size_bytes)
        headers = {
            "Fleet-Eviction": manifest.eviction or "",
            "Fleet-Range": f"{first}-{end - 1}",
        }
        return await self._ask(namespace, lender, headers, PART_SECONDS)

    async def _ask(
        self, namespace: str, lender: str, headers: Mapping[str, str], timeout_seconds: float
    ) -> bytes:
        if not _NAMES.fullmatch(f"{namespace} {lender}"):
            raise NotLentError(f"header {LENDER_HEADER} is no name of a cache")
        subject = f"cache.{namespace}.lent.{lender}"
        try:
            answer = await self._requester.request(
                subject, headers=headers, timeout_seconds=timeout_seconds
            )
        except RequestError as error:
            if error.code == 408:
                self._silent.add(lender)
            else:
                self._silent.discard(lender)
            raise NotLentError(f"the cache that lends it: {error}") from error
        self._silent.discard(lender)
        return answer.payload
