"""The index in a bucket: the footer of each object under its name, so that a start reads no object.

It is a copy: the objects alone say what is archived. What cannot be written here is read from the
object at the next start, and what is here without an object is removed then.
"""

from collections.abc import Awaitable, Callable, Mapping

import structlog

from schemas.protocols import Bucket, PublishError

log = structlog.get_logger()

KEY_PREFIX = "archive."
"""A role may write the keys that begin with its name."""


class IndexBucket:
    """Footers by object name.

    Only `make` raises: while the server does not answer, the others count, and `last_error` says
    why. `make_bucket` creates the bucket where it is missing.
    """

    def __init__(
        self, bucket: Bucket, make_bucket: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._bucket = bucket
        self._make_bucket = make_bucket
        self.failed_total = 0
        self.last_error = ""

    async def make(self) -> None:
        """Have the bucket be there; raises PublishError where it cannot be."""
        if self._make_bucket is not None:
            await self._make_bucket()

    async def records(self) -> Mapping[str, bytes]:
        """All of them; none where the bucket cannot be read."""
        try:
            items = await self._bucket.items()
        except PublishError as error:
            self._failed(error)
            return {}
        return {
            key.removeprefix(KEY_PREFIX): value
            for key, (value, _) in items.items()
            if key.startswith(KEY_PREFIX)
        }

    async def put(self, name: str, footer: bytes) -> None:
        """Write the record of an object."""
        try:
            await self._bucket.put(f"{KEY_PREFIX}{name}", footer)
        except PublishError as error:
            self._failed(error)

    async def remove(self, name: str) -> None:
        """Remove the record of an object; absent is fine."""
        try:
            await self._bucket.purge(f"{KEY_PREFIX}{name}")
        except PublishError as error:
            self._failed(error)

    def _failed(self, error: PublishError) -> None:
        self.failed_total += 1
        self.last_error = str(error)
        log.warning("archive_index_behind", error=str(error))
