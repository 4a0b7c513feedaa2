"""Metrics messages with the few fields a test cares about."""

from typing import Any, TypeAlias

from schemas.engines import EngineMetrics
from schemas.host import CpuMetrics, DiskIoMetrics, FilesystemMetrics, MemoryMetrics, NetworkMetrics
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Moment
from schemas.units import SECOND_NS, instant

START_NS = 1_800_000_000 * SECOND_NS  # a whole minute: 2027-01-15 08:00:00 UTC


Link: TypeAlias = tuple[float | None, float | None, float | None]
"""An interface's speed in bits a second, and what it receives and sends in bytes a second."""


def at(seconds: float, sequence: int = 0) -> Moment:
    """The moment `seconds` after the start of the trace."""
    return Moment(START_NS + round(seconds * SECOND_NS), sequence)


def host(
    node: str = "n1",
    *,
    cpu: float | None = None,
    memory: float | None = None,
    disks: dict[str, float | None] | None = None,
    disks_io: dict[str, float | None] | None = None,
    links: dict[str, Link] | None = None,
    **fields: Any,
) -> HostMetrics:
    gib = 1024**3
    if links is not None:
        fields["network"] = [
            NetworkMetrics(
                interface=name,
                received_bytes_total=0,
                sent_bytes_total=0,
                received_packets_total=0,
                sent_packets_total=0,
                receive_errors_total=0,
                send_errors_total=0,
                receive_drops_total=0,
                send_drops_total=0,
                speed_bits_per_second=speed,
                received_bytes_per_second=received,
                sent_bytes_per_second=sent,
            )
            for name, (speed, received, sent) in links.items()
        ]
    return HostMetrics(
        node=node,
        node_name=node,
        observed_at=fields.pop("observed_at", instant(START_NS)),
        interval_seconds=fields.pop("interval_seconds", 5.0),
        cpu=None
        if cpu is None
        else CpuMetrics(utilization_ratio=cpu, per_core_utilization_ratio=[], logical_cores=8),
        memory=None
        if memory is None
        else MemoryMetrics(
            total_bytes=64 * gib,
            available_bytes=round((1 - memory) * 64 * gib),
            used_bytes=round(memory * 64 * gib),
            free_bytes=0,
            utilization_ratio=memory,
        ),
        filesystems=None
        if disks is None
        else [
            FilesystemMetrics(
                mountpoint=mountpoint, device="/dev/sda1", fstype="ext4", utilization_ratio=ratio
            )
            for mountpoint, ratio in disks.items()
        ],
        disks=None
        if disks_io is None
        else [
            DiskIoMetrics(
                device=device,
                read_bytes_total=0,
                write_bytes_total=0,
                reads_total=0,
                writes_total=0,
                busy_ratio=ratio,
            )
            for device, ratio in disks_io.items()
        ],
        **fields,
    )


def gpu(gpu_id: str = "g0", node: str = "n1", **fields: Any) -> GpuMetrics:
    defaults: dict[str, Any] = {
        "index": 0,
        "observed_at": instant(START_NS),
        "interval_seconds": 5.0,
    }
    return GpuMetrics(node=node, gpu=gpu_id, uuid=f"GPU-{gpu_id}", **(defaults | fields))


def engine(
    engine_id: str = "e0",
    node: str = "n1",
    *,
    waiting: int | None = None,
    kv: float | None = None,
    running: int | None = None,
    running_max: int | None = None,
    **fields: Any,
) -> EngineMetrics:
    defaults: dict[str, Any] = {"pool": "chat", "model": "m", "observed_at": instant(START_NS)}
    return EngineMetrics(
        node=node,
        engine=engine_id,
        requests_waiting=waiting,
        kv_cache_usage_ratio=kv,
        requests_running=running,
        requests_running_max=running_max,
        **(defaults | fields),
    )
