"""Writes insights when their evidence changes, and answers `api.analysis.insights`."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec
import structlog

from handlers.insights.settings import InsightsSettings
from handlers.insights.sources import HOUR_NS, Evidence, Sources
from handlers.insights.writer import Known, Writer, known
from schemas.analysis import Scope
from schemas.insights import Insight, InsightsReply, InsightsRequest
from schemas.lifecycle import Component, ComponentState
from schemas.protocols import (
    Call,
    Clock,
    Endpoint,
    Lease,
    Leases,
    Publisher,
    PublishError,
    RequestError,
    busy,
    json_endpoint,
)
from schemas.units import SECOND_NS, instant, to_ns

log = structlog.get_logger()

LOOK_SECONDS = 30.0
LEASE = "handlers.insights"


class InsightService:
    """One process, by lease, looks every 30 s whether the evidence of an insight has changed.

    Always for the fleet, and for the pools of which there is more to say than how much they are
    used. Written insights are in the stream: from there come, after a restart and in every
    process, what was said last and what budgets are spent. Two processes that are asked for one at
    the same moment can go over a budget by one.
    """

    def __init__(
        self,
        publisher: Publisher,
        leases: Leases,
        sources: Sources,
        writer: Writer,
        settings: InsightsSettings,
        clock: Clock,
    ) -> None:
        self._publisher = publisher
        self._leases = leases
        self._sources = sources
        self._writer = writer
        self._settings = settings
        self._clock = clock
        self._interval_ns = int(settings.interval_seconds * SECOND_NS)
        self._writing = asyncio.Lock()
        self._lease: Lease | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._settings.enabled != "off":
            self._task = asyncio.create_task(self._loop(), name="handlers_insights")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._lease is not None:
            await self._leases.release(self._lease)

    def endpoint(self) -> Endpoint:
        """`api.analysis.insights`."""
        return json_endpoint(
            "analysis_insights",
            "api.analysis.insights",
            InsightsRequest,
            self.answer,
            reply_type=InsightsReply,
        )

    def component(self) -> Component:
        """Who writes, and what is wrong."""
        ended = self._task is not None and self._task.done()
        trouble = self._writer.trouble()
        state: ComponentState
        if self._settings.enabled == "off":
            state, text = "off", "off (insights.enabled)"
        elif ended:
            state, text = "failed", "the loop ended"
        elif trouble:
            state, text = "degraded", f"by template: {trouble}"
        else:
            reason = self._writer.unwilling(())
            text = f"by template: {reason}" if reason else f"by {self._settings.model}"
            state = "ok"
        return Component(name="insights", state=state, text=text, probed_at=instant(self._clock()))

    async def answer(self, request: InsightsRequest, _call: Call) -> InsightsReply:
        """The last insights, or one written now."""
        if request.node is not None and request.pool is not None:
            raise RequestError(400, "node and pool: give one of them")
        if self._settings.enabled == "off":
            raise RequestError(503, "insights are switched off (insights.enabled)")
        if request.now:
            rows = [await self._write_now(request)]
        else:
            wanted = {("node", request.node), ("pool", request.pool)}
            is_filtered = request.node is not None or request.pool is not None
            last = await self._sources.last()
            rows = [one for key, one in last.items() if not is_filtered or key in wanted]
            rows.sort(key=lambda one: (one.decided_at, one.insight_id), reverse=True)
        return InsightsReply(
            answered_at=instant(self._clock()),
            rows=rows[: request.limit],
            total=len(rows),
            text="" if rows else "no insight has been written yet; ask with `now`",
        )

    async def look(self) -> None:
        """Write the first insight that is due: the fleet's, then the pools' by name.

        One at a time, so that what is written is of now.

        Raises:
            RequestError: a stream could not be read now.
            PublishError: an insight could not be published.
        """
        evidence = await self._sources.evidence()
        last = await self._sources.last()
        wanted: list[tuple[Scope, str]] = [("fleet", "all")]
        wanted += [("pool", pool) for pool in evidence.pools()]
        async with self._writing:
            last_hour = await self._sources.of_last_hour()
            if len(last_hour) >= self._settings.per_hour:
                return
            for scope, name in wanted:
                await asyncio.sleep(0)  # there may be thousands
                found = self._known(evidence, scope, name)
                if self._is_due(found, last.get((scope, name)), last_hour):
                    await self._write(found, last_hour)
                    return

    def _known(self, evidence: Evidence, scope: Scope, name: str) -> Known:
        return known(scope, name, evidence.of(scope, name), self._settings.facts_max)

    def _is_due(self, found: Known, last: Insight | None, last_hour: Sequence[Insight]) -> bool:
        if not found.facts:
            return False
        if last is None:
            return True
        if self._is_young(last):
            return False
        # What the template wrote because the model failed may be told better by now.
        could_be_better = last.source == "template" and self._writer.unwilling(last_hour) is None
        return could_be_better or last.evidence != found.keys

    def _is_young(self, insight: Insight) -> bool:
        return self._clock() - to_ns(insight.decided_at) < self._interval_ns

    async def _write_now(self, request: InsightsRequest) -> Insight:
        scope: Scope = "fleet"
        name = "all"
        if request.node is not None:
            scope, name = "node", request.node
        elif request.pool is not None:
            scope, name = "pool", request.pool
        async with self._writing:
            found = self._known(await self._sources.evidence(request.node), scope, name)
            if not found.facts:
                raise RequestError(404, f"nothing is known of {scope} {name!r}")
            last = (await self._sources.last()).get((scope, name))
            if last is not None and last.evidence == found.keys and self._is_young(last):
                return last
            last_hour = await self._sources.of_last_hour()
            if len(last_hour) >= self._settings.per_hour:
                free_ns = to_ns(last_hour[-self._settings.per_hour].decided_at) + HOUR_NS
                raise busy(
                    f"{len(last_hour)} insights were written in the last hour (insights.per_hour)",
                    max(1.0, (free_ns - self._clock()) / SECOND_NS),
                )
            try:
                return await self._write(found, last_hour, request.correlation_id)
            except PublishError as error:
                raise RequestError(503, "the insight could not be published now") from error

    async def _write(
        self, found: Known, last_hour: Sequence[Insight], correlation_id: str | None = None
    ) -> Insight:
        insight = await self._writer.write(found, last_hour, self._clock())
        insight = msgspec.structs.replace(insight, correlation_id=correlation_id)
        await self._publisher.publish(insight, message_id=insight.insight_id)
        return insight

    async def _loop(self) -> None:
        while True:
            try:
                if self._lease is None or not self._lease.held:
                    self._lease = await self._leases.try_acquire(LEASE)
                if self._lease is not None:
                    await self.look()
            except (PublishError, RequestError, TimeoutError) as error:
                log.warning("insights_not_looked_at", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)
