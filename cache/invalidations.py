"""Tells who keeps copies of entries which of them are outdated: `cache_event.invalidated`."""

import asyncio
import contextlib

from cache.namespace import Namespace
from schemas.cache import CacheEvent
from schemas.protocols import Clock, Publisher, PublishError
from schemas.units import instant

INTERVAL_SECONDS = 0.01
EVENT_KEYS = 1000
EVENT_KEY_BYTES = 128 * 1024
"""In JSON at most six times as much, which is below what a server lets through."""


class Invalidations:
    """Announces every key that is put or deleted, with its version, many keys in one event.

    A write costs an assignment; its event follows within about 10 ms, at most once.
    """

    def __init__(
        self, namespace: Namespace, publisher: Publisher, instance: str, clock: Clock
    ) -> None:
        self._namespace = namespace
        self._publisher = publisher
        self._instance = instance
        self._clock = clock
        self._written: dict[str, str] = {}
        self._some = asyncio.Event()
        self._sequence = 0

    def note(self, key: str, version: str) -> None:
        """Versions of `key` below `version` are outdated."""
        self._written[key] = version
        self._some.set()

    async def run(self) -> None:
        """Announce what is noted, for ever."""
        while True:
            await self._some.wait()
            await asyncio.sleep(INTERVAL_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Announce what is noted now."""
        self._some.clear()
        written, self._written = self._written, {}
        event: dict[str, str] = {}
        key_bytes = 0
        for key, version in written.items():
            key_bytes += len(key.encode())
            if event and (len(event) == EVENT_KEYS or key_bytes > EVENT_KEY_BYTES):
                await self._announce(keys=event)
                event, key_bytes = {}, len(key.encode())
            event[key] = version
        if event:
            await self._announce(keys=event)

    async def tag(self, tag: str, version: str, entries: int) -> None:
        """Announce that versions below `version` of all keys with `tag` are outdated."""
        await self._announce(tag=tag, version=version, entries=entries)

    async def _announce(
        self,
        *,
        keys: dict[str, str] | None = None,
        tag: str | None = None,
        version: str | None = None,
        entries: int = 0,
    ) -> None:
        self._sequence += 1
        with contextlib.suppress(PublishError):
            await self._publisher.publish(
                CacheEvent(
                    kind="invalidated",
                    namespace=self._namespace.name,
                    instance=self._instance,
                    observed_at=instant(self._clock()),
                    generation=self._namespace.generation,
                    entries=entries,
                    keys=keys or {},
                    tag=tag,
                    below_version=version,
                    sequence=self._sequence,
                )
            )
