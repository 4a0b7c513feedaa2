"""This machine, by psutil: CPU, memory, disks, network and processes (the one psutil module)."""

import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import psutil

from agent.collectors.counters import (
    Counters,
    busy_ratio,
    core_ratios,
    disk_metrics,
    network_metrics,
    per_second,
)
from agent.collectors.filesystems import Mount, UsageProbe, watched
from agent.collectors.pressure import read_cgroup, read_pressure
from schemas.metrics import (
    CpuMetrics,
    DiskIoMetrics,
    FilesystemMetrics,
    HostMetrics,
    MemoryMetrics,
    NetworkMetrics,
    ProcessMetrics,
)
from schemas.units import SECOND_NS, instant

_IS_LINUX = sys.platform == "linux"
_HERTZ_PER_MEGAHERTZ = 1e6
# Not hardware: images, RAM disks, compressed swap in RAM; optical and floppy drives.
_VIRTUAL_DISKS = ("loop", "ram", "zram", "sr", "fd")
_LOOPBACK = ("lo", "lo0")
# The host's end of a container's link: the same bytes are counted again at the real interface.
_CONTAINER_LINK = "veth"

ValueT = TypeVar("ValueT")


class HostCollector:
    """Samples this machine. Blocking (about a millisecond); call it from one thread.

    Rates and CPU utilisation are differences to the previous sample, so the first sample has none
    (null, never 0), and neither has one right after a counter was reset.
    """

    def __init__(
        self,
        *,
        node: str,
        node_name: str,
        pool: str | None,
        process_limit: int,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        filesystems: UsageProbe | None = None,
    ) -> None:
        self._node = node
        self._node_name = node_name
        self._pool = pool
        self._process_limit = process_limit
        self._clock = clock
        self._monotonic = monotonic
        self._filesystems = filesystems or UsageProbe()
        self._sampled_at: float | None = None
        self._physical_cores: int | None = None
        # What the previous reading of each counter said: the CPU as a whole, its cores, and disks
        # and interfaces by name with the time of the reading.
        self._cpu_times: Counters | None = None
        self._core_times: list[Counters] = []
        self._disks: tuple[float, dict[str, Counters]] = (0.0, {})
        self._network: tuple[float, dict[str, Counters]] = (0.0, {})
        self._processes: tuple[float, dict[tuple[int, float], float]] = (0.0, {})

    def sample(self, *, with_processes: bool = False) -> HostMetrics:
        """One sample; what could not be read is null and named in `errors`.

        `with_processes` adds the process table and the connection count: some 4 ms per hundred
        processes, so ask for it rarely.
        """
        now = self._monotonic()
        now_ns = self._clock()
        interval = 0.0 if self._sampled_at is None else max(0.0, now - self._sampled_at)
        self._sampled_at = now
        errors: dict[str, str] = {}
        boot = _attempt(errors, "boot_at", psutil.boot_time)
        return HostMetrics(
            node=self._node,
            node_name=self._node_name,
            pool=self._pool,
            observed_at=instant(now_ns),
            interval_seconds=interval,
            boot_at=None if boot is None else instant(int(boot * SECOND_NS)),
            uptime_seconds=None if boot is None else max(0.0, now_ns / SECOND_NS - boot),
            cpu=self._cpu(errors),
            memory=_attempt(errors, "memory", lambda: _memory(errors)),
            filesystems=_attempt(errors, "filesystems", lambda: self._usage(errors)),
            disks=_attempt(errors, "disks", self._disk_io),
            network=_attempt(errors, "network", lambda: self._network_io(errors)),
            connections_count=(
                _attempt(errors, "connections_count", lambda: len(psutil.net_connections("inet")))
                if with_processes
                else None
            ),
            pressure=_attempt(errors, "pressure", read_pressure),
            cgroup=_attempt(errors, "cgroup", read_cgroup),
            processes=(_attempt(errors, "processes", self.processes) if with_processes else None),
            errors=errors,
        )

    def processes(self) -> list[ProcessMetrics]:
        """The top of the process table: most CPU first, then most resident memory.

        `cpu_cores` is null for a process that was not in the previous table. Processes that
        vanish while we look are left out.
        """
        now = self._monotonic()
        before_at, before = self._processes
        cpu_seconds: dict[tuple[int, float], float] = {}
        table = []
        attributes = ["create_time", "cpu_times", "memory_info", "name", "num_threads"]
        for process in psutil.process_iter(attributes):
            info = process.info
            cores = None
            if info["cpu_times"] is not None:
                used = info["cpu_times"].user + info["cpu_times"].system
                key = (process.pid, info["create_time"])  # a pid alone may be used again
                cpu_seconds[key] = used
                cores = per_second(used, before.get(key), now - before_at)
            table.append(
                ProcessMetrics(
                    pid=process.pid,
                    name=info["name"] or "unknown",
                    cpu_cores=cores,
                    memory_rss_bytes=info["memory_info"] and info["memory_info"].rss,
                    threads=info["num_threads"],
                )
            )
        self._processes = (now, cpu_seconds)
        table.sort(key=lambda row: (row.cpu_cores or 0.0, row.memory_rss_bytes or 0), reverse=True)
        return table[: self._process_limit]

    def _cpu(self, errors: dict[str, str]) -> CpuMetrics:
        times = _attempt(errors, "cpu.utilization_ratio", psutil.cpu_times)
        cores = _attempt(
            errors, "cpu.per_core_utilization_ratio", lambda: psutil.cpu_times(percpu=True)
        )
        load = _attempt(errors, "cpu.load_average_1m", os.getloadavg)
        counters = _attempt(errors, "cpu.context_switches_total", psutil.cpu_stats)
        # Missing on platforms where psutil cannot tell; None or zeros in many virtual machines.
        frequency = _attempt(
            errors, "cpu.frequency_hertz", getattr(psutil, "cpu_freq", lambda: None)
        )
        if self._physical_cores is None:  # never changes, and is slow on large machines
            self._physical_cores = _attempt(
                errors, "cpu.physical_cores", lambda: psutil.cpu_count(logical=False)
            )
        metrics = CpuMetrics(
            utilization_ratio=busy_ratio(times, self._cpu_times),
            per_core_utilization_ratio=core_ratios(cores or [], self._core_times),
            logical_cores=_attempt(errors, "cpu.logical_cores", psutil.cpu_count),
            physical_cores=self._physical_cores,
            frequency_hertz=_hertz(frequency, "current"),
            frequency_min_hertz=_hertz(frequency, "min"),
            frequency_max_hertz=_hertz(frequency, "max"),
            load_average_1m=load and load[0],
            load_average_5m=load and load[1],
            load_average_15m=load and load[2],
            user_seconds_total=getattr(times, "user", None),
            system_seconds_total=getattr(times, "system", None),
            idle_seconds_total=getattr(times, "idle", None),
            iowait_seconds_total=getattr(times, "iowait", None),
            context_switches_total=counters and counters.ctx_switches,
            interrupts_total=counters and counters.interrupts,
        )
        self._cpu_times = times or self._cpu_times
        self._core_times = cores or self._core_times
        return metrics

    def _usage(self, errors: dict[str, str]) -> list[FilesystemMetrics]:
        # `all=True`: without it psutil leaves out a container's overlay root and network mounts.
        partitions = psutil.disk_partitions(all=True)
        mounts = [Mount(part.device, part.mountpoint, part.fstype) for part in partitions]
        return self._filesystems.read(watched(mounts), errors)

    def _disk_io(self) -> list[DiskIoMetrics]:
        now = self._monotonic()
        # `nowrap=False`: psutil would otherwise hide resets by adding up across them.
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        whole = {name: counters[name] for name in _whole_disks(counters)}
        before_at, before = self._disks
        self._disks = (now, whole)
        return [
            disk_metrics(name, counter, before.get(name), now - before_at)
            for name, counter in sorted(whole.items())
        ]

    def _network_io(self, errors: dict[str, str]) -> list[NetworkMetrics]:
        now = self._monotonic()
        counters = psutil.net_io_counters(pernic=True, nowrap=False)
        links = _attempt(errors, "network.is_up", psutil.net_if_stats) or {}
        before_at, before = self._network
        self._network = (now, counters)
        return [
            network_metrics(name, counter, before.get(name), now - before_at, links.get(name))
            for name, counter in sorted(counters.items())
            if name not in _LOOPBACK and not name.startswith(_CONTAINER_LINK)
        ]


def _attempt(
    errors: dict[str, str], field: str, read: Callable[[], ValueT | None]
) -> ValueT | None:
    """What `read` returns, or None with the reason in `errors`: one bad reading costs one field."""
    try:
        return read()
    except Exception as error:
        errors[field] = f"{type(error).__name__}: {error}"
        return None


def _hertz(frequency: Counters, field: str) -> float | None:
    """Megahertz to hertz; psutil says 0 where it does not know."""
    return getattr(frequency, field, 0.0) * _HERTZ_PER_MEGAHERTZ or None


def _memory(errors: dict[str, str]) -> MemoryMetrics:
    memory = psutil.virtual_memory()
    swap = _attempt(errors, "memory.swap_total_bytes", psutil.swap_memory)
    used = max(0, memory.total - memory.available)
    return MemoryMetrics(
        total_bytes=memory.total,
        available_bytes=memory.available,
        used_bytes=used,
        free_bytes=memory.free,
        utilization_ratio=used / memory.total,
        cached_bytes=getattr(memory, "cached", None),
        buffers_bytes=getattr(memory, "buffers", None),
        swap_total_bytes=getattr(swap, "total", None),
        swap_used_bytes=getattr(swap, "used", None),
        swap_free_bytes=getattr(swap, "free", None),
        swap_utilization_ratio=swap.used / swap.total if swap and swap.total else None,
        swap_in_bytes_total=getattr(swap, "sin", None),
        swap_out_bytes_total=getattr(swap, "sout", None),
    )


def _whole_disks(names: Iterable[str]) -> list[str]:
    """The block devices without their partitions, which would count every byte twice."""
    real = [name for name in names if not name.startswith(_VIRTUAL_DISKS)]
    if not _IS_LINUX:
        return real
    whole = {name.replace("!", "/") for name in os.listdir("/sys/block")}  # cciss!c0d0
    return [name for name in real if name in whole]
