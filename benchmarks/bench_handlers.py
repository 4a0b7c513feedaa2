"""What the handlers cost per message, and how that grows with the fleet.

`python -m benchmarks.bench_handlers`: a made-up fleet (each node every 5 s: one host with 32 cores
and four file systems, disks and interfaces; with `--gpus` so many GPUs and one engine), encoded as
on the bus, then decoded and fed to every handler of all eight slots as the service does it, with
the garbage collector set as there. Two minutes of the stream or more, of which the second half is
measured: by then the windows are full, and minutes end. CPU time of this process, without the bus;
medians of `--runs`.
"""

import argparse
import contextlib
import gc
import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence

import msgspec

from agent.runner import GC_THRESHOLD
from handlers import default_handlers
from handlers.decoding import decode
from handlers.settings import HandlersSettings
from handlers.slot_group import SlotGroup
from handlers.slots import Routed, Slot, Watermark
from schemas.engines import EngineMetrics
from schemas.host import CpuMetrics, DiskIoMetrics, FilesystemMetrics, MemoryMetrics, NetworkMetrics
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Delivery, Moment
from schemas.units import SECOND_NS, instant

START_NS = 1_800_000_000 * SECOND_NS
GIB = 1024**3
CORES = 32
PARTS = 4
PERIODS = 24
"""Of 5 s: the second minute is measured, with what is given out at the end of the first."""
LEAST = 40_000
BATCH = 1_000
"""So many messages are made at a time, which is not measured."""


def host(node: str, ns: int, rng: random.Random) -> HostMetrics:
    """A machine with 32 cores and four file systems, disks and interfaces."""
    load = rng.random()
    return HostMetrics(
        node=node,
        node_name=node,
        pool=f"pool-{int(node[-5:]) % 20}",
        observed_at=instant(ns),
        interval_seconds=5.0,
        cpu=CpuMetrics(
            utilization_ratio=load, per_core_utilization_ratio=[load] * CORES, logical_cores=CORES
        ),
        memory=MemoryMetrics(
            total_bytes=512 * GIB,
            available_bytes=256 * GIB,
            used_bytes=256 * GIB,
            free_bytes=128 * GIB,
            utilization_ratio=0.5,
        ),
        filesystems=[
            FilesystemMetrics(
                mountpoint=f"/data{i}", device=f"/dev/sd{i}", fstype="ext4", utilization_ratio=0.5
            )
            for i in range(PARTS)
        ],
        disks=[
            DiskIoMetrics(
                device=f"sd{i}",
                read_bytes_total=1,
                write_bytes_total=1,
                reads_total=1,
                writes_total=1,
                busy_ratio=load,
            )
            for i in range(PARTS)
        ],
        network=[
            NetworkMetrics(
                interface=f"eth{i}",
                received_bytes_total=1,
                sent_bytes_total=1,
                received_packets_total=1,
                sent_packets_total=1,
                receive_errors_total=0,
                send_errors_total=0,
                receive_drops_total=0,
                send_drops_total=0,
            )
            for i in range(PARTS)
        ],
    )


def gpu(node: str, index: int, ns: int, rng: random.Random) -> GpuMetrics:
    """A busy GPU."""
    return GpuMetrics(
        node=node,
        gpu=f"GPU-{index}",
        uuid=f"GPU-{node}-{index}",
        index=index,
        pool=f"pool-{int(node[-5:]) % 20}",
        observed_at=instant(ns),
        interval_seconds=5.0,
        utilization_ratio=rng.random(),
        memory_utilization_ratio=0.8,
        temperature_celsius=70.0,
        temperature_slowdown_celsius=87.0,
        power_watts=500.0,
        power_limit_watts=700.0,
        energy_joules_total=ns / SECOND_NS,
    )


def engine(node: str, ns: int, rng: random.Random) -> EngineMetrics:
    """An engine under changing load."""
    return EngineMetrics(
        node=node,
        engine="vllm-0",
        pool=f"pool-{int(node[-5:]) % 20}",
        model="m",
        observed_at=instant(ns),
        requests_running=rng.randrange(64),
        requests_running_max=64,
        requests_waiting=rng.randrange(4),
        kv_cache_usage_ratio=rng.random(),
    )


def node_samples(
    node: str, gpus: int, ns: int, rng: random.Random
) -> list[HostMetrics | GpuMetrics | EngineMetrics]:
    """What a node says at once: of its host and, where it has GPUs, of each and an engine."""
    samples: list[HostMetrics | GpuMetrics | EngineMetrics] = [host(node, ns, rng)]
    if gpus:
        samples += [gpu(node, index, ns, rng) for index in range(gpus)]
        samples.append(engine(node, ns, rng))
    return samples


def stream(nodes: int, gpus: int, count: int) -> Iterator[Delivery]:
    """The first `count` messages of such a fleet, nodes spread evenly over each 5 s."""
    rng = random.Random(1)  # noqa: S311 - a made-up load
    sequence = 0
    for period in itertools.count():
        for number in range(nodes):
            ns = START_NS + period * 5 * SECOND_NS + number * 5 * SECOND_NS // nodes
            for sample in node_samples(f"node-{number:05}", gpus, ns, rng):
                sequence += 1
                payload = msgspec.json.encode(sample)
                yield Delivery(sample.subject(), payload, {}, sequence, ns)
                if sequence >= count:
                    return


@contextlib.contextmanager
def collected_as_in_the_service() -> Iterator[None]:
    """Within it the garbage collector runs as seldom as there, and sees nothing made before."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def handlers_group() -> SlotGroup[Slot]:
    """All slots, with every handler each."""
    settings = HandlersSettings()
    group: SlotGroup[Slot] = SlotGroup()
    for index in range(settings.slots):
        watermark = Watermark(sequence=0, ns=START_NS)
        slot = Slot(index, settings.slots, default_handlers(settings), watermark)
        group.join(slot, slot)
    return group


def feed(group: SlotGroup[Slot], deliveries: Sequence[Delivery]) -> None:
    """As the service does it."""
    for delivery in deliveries:
        message, now = decode(delivery), Moment(delivery.stored_ns, delivery.sequence)
        if group.is_due(now.ns):
            for slot in group:
                slot.feed(Routed(message, now))
        else:
            group.feed(message, now)


def one_run(nodes: int, gpus: int, count: int) -> float:
    """CPU microseconds per message of the second half; the first one fills the windows."""
    group, deliveries = handlers_group(), stream(nodes, gpus, count)
    handled, spent = 0, 0.0
    while batch := list(itertools.islice(deliveries, BATCH)):
        started = time.process_time()
        feed(group, batch)
        if handled >= count // 2:
            spent += time.process_time() - started
        handled += len(batch)
    return spent / (count - count // 2) * 1e6


def main(sizes: Sequence[int] = (100, 1_000, 10_000), gpus: int = 0, runs: int = 3) -> None:
    """Print CPU per message for fleets of these sizes."""
    print(f"handlers: CPU per message, {gpus} GPUs a node, medians of {runs} runs")
    for nodes in sizes:
        count = max(LEAST, PERIODS * nodes * (1 + (gpus + 1 if gpus else 0)))
        count += -count % (2 * BATCH)
        with collected_as_in_the_service():
            values = [one_run(nodes, gpus, count) for _ in range(runs)]
        print(
            f"  {nodes:6,} nodes  {statistics.median(values):6.1f} µs  ({min(values):.1f} to "
            f"{max(values):.1f}; the last half of {count:,} messages)"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--gpus", type=int, default=0, help="GPUs a node, and then one engine")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    main(asked.nodes, asked.gpus, asked.runs)
