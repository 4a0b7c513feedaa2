"""What the files of cgroup v1 and v2 say, in one form.

Each function gets the group's own folder and then its ancestors', nearest first: a limit counts
wherever it is set. Sources: the kernel's `Documentation/admin-guide/cgroup-v2.rst` and
`cgroup-v1/{memory,cpuacct,pids,cpusets}.rst`, `Documentation/scheduler/sched-bwc.rst`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from agent.collectors.kernel_files import number, table, text

Folders = Sequence[str]

_MICROSECONDS = 1_000_000
_NANOSECONDS = 1_000_000_000
# cgroup v1 has no word for "unlimited": it shows the largest page-aligned 63-bit number.
_UNLIMITED_BYTES = 1 << 62


class MemoryUse(NamedTuple):
    """Bytes, but for the ratio and the two counts; None = unlimited or not told."""

    limit: int | None = None
    high: int | None = None
    used: int | None = None
    current: int | None = None
    peak: int | None = None
    utilization_ratio: float | None = None
    swap_limit: int | None = None
    swap_used: int | None = None
    limit_hits: int | None = None
    oom_kills: int | None = None


class CpuUse(NamedTuple):
    """Seconds of CPU time, and how often and how long the quota stopped the group."""

    limit_cores: float | None = None
    usage_seconds: float | None = None
    weight: int | None = None
    shares: int | None = None
    limiter: str | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_seconds: float | None = None


class Cpus(NamedTuple):
    """CPUs as the kernel lists them: `0-3,8` are 5."""

    listed: str
    cores: int


class TaskUse(NamedTuple):
    """How many tasks (threads count) the group has, and may have."""

    current: int | None = None
    limit: int | None = None


def memory_v2(groups: Folders) -> MemoryUse:
    """Memory of a cgroup v2 group."""
    if not groups:
        return MemoryUse()
    own = groups[0]
    events = table(f"{own}/memory.events")
    return MemoryUse(
        limit=_tightest(number(f"{group}/memory.max") for group in groups),
        high=_tightest(number(f"{group}/memory.high") for group in groups),
        used=_working_set(f"{own}/memory.current", f"{own}/memory.stat", "inactive_file"),
        current=number(f"{own}/memory.current"),
        peak=number(f"{own}/memory.peak"),
        utilization_ratio=_fullest(groups, "memory.max", "memory.current", "inactive_file", number),
        swap_limit=_tightest(number(f"{group}/memory.swap.max") for group in groups),
        swap_used=number(f"{own}/memory.swap.current"),
        limit_hits=events.get("max"),
        oom_kills=events.get("oom_kill"),
    )


def memory_v1(groups: Folders) -> MemoryUse:
    """Memory of a cgroup v1 group.

    The kernel itself follows the ancestors (`hierarchical_…`), even where we cannot see them.
    """
    if not groups:
        return MemoryUse()
    own = groups[0]
    statistics = table(f"{own}/memory.stat")
    limit = _bounded(statistics.get("hierarchical_memory_limit"))
    with_swap = _bounded(statistics.get("hierarchical_memsw_limit"))
    return MemoryUse(
        limit=limit,
        used=_working_set(
            f"{own}/memory.usage_in_bytes", f"{own}/memory.stat", "total_inactive_file"
        ),
        current=number(f"{own}/memory.usage_in_bytes"),
        peak=number(f"{own}/memory.max_usage_in_bytes"),
        utilization_ratio=_fullest(
            groups,
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
            lambda path: _bounded(number(path)),
        ),
        swap_limit=None if limit is None or with_swap is None else max(0, with_swap - limit),
        swap_used=statistics.get("total_swap"),
        limit_hits=number(f"{own}/memory.failcnt"),
        oom_kills=table(f"{own}/memory.oom_control").get("oom_kill"),
    )


def cpu_v2(groups: Folders) -> CpuUse:
    """CPU of a cgroup v2 group."""
    if not groups:
        return CpuUse()
    usage = table(f"{groups[0]}/cpu.stat").get("usage_usec")
    limit_cores, limiter = _tightest_quota(groups, _quota_v2)
    throttling = table(f"{limiter}/cpu.stat") if limiter else {}
    throttled = throttling.get("throttled_usec")
    return CpuUse(
        limit_cores=limit_cores,
        usage_seconds=None if usage is None else usage / _MICROSECONDS,
        weight=number(f"{groups[0]}/cpu.weight"),
        limiter=limiter,
        periods=throttling.get("nr_periods"),
        throttled_periods=throttling.get("nr_throttled"),
        throttled_seconds=None if throttled is None else throttled / _MICROSECONDS,
    )


def cpu_v1(groups: Folders, accounting: Folders) -> CpuUse:
    """CPU of a cgroup v1 group; `accounting` are its folders of the controller cpuacct."""
    if not groups:
        return CpuUse()
    usage = number(f"{accounting[0]}/cpuacct.usage") if accounting else None
    limit_cores, limiter = _tightest_quota(groups, _quota_v1)
    throttling = table(f"{limiter}/cpu.stat") if limiter else {}
    throttled = throttling.get("throttled_time")
    return CpuUse(
        limit_cores=limit_cores,
        usage_seconds=None if usage is None else usage / _NANOSECONDS,
        shares=number(f"{groups[0]}/cpu.shares"),
        limiter=limiter,
        periods=throttling.get("nr_periods"),
        throttled_periods=throttling.get("nr_throttled"),
        throttled_seconds=None if throttled is None else throttled / _NANOSECONDS,
    )


def cpuset(groups: Folders) -> Cpus | None:
    """The CPUs the group may run on; None where no group says so.

    Raises:
        ValueError: not a list of CPUs as the kernel writes it.
    """
    for group in groups:  # v2 has the file only where the controller is on; children inherit
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus"):
            if listed := text(f"{group}/{name}"):
                return Cpus(listed, _count_cpus(listed))
    return None


def tasks(groups: Folders) -> TaskUse:
    """The tasks of the controller pids."""
    if not groups:
        return TaskUse()
    limit = _tightest(number(f"{group}/pids.max") for group in groups)
    return TaskUse(number(f"{groups[0]}/pids.current"), limit)


def _count_cpus(listed: str) -> int:
    count = 0
    for part in listed.split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def _tightest(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _bounded(limit: int | None) -> int | None:
    return limit if limit is not None and limit < _UNLIMITED_BYTES else None


def _fullest(
    groups: Folders,
    limit_file: str,
    usage_file: str,
    inactive_name: str,
    read_limit: Callable[[str], int | None],
) -> float | None:
    """The highest share of a limit in use, of the group and its ancestors: that one kills first."""
    shares = []
    for group in groups:
        if not (limit := read_limit(f"{group}/{limit_file}")):
            continue
        used = _working_set(f"{group}/{usage_file}", f"{group}/memory.stat", inactive_name)
        if used is not None:
            shares.append(min(1.0, used / limit))
    return max(shares, default=None)


def _working_set(usage_file: str, statistics_file: str, inactive_name: str) -> int | None:
    """Use minus inactive file pages, as the kubelet counts it: page cache is not pressure."""
    usage = number(usage_file)
    inactive = table(statistics_file).get(inactive_name)
    if usage is None or inactive is None:
        return None
    # The two files are read one after the other, so the difference can dip below zero.
    return max(0, usage - inactive)


def _tightest_quota(
    groups: Folders, read_quota: Callable[[str], float | None]
) -> tuple[float | None, str | None]:
    """The lowest quota in cores and the group that has it: that one is stopped first."""
    quotas = [(quota, group) for group in groups if (quota := read_quota(group)) is not None]
    return min(quotas, key=lambda pair: pair[0], default=(None, None))


def _quota_v2(group: str) -> float | None:
    quota, _, period = (text(f"{group}/cpu.max") or "max").partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: str) -> float | None:
    quota = number(f"{group}/cpu.cfs_quota_us")
    period = number(f"{group}/cpu.cfs_period_us")
    # -1 is the kernel's "unlimited".
    return quota / period if quota is not None and period and quota > 0 else None
