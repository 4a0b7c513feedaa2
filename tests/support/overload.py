"""Engines that have far too much to do, and the advice that comes of it."""

import time

import msgspec

from agent.bus import Bus
from schemas.engines import EngineMetrics
from schemas.scaling import Recommendation
from schemas.units import instant


def overloaded(pool: str) -> EngineMetrics:
    """A sample, of now, of the pool's only engine."""
    return EngineMetrics(
        node="n1",
        engine=f"e-{pool}",
        pool=pool,
        model="m",
        observed_at=instant(time.time_ns()),
        requests_running=64,
        requests_waiting=40,
        requests_running_max=64,
        kv_cache_usage_ratio=0.9,
    )


async def advice(bus: Bus) -> list[Recommendation]:
    """All that was given, in order."""
    return [
        msgspec.json.decode(delivery.payload, type=Recommendation)
        async for delivery in bus.read("RECOMMENDATIONS", subject="recommendation.>")
    ]
