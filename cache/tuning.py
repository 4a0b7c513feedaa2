"""Work on a namespace while it serves: its configuration takes effect, and RAM is tidied."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import structlog

from cache.configuration import Configuration
from cache.namespace import Namespace
from cache.settings import MIB
from schemas.cache import CacheEvent
from schemas.lmcache import OptimizeReply
from schemas.protocols import Clock, Publisher, PublishError
from schemas.units import instant

log = structlog.get_logger()

STEP_SECONDS = 0.001
SWEPT_AT_ONCE = 500
SETTLE_SECONDS = 2.0


class Tuning:
    """Applies what the configuration says, and optimizes on request.

    Both go in steps of about a millisecond, between which requests are answered. Shrinking waits
    while the outbox is full, so that no eviction is lost to it.
    """

    def __init__(
        self,
        namespace: Namespace,
        configuration: Configuration,
        publisher: Publisher,
        instance: str,
        clock: Clock,
    ) -> None:
        self.configuration = configuration
        self._namespace = namespace
        self._publisher = publisher
        self._instance = instance
        self._clock = clock
        self._announced = configuration.version
        self._changed = asyncio.Event()
        self._changed.set()
        self._settled = asyncio.Event()
        self._optimizing = asyncio.Lock()
        configuration.on_change = self._use

    def _use(self) -> None:
        self._namespace.limits.configure(self.configuration.current)
        self._settled.clear()
        self._changed.set()

    async def run(self) -> None:
        """Follow the configuration, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            with contextlib.suppress(PublishError):
                await self.configuration.keep_good()
            await self._announce()
            await self._shrink()
            if not self._changed.is_set():
                self._settled.set()

    async def configure(self, changes: Mapping[str, Any], expected_version: int | None) -> None:
        """Change the configuration; returns when it is stored, in force and announced.

        Where RAM cannot shrink in 2 s, because the archive does not take that much, it goes on
        shrinking after the return.

        Raises:
            ConfigurationError, ConfigurationConflictError, PublishError: see `Configuration`.
        """
        await self.configuration.change(changes, expected_version)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._settled.wait()

    async def optimize(self) -> OptimizeReply:
        """Take expired and worthless entries out of RAM; one at a time."""
        async with self._optimizing:
            started = time.perf_counter()
            memory = self._namespace.memory
            before = len(memory)
            expired = worthless = freed_bytes = 0
            for keys in _steps(memory.key_batches()):
                gone = self._namespace.trimming.sweep(keys)
                expired += len(gone[0])
                worthless += len(gone[1])
                freed_bytes += sum(entry.size_bytes for entry in itertools.chain(*gone))
                await asyncio.sleep(0)
            return OptimizeReply(
                success=True,
                message=f"removed {expired} expired and {worthless} worthless entries",
                entries_before=before,
                entries_after=len(memory),
                entries_evicted=expired + worthless,
                memory_freed_mb=freed_bytes / MIB,
                optimization_time_ms=(time.perf_counter() - started) * 1000,
            )

    async def _announce(self) -> None:
        version = self.configuration.version
        if version == self._announced:
            return
        self._announced = version
        log.info("configuration_changed", namespace=self._namespace.name, version=version)
        with contextlib.suppress(PublishError):
            await self._publisher.publish(
                CacheEvent(
                    kind="config",
                    namespace=self._namespace.name,
                    instance=self._instance,
                    observed_at=instant(self._clock()),
                    generation=self._namespace.generation,
                    version=version,
                )
            )

    async def _shrink(self) -> None:
        namespace = self._namespace
        step_until = time.perf_counter() + STEP_SECONDS
        while namespace.limits.surplus_bytes:
            await namespace.outbox.roomy()
            namespace.trimming.shrink()
            if time.perf_counter() >= step_until:
                await asyncio.sleep(0)
                step_until = time.perf_counter() + STEP_SECONDS


def _steps(batches: Iterable[list[str]]) -> Iterator[list[str]]:
    for keys in batches:
        for start in range(0, len(keys), SWEPT_AT_ONCE):
            yield keys[start : start + SWEPT_AT_ONCE]
