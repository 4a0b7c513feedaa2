"""`api.analysis.run`: collect, analyse, explain and advise on one request, step by step."""

import asyncio
import time
from collections.abc import Sequence
from typing import get_args

import msgspec
import structlog

from handlers.alerting.endpoints import AlertEndpoints
from handlers.insights.service import InsightService
from handlers.queries.latest import LatestStore
from handlers.queries.run_steps import Found, Run
from handlers.queries.standing import Place, Standing
from schemas.alert_api import AlertFilter, AlertsReply
from schemas.api import Filter, RecommendationsReply, UtilizationReply
from schemas.engines import EngineMetrics
from schemas.insights import Insight, InsightsRequest
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Call, Clock, Endpoint, Publisher, RequestError, json_endpoint
from schemas.report import OpportunitiesReply, TrendsReply, WasteReply
from schemas.run import Collected, RunReply, RunRequest, StepName
from schemas.units import SECOND_NS, instant

BUSY = 429


class Runs:
    """Answers `api.analysis.run` by what the endpoints of its steps are answered by.

    The five judgements are asked for at the same time, all else is one after the other. Nothing
    is kept here: a run that dies with its process has told its steps in `FLEET_EVENTS`, its
    insight in `FLEET_ALERTS`, and advice stands in `FLEET_RECOMMENDATIONS` whoever asks for it.

    `insights` None: they are switched off. `service_id`: of this process on the bus.
    """

    def __init__(
        self,
        publisher: Publisher,
        store: LatestStore,
        standing: Standing,
        alerts: AlertEndpoints,
        insights: InsightService | None,
        clock: Clock,
        step_seconds: float,
        service_id: str,
    ) -> None:
        self._publisher = publisher
        self._store = store
        self._standing = standing
        self._alerts = alerts
        self._insights = insights
        self._clock = clock
        self._step_seconds = step_seconds
        self._service_id = service_id

    def endpoint(self) -> Endpoint:
        """`api.analysis.run`."""
        return json_endpoint(
            "analysis_run", "api.analysis.run", RunRequest, self.answer, reply_type=RunReply
        )

    async def answer(self, request: RunRequest, call: Call) -> RunReply:
        """One run."""
        if request.node is not None and request.pool is not None:
            raise RequestError(400, "node and pool: give one of them")
        run = Run(request, self._publisher, self._clock, self._step_seconds, self._service_id)
        began = time.monotonic()
        with structlog.contextvars.bound_contextvars(correlation_id=run.correlation_id):
            collected = await run.step("collect", self._collect(request))
            utilization, alerts, waste, trends, opportunities = await asyncio.gather(
                run.step("utilization", self._utilization(request, call)),
                run.step("alerts", self._open_alerts(request, call)),
                run.step("waste", self._waste(request, call)),
                run.step("trends", self._trends(request, call)),
                run.step("opportunities", self._opportunities(request, call)),
            )
            insight = await self._explain(run, request, call)
            recommendations = await self._advise(run, request, call)
        steps = [run.steps[name] for name in get_args(StepName)]
        return RunReply(
            answered_at=instant(self._clock()),
            scope=run.scope,
            id=run.id,
            correlation_id=run.correlation_id,
            state="partial" if any(step.state == "failed" for step in steps) else "complete",
            began_at=instant(run.began_ns),
            seconds=time.monotonic() - began,
            steps=steps,
            collected=collected,
            utilization=utilization,
            alerts=alerts,
            waste=waste,
            trends=trends,
            opportunities=opportunities,
            insight=insight,
            recommendations=recommendations,
        )

    async def _collect(self, request: RunRequest) -> Found[Collected]:
        """From whom metrics have come; they come by themselves, and are no fresher for asking."""
        now_ns = self._clock()
        counts: list[int] = []
        instants_ns: list[int] = []
        simulated = False
        for kind in (HostMetrics, GpuMetrics, EngineMetrics):
            found = self._store.heard(kind, now_ns, node=request.node, pool=request.pool)
            counts.append(len(found))
            instants_ns += [one.stored_ns for one in found]
            simulated = simulated or any(one.message.simulated for one in found)
            await asyncio.sleep(0)  # there may be tens of thousands
        if not instants_ns:
            raise RequestError(404, "no metrics have come from there of late")
        nodes, gpus, engines = counts
        newest, oldest = (
            max(0.0, (now_ns - ns) / SECOND_NS) for ns in (max(instants_ns), min(instants_ns))
        )
        collected = Collected(
            nodes=nodes,
            gpus=gpus,
            engines=engines,
            newest_age_seconds=newest,
            oldest_age_seconds=oldest,
            simulated=simulated,
        )
        return Found(
            collected,
            f"nodes: {nodes}, GPUs: {gpus}, engines: {engines}; "
            f"last heard {newest:.1f} to {oldest:.1f} s ago",
        )

    async def _utilization(self, request: RunRequest, call: Call) -> Found[UtilizationReply]:
        reply = await self._standing.utilization(_filter(request), call, _places(request))
        bottlenecks = sum(len(row.bottlenecks) for row in reply.rows)
        return Found(reply, reply.text or f"judged: {reply.total}, bottlenecks: {bottlenecks}")

    async def _open_alerts(self, request: RunRequest, call: Call) -> Found[AlertsReply]:
        asked = AlertFilter(pool=request.pool, limit=request.limit)
        if request.node is not None:
            asked = AlertFilter(scope="node", id=request.node, limit=request.limit)
        reply = self._alerts.list_open(asked, call)
        return Found(reply, f"open: {reply.total}, silenced: {reply.silenced_total}")

    async def _waste(self, request: RunRequest, call: Call) -> Found[WasteReply]:
        reply = await self._standing.waste(_filter(request), call, _places(request))
        return Found(reply, reply.text or f"judged: {reply.total}")

    async def _trends(self, request: RunRequest, call: Call) -> Found[TrendsReply]:
        reply = await self._standing.trends(_filter(request), call)
        return Found(reply, reply.text or f"judged: {reply.total}")

    async def _opportunities(self, request: RunRequest, call: Call) -> Found[OpportunitiesReply]:
        reply = await self._standing.opportunities(_filter(request), call)
        savings = sum(len(row.savings) for row in reply.rows)
        return Found(reply, reply.text or f"savings: {savings}")

    async def _explain(self, run: Run, request: RunRequest, call: Call) -> Insight | None:
        if not request.insight:
            await run.skip("insight", "not asked for")
            return None
        if self._insights is None:
            await run.skip("insight", "insights are switched off (insights.enabled)")
            return None
        return await run.step("insight", self._insight(run, request, self._insights, call))

    async def _insight(
        self, run: Run, request: RunRequest, insights: InsightService, call: Call
    ) -> Found[Insight]:
        """One written now; where that is one too many in this hour, the last one."""
        asked = InsightsRequest(
            node=request.node, pool=request.pool, now=True, correlation_id=run.correlation_id
        )
        why = ""
        try:
            rows = (await insights.answer(asked, call)).rows
        except RequestError as error:
            if error.code != BUSY:
                raise
            last = await insights.answer(msgspec.structs.replace(asked, now=False), call)
            rows = [row for row in last.rows if (row.scope, row.id) == (run.scope, run.id)]
            if not rows:
                raise
            why = f", not a new one: {error.text}"
        insight = rows[0]
        by = insight.model if insight.source == "llm" else "template"
        return Found(
            insight, f"written by {by} at {insight.decided_at:%T}Z{why}", [insight.insight_id]
        )

    async def _advise(
        self, run: Run, request: RunRequest, call: Call
    ) -> RecommendationsReply | None:
        if request.node is not None:
            await run.skip("recommendations", "advice is about pools: ask for one")
            return None
        return await run.step("recommendations", self._recommendations(request, call))

    async def _recommendations(
        self, request: RunRequest, call: Call
    ) -> Found[RecommendationsReply]:
        reply = await self._standing.recommendations(_filter(request), call)
        ids = [row.recommendation_id for row in reply.rows]
        return Found(reply, reply.text or f"standing: {reply.total}", ids)


def _filter(request: RunRequest) -> Filter:
    return Filter(node=request.node, pool=request.pool, limit=request.limit)


def _places(request: RunRequest) -> Sequence[Place]:
    """Of the fleet its pools, too, but not its nodes: they may be thousands."""
    return [] if request.node or request.pool else [("fleet", "all"), ("pool", "*")]
