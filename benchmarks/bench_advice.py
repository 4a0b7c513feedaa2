"""From the metric that completes a condition to the advice, over a real bus, in one process.

`python -m benchmarks.bench_advice`: for each pool (200) one EngineMetrics message that makes the
scaling handler act at once (no hold), published by one connection; the advice is received by a
second one. Time from before the publish to the receipt; five runs, median of their quantiles.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import msgspec

from agent.bus import Bus, connect, ensure_streams
from agent.bus.lease import BucketLeases
from agent.nats_server.binary import find_server, server_version
from agent.nats_server.private import PrivateServer
from handlers import default_handlers
from handlers.admission import Admission
from handlers.runtime import HandlersRuntime
from handlers.settings import HandlersSettings
from schemas.engines import EngineMetrics
from schemas.scaling import Recommendation
from schemas.units import instant

SETTINGS = msgspec.convert({"scaling": {"up_hold_seconds": 0.0}}, HandlersSettings)


def overloaded(pool: str) -> EngineMetrics:
    """One engine with far more waiting than the target of 5."""
    return EngineMetrics(
        node="bench",
        engine=pool,
        pool=pool,
        model="m",
        observed_at=instant(time.time_ns()),
        requests_running=64,
        requests_waiting=40,
        requests_running_max=64,
        kv_cache_usage_ratio=0.9,
    )


async def one_run(bus: Bus, sender: Bus, pools: int, run: int) -> list[float]:
    """Seconds for each pool."""
    arrived: dict[str, float] = {}
    expected: dict[str, asyncio.Event] = {}

    def take(_subject: str, payload: bytes) -> None:
        pool = msgspec.json.decode(payload, type=Recommendation).pool
        arrived[pool] = time.perf_counter()
        expected[pool].set()

    stop = await bus.subscribe(Recommendation.pattern(), take)
    seconds = []
    for number in range(pools):
        pool = f"pool-{run}-{number}"
        expected[pool] = asyncio.Event()
        started = time.perf_counter()
        await sender.publish(overloaded(pool))
        async with asyncio.timeout(10):
            await expected[pool].wait()
        seconds.append(arrived[pool] - started)
    await stop()
    return seconds


async def measure(pools: int, runs: int) -> None:
    """Print the medians over the runs of p50, p95 and p99."""
    binary = find_server()
    assert binary is not None, "no nats-server: run `make setup`"
    with tempfile.TemporaryDirectory() as folder:
        async with (
            PrivateServer(Path(folder), binary=binary) as server,
            await connect(server.url, name="handlers") as bus,
            await connect(server.url, name="sender") as sender,
        ):
            await ensure_streams(bus)
            leases = BucketLeases(bus.bucket("lease"), "bench")
            async with HandlersRuntime(
                publisher=bus,
                subscriber=bus,
                state=bus.bucket("state"),
                leases=leases,
                make_handlers=lambda: default_handlers(SETTINGS),
                slots=SETTINGS.slots,
                name="bench",
                registered=tuple,
                admission=Admission(SETTINGS.max_nodes, SETTINGS.max_pools),
            ) as runtime:
                await runtime.started.wait()
                results = [await one_run(bus, sender, pools, run) for run in range(runs)]
            await leases.close()
    version = ".".join(map(str, server_version(binary)))
    print(f"metric to advice, nats-server {version}, {runs} runs of {pools} pools")
    for name, quantile in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
        values = [sorted(run)[int(quantile * len(run))] * 1000 for run in results]
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"  {name} {statistics.median(values):6.2f} ms   (runs: {spread})")


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    asyncio.run(measure(asked.pools, asked.runs))


if __name__ == "__main__":
    main()
