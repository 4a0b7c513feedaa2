"""This machine: CPU, memory, disks, network, processes, by psutil (its one module) and /proc."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from agent.collectors.attempts import attempt
from agent.collectors.cgroup import CgroupReader
from agent.collectors.counters import (
    Counters,
    busy_ratio,
    core_ratios,
    disk_metrics,
    network_metrics,
)
from agent.collectors.filesystems import FilesystemProbe
from agent.collectors.kernel_files import text
from agent.collectors.mounts import Mount, MountTable
from agent.collectors.pressure import read_pressure
from agent.collectors.processes import ProcessRanking, ProcessUse, read_processes
from schemas.host import CpuMetrics, DiskIoMetrics, MemoryMetrics, NetworkMetrics
from schemas.labels import NO_LABELS
from schemas.metrics import HostMetrics
from schemas.units import SECOND_NS, instant

_IS_LINUX = sys.platform == "linux"
_HERTZ_PER_MEGAHERTZ = 1e6
# Not hardware: images, RAM disks, compressed swap in RAM; optical and floppy drives.
_VIRTUAL_DISKS = ("loop", "ram", "zram", "sr", "fd")
_LOOPBACK = ("lo", "lo0")
# The host's end of a container's link: the same bytes are counted again at the real interface.
_CONTAINER_LINK = "veth"
# On a machine with 200 cores this reading takes longer than all others together.
_FREQUENCY_SECONDS = 30.0


class HostCollector:
    """Samples this machine. Blocking (about a millisecond); call it from one thread.

    Rates and CPU utilisation are differences to the previous sample, so the first sample has none
    (null, never 0), and neither has one right after a counter was reset.

    `root` is the folder that has the host's `/`, with its `/proc` and `/sys`: `/host` in a
    container that has it mounted there. psutil knows one `/proc` per process, so all collectors
    of a process must name the same root. The network is that of our own network namespace, the
    control group our own.
    """

    def __init__(
        self,
        *,
        node: str,
        node_name: str,
        pool: str | None,
        labels: Mapping[str, str] = NO_LABELS,
        process_limit: int,
        root: Path = Path("/"),
        filesystems: FilesystemProbe | None = None,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._node_name = node_name
        self._pool = pool
        self._labels = dict(labels)
        self._clock = clock
        self._monotonic = monotonic
        self._proc, self._sys = root / "proc", root / "sys"
        if _IS_LINUX:
            psutil.PROCFS_PATH = str(self._proc)
        # The host's mounts are those of its first process; /proc/mounts would be our own.
        self._mounts = MountTable(self._proc / ("self" if root == Path("/") else "1") / "mountinfo")
        self._filesystems = filesystems or FilesystemProbe(root=root)
        self._cgroup = CgroupReader(monotonic=monotonic)
        self._processes = ProcessRanking(process_limit, self._proc)
        self._sampled_at: float | None = None
        self._boot: float | None = None
        self._physical_cores: int | None = None
        self._frequency: tuple[float, Counters] | None = None
        # What the previous reading of each counter said: the CPU as a whole, its cores, and disks
        # and interfaces by name with the time of the reading.
        self._cpu_times: Counters | None = None
        self._core_times: list[Counters] = []
        self._disks: tuple[float, dict[str, Counters]] = (0.0, {})
        self._network: tuple[float, dict[str, Counters]] = (0.0, {})

    def sample(self, *, with_processes: bool = False) -> HostMetrics:
        """One sample; what could not be read is null and named in `errors`.

        `with_processes` adds the process table: some 2 ms per hundred processes, so ask for it
        rarely.
        """
        now = self._monotonic()
        now_ns = self._clock()
        interval = 0.0 if self._sampled_at is None else max(0.0, now - self._sampled_at)
        self._sampled_at = now
        errors: dict[str, str] = {}
        boot = self._boot = self._boot or attempt(errors, "boot_at", psutil.boot_time)
        return HostMetrics(
            node=self._node,
            node_name=self._node_name,
            pool=self._pool,
            labels=self._labels,
            observed_at=instant(now_ns),
            interval_seconds=interval,
            boot_at=None if boot is None else instant(int(boot * SECOND_NS)),
            uptime_seconds=None if boot is None else max(0.0, now_ns / SECOND_NS - boot),
            cpu=self._cpu(errors),
            memory=attempt(errors, "memory", lambda: _memory(errors)),
            filesystems=attempt(
                errors, "filesystems", lambda: self._filesystems.read(self._mounted(), errors)
            ),
            disks=attempt(errors, "disks", self._disk_io),
            network=attempt(errors, "network", lambda: self._network_io(errors)),
            connections_count=attempt(errors, "connections_count", self._connections),
            pressure=attempt(errors, "pressure", lambda: read_pressure(self._proc / "pressure")),
            cgroup=attempt(errors, "cgroup", lambda: self._cgroup.read(errors)),
            processes=(
                attempt(errors, "processes", lambda: self._processes.top(self._uses(), now))
                if with_processes
                else None
            ),
            errors=errors,
        )

    def _uses(self) -> Iterator[ProcessUse]:
        return read_processes(self._proc) if _IS_LINUX else _psutil_processes()

    def _mounted(self) -> list[Mount]:
        if _IS_LINUX:
            return self._mounts.read()
        return [
            Mount(part.device, part.mountpoint, part.fstype)
            for part in psutil.disk_partitions(all=True)
        ]

    def _connections(self) -> int | None:
        """TCP and UDP sockets, IPv4 and IPv6, in any state but closed."""
        if not _IS_LINUX:
            return len(psutil.net_connections("inet"))
        # What `ss -s` reads: psutil would look at every open file of every process.
        counts = _socket_counts(self._proc / "net" / "sockstat")
        counts |= _socket_counts(self._proc / "net" / "sockstat6")
        if "TCP:inuse" not in counts:
            return None
        parts = ("TCP:inuse", "TCP:tw", "UDP:inuse", "TCP6:inuse", "UDP6:inuse")
        return sum(counts.get(part, 0) for part in parts)

    def _cpu(self, errors: dict[str, str]) -> CpuMetrics:
        times = attempt(errors, "cpu.utilization_ratio", psutil.cpu_times)
        cores = attempt(
            errors, "cpu.per_core_utilization_ratio", lambda: psutil.cpu_times(percpu=True)
        )
        load = attempt(errors, "cpu.load_average_1m", self._load_average)
        counters = attempt(errors, "cpu.context_switches_total", psutil.cpu_stats)
        frequency = attempt(errors, "cpu.frequency_hertz", self._cpu_frequency)
        if self._physical_cores is None:  # never changes, and is slow on large machines
            self._physical_cores = attempt(
                errors, "cpu.physical_cores", lambda: psutil.cpu_count(logical=False)
            )
        metrics = CpuMetrics(
            utilization_ratio=busy_ratio(times, self._cpu_times),
            per_core_utilization_ratio=core_ratios(cores or [], self._core_times),
            logical_cores=attempt(errors, "cpu.logical_cores", psutil.cpu_count),
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

    def _load_average(self) -> tuple[float, float, float]:
        if _IS_LINUX and (content := text(self._proc / "loadavg")):
            one, five, fifteen = map(float, content.split()[:3])
            return one, five, fifteen
        return os.getloadavg()

    def _cpu_frequency(self) -> Counters | None:
        """The mean over all cores, at most `_FREQUENCY_SECONDS` old; None where it is not told."""
        now = self._monotonic()
        if self._frequency is None or now - self._frequency[0] >= _FREQUENCY_SECONDS:
            # Missing on platforms where psutil cannot tell; None or zeros in virtual machines.
            read = getattr(psutil, "cpu_freq", lambda: None)
            self._frequency = (now, read())
        return self._frequency[1]

    def _disk_io(self) -> list[DiskIoMetrics]:
        now = self._monotonic()
        # `nowrap=False`: psutil would otherwise hide resets by adding up across them.
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        whole = {name: counters[name] for name in _whole_disks(counters, self._sys)}
        before_at, before = self._disks
        self._disks = (now, whole)
        return [
            disk_metrics(name, counter, before.get(name), now - before_at)
            for name, counter in sorted(whole.items())
        ]

    def _network_io(self, errors: dict[str, str]) -> list[NetworkMetrics]:
        now = self._monotonic()
        counters = psutil.net_io_counters(pernic=True, nowrap=False)
        links = attempt(errors, "network.is_up", psutil.net_if_stats) or {}
        before_at, before = self._network
        self._network = (now, counters)
        return [
            network_metrics(name, counter, before.get(name), now - before_at, links.get(name))
            for name, counter in sorted(counters.items())
            if name not in _LOOPBACK and not name.startswith(_CONTAINER_LINK)
        ]


def _hertz(frequency: Counters, field: str) -> float | None:
    """Megahertz to hertz; psutil says 0 where it does not know."""
    return getattr(frequency, field, 0.0) * _HERTZ_PER_MEGAHERTZ or None


def _memory(errors: dict[str, str]) -> MemoryMetrics:
    memory = psutil.virtual_memory()
    swap = attempt(errors, "memory.swap_total_bytes", psutil.swap_memory)
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


def _whole_disks(names: Iterable[str], sys_folder: Path) -> list[str]:
    """The block devices without their partitions, which would count every byte twice."""
    real = [name for name in names if not name.startswith(_VIRTUAL_DISKS)]
    if not _IS_LINUX:
        return real
    whole = {name.replace("!", "/") for name in os.listdir(sys_folder / "block")}  # cciss!c0d0
    return [name for name in real if name in whole]


def _socket_counts(path: Path) -> dict[str, int]:
    """Lines like `TCP: inuse 5 orphan 0 tw 2` as `TCP:inuse` → 5 and so on."""
    counts: dict[str, int] = {}
    for line in (text(path) or "").splitlines():
        protocol, *fields = line.split()
        names_and_numbers = zip(fields[::2], fields[1::2], strict=True)
        counts |= {f"{protocol}{name}": int(count) for name, count in names_and_numbers}
    return counts


def _psutil_processes() -> Iterator[ProcessUse]:
    """Every process on platforms without /proc; what may not be read is None."""
    attributes = ["create_time", "cpu_times", "memory_info", "name", "num_threads"]
    for process in psutil.process_iter(attributes):
        info = process.info
        used = info["cpu_times"]
        yield ProcessUse(
            pid=process.pid,
            name=info["name"] or "unknown",
            started=info["create_time"] or 0.0,
            cpu_seconds=None if used is None else used.user + used.system,
            memory_rss_bytes=info["memory_info"] and info["memory_info"].rss,
            threads=info["num_threads"],
        )
