"""Which fields of a metrics message a question asks for: the same for one node and for all."""

import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import msgspec

from schemas.engines import CacheMetrics, EngineMetrics
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
_ENGINE_NUMBERS = (
    "requests_running",
    "requests_waiting",
    "kv_cache_usage_ratio",
    "prompt_tokens_per_second",
    "generation_tokens_per_second",
    "ttft_p95_seconds",
    "itl_p95_seconds",
)
_CACHE_NUMBERS = (
    "entries",
    "used_bytes",
    "limit_bytes",
    "usage_ratio",
    "disk_used_bytes",
    "remote_used_bytes",
    "hits_total",
    "misses_total",
    "hit_ratio",
    "puts_total",
    "evictions_total",
    "evictions_acknowledged_total",
    "evictions_lost_total",
    "evictions_returned_total",
    "expired_lookups_total",
    "restores_total",
    "restores_declined_total",
    "restored_bytes_total",
    "restored_cost_seconds_total",
    "outbox_entries",
    "outbox_bytes",
    "lookup_tokens_total",
    "hit_tokens_total",
    "token_hit_ratio",
    "lookup_p95_seconds",
    "retrieve_p95_seconds",
    "store_p95_seconds",
)
_CPU_NUMBERS = ("utilization_ratio", "load_average_1m")
_MEMORY_NUMBERS = ("utilization_ratio", "used_bytes", "swap_utilization_ratio")
_CGROUP_NUMBERS = ("memory_utilization_ratio", "cpu_used_cores", "cpu_throttled_periods_ratio")
_HOST_NUMBERS = (
    "cpu_utilization_ratio",
    "load_average_1m",
    "memory_utilization_ratio",
    "memory_used_bytes",
    "swap_utilization_ratio",
    "filesystem_max_utilization_ratio",
    "disk_max_busy_ratio",
    "disk_max_read_bytes_per_second",
    "disk_max_write_bytes_per_second",
    "network_max_received_bytes_per_second",
    "network_max_sent_bytes_per_second",
    *(f"cgroup_{name}" for name in _CGROUP_NUMBERS),
)

Row: TypeAlias = tuple[tuple[str, ...], tuple[float | None, ...]]
"""Names, one object for all messages alike, and the value of each; None: not measured."""

_gpu_values = operator.attrgetter(*_GPU_NUMBERS)
_engine_values = operator.attrgetter(*_ENGINE_NUMBERS)
_cache_values = operator.attrgetter(*_CACHE_NUMBERS)
_cpu_values = operator.attrgetter(*_CPU_NUMBERS)
_memory_values = operator.attrgetter(*_MEMORY_NUMBERS)
_cgroup_values = operator.attrgetter(*_CGROUP_NUMBERS)
_NO_CPU, _NO_MEMORY, _NO_CGROUP = (None,) * 2, (None,) * 3, (None,) * 3


def _link_names(link: str, is_there: bool) -> tuple[str, ...]:
    fields = ("sent_bytes_per_second", "received_bytes_per_second") if is_there else ()
    return tuple(f"{link}_{field}" for field in fields)


_GPU_NAMES = {
    (pcie, nvlink): _GPU_NUMBERS + _link_names("pcie", pcie) + _link_names("nvlink", nvlink)
    for pcie in (False, True)
    for nvlink in (False, True)
}


def gpu_values(name: str, metrics: GpuMetrics) -> dict[str, Any]:
    """The fields of the view `name` (a key of `GPU_VIEWS`); null where not measured."""
    return {field: getattr(metrics, field) for field in GPU_VIEWS[name]}


def system_values(name: str, metrics: HostMetrics) -> dict[str, Any]:
    """The fields of the view `name` (a key of `SYSTEM_VIEWS`); null where not measured."""
    return {field: getattr(metrics, field) for field in SYSTEM_VIEWS[name]}


def gpu_row(metrics: GpuMetrics) -> Row:
    """The gauges of one GPU."""
    pcie, nvlink = metrics.pcie, metrics.nvlink
    names, values = _GPU_NAMES[pcie is not None, nvlink is not None], _gpu_values(metrics)
    for link in (pcie, nvlink):
        if link is not None:
            values += (link.sent_bytes_per_second, link.received_bytes_per_second)
    return names, values


def engine_row(metrics: EngineMetrics) -> Row:
    """The gauges of one engine."""
    return _ENGINE_NUMBERS, _engine_values(metrics)


def cache_row(metrics: CacheMetrics) -> Row:
    """The gauges and the main counters of one namespace of a cache."""
    return _CACHE_NUMBERS, _cache_values(metrics)


def host_row(metrics: HostMetrics) -> Row:
    """The gauges of one machine, flat.

    Of several devices it is the highest (fullest file system, busiest disk or interface): sums
    would count a partition beside its disk, and a bridge beside its interface, twice.
    """
    pressure = metrics.pressure or ()
    values = (
        *(_NO_CPU if metrics.cpu is None else _cpu_values(metrics.cpu)),
        *(_NO_MEMORY if metrics.memory is None else _memory_values(metrics.memory)),
        _highest(metrics.filesystems, "utilization_ratio"),
        _highest(metrics.disks, "busy_ratio"),
        _highest(metrics.disks, "read_bytes_per_second"),
        _highest(metrics.disks, "write_bytes_per_second"),
        _highest(metrics.network, "received_bytes_per_second"),
        _highest(metrics.network, "sent_bytes_per_second"),
        *(_NO_CGROUP if metrics.cgroup is None else _cgroup_values(metrics.cgroup)),
        *[one.some_60s_ratio for one in pressure],
    )
    return _host_names(*[one.resource for one in pressure]), values


@functools.lru_cache(maxsize=64)
def _host_names(*pressures: str) -> tuple[str, ...]:
    return (*_HOST_NUMBERS, *(f"pressure_{resource}_some_60s_ratio" for resource in pressures))


def gpu_numbers(metrics: GpuMetrics) -> dict[str, float]:
    """The measured gauges of one GPU, by field name; what was not measured is absent."""
    return _measured(gpu_row(metrics))


def engine_numbers(metrics: EngineMetrics) -> dict[str, float]:
    """The measured gauges of one engine, by field name; what was not measured is absent."""
    return _measured(engine_row(metrics))


def cache_numbers(metrics: CacheMetrics) -> dict[str, float]:
    """What `cache_row` has, by field name; what was not measured is absent."""
    return _measured(cache_row(metrics))


def host_numbers(metrics: HostMetrics) -> dict[str, float]:
    """The measured gauges of one machine as `host_row` has them; what was not is absent."""
    return _measured(host_row(metrics))


def _measured(row: Row) -> dict[str, float]:
    return {name: float(v) for name, v in zip(*row, strict=True) if v is not None}


def _highest(parts: Iterable[msgspec.Struct] | None, field: str) -> float | None:
    highest = None
    for part in parts or ():
        value = getattr(part, field)
        if value is not None and (highest is None or value > highest):
            highest = value
    return highest
