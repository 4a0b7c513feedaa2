"""One handlers process under the metrics of 10,000 hosts: does it keep up, and at what cost?

`python -m benchmarks.bench_load`: a private nats-server, `resource-agent run handlers` as a
process of its own, and this process as 10,000 hosts that publish every 5 s (2,000 messages a
second, evenly). After a warm-up the handlers' CPU time is taken over the rest, and how many
messages behind the stream they are. The server, and this process, run on the same cores.
"""

import argparse
import asyncio
import itertools
import random
import time

import msgspec
import psutil

from agent.bus import Bus
from benchmarks.bench_handlers import host
from benchmarks.installation import private_bus, service
from schemas.lifecycle import InstanceRecord

WARM_UP_SECONDS = 15.0
SLICE_SECONDS = 0.05
BEHIND_SECONDS = 30.0


async def publish(bus: Bus, nodes: int, per_second: int, seconds: float) -> int:
    """Publish at this rate for so long; returns how many. Late slices are made up for."""
    rng = random.Random(1)  # noqa: S311 - a made-up load
    samples = [host(f"node-{number:05}", time.time_ns(), rng) for number in range(nodes)]
    encoded = [(sample.subject(), msgspec.json.encode(sample)) for sample in samples]
    ring = itertools.cycle(encoded)
    started, sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        for subject, payload in itertools.islice(ring, int(elapsed * per_second) - sent):
            await bus.send(subject, payload)
            sent += 1
        await asyncio.sleep(SLICE_SECONDS)
    return sent


async def handled(bus: Bus) -> float:
    """Messages that the handlers have read so far, from their own counters."""
    found = await bus.bucket("registry").get("handlers.bench")
    assert found is not None, "the handlers are not registered"
    return msgspec.json.decode(found[0], type=InstanceRecord).counters["messages_total"]


async def measure(nodes: int, seconds: float) -> None:
    """Print CPU share, CPU per message and backlog."""
    rate = nodes // 5
    beats = {"RESOURCE_AGENT_HEALTH__HEARTBEAT_SECONDS": "1"}
    async with private_bus() as bus, service(bus, "handlers", **beats) as pid:
        watched = psutil.Process(pid)
        publishing = asyncio.create_task(publish(bus, nodes, rate, WARM_UP_SECONDS + seconds))
        await asyncio.sleep(WARM_UP_SECONDS)
        started, cpu_before = time.monotonic(), sum(watched.cpu_times()[:2])
        sent = await publishing
        cpu = sum(watched.cpu_times()[:2]) - cpu_before
        took = time.monotonic() - started
        rss = watched.memory_info().rss
        async with asyncio.timeout(BEHIND_SECONDS):
            while (await bus.stream_bounds("METRICS"))[1] < sent:
                await asyncio.sleep(0.05)
            stored = time.monotonic() - started - took
            while await handled(bus) < sent:
                await asyncio.sleep(0.05)
        behind = time.monotonic() - started - took
    print(f"handlers, one process: {nodes:,} hosts every 5 s = {rate:,} messages/s, {took:.0f} s")
    print(f"  CPU {cpu / took:.0%} of one core, {cpu / (rate * took) * 1e6:.0f} µs a message")
    print(
        f"  all {sent:,} in the stream {stored:.1f} s, handled {behind:.1f} s after the last "
        "(as the handlers' heartbeat says, each second)"
    )
    print(f"  RSS {rss / 2**20:.0f} MiB")


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = parser.parse_args()
    asyncio.run(measure(asked.nodes, asked.seconds))


if __name__ == "__main__":
    main()
