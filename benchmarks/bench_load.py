"""One handlers process under the metrics of a fleet: does it keep up, at what cost, how late?

`python -m benchmarks.bench_load`: a private nats-server, `resource-agent run handlers` as a
process of its own, and this process as 10,000 hosts that publish every 5 s (2,000 messages a
second, evenly). After a warm-up the handlers' CPU time is taken over the rest, and how many
messages behind the stream they are. Meanwhile another node now and then tells of an XID error:
the time from before that publish to the alert's receipt. The server, and this process, run on the
same cores.

`--gpus 8`: each node has so many GPUs and an engine. `--rate R …`: so many messages a second
instead, one run each, by as many nodes as that takes.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import time

import msgspec
import psutil

from agent.bus import Bus
from benchmarks.bench_handlers import node_samples
from benchmarks.installation import private_bus, service
from schemas.analysis import Alert
from schemas.gpu import XidEvent, XidMetrics
from schemas.lifecycle import InstanceRecord
from schemas.metrics import GpuMetrics
from schemas.units import instant

WARM_UP_SECONDS = 15.0
SLICE_SECONDS = 0.05
BEHIND_SECONDS = 120.0
PERIOD_SECONDS = 5
ALERT_EVERY_SECONDS = 0.2


async def publish(bus: Bus, nodes: int, gpus: int, per_second: int, seconds: float) -> int:
    """Publish at this rate for so long; returns how many. Late slices are made up for."""
    rng = random.Random(1)  # noqa: S311 - a made-up load
    encoded = [
        (sample.subject(), msgspec.json.encode(sample))
        for number in range(nodes)
        for sample in node_samples(f"node-{number:05}", gpus, time.time_ns(), rng)
    ]
    ring = itertools.cycle(encoded)
    started, sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        for subject, payload in itertools.islice(ring, int(elapsed * per_second) - sent):
            await bus.send(subject, payload)
            sent += 1
        await asyncio.sleep(SLICE_SECONDS)
    return sent


async def delays(bus: Bus, seconds: float) -> list[float]:
    """Seconds from before an XID error is published to its alert, one error after the other."""
    arrived: asyncio.Queue[str] = asyncio.Queue()

    def take(_subject: str, payload: bytes) -> None:
        arrived.put_nowait(msgspec.json.decode(payload, type=Alert).id)

    stop = await bus.subscribe("alert.>", take)
    found = []
    ends = time.monotonic() + seconds
    for number in itertools.count():
        if time.monotonic() > ends:
            break
        node, started = f"alert-{number}", time.perf_counter()
        await bus.publish(failing(node))
        async with asyncio.timeout(BEHIND_SECONDS):
            while await arrived.get() != node:
                pass
        found.append(time.perf_counter() - started)
        await asyncio.sleep(ALERT_EVERY_SECONDS)
    await stop()
    return found


def failing(node: str) -> GpuMetrics:
    """A GPU with a new XID 79 (fallen off the bus)."""
    now = instant(time.time_ns())
    error = XidEvent(xid=79, observed_at=now, severity="critical", text="fallen off the bus")
    return GpuMetrics(
        node=node,
        gpu="GPU-0",
        uuid=f"GPU-{node}",
        index=0,
        observed_at=now,
        interval_seconds=5.0,
        xid=XidMetrics(events_total=1, critical_10m_count=1, recent=[error]),
    )


async def handled(bus: Bus) -> float:
    """Messages that the handlers have read so far, from their own counters."""
    found = await bus.bucket("registry").get("handlers.bench")
    assert found is not None, "the handlers are not registered"
    return msgspec.json.decode(found[0], type=InstanceRecord).counters["messages_total"]


async def measure(nodes: int, gpus: int, rate: int, seconds: float) -> None:
    """Print CPU share, CPU per message, backlog, delay of alerts, and RSS."""
    beats = {"RESOURCE_AGENT_HEALTH__HEARTBEAT_SECONDS": "1"}
    async with private_bus() as bus, service(bus, "handlers", **beats) as pid:
        watched = psutil.Process(pid)
        idle_bytes = watched.memory_info().rss
        publishing = asyncio.create_task(publish(bus, nodes, gpus, rate, WARM_UP_SECONDS + seconds))
        await asyncio.sleep(WARM_UP_SECONDS)
        started, cpu_before = time.monotonic(), sum(watched.cpu_times()[:2])
        late = await delays(bus, seconds - 2 * ALERT_EVERY_SECONDS)
        sent = await publishing
        cpu = sum(watched.cpu_times()[:2]) - cpu_before
        took = time.monotonic() - started
        rss = watched.memory_info().rss
        async with asyncio.timeout(BEHIND_SECONDS):
            while (await bus.stream_bounds("METRICS"))[1] < sent + len(late):
                await asyncio.sleep(0.05)
            stored = time.monotonic() - started - took
            while await handled(bus) < sent + len(late):
                await asyncio.sleep(0.05)
        behind = time.monotonic() - started - took
    print(f"handlers, one process: {nodes:,} nodes with {gpus} GPUs, {rate:,} messages/s")
    print(f"  CPU {cpu / took:.0%} of one core, {cpu / (rate * took) * 1e6:.0f} µs a message")
    print(
        f"  all {sent:,} in the stream {stored:.1f} s, handled {behind:.1f} s after the last "
        "(as the handlers' heartbeat says, each second)"
    )
    ranked = sorted(late)
    print(
        f"  metric to alert: p50 {statistics.median(ranked) * 1e3:.1f} ms, "
        f"p99 {ranked[int(0.99 * len(ranked))] * 1e3:.1f} ms of {len(ranked)}"
    )
    grown = (rss - idle_bytes) / max(1, nodes)
    print(f"  RSS {rss / 2**20:.0f} MiB, {grown / 1024:.1f} KiB a node above the idle process")


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=0, help="GPUs a node, and then one engine")
    parser.add_argument("--rate", type=int, nargs="+", help="messages a second; sets the nodes")
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = parser.parse_args()
    a_node = 1 + (asked.gpus + 1 if asked.gpus else 0)
    for rate in asked.rate or [asked.nodes * a_node // PERIOD_SECONDS]:
        asyncio.run(measure(rate * PERIOD_SECONDS // a_node, asked.gpus, rate, asked.seconds))


if __name__ == "__main__":
    main()
