"""Engines that have far too much to do, the advice that comes of it, and a fleet's history."""

import time

import msgspec

from agent.bus import Bus
from schemas.engines import EngineMetrics
from schemas.scaling import Recommendation
from schemas.units import instant
from tests.support.samples import engine, gpu, host

NODES = 100
GPUS = 8


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


async def record_fleet(bus: Bus, messages: int) -> None:
    """Put at least so many samples, of now, of 100 calm nodes into the metrics stream."""
    _, before = await bus.stream_bounds("METRICS")
    last = before
    while last - before < messages:
        now = instant(time.time_ns())
        for number in range(NODES):
            node = f"calm-{number}"
            await bus.publish(host(node, cpu=0.5, memory=0.5, pool="calm", observed_at=now))
            for index in range(GPUS):
                await bus.publish(gpu(f"g{index}", node, pool="calm", index=index, observed_at=now))
            await bus.publish(
                engine(
                    "e", node, pool="calm", waiting=0, running=8, running_max=64, observed_at=now
                )
            )
        _, last = await bus.stream_bounds("METRICS")
