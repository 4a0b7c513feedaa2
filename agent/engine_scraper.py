"""Scrapes one endpoint in a loop of its own."""

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from agent.blocking import BlockingThread
from agent.collectors.engines.exposition import PageError
from agent.collectors.engines.fetch import FetchError, PageFetcher
from agent.collectors.engines.inference import Place
from agent.collectors.engines.page_reader import PageReader
from agent.engine_settings import EnginesSettings, LocalTarget
from schemas.labels import NO_LABELS
from schemas.lifecycle import Component, ComponentState
from schemas.message import Message
from schemas.metrics import GpuMetrics
from schemas.protocols import Publisher, PublishError
from schemas.units import instant, token

log = structlog.get_logger()

T = TypeVar("T")

FORGET_INTERVALS = 3
FORGET_SECONDS = 60.0
"""Rates over a longer gap than this, or than three intervals, are not what happens now."""
MAX_SHOWN = 300
"""Characters of an error."""
MAX_TROUBLES = 8
"""Different ones that are logged of one outage: a server may put anything into each answer."""


class ScrapeError(Exception):
    """One scrape gave nothing; the text says why."""


class EngineScraper:
    """Scrapes one endpoint for ever and publishes what it says, in a thread of its own.

    While the endpoint does not answer, nothing is published. A scrape that takes longer than its
    deadline is given up; what still blocks the thread then (a name server, a dead disk) makes the
    next ones fail at once instead of queueing up.
    """

    def __init__(
        self,
        target: LocalTarget,
        settings: EnginesSettings,
        *,
        node: str,
        pool: str | None,
        labels: Mapping[str, str],
        publisher: Publisher,
        counters: Counter[str],
        environ: Mapping[str, str],
        local_gpus: Callable[[], Collection[str]],
        clock: Callable[[], int],
    ) -> None:
        self.target = target
        self._settings = settings
        self._publisher = publisher
        self._counters = counters
        self._local_gpus = local_gpus
        self._clock = clock
        self._thread = BlockingThread(f"engine-{target.label}")
        self._call: asyncio.Future[Any] | None = None
        self._reader = PageReader(
            Place(
                node=token(target.node) if target.node else node,
                name=target.label,
                pool=token(target.pool) if target.pool else pool,
                requests_running_max=target.requests_running_max,
                forget_seconds=max(FORGET_SECONDS, FORGET_INTERVALS * settings.interval_seconds),
                # Those of this machine say nothing of another one.
                labels=labels if token(target.node or node) == node else NO_LABELS,
            )
        )
        self._fetcher = PageFetcher(target, self._blocking, environ, settings.body_limit_bytes)
        self._good_ns: int | None = None
        self._messages = 0
        self._trouble: str | None = None
        self._troubles: set[str] = set()
        self._warned: set[str] = set()

    async def run(self) -> None:
        """Scrape at once, and then once an interval."""
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        try:
            while True:
                await self.scrape()
                next_at = max(next_at + self._settings.interval_seconds, loop.time())
                await asyncio.sleep(next_at - loop.time())
        finally:
            await self._fetcher.close()
            self._thread.close()

    async def scrape(self) -> None:
        """Fetch, read, publish; a failure is counted, logged and shown in health."""
        self._counters["engine_scrapes_total"] += 1
        limit_seconds = self._settings.timeout_seconds
        try:
            async with asyncio.timeout(limit_seconds):
                messages = await self._read()
            await self._publish(messages)
        except TimeoutError:
            self._failed(f"no page within {limit_seconds:g} s")
        except (FetchError, PageError, ScrapeError, PublishError) as error:
            self._failed(str(error))
        except Exception as error:
            # One page must not end the loop.
            self._failed(f"{type(error).__name__}, a fault of the agent", is_ours=True)
        else:
            self._succeeded(len(messages))

    async def _read(self) -> list[Message]:
        body = await self._fetcher.fetch()
        restarts = self._reader.restarts
        read = functools.partial(
            self._reader.read, body.content, self._clock(), is_openmetrics=body.is_openmetrics
        )
        messages = await self._blocking(read)
        self._counters["engine_restarts_total"] += self._reader.restarts - restarts
        return messages

    async def _blocking(self, call: Callable[[], T]) -> T:
        if self._call is not None and not self._call.done():
            raise ScrapeError("an earlier name look-up, file or page still keeps its thread busy")
        future = asyncio.ensure_future(self._thread.run(call))
        self._call = future
        # Not cancelled with a scrape: only its end says that the thread is free again.
        future.add_done_callback(_heed)
        return await asyncio.shield(future)

    async def _publish(self, messages: Sequence[Message]) -> None:
        local = self._local_gpus()
        for message in messages:
            if isinstance(message, GpuMetrics) and message.uuid in local:
                self._counters["engine_gpus_skipped_total"] += 1
            else:
                await self._publisher.publish(message)

    def _failed(self, text: str, *, is_ours: bool = False) -> None:
        """Logged once an outage, and again when the reason changes."""
        self._counters["engine_scrape_failures_total"] += 1
        self._trouble = text = text[:MAX_SHOWN]
        if text not in self._troubles and len(self._troubles) < MAX_TROUBLES:
            self._troubles.add(text)
            log.warning(
                "engine_scrape_failed",
                engine=self.target.label,
                url=self.target.shown,
                error=text,
                exc_info=is_ours,
            )

    def _succeeded(self, messages: int) -> None:
        if self._troubles:
            log.info("engine_scrape_recovered", engine=self.target.label, url=self.target.shown)
            self._troubles.clear()
        self._trouble = None
        self._good_ns, self._messages = self._clock(), messages
        self._say_missing()

    def _say_missing(self) -> None:
        """Once for each field that has no metric."""
        fields = {f: of for f, of in self._reader.missing.items() if f not in self._warned}
        if fields:
            self._warned.update(fields)
            self._counters["engine_missing_metrics_total"] += len(fields)
            log.warning(
                "engine_metrics_missing",
                engine=self.target.label,
                url=self.target.shown,
                fields={field: list(names) for field, names in fields.items()},
                remedy="null until they appear (docs/engines.md)",
            )

    def component(self) -> Component:
        """Reachable or not, what it is, the last error; as old as the last good scrape."""
        now_ns = self._clock()
        state: ComponentState = "ok"
        text = "not scraped yet"
        if self._good_ns is not None:
            text = f"{' and '.join(self._reader.kinds)}: {self._messages} reporting"
            if self._reader.missing:
                text += f", {len(self._reader.missing)} metrics missing"
        if self._trouble is not None:
            # Not failed: that would say that this agent does not work.
            state, text = "degraded", f"{self._trouble}; last good scrape {self._last_good()}"
        return Component(
            name=f"engine.{self.target.label}",
            state=state,
            text=f"{self.target.shown}: {text}",
            probed_at=instant(now_ns if self._good_ns is None else self._good_ns),
        )

    def _last_good(self) -> str:
        # No age: the text is kept for as long as nothing changes.
        return "never" if self._good_ns is None else f"{instant(self._good_ns):%F %T} UTC"


def _heed(future: "asyncio.Future[Any]") -> None:
    """Look at a result that nobody may have waited for."""
    if not future.cancelled():
        future.exception()
