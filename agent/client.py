"""The typed clients for asyncio; `agent.sync_client` has the same without `await`."""

import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar

from agent import decisions
from agent.alert_client import AlertCalls
from agent.cache_client import CacheClient
from agent.history_client import HistoryCalls
from agent.whole_run import RUN_SECONDS, whole_run
from schemas.api import (
    ClearReply,
    Filter,
    HealthReply,
    LatestReply,
    RecommendationsReply,
    UtilizationReply,
)
from schemas.consolidation import ConsolidationsReply
from schemas.decisions import ExecuteReply, Explanation
from schemas.insights import InsightsReply, InsightsRequest
from schemas.lmcache import (
    LmcacheConfig,
    LmcacheMetrics,
    LmcacheRequest,
    LmcacheStatus,
    LmcacheStatusRequest,
    OptimizeReply,
)
from schemas.report import OpportunitiesReply, Report, ReportRequest, TrendsReply, WasteReply
from schemas.run import RunReply, RunRequest, RunStep
from schemas.units import token, token_or_none

__all__ = ["CacheClient", "ResourceAgent"]

T = TypeVar("T")

WORK_TIMEOUT_SECONDS = 30.0
INSIGHT_TIMEOUT_SECONDS = 90.0
"""One that is written may wait for another, and each for a model up to its deadline."""


class ResourceAgent(AlertCalls, HistoryCalls):
    """Asks the fleet. Every call raises `schemas.protocols.RequestError` when it is refused.

    With `fresh_from=NODE` that node's agent answers with a sample at most a second old; otherwise
    the handlers answer for the whole fleet from the last metrics seen, each row with its age.
    """

    async def gpu(
        self,
        name: str = "metrics",
        *,
        node: str | None = None,
        pool: str | None = None,
        limit: int = 1000,
        fresh_from: str | None = None,
    ) -> LatestReply:
        """`name`: metrics, utilization, temperature, memory or power."""
        return await self._latest("gpu", name, node, pool, limit, fresh_from)

    async def system(
        self,
        name: str = "all",
        *,
        node: str | None = None,
        pool: str | None = None,
        limit: int = 1000,
        fresh_from: str | None = None,
    ) -> LatestReply:
        """`name`: cpu, memory, disk, network or all."""
        return await self._latest("system", name, node, pool, limit, fresh_from)

    async def _latest(
        self,
        group: str,
        name: str,
        node: str | None,
        pool: str | None,
        limit: int,
        fresh_from: str | None,
    ) -> LatestReply:
        if fresh_from is not None:
            return await self._ask(f"api.{group}.{name}.{token(fresh_from)}", None, LatestReply)
        wanted = Filter(node=token_or_none(node), pool=token_or_none(pool), limit=limit)
        return await self._ask(f"api.{group}.{name}", wanted, LatestReply)

    async def get_gpu_metrics(self, node: str | None = None) -> LatestReply:
        """All GPU values, of one node or of the fleet."""
        return await self.gpu("metrics", node=node)

    async def analyze_utilization(
        self, *, node: str | None = None, pool: str | None = None
    ) -> UtilizationReply:
        """How busy nodes, pools and the fleet are, their bottlenecks, and what each GPU does."""
        return await self._analysis("utilization", node, pool, UtilizationReply)

    async def get_waste(self, *, node: str | None = None, pool: str | None = None) -> WasteReply:
        """What nodes, pools and the fleet cost, and what of it is wasted."""
        return await self._analysis("waste", node, pool, WasteReply)

    async def get_trends(self, *, node: str | None = None, pool: str | None = None) -> TrendsReply:
        """Where pools and the fleet go; or one node."""
        return await self._analysis("trends", node, pool, TrendsReply)

    async def get_opportunities(
        self, *, node: str | None = None, pool: str | None = None
    ) -> OpportunitiesReply:
        """What can be saved, the best first; a node's own only where it is in no pool."""
        return await self._analysis("opportunities", node, pool, OpportunitiesReply)

    async def get_report(
        self,
        *,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        node: str | None = None,
        pool: str | None = None,
        simulated: bool = False,
    ) -> Report:
        """What the GPUs of a period of whole hours cost, gave and wasted; default 7 days."""
        request = ReportRequest(
            seconds=seconds,
            start=start,
            end=end,
            node=token_or_none(node),
            pool=token_or_none(pool),
            simulated=simulated,
        )
        return await self._ask(
            "api.analysis.report", request, Report, timeout_seconds=WORK_TIMEOUT_SECONDS
        )

    async def _analysis(self, name: str, node: str | None, pool: str | None, reply: type[T]) -> T:
        wanted = Filter(node=token_or_none(node), pool=token_or_none(pool))
        return await self._ask(f"api.analysis.{name}", wanted, reply)

    async def insights(
        self,
        *,
        node: str | None = None,
        pool: str | None = None,
        now: bool = False,
        limit: int = 1000,
    ) -> InsightsReply:
        """What is going on, in words; `now`: written now, of the node, the pool or the fleet."""
        request = InsightsRequest(
            node=token_or_none(node),
            pool=token_or_none(pool),
            now=now,
            limit=limit,
        )
        timeout_seconds = INSIGHT_TIMEOUT_SECONDS if now else WORK_TIMEOUT_SECONDS
        return await self._ask(
            "api.analysis.insights", request, InsightsReply, timeout_seconds=timeout_seconds
        )

    async def analyze(
        self,
        *,
        node: str | None = None,
        pool: str | None = None,
        insight: bool = True,
        limit: int = 50,
        correlation_id: str | None = None,
        on_step: Callable[[RunStep], None] = lambda _: None,
        timeout_seconds: float = RUN_SECONDS,
    ) -> RunReply:
        """All of it at once: figures, judgements, alerts, an insight, the advice that stands.

        Of the fleet, a pool or a node. A step that fails is told in `steps`, and its field is
        None. `on_step` is called with each step as it ends. 503: who ran it died meanwhile.
        """
        request = RunRequest(
            node=token_or_none(node),
            pool=token_or_none(pool),
            insight=insight,
            limit=limit,
            correlation_id=correlation_id or secrets.token_hex(8),
        )
        return await whole_run(self._bus, request, on_step, timeout_seconds=timeout_seconds)

    async def health(self, name: str = "detailed") -> HealthReply:
        """`name`: root, basic, detailed, ready or live; for the whole installation."""
        return await self._ask(f"api.health.{name}", None, HealthReply)

    async def lmcache_status(self, namespace: str = "default", *, top: int = 10) -> LmcacheStatus:
        """Metrics, configuration and the `top` entries by hits of a namespace of the cache."""
        request = LmcacheStatusRequest(namespace=namespace, top=top)
        return await self._ask("api.lmcache.status", request, LmcacheStatus)

    async def lmcache_metrics(self, namespace: str = "default") -> LmcacheMetrics:
        """Sizes, hits, tokens and latencies of a namespace of the cache."""
        request = LmcacheRequest(namespace=namespace)
        return await self._ask("api.lmcache.metrics", request, LmcacheMetrics)

    async def lmcache_config(self, namespace: str = "default") -> LmcacheConfig:
        """The configuration that a namespace of the cache runs with."""
        request = LmcacheRequest(namespace=namespace)
        return await self._ask("api.lmcache.config", request, LmcacheConfig)

    async def configure_lmcache(
        self, changes: Mapping[str, Any], namespace: str = "default"
    ) -> LmcacheConfig:
        """Change these fields of LmcacheConfig; returns what is in force now."""
        return await self._ask(
            "api.lmcache.configure", {**changes, "namespace": namespace}, LmcacheConfig
        )

    async def optimize_lmcache(self, namespace: str = "default") -> OptimizeReply:
        """Take expired and worthless entries out of RAM; returns what that did."""
        return await self._ask(
            "api.lmcache.optimize",
            LmcacheRequest(namespace=namespace),
            OptimizeReply,
            timeout_seconds=WORK_TIMEOUT_SECONDS,
        )

    async def clear_lmcache(self, namespace: str = "default") -> ClearReply:
        """Remove everything of a namespace, what is archived included."""
        request = LmcacheRequest(namespace=namespace)
        return await self._ask("api.lmcache.clear", request, ClearReply)

    async def get_scaling_recommendations(
        self,
        pool: str | None = None,
        *,
        action: Literal["scale_up", "scale_down"] | None = None,
    ) -> RecommendationsReply:
        """The advice that stands, of one pool or of all, newest first; of one action, or of any."""
        wanted = Filter(pool=token_or_none(pool))
        return await self._ask(
            f"api.optimize.{action or 'recommendations'}", wanted, RecommendationsReply
        )

    async def get_consolidations(self, pool: str | None = None) -> ConsolidationsReply:
        """How one pool, or each, could do with fewer nodes, what saves most first."""
        wanted = Filter(pool=token_or_none(pool))
        return await self._ask("api.optimize.consolidate", wanted, ConsolidationsReply)

    async def approve(
        self, recommendation_id: str, *, reason: str = "", by: str | None = None
    ) -> Explanation:
        """Accept advice, as `<user of the bus>:<by>`; 409 where somebody was quicker."""
        signed = decisions.decider(self._bus, by)
        return await decisions.decide(
            self._bus, recommendation_id, "accepted", by=signed, reason=reason
        )

    async def reject(
        self, recommendation_id: str, *, reason: str, by: str | None = None
    ) -> Explanation:
        """Reject advice, as `<user of the bus>:<by>`; 409 where somebody was quicker."""
        signed = decisions.decider(self._bus, by)
        return await decisions.decide(
            self._bus, recommendation_id, "rejected", by=signed, reason=reason
        )

    async def execute_optimization(
        self,
        recommendation_id: str,
        *,
        dry_run: bool = True,
        idempotency_key: str | None = None,
        wait_seconds: float = 0.0,
    ) -> ExecuteReply:
        """Have accepted advice carried out, once for each key; waits for its end if asked to."""
        return await decisions.execute(
            self._bus,
            recommendation_id,
            dry_run=dry_run,
            idempotency_key=idempotency_key,
            by=decisions.decider(self._bus),
            wait_seconds=wait_seconds,
        )

    async def explain(self, recommendation_id: str) -> Explanation:
        """One recommendation, from the messages behind it to what became of it."""
        return await decisions.explain(self._bus, recommendation_id)
