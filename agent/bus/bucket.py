"""A key-value bucket behind the Bucket protocol."""

from collections.abc import AsyncGenerator, Callable, Mapping

import nats.js.errors
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

from agent.bus.cancellation import heed
from agent.bus.errors import raised_as
from schemas.protocols import Delivery, PublishError, RevisionConflictError

WRONG_REVISION_CODES = frozenset({10071, 10164})
"""Server codes for a compare-and-set that lost."""


class KvBucket:
    """One JetStream bucket. Every call raises PublishError when the server does not answer."""

    def __init__(
        self,
        js: JetStreamContext,
        name: str,
        read_last: Callable[[str, str], AsyncGenerator[Delivery, None]],
    ) -> None:
        self.name = name
        self._js = js
        self._read_last = read_last
        self._kv: KeyValue | None = None

    async def _open(self) -> KeyValue:
        if self._kv is None:
            self._kv = await heed(self._js.key_value(self.name))
        return self._kv

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """Value and revision, or None."""
        with raised_as(PublishError, f"bucket {self.name}"):
            kv = await self._open()
            try:
                entry = await heed(kv.get(key))
            except nats.js.errors.KeyNotFoundError:
                return None
        return entry.value or b"", entry.revision or 0

    async def put(self, key: str, value: bytes) -> int:
        """Store unconditionally; returns the revision."""
        with raised_as(PublishError, f"bucket {self.name}"):
            kv = await self._open()
            return int(await heed(kv.put(key, value)))

    async def create(self, key: str, value: bytes) -> int:
        """Store if absent or deleted; RevisionConflictError otherwise."""
        with raised_as(PublishError, f"bucket {self.name}"):
            kv = await self._open()
            try:
                return int(await heed(kv.create(key, value)))
            except nats.js.errors.KeyWrongLastSequenceError as error:
                raise RevisionConflictError(key) from error
            except nats.js.errors.KeyNotFoundError as error:
                # It expired between the refusal and the look: the next try will do.
                raise RevisionConflictError(key) from error

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Store if the key still has `revision`; RevisionConflictError otherwise."""
        with raised_as(PublishError, f"bucket {self.name}"):
            kv = await self._open()
            try:
                return int(await heed(kv.update(key, value, last=revision)))
            except nats.js.errors.KeyWrongLastSequenceError as error:
                raise RevisionConflictError(key) from error

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Remove the key; absent is fine. With `revision`, only while it still has that one."""
        with raised_as(PublishError, f"bucket {self.name}"):
            kv = await self._open()
            try:
                await heed(kv.delete(key, last=revision))
            except nats.js.errors.APIError as error:
                if error.err_code in WRONG_REVISION_CODES:
                    raise RevisionConflictError(key) from error
                raise

    async def purge(self, key: str) -> None:
        """Remove the key and every trace of it, the marker of its deletion included."""
        with raised_as(PublishError, f"bucket {self.name}"):
            subject = f"$KV.{self.name}.{key}"
            await heed(self._js.purge_stream(f"KV_{self.name}", subject=subject))

    async def items(self) -> Mapping[str, tuple[bytes, int]]:
        """All keys with value and revision."""
        prefix = f"$KV.{self.name}."
        found: dict[str, tuple[bytes, int]] = {}
        async for delivery in self._read_last(f"KV_{self.name}", f"{prefix}>"):
            if delivery.headers.get("KV-Operation") is None:
                key = delivery.subject.removeprefix(prefix)
                found[key] = (delivery.payload, delivery.sequence)
        return found
