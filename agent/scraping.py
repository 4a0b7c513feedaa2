"""The engines that an agent scrapes: the list of them, changed while it runs."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import structlog

from agent.engine_settings import EnginesSettings, LocalTarget, updated_targets
from schemas.labels import NO_LABELS
from schemas.lifecycle import Component, ComponentState
from schemas.protocols import Delivery, Publisher, Subscriber
from schemas.units import instant

log = structlog.get_logger()

MAX_SHOWN = 300
"""Characters of an error."""


COUNTERS = (
    "engine_config_refused_total",
    "engine_gpus_skipped_total",
    "engine_missing_metrics_total",
    "engine_restarts_total",
    "engine_scrape_failures_total",
    "engine_scrapes_total",
)
"""What the scraping counts."""


class Scraper(Protocol):
    """Scrapes one endpoint."""

    async def run(self) -> None:
        """Scrape until cancelled."""

    def component(self) -> Component:
        """How it is."""


class EngineScraping:
    """The scrapers of this node; an async context manager.

    The targets are those of the settings, until the key `agent.engines.<node>` of the bucket
    `fleet-config` holds others; its removal brings the settings' back. A value that is refused is
    logged, counted and shown in health, and changes nothing. Of two lists, targets that are in
    both go on undisturbed.
    """

    def __init__(
        self,
        publisher: Publisher,
        subscriber: Subscriber,
        settings: EnginesSettings,
        *,
        node: str,
        pool: str | None,
        labels: Mapping[str, str] = NO_LABELS,
        bucket: str,
        environ: Mapping[str, str],
        local_gpus: Callable[[], Collection[str]] = frozenset,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._subscriber = subscriber
        self._settings = settings
        self._stream = f"KV_{bucket}"
        self._subject = f"$KV.{bucket}.agent.engines.{node}"
        self._clock = clock
        self._node = node
        self._pool = pool
        self._labels = labels
        self._publisher = publisher
        self._environ = environ
        self._local_gpus = local_gpus
        self._running: dict[LocalTarget, tuple[Scraper, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._refused: str | None = None
        self._source = "settings"
        self._unfollow: Callable[[], Awaitable[None]] | None = None

    async def __aenter__(self) -> Self:
        self._use(self._settings.local_targets())
        self._unfollow = await self._subscriber.follow(
            self._stream, self._take, subject=self._subject, last_per_subject=True
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._unfollow is not None:
            await self._unfollow()
        self._use(())
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _take(self, delivery: Delivery) -> None:
        try:
            if delivery.headers.get("KV-Operation") in ("DEL", "PURGE"):
                targets, source = self._settings.local_targets(), "settings"
            else:
                targets = updated_targets(self._settings, delivery.payload)
                source = f"fleet-config, revision {delivery.sequence}"
        except ValueError as error:
            self.counters["engine_config_refused_total"] += 1
            self._refused = f"revision {delivery.sequence} refused: {str(error)[:MAX_SHOWN]}"
            log.error(
                "engine_config_refused",
                key=self._subject,
                revision=delivery.sequence,
                error=str(error)[:MAX_SHOWN],
                still=self._source,
            )
            return
        self._refused, self._source = None, source
        self._use(targets)
        log.info("engine_targets", source=source, targets=[f"{t.label} {t.shown}" for t in targets])

    def _use(self, targets: Sequence[LocalTarget]) -> None:
        for target in [known for known in self._running if known not in targets]:
            _, task = self._running.pop(target)
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        for target in targets:
            if target not in self._running:
                scraper = self._scraper(target)
                self._running[target] = (scraper, asyncio.create_task(scraper.run()))

    def _scraper(self, target: LocalTarget) -> Scraper:
        # It brings aiohttp: 0.2 s and 10 MB that an agent without engines need not pay.
        from agent.engine_scraper import EngineScraper  # noqa: PLC0415

        return EngineScraper(
            target,
            self._settings,
            node=self._node,
            pool=self._pool,
            labels=self._labels,
            publisher=self._publisher,
            counters=self.counters,
            environ=self._environ,
            local_gpus=self._local_gpus,
            clock=self._clock,
        )

    def components(self) -> list[Component]:
        """The list of targets as one part, and each target."""
        parts = [scraper.component() for scraper, _ in self._running.values()]
        state: ComponentState = "ok" if parts else "off"
        text = f"{len(parts)} by {self._source}" if parts else "none to scrape"
        if self._refused is not None:
            state, text = "degraded", f"{self._refused}; still {text}"
        now = instant(self._clock())
        return [Component(name="engines", state=state, text=text, probed_at=now), *parts]
