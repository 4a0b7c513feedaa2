"""The control group this agent runs in: where it is, its limits, its use and its rates."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from agent.collectors import cgroup_files
from agent.collectors.attempts import attempt
from agent.collectors.cgroup_files import CpuUse, Folders, MemoryUse, TaskUse
from agent.collectors.counters import per_second
from agent.collectors.kernel_files import text
from agent.collectors.mounts import Mount, MountTable
from agent.collectors.pressure import read_pressure
from schemas.host import CgroupMetrics

_READ = ("memory", "cpu", "cpuacct", "cpuset", "pids")
_V2 = ""  # how /proc/<pid>/cgroup names the unified hierarchy


class CgroupReader:
    """Reads the agent's own group; call it from one thread.

    cgroup v1, v2, and hybrid machines, on which each controller is in one of the two. Limits are
    the tightest of the group and of those ancestors that can be seen: in a container with its own
    cgroup namespace, none above the container's.
    Rates are differences to the previous reading, so the first one has none.
    """

    def __init__(
        self,
        process: Path = Path("/proc/self"),
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._membership = process / "cgroup"
        self._mounts = MountTable(process / "mountinfo")
        self._monotonic = monotonic
        self._lines: str | None = None
        self._groups: Groups | None = None
        self._before: tuple[float, CpuUse] | None = None

    def read(self, errors: dict[str, str]) -> CgroupMetrics | None:
        """The group now; None where there are no control groups (macOS).

        What cannot be read is null and named in `errors`.

        Raises:
            OSError: the process's own files in /proc cannot be read.
            LookupError: the group is not below any cgroup file system that is mounted here.
            ValueError: one of those files is not what the kernel documents.
        """
        lines = text(self._membership)
        if not lines:
            return None
        if lines != self._lines or self._groups is None:
            self._groups = find_groups(lines, self._mounts.read())
            self._lines = lines
        for controller in self._groups.hidden:
            errors[f"cgroup.{controller}"] = "what is mounted here does not show our group"
        groups = self._groups.folders
        unified = groups.get(_V2, ())
        memory = attempt(errors, "cgroup.memory", lambda: _memory(groups)) or MemoryUse()
        now = self._monotonic()
        cpu = attempt(errors, "cgroup.cpu", lambda: _cpu(groups)) or CpuUse()
        cpus = attempt(
            errors, "cgroup.cpuset", lambda: cgroup_files.cpuset(groups.get("cpuset", unified))
        )
        tasks = attempt(
            errors, "cgroup.tasks", lambda: cgroup_files.tasks(groups.get("pids", unified))
        )
        tasks = tasks or TaskUse()
        used_cores, throttled_ratio, throttled_rate = self._rates(now, cpu)
        return CgroupMetrics(
            version=1 if "memory" in groups or "cpu" in groups else 2,
            group=self._groups.name,
            memory_limit_bytes=memory.limit,
            memory_high_bytes=memory.high,
            memory_used_bytes=memory.used,
            memory_current_bytes=memory.current,
            memory_peak_bytes=memory.peak,
            memory_utilization_ratio=memory.utilization_ratio,
            memory_limit_hits_total=memory.limit_hits,
            oom_kills_total=memory.oom_kills,
            swap_limit_bytes=memory.swap_limit,
            swap_used_bytes=memory.swap_used,
            cpu_limit_cores=cpu.limit_cores,
            cpu_weight=cpu.weight,
            cpu_shares=cpu.shares,
            cpu_usage_seconds_total=cpu.usage_seconds,
            cpu_used_cores=used_cores,
            cpu_periods_total=cpu.periods,
            cpu_throttled_periods_total=cpu.throttled_periods,
            cpu_throttled_seconds_total=cpu.throttled_seconds,
            cpu_throttled_periods_ratio=throttled_ratio,
            cpu_throttled_seconds_per_second=throttled_rate,
            cpuset_cpus=cpus and cpus.listed,
            cpuset_cores=cpus and cpus.cores,
            tasks_count=tasks.current,
            tasks_limit=tasks.limit,
            pressure=attempt(
                errors,
                "cgroup.pressure",
                lambda: read_pressure(unified[0], ".pressure") if unified else None,
            ),
        )

    def _rates(self, now: float, cpu: CpuUse) -> tuple[float | None, float | None, float | None]:
        """Cores used, share of periods throttled, throttled seconds per second."""
        before_at, before = self._before or (now, None)
        self._before = (now, cpu)
        if before is None:
            return None, None, None
        elapsed = now - before_at
        used_cores = _rate(cpu.usage_seconds, before.usage_seconds, elapsed)
        if cpu.limiter != before.limiter:  # its counters are another group's
            return used_cores, None, None
        periods = _rate(cpu.periods, before.periods, elapsed)
        throttled = _rate(cpu.throttled_periods, before.throttled_periods, elapsed)
        return (
            used_cores,
            min(1.0, throttled / periods) if periods and throttled is not None else None,
            _rate(cpu.throttled_seconds, before.throttled_seconds, elapsed),
        )


class Groups(NamedTuple):
    """One process's groups: by controller (`""` is v2) the own folder, then its ancestors'.

    `hidden` are the controllers we read whose mounts do not show the group.
    """

    name: str
    folders: Mapping[str, Folders]
    hidden: frozenset[str]


def find_groups(membership: str, mounts: Iterable[Mount]) -> Groups:
    """Where the groups of `/proc/<pid>/cgroup` are, by what is mounted.

    Paths in both files are relative to the root of our cgroup namespace. A container sees its
    own group as the root of the mount, whatever the group's name is outside.

    Raises:
        LookupError: no group is below a mount: the mounts are of another cgroup namespace.
    """
    mounts = list(mounts)
    found: dict[str, Folders] = {}
    names: dict[str, str] = {}
    hidden = set()
    for line in membership.splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            names[controller] = group
            chains = [
                _chain(mount, group) for mount in mounts if _has_controller(mount, controller)
            ]
            if longest := max(chains, key=len, default=()):  # it shows most ancestors
                found[controller] = longest
            elif chains and controller in _READ:
                hidden.add(controller)
    if not found:
        raise LookupError(f"no cgroup file system mounted here shows the group {names}")
    main = next(one for one in ("memory", "cpu", _V2, *found) if one in found)
    return Groups(names[main], found, frozenset(hidden))


def _has_controller(mount: Mount, controller: str) -> bool:
    if controller == _V2:
        return mount.fstype == "cgroup2"
    return mount.fstype == "cgroup" and controller in mount.options


def _chain(mount: Mount, group: str) -> Folders:
    """The group's folder and its ancestors' up to the mount; empty when it is not below it."""
    path, inside = PurePosixPath(group), PurePosixPath(mount.inside)
    if ".." in (*path.parts, *inside.parts) or not path.is_relative_to(inside):
        return ()
    relative = path.relative_to(inside)
    return tuple(str(Path(mount.mountpoint, part)) for part in (relative, *relative.parents))


def _memory(groups: Mapping[str, Folders]) -> MemoryUse:
    if v1 := groups.get("memory"):
        return cgroup_files.memory_v1(v1)
    return cgroup_files.memory_v2(groups.get(_V2, ()))


def _cpu(groups: Mapping[str, Folders]) -> CpuUse:
    if v1 := groups.get("cpu"):
        return cgroup_files.cpu_v1(v1, groups.get("cpuacct", ()))
    return cgroup_files.cpu_v2(groups.get(_V2, ()))


def _rate(now: float | None, before: float | None, elapsed_seconds: float) -> float | None:
    return None if now is None else per_second(now, before, elapsed_seconds)
