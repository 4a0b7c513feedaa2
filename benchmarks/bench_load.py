"""One handlers process under the metrics of 10,000 hosts: does it keep up, and at what cost?

`python -m benchmarks.bench_load`: a private nats-server, `resource-agent run handlers` as a
process of its own, and this process as 10,000 hosts that publish every 5 s (2,000 messages a
second, evenly). After a warm-up the handlers' CPU time is taken over the rest, and how many
messages behind the stream they are. The server, and this process, run on the same cores.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import psutil

from agent.bus import Bus, connect, ensure_streams
from agent.nats_server import find_server, server_version
from agent.private_server import PrivateServer
from benchmarks.bench_handlers import host
from schemas.api import HealthReply
from schemas.lifecycle import InstanceRecord

WARM_UP_SECONDS = 15.0
SLICE_SECONDS = 0.05


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


async def wait_ready(bus: Bus) -> None:
    """Return once the handlers are ready."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Exception):
                answer = await bus.request("api.health.detailed", timeout_seconds=1)
                health = msgspec.json.decode(answer.payload, type=HealthReply)
                if any(role.role == "handlers" and role.ready for role in health.roles):
                    return
            await asyncio.sleep(0.05)


async def measure(nodes: int, seconds: float) -> None:
    """Print CPU share, CPU per message and backlog."""
    binary = find_server()
    assert binary is not None, "no nats-server: run `make setup`"
    with tempfile.TemporaryDirectory() as folder:
        async with (
            PrivateServer(Path(folder) / "server", binary=binary) as server,
            await connect(server.url, name="bench") as bus,
        ):
            await ensure_streams(bus)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agent", "run", "handlers",
                "--nats-url", server.url, "--instance", "bench",
                "--state-dir", str(Path(folder) / "state"),
                env={
                    **{k: v for k, v in os.environ.items() if not k.startswith("RESOURCE_AGENT_")},
                    "RESOURCE_AGENT_HEALTH__HEARTBEAT_SECONDS": "1",
                },
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                await wait_ready(bus)
                watched = psutil.Process(process.pid)
                rate = nodes // 5
                publishing = asyncio.create_task(
                    publish(bus, nodes, rate, WARM_UP_SECONDS + seconds)
                )
                await asyncio.sleep(WARM_UP_SECONDS)
                before, cpu_before = await handled(bus), sum(watched.cpu_times()[:2])
                at = time.monotonic()
                sent = await publishing
                cpu = sum(watched.cpu_times()[:2]) - cpu_before
                took = time.monotonic() - at
                rss = watched.memory_info().rss
                settled = time.monotonic()
                while (now_handled := await handled(bus)) < sent:
                    await asyncio.sleep(0.1)
                    if time.monotonic() - settled > 30:
                        break
                behind_seconds = time.monotonic() - settled
            finally:
                process.send_signal(signal.SIGINT)
                await process.wait()
    count = rate * took
    print(f"handlers, one process, nats-server {'.'.join(map(str, server_version(binary)))}")
    print(f"  {nodes:,} hosts every 5 s = {rate:,} messages/s for {took:.0f} s")
    print(f"  CPU {cpu / took:.0%} of one core, {cpu / count * 1e6:.0f} µs a message, all included")
    print(f"  all {sent:,} read {behind_seconds:.1f} s after the last (counters come each second)")
    print(f"  handled {now_handled:,.0f} ({before:,.0f} before), RSS {rss / 2**20:.0f} MiB")


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = parser.parse_args()
    asyncio.run(measure(asked.nodes, asked.seconds))


if __name__ == "__main__":
    main()
