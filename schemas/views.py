"""Which fields of a metrics message a question asks for: the same for one node and for all."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from schemas.engines import EngineMetrics
from schemas.metrics import GpuMetrics, HostMetrics

_IDENTITY = frozenset({"node", "node_name", "gpu", "pool", "observed_at", "simulated"})

_MEMORY = (
    "memory_total_bytes",
    "memory_used_bytes",
    "memory_free_bytes",
    "memory_reserved_bytes",
    "memory_utilization_ratio",
)
# In every view of a GPU: which one it is, and why a value may be missing.
_ABOUT = ("name", "parent", "is_reachable", "errors")
GPU_VIEWS: Mapping[str, tuple[str, ...]] = {
    "metrics": tuple(f for f in GpuMetrics.__struct_fields__ if f not in _IDENTITY),
    "utilization": (
        *_ABOUT,
        "utilization_ratio",
        "utilization_source",
        "kernel_activity_ratio",
        "sm_activity_ratio",
        "sm_occupancy_ratio",
        "tensor_activity_ratio",
        "dram_activity_ratio",
        "memory_activity_ratio",
        "encoder_utilization_ratio",
        "decoder_utilization_ratio",
        "memory_utilization_ratio",
        "throttle_reasons",
        "pcie",
        "nvlink",
    ),
    "temperature": (
        *_ABOUT,
        "temperature_celsius",
        "temperature_memory_celsius",
        "temperature_slowdown_celsius",
        "temperature_shutdown_celsius",
        "fan_ratio",
        "throttle_reasons",
    ),
    "memory": (*_ABOUT, *_MEMORY, "ecc", "processes"),
    "power": (
        *_ABOUT,
        "power_watts",
        "power_limit_watts",
        "energy_joules_total",
        "performance_state",
        "throttle_reasons",
    ),
}
SYSTEM_VIEWS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("cpu", "pressure", "cgroup"),
    "memory": ("memory", "pressure", "cgroup"),
    "disk": ("filesystems", "disks"),
    "network": ("network", "connections_count"),
    "all": tuple(f for f in HostMetrics.__struct_fields__ if f not in _IDENTITY),
}

_GPU_NUMBERS = (
    "utilization_ratio",
    "kernel_activity_ratio",
    "sm_activity_ratio",
    "tensor_activity_ratio",
    "dram_activity_ratio",
    "memory_activity_ratio",
    "encoder_utilization_ratio",
    "decoder_utilization_ratio",
    "memory_used_bytes",
    "memory_utilization_ratio",
    "temperature_celsius",
    "temperature_memory_celsius",
    "power_watts",
    "clock_graphics_hertz",
    "clock_sm_hertz",
    "clock_memory_hertz",
    "fan_ratio",
)
_LINK_NUMBERS = ("sent_bytes_per_second", "received_bytes_per_second")
_ENGINE_NUMBERS = (
    "requests_running",
    "requests_waiting",
    "kv_cache_usage_ratio",
    "prompt_tokens_per_second",
    "generation_tokens_per_second",
    "ttft_p95_seconds",
    "itl_p95_seconds",
)


def gpu_values(name: str, metrics: GpuMetrics) -> dict[str, Any]:
    """The fields of the view `name` (a key of `GPU_VIEWS`); null where not measured."""
    return {field: getattr(metrics, field) for field in GPU_VIEWS[name]}


def system_values(name: str, metrics: HostMetrics) -> dict[str, Any]:
    """The fields of the view `name` (a key of `SYSTEM_VIEWS`); null where not measured."""
    return {field: getattr(metrics, field) for field in SYSTEM_VIEWS[name]}


def gpu_numbers(metrics: GpuMetrics) -> dict[str, float]:
    """The measured gauges of one GPU, by field name; what was not measured is absent."""
    numbers = [(field, getattr(metrics, field)) for field in _GPU_NUMBERS]
    for link, part in (("pcie", metrics.pcie), ("nvlink", metrics.nvlink)):
        if part is not None:
            numbers += [(f"{link}_{field}", getattr(part, field)) for field in _LINK_NUMBERS]
    return _measured(numbers)


def engine_numbers(metrics: EngineMetrics) -> dict[str, float]:
    """The measured gauges of one engine, by field name; what was not measured is absent."""
    return _measured((field, getattr(metrics, field)) for field in _ENGINE_NUMBERS)


def host_numbers(metrics: HostMetrics) -> dict[str, float]:
    """The measured gauges of one machine, flat; what was not measured is absent.

    Of several devices it is the highest (fullest file system, busiest disk or interface): sums
    would count a partition beside its disk, and a bridge beside its interface, twice.
    """
    cpu, memory = metrics.cpu, metrics.memory
    numbers: list[tuple[str, float | None]] = []
    if cpu is not None:
        numbers += [
            ("cpu_utilization_ratio", cpu.utilization_ratio),
            ("load_average_1m", cpu.load_average_1m),
        ]
    if memory is not None:
        numbers += [
            ("memory_utilization_ratio", memory.utilization_ratio),
            ("memory_used_bytes", memory.used_bytes),
            ("swap_utilization_ratio", memory.swap_utilization_ratio),
        ]
    numbers += [
        ("filesystem_max_utilization_ratio", _highest(metrics.filesystems, "utilization_ratio")),
        ("disk_max_busy_ratio", _highest(metrics.disks, "busy_ratio")),
        ("disk_max_read_bytes_per_second", _highest(metrics.disks, "read_bytes_per_second")),
        ("disk_max_write_bytes_per_second", _highest(metrics.disks, "write_bytes_per_second")),
        (
            "network_max_received_bytes_per_second",
            _highest(metrics.network, "received_bytes_per_second"),
        ),
        ("network_max_sent_bytes_per_second", _highest(metrics.network, "sent_bytes_per_second")),
    ]
    if metrics.cgroup is not None:
        numbers += [
            ("cgroup_memory_utilization_ratio", metrics.cgroup.memory_utilization_ratio),
            ("cgroup_cpu_used_cores", metrics.cgroup.cpu_used_cores),
            ("cgroup_cpu_throttled_periods_ratio", metrics.cgroup.cpu_throttled_periods_ratio),
        ]
    numbers += [
        (f"pressure_{pressure.resource}_some_60s_ratio", pressure.some_60s_ratio)
        for pressure in metrics.pressure or ()
    ]
    return _measured(numbers)


def _measured(numbers: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers if value is not None}


def _highest(parts: Iterable[msgspec.Struct] | None, field: str) -> float | None:
    highest = None
    for part in parts or ():
        value = getattr(part, field)
        if value is not None and (highest is None or value > highest):
            highest = value
    return highest
