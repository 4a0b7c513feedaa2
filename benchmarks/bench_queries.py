"""Latency of the latest-value endpoints: `python -m benchmarks.bench_queries`.

A private nats-server, `resource-agent run handlers` as a process of its own that knows 100 nodes
with 8 GPUs each, and one client that asks, one request after the other. Median and p95 over
`--requests` of each kind; the medians of `--runs` runs.
"""

import argparse
import asyncio
import random
import statistics
import time

import msgspec

from agent.bus import Bus
from benchmarks.bench_handlers import gpu, host
from benchmarks.installation import private_bus, service
from schemas.api import Filter, LatestReply

NODES, GPUS = 100, 8
KINDS = {
    "one node's GPUs": ("api.gpu.metrics", Filter(node="node-00042")),
    "one node's memory": ("api.system.memory", Filter(node="node-00042")),
    "temperature of 100 GPUs": ("api.gpu.temperature", Filter(limit=100)),
    "all of 100 nodes": ("api.system.all", Filter()),
}


async def fill(bus: Bus) -> None:
    """Publish one sample of everything, and wait until the handlers know all of it."""
    rng, now = random.Random(1), time.time_ns()  # noqa: S311 - a made-up load
    for number in range(NODES):
        node = f"node-{number:05}"
        await bus.publish(host(node, now, rng))
        for index in range(GPUS):
            await bus.publish(gpu(node, index, now, rng))
    async with asyncio.timeout(10):
        while await known(bus) < NODES * GPUS:
            await asyncio.sleep(0.05)


async def known(bus: Bus) -> int:
    """How many GPUs the handlers know."""
    request = msgspec.json.encode(Filter(limit=1))
    answer = await bus.request("api.gpu.metrics", request, timeout_seconds=5)
    return msgspec.json.decode(answer.payload, type=LatestReply).total


async def measure(requests: int, runs: int) -> None:
    """Print a line for each kind of question."""
    async with private_bus() as bus, service(bus, "handlers"):
        await fill(bus)
        print(f"{NODES} nodes with {GPUS} GPUs; medians of {runs} runs of {requests} requests")
        for name, (subject, wanted) in KINDS.items():
            medians, p95s, size = [], [], 0
            for _ in range(runs):
                seconds = []
                for _ in range(requests):
                    started = time.perf_counter()
                    answer = await bus.request(
                        subject, msgspec.json.encode(wanted), timeout_seconds=5
                    )
                    seconds.append(time.perf_counter() - started)
                    size = len(answer.payload)
                medians.append(statistics.median(seconds) * 1000)
                p95s.append(statistics.quantiles(seconds, n=20)[-1] * 1000)
            print(
                f"  {name:24} {size:9,} bytes   median {statistics.median(medians):6.2f} ms   "
                f"p95 {statistics.median(p95s):6.2f} ms ({min(p95s):.2f} to {max(p95s):.2f})"
            )


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    asyncio.run(measure(asked.requests, asked.runs))


if __name__ == "__main__":
    main()
