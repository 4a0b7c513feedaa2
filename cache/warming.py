"""Brings keys back from the archive before they are asked for: `cache.<namespace>.warm`."""

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Sequence

from cache.archive_link import ArchiveLink
from cache.batch_requests import check_keys
from cache.namespace import Namespace
from cache.ours import check_owned
from cache.settings import CacheSettings
from schemas.api import WarmReply, WarmRequest
from schemas.cache import MAX_CHAIN_KEYS, Warming
from schemas.protocols import (
    Call,
    Clock,
    Endpoint,
    Lease,
    Publisher,
    PublishError,
    RequestError,
    busy,
    json_endpoint,
)
from schemas.units import instant

EVENT_EVERY_SECONDS = 1.0
NOT_SYNCED_SECONDS = 0.25
LEFT_OUT_AT_ONCE = 1000
"""Keys, before others may do something."""


@dataclasses.dataclass(slots=True)
class _Counts:
    """Since nothing was left to do before; `evicted_bytes` left RAM for what came."""

    restored: int = 0
    here: int = 0
    absent: int = 0
    failed: int = 0
    left_out: int = 0
    evicted_bytes: int = 0


class WarmingQueue:
    """Keys to bring back, first come first served, at most `warm_queue_keys`.

    One at a time, at most `warm_per_second`, and none while a get asks the archive. All together
    push `warm_evict_ratio` of the RAM out, or one entry more; the rest is left out.
    What waits ends with the ownership of the namespace.
    """

    def __init__(
        self,
        namespace: Namespace,
        link: ArchiveLink,
        lease: Lease,
        publisher: Publisher,
        settings: CacheSettings,
        instance: str,
        clock: Clock,
    ) -> None:
        self._namespace = namespace
        self._link = link
        self._lease = lease
        self._publisher = publisher
        self._settings = settings
        self._instance = instance
        self._clock = clock
        self._waiting: dict[str, None] = {}
        self._some = asyncio.Event()
        self._counts = _Counts()

    def endpoints(self) -> list[Endpoint]:
        """JSON: warm."""
        name = self._namespace.name
        return [
            json_endpoint(
                f"cache_warm_{name}",
                f"cache.{name}.warm",
                WarmRequest,
                self.warm,
                reply_type=WarmReply,
            )
        ]

    def warm(self, request: WarmRequest, call: Call) -> WarmReply:
        """Queue the keys that do not wait already; without keys: how far the queue is.

        Raises:
            RequestError: 400 a key is none; 429 they do not all find room, none was queued;
                503 there is no archive.
        """
        check_owned(self._lease, self._namespace.name)
        if not self._namespace.archiving:
            mode = self._namespace.archive_mode
            raise RequestError(503, f"there is no archive to warm from: archive_mode is {mode}")
        check_keys(request.keys, MAX_CHAIN_KEYS)
        namespace = self._namespace
        keys = namespace.clients.keys(namespace.limits.config, call.headers, request.keys)
        if request.cancel:
            self._counts.left_out += len(self._waiting)
            self._waiting.clear()
        new = [key for key in keys if key not in self._waiting]
        room = self._settings.warm_queue_keys - len(self._waiting)
        if len(new) > room:
            raise busy(f"{len(new)} keys to warm, but room for {room}; try fewer, or later")
        self._queue(new)
        return WarmReply(accepted=len(new), **self._progress())

    def prefetch(self, keys: Sequence[str]) -> int:
        """Queue the archived beginning of `keys`, as far as there is room; how many those are."""
        if not (self._settings.match_prefetch and self._namespace.archived.known):
            return 0
        wanted = list(
            itertools.takewhile(
                self._namespace.restores.possible, keys[: self._settings.warm_queue_keys]
            )
        )
        room = self._settings.warm_queue_keys - len(self._waiting)
        new = [key for key in wanted if key not in self._waiting][:room]
        self._queue(new)
        return len(wanted)

    async def run(self) -> None:
        """Work off what waits, for ever."""
        while True:
            await self._some.wait()
            announced = time.monotonic()
            while self._waiting:
                await asyncio.sleep(1 / self._settings.warm_per_second)
                if not self._namespace.archived.caught_up:
                    await asyncio.sleep(NOT_SYNCED_SECONDS)
                elif not self._namespace.restores and self._waiting:
                    await self._bring_back(next(iter(self._waiting)))
                if self._waiting and time.monotonic() - announced > EVENT_EVERY_SECONDS:
                    announced = time.monotonic()
                    await self._announce()
            self._some.clear()
            await self._announce()

    def _queue(self, keys: Sequence[str]) -> None:
        if keys and not self._waiting and not self._some.is_set():
            self._counts = _Counts()
        self._waiting.update(dict.fromkeys(keys))
        if keys:
            self._some.set()

    async def _bring_back(self, key: str) -> None:
        counts, memory = self._counts, self._namespace.memory
        if self._namespace.peek(key) is not None:
            counts.here += 1
        elif not self._namespace.restores.possible(key):
            counts.absent += 1
        else:
            left_bytes = int(self._settings.warm_evict_ratio * memory.limit_bytes)
            left_bytes -= counts.evicted_bytes
            restore = await self._link.bring_back(key, may_evict_bytes=left_bytes)
            if restore.failed:
                counts.failed += 1
            elif restore.answer is None:
                counts.absent += 1
            elif memory.peek(key) is not None:
                counts.restored += 1
                counts.evicted_bytes += restore.evicted_bytes
            else:
                await self._leave_out_the_rest()
                return  # who has asked for it again meanwhile gets it
        self._waiting.pop(key, None)

    async def _leave_out_the_rest(self) -> None:
        """What is here, or not archived, needs no room: it is counted as that."""
        counts = self._counts
        for number, key in enumerate(list(self._waiting)):
            if number % LEFT_OUT_AT_ONCE == LEFT_OUT_AT_ONCE - 1:
                await asyncio.sleep(0)
            if key not in self._waiting:
                continue  # cancelled meanwhile, and counted
            del self._waiting[key]
            if self._namespace.peek(key) is not None:
                counts.here += 1
            elif not self._namespace.restores.possible(key):
                counts.absent += 1
            else:
                counts.left_out += 1

    async def _announce(self) -> None:
        with contextlib.suppress(PublishError):
            await self._publisher.publish(
                Warming(
                    namespace=self._namespace.name,
                    instance=self._instance,
                    observed_at=instant(self._clock()),
                    **self._progress(),
                )
            )

    def _progress(self) -> dict[str, int]:
        counts = self._counts
        return {
            "waiting": len(self._waiting),
            "restored": counts.restored,
            "here": counts.here,
            "absent": counts.absent,
            "failed": counts.failed,
            "left_out": counts.left_out,
        }
