"""The hottest keys of a namespace, remembered over restarts and brought back at start."""

import asyncio
import contextlib

import msgspec
import structlog

from cache.archive_link import CHECK_SECONDS, ArchiveLink
from cache.hot import KEPT
from cache.namespace import Namespace
from schemas.message import UNDECODABLE
from schemas.protocols import Bucket, PublishError

log = structlog.get_logger()

SAVE_SECONDS = 60.0
AT_ONCE = 8
MAX_SAVED_CHARACTERS = 128 * 1024
FULL_RATIO = 0.9

_decode = msgspec.json.Decoder(list[str]).decode


class Warmup:
    """Keeps up to 1,000 keys, the hottest first, in the state bucket; every minute and at stop.

    Nothing is kept or brought back while `cache_warmup` is off. What comes back comes from the
    archive, which at a stop gets the hottest entries; after a crash it has those that were
    evicted before. RAM is filled to nine tenths and nothing is evicted for it.
    """

    def __init__(self, namespace: Namespace, link: ArchiveLink, state: Bucket) -> None:
        self._namespace = namespace
        self._link = link
        self._state = state
        self._key = f"cache.{namespace.name}.hot"
        self.is_running = namespace.limits.config.cache_warmup and namespace.archiving

    async def run(self) -> None:
        """Bring back what was hot once the archive can be asked, then remember what is."""
        try:
            if self.is_running:
                await self._bring_back()
        finally:
            self.is_running = False
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            with contextlib.suppress(PublishError):
                await self.save()

    async def save(self) -> None:
        """Remember which keys are hot now.

        Raises:
            PublishError: the server does not answer.
        """
        if not self._namespace.limits.config.cache_warmup:
            return
        keys, characters = [], 0
        for entry in self._namespace.hot.top(KEPT):
            characters += len(entry.key)
            if characters > MAX_SAVED_CHARACTERS:
                break
            keys.append(entry.key)
        if keys:
            await self._state.put(self._key, msgspec.json.encode(keys))

    async def save_at_stop(self) -> None:
        """Remember, and send what is hot to the archive."""
        if self._namespace.limits.config.cache_warmup and self._namespace.archiving:
            with contextlib.suppress(PublishError):
                await self.save()
            await self._namespace.trimming.evict_hottest("stop")

    async def _bring_back(self) -> None:
        try:
            found = await self._state.get(self._key)
            keys = [] if found is None else _decode(found[0])
        except (PublishError, *UNDECODABLE) as error:
            log.warning("warmup_failed", namespace=self._namespace.name, error=str(error))
            return
        while keys and not self._namespace.archived.caught_up:  # noqa: ASYNC110 - as link does
            await asyncio.sleep(CHECK_SECONDS)
        waiting = iter(keys)

        async def restore() -> None:
            memory = self._namespace.memory
            for key in waiting:
                if memory.used_bytes > FULL_RATIO * memory.limit_bytes:
                    return
                if self._namespace.peek(key) is None and self._namespace.restores.possible(key):
                    await self._link.restore(key)

        before = self._namespace.counters.restores
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(restore())
        restored = self._namespace.counters.restores - before
        log.info("warmed_up", namespace=self._namespace.name, keys=len(keys), restored=restored)
