"""Handlers that serve what is about one recommendation, and an executor with pools of its own."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator

from agent.bus import Bus
from agent.bus.lease import BucketLeases
from agent.executors.service import ExecutorService
from agent.executors.settings import CommandSettings, ExecutorSettings
from agent.executors.target import ActionError, Target
from handlers.decisions.execution import execution_endpoints
from handlers.queries.latest import LatestStore
from handlers.queries.service import query_endpoints
from handlers.settings import HandlersSettings
from schemas.scaling import Recommendation

FOR_REAL = ExecutorSettings(kind="command", dry_run=False, command=CommandSettings(scale=("true",)))


class Pools:
    """Pools in this process, as a Target. What is scaled waits for `go`, and then may fail."""

    def __init__(self, **replicas: int) -> None:
        self.replicas: dict[str, int | None] = dict(replicas)
        self.scaled: list[str] = []
        self.cut_off: list[str] = []
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.error = ""
        self.changes_by: int | None = None
        self.fails_to_look = False

    def refusal(self, pool: str) -> str:
        return "" if pool in self.replicas else f"no pool {pool}"

    def plan(self, advice: Recommendation) -> str:
        return f"would bring {advice.pool} to {advice.replicas_to}"

    async def observe(self, pool: str) -> int | None:
        if self.fails_to_look:
            raise ActionError("cannot see it")
        return self.replicas[pool]

    async def scale(self, advice: Recommendation) -> str:
        self.scaled.append(advice.recommendation_id)
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cut_off.append(advice.recommendation_id)
            raise
        before = self.replicas[advice.pool]
        if self.changes_by is None:
            self.replicas[advice.pool] = advice.replicas_to
        elif before is not None:
            self.replicas[advice.pool] = before + self.changes_by
        if self.error:
            raise ActionError(self.error)
        return "scaled"

    async def close(self) -> None:
        """Nothing is open."""


@contextlib.asynccontextmanager
async def serving(bus: Bus, executors: int = 1) -> AsyncIterator[None]:
    """`api.optimize.execute`, `explain`, `recommendations`, where so many executors are there."""
    settings = HandlersSettings()
    endpoints = execution_endpoints(
        bus, bus, time.time_ns, settings.queries, Counter(), lambda: executors
    )
    store = LatestStore(settings.queries.forget_seconds)
    queries = query_endpoints(store, bus, time.time_ns, settings, Counter())
    endpoints += [one for one in queries if one.name == "optimize_recommendations"]
    service = await bus.serve("handlers", endpoints, description="of a test")
    try:
        yield
    finally:
        await service.stop()


@contextlib.asynccontextmanager
async def executing(
    bus: Bus,
    pools: Target,
    settings: ExecutorSettings = FOR_REAL,
    *,
    name: str = "x1",
    is_authenticated: bool = True,
) -> AsyncIterator[ExecutorService]:
    """An executor of these pools."""
    leases = BucketLeases(bus.bucket("lease"), f"executor.{name}")
    service = ExecutorService(
        bus,
        bus,
        leases,
        pools,
        settings,
        name=name,
        is_authenticated=is_authenticated,
        clock=time.time_ns,
    )
    try:
        async with service:
            yield service
    finally:
        await leases.close()
