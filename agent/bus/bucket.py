"""A key-value bucket behind the Bucket protocol."""

from collections.abc import Mapping

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

from agent.bus.cancellation import heed
from schemas.protocols import PublishError, RevisionConflictError


class KvBucket:
    """One JetStream bucket. Every call raises PublishError when the server does not answer."""

    def __init__(self, js: JetStreamContext, name: str) -> None:
        self._js = js
        self.name = name
        self._kv: KeyValue | None = None

    async def _open(self) -> KeyValue:
        if self._kv is None:
            try:
                self._kv = await heed(self._js.key_value(self.name))
            except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
                raise PublishError(f"bucket {self.name}: {error}") from error
        return self._kv

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """Value and revision, or None."""
        kv = await self._open()
        try:
            entry = await heed(kv.get(key))
        except nats.js.errors.KeyNotFoundError:
            return None
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"bucket {self.name}: {error}") from error
        return entry.value or b"", entry.revision or 0

    async def put(self, key: str, value: bytes) -> int:
        """Store unconditionally; returns the revision."""
        kv = await self._open()
        try:
            return int(await heed(kv.put(key, value)))
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"bucket {self.name}: {error}") from error

    async def create(self, key: str, value: bytes) -> int:
        """Store if absent or deleted; RevisionConflictError otherwise."""
        kv = await self._open()
        try:
            return int(await heed(kv.create(key, value)))
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise RevisionConflictError(key) from error
        except nats.js.errors.KeyNotFoundError as error:
            # It expired between the refusal and the look: the next try will do.
            raise RevisionConflictError(key) from error
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"bucket {self.name}: {error}") from error

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Store if the key still has `revision`; RevisionConflictError otherwise."""
        kv = await self._open()
        try:
            return int(await heed(kv.update(key, value, last=revision)))
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise RevisionConflictError(key) from error
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"bucket {self.name}: {error}") from error

    async def delete(self, key: str) -> None:
        """Remove the key; absent is fine."""
        kv = await self._open()
        try:
            await heed(kv.delete(key))
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"bucket {self.name}: {error}") from error

    async def items(self) -> Mapping[str, tuple[bytes, int]]:
        """All keys with value and revision."""
        kv = await self._open()
        try:
            keys = await heed(kv.keys())
        except nats.js.errors.NoKeysError:
            return {}
        except (nats.errors.Error, OSError) as error:
            raise PublishError(f"bucket {self.name}: {error}") from error
        found: dict[str, tuple[bytes, int]] = {}
        for key in keys:
            entry = await self.get(key)
            if entry is not None:
                found[key] = entry
        return found
