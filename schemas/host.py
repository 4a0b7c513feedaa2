"""The parts of a machine's metrics. Base units; null means not measured."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.units import UNREAD, Bytes, Count, Number, Ratio, Seconds

_ABSENT = "null: no such file, or failed (then in `errors`)"
_NO_ANSWER = "null: no answer in time, or failed (then in `errors`)"
_NO_QUOTA = "null: no quota, or failed (then in `errors`)"
_UNLIMITED = "null: unlimited, no such file, or failed (then in `errors`)"


class CpuMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """CPU use since the previous sample, and counters since boot.

    The frequency is the mean over all cores, at most 30 s old.
    """

    utilization_ratio: Annotated[
        Ratio | None,
        Meta(
            description="share of all cores' time that was neither idle nor waiting for I/O: "
            "`psutil.cpu_times`; null in the first sample and after a reset"
        ),
    ]
    per_core_utilization_ratio: Annotated[
        list[Ratio],
        Meta(
            description="the same for each core; empty where the former is null, and when cores "
            "came or went"
        ),
    ]
    logical_cores: Annotated[Count | None, Meta(description="`psutil.cpu_count`; null: unknown")]
    physical_cores: Annotated[
        Count | None,
        Meta(description="`psutil.cpu_count(logical=False)`; null in many virtual machines"),
    ] = None
    frequency_hertz: Annotated[
        Number | None,
        Meta(
            description="`psutil.cpu_freq`; null where the platform does not tell, as in many "
            "virtual machines"
        ),
    ] = None
    frequency_min_hertz: Annotated[
        Number | None,
        Meta(
            description="lowest that it may have: `psutil.cpu_freq`; null where the platform "
            "does not tell"
        ),
    ] = None
    frequency_max_hertz: Annotated[
        Number | None,
        Meta(
            description="highest that it may have: `psutil.cpu_freq`; null where the platform "
            "does not tell"
        ),
    ] = None
    load_average_1m: Annotated[
        Number | None,
        Meta(
            description="tasks that run or wait, mean of a minute: `/proc/loadavg`, else "
            f"`os.getloadavg`; {UNREAD}"
        ),
    ] = None
    load_average_5m: Annotated[
        Number | None, Meta(description=f"mean of 5 minutes, from the same; {UNREAD}")
    ] = None
    load_average_15m: Annotated[
        Number | None, Meta(description=f"mean of 15 minutes, from the same; {UNREAD}")
    ] = None
    user_seconds_total: Annotated[
        Seconds | None,
        Meta(description=f"time in programs, all cores together: `psutil.cpu_times`; {UNREAD}"),
    ] = None
    system_seconds_total: Annotated[
        Seconds | None, Meta(description=f"time in the kernel: `psutil.cpu_times`; {UNREAD}")
    ] = None
    idle_seconds_total: Annotated[
        Seconds | None, Meta(description=f"time with nothing to do: `psutil.cpu_times`; {UNREAD}")
    ] = None
    iowait_seconds_total: Annotated[
        Seconds | None,
        Meta(
            description="of idle cores whose tasks wait for I/O: `psutil.cpu_times`; null but "
            "on Linux"
        ),
    ] = None
    context_switches_total: Annotated[
        Count | None, Meta(description=f"since boot: `psutil.cpu_stats`; {UNREAD}")
    ] = None
    interrupts_total: Annotated[
        Count | None, Meta(description=f"since boot: `psutil.cpu_stats`; {UNREAD}")
    ] = None


class MemoryMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Host memory. `used` is total minus available: page cache is not pressure."""

    total_bytes: Annotated[Bytes, Meta(description="`psutil.virtual_memory`")]
    available_bytes: Annotated[
        Bytes, Meta(description="what can be had without swapping: `psutil.virtual_memory`")
    ]
    used_bytes: Annotated[Bytes, Meta(description="total minus available")]
    free_bytes: Annotated[Bytes, Meta(description="not used for anything: `psutil.virtual_memory`")]
    utilization_ratio: Annotated[Ratio, Meta(description="used by total")]
    cached_bytes: Annotated[
        Bytes | None,
        Meta(
            description="page cache: `psutil.virtual_memory`; null where the platform does not tell"
        ),
    ] = None
    buffers_bytes: Annotated[
        Bytes | None,
        Meta(
            description="buffers of block devices: `psutil.virtual_memory`; null where the "
            "platform does not tell"
        ),
    ] = None
    swap_total_bytes: Annotated[
        Bytes | None, Meta(description="`psutil.swap_memory`; null: not readable")
    ] = None
    swap_used_bytes: Annotated[
        Bytes | None, Meta(description="`psutil.swap_memory`; null: not readable")
    ] = None
    swap_free_bytes: Annotated[
        Bytes | None, Meta(description="`psutil.swap_memory`; null: not readable")
    ] = None
    swap_utilization_ratio: Annotated[
        Ratio | None, Meta(description="used by total; null without swap, or not readable")
    ] = None
    swap_in_bytes_total: Annotated[
        Bytes | None,
        Meta(
            description="read back from swap since boot: `psutil.swap_memory`; null: not readable"
        ),
    ] = None
    swap_out_bytes_total: Annotated[
        Bytes | None,
        Meta(description="written to swap since boot: `psutil.swap_memory`; null: not readable"),
    ] = None


class FilesystemMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One mounted file system; the numbers are null where it did not answer in time."""

    mountpoint: Annotated[
        str,
        Meta(
            description="where it is mounted: `/proc/1/mountinfo` (`self` without "
            "`agent.host_root`), else `psutil.disk_partitions`"
        ),
    ]
    device: Annotated[str, Meta(description="what is mounted, from the same")]
    fstype: Annotated[str, Meta(description="its type, from the same")]
    total_bytes: Annotated[Bytes | None, Meta(description=f"statvfs `f_blocks`; {_NO_ANSWER}")] = (
        None
    )
    used_bytes: Annotated[
        Bytes | None, Meta(description=f"total minus `f_bfree`; {_NO_ANSWER}")
    ] = None
    free_bytes: Annotated[
        Bytes | None,
        Meta(description=f"what unprivileged users may still write, `f_bavail`; {_NO_ANSWER}"),
    ] = None
    utilization_ratio: Annotated[
        Ratio | None, Meta(description=f"used by used plus free, as `df` has it; {_NO_ANSWER}")
    ] = None
    inodes_count: Annotated[
        Count | None,
        Meta(
            description="statvfs `f_files`; null where their number is not fixed (btrfs, NFS), "
            "and where `total_bytes` is"
        ),
    ] = None
    inodes_free_count: Annotated[
        Count | None, Meta(description="statvfs `f_ffree`; null where `inodes_count` is")
    ] = None
    is_read_only: Annotated[
        bool | None,
        Meta(
            description="mounted `ro`, as ext4 does after an error; null: the mount's options "
            "are not known"
        ),
    ] = None


class DiskIoMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One block device: counters since boot, rates since the previous sample."""

    device: Annotated[str, Meta(description="name in `/sys/block`: whole disks, no partitions")]
    read_bytes_total: Annotated[Bytes, Meta(description="since boot: `psutil.disk_io_counters`")]
    write_bytes_total: Annotated[Bytes, Meta(description="since boot: `psutil.disk_io_counters`")]
    reads_total: Annotated[Count, Meta(description="since boot: `psutil.disk_io_counters`")]
    writes_total: Annotated[Count, Meta(description="since boot: `psutil.disk_io_counters`")]
    busy_seconds_total: Annotated[
        Seconds | None,
        Meta(
            description="time with at least one request under way: `psutil.disk_io_counters`; "
            "null but on Linux and FreeBSD"
        ),
    ] = None
    read_bytes_per_second: Annotated[
        Number | None,
        Meta(description="growth of its counter; null in the first sample and after a reset"),
    ] = None
    write_bytes_per_second: Annotated[
        Number | None,
        Meta(description="growth of its counter; null in the first sample and after a reset"),
    ] = None
    reads_per_second: Annotated[
        Number | None,
        Meta(description="growth of its counter; null in the first sample and after a reset"),
    ] = None
    writes_per_second: Annotated[
        Number | None,
        Meta(description="growth of its counter; null in the first sample and after a reset"),
    ] = None
    busy_ratio: Annotated[
        Ratio | None,
        Meta(
            description="busy seconds per second; null in the first sample, after a reset, and "
            "but on Linux and FreeBSD"
        ),
    ] = None


class NetworkMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One network interface: counters since boot, rates since the previous sample."""

    interface: Annotated[
        str, Meta(description="its name; without loopback and the host's ends of containers' links")
    ]
    received_bytes_total: Annotated[Bytes, Meta(description="since boot: `psutil.net_io_counters`")]
    sent_bytes_total: Annotated[Bytes, Meta(description="since boot: `psutil.net_io_counters`")]
    received_packets_total: Annotated[
        Count, Meta(description="since boot: `psutil.net_io_counters`")
    ]
    sent_packets_total: Annotated[Count, Meta(description="since boot: `psutil.net_io_counters`")]
    receive_errors_total: Annotated[Count, Meta(description="since boot: `psutil.net_io_counters`")]
    send_errors_total: Annotated[Count, Meta(description="since boot: `psutil.net_io_counters`")]
    receive_drops_total: Annotated[Count, Meta(description="since boot: `psutil.net_io_counters`")]
    send_drops_total: Annotated[Count, Meta(description="since boot: `psutil.net_io_counters`")]
    received_bytes_per_second: Annotated[
        Number | None,
        Meta(description="growth of its counter; null in the first sample and after a reset"),
    ] = None
    sent_bytes_per_second: Annotated[
        Number | None,
        Meta(description="growth of its counter; null in the first sample and after a reset"),
    ] = None
    received_packets_per_second: Annotated[
        Number | None,
        Meta(description="growth of its counter; null in the first sample and after a reset"),
    ] = None
    sent_packets_per_second: Annotated[
        Number | None,
        Meta(description="growth of its counter; null in the first sample and after a reset"),
    ] = None
    is_up: Annotated[bool | None, Meta(description="`psutil.net_if_stats`; null: not readable")] = (
        None
    )
    speed_bits_per_second: Annotated[
        Number | None,
        Meta(
            description="`psutil.net_if_stats`; null where it is not known, as for virtual "
            "interfaces"
        ),
    ] = None


class PressureMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Linux pressure stall information: share of the last 10 s and 60 s in which tasks waited.

    `some`: at least one task waited; `full`: all did. Totals count since boot.
    Source: the kernel's `Documentation/accounting/psi.rst`.
    """

    resource: Annotated[
        Literal["cpu", "memory", "io"],
        Meta(description="`/proc/pressure/<resource>`, of a control group `<resource>.pressure`"),
    ]
    some_10s_ratio: Annotated[Ratio, Meta(description="`some avg10`")]
    some_60s_ratio: Annotated[Ratio, Meta(description="`some avg60`")]
    some_seconds_total: Annotated[Seconds, Meta(description="`some total`")]
    full_10s_ratio: Annotated[
        Ratio | None, Meta(description="`full avg10`; null for the CPU before Linux 5.13")
    ] = None
    full_60s_ratio: Annotated[
        Ratio | None, Meta(description="`full avg60`; null for the CPU before Linux 5.13")
    ] = None
    full_seconds_total: Annotated[
        Seconds | None, Meta(description="`full total`; null for the CPU before Linux 5.13")
    ] = None


class CgroupMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The control group this agent runs in (a container, a systemd unit), cgroup v1 or v2.

    A limit is the tightest of the group's own and of those ancestors that can be seen; null =
    unlimited, or the controller is off. The machine's own numbers stand beside it in `cpu` and
    `memory`. Rates are since the previous sample, totals since the group was made.
    """

    version: Annotated[Literal[1, 2], Meta(description="2 also for the unified part of a hybrid")]
    group: Annotated[
        str | None,
        Meta(
            description="path in `/proc/self/cgroup`; `/` in a container that sees only "
            "itself; null: not told"
        ),
    ] = None
    memory_limit_bytes: Annotated[
        Bytes | None,
        Meta(
            description="above it, OOM kill: v2 `memory.max`, v1 `hierarchical_memory_limit`; "
            f"{_UNLIMITED}"
        ),
    ] = None
    memory_high_bytes: Annotated[
        Bytes | None,
        Meta(description=f"above it, slowed down: v2 `memory.high`, v1 has none; {_UNLIMITED}"),
    ] = None
    memory_used_bytes: Annotated[
        Bytes | None,
        Meta(
            description="working set as the kubelet has it: current minus inactive file pages; "
            f"{_ABSENT}"
        ),
    ] = None
    memory_current_bytes: Annotated[
        Bytes | None,
        Meta(
            description="page cache included: v2 `memory.current`, v1 `memory.usage_in_bytes`; "
            f"{_ABSENT}"
        ),
    ] = None
    memory_peak_bytes: Annotated[
        Bytes | None,
        Meta(
            description="highest current: v2 `memory.peak` (5.19), v1 "
            f"`memory.max_usage_in_bytes`; {_ABSENT}"
        ),
    ] = None
    memory_utilization_ratio: Annotated[
        Ratio | None,
        Meta(
            description="working set by limit, the highest of the group and its ancestors; "
            "null: no limit, or no working set"
        ),
    ] = None
    memory_limit_hits_total: Annotated[
        Count | None,
        Meta(
            description="times the limit was reached: v2 `max` in `memory.events`, v1 "
            f"`failcnt`; {_ABSENT}"
        ),
    ] = None
    oom_kills_total: Annotated[
        Count | None,
        Meta(
            description="`oom_kill` in v2 `memory.events` (descendants too), v1 `oom_control`; "
            f"{_ABSENT}"
        ),
    ] = None
    swap_limit_bytes: Annotated[
        Bytes | None,
        Meta(
            description="v2 `memory.swap.max`; v1: limit of memory and swap minus that of "
            f"memory; {_UNLIMITED}"
        ),
    ] = None
    swap_used_bytes: Annotated[
        Bytes | None, Meta(description=f"v2 `memory.swap.current`, v1 `total_swap`; {_ABSENT}")
    ] = None
    cpu_limit_cores: Annotated[
        Number | None,
        Meta(description=f"quota by period: v2 `cpu.max`, v1 `cpu.cfs_quota_us`; {_UNLIMITED}"),
    ] = None
    cpu_weight: Annotated[
        Count | None,
        Meta(description=f"v2 `cpu.weight`, 1 to 10,000; 100 is the default; {_ABSENT}"),
    ] = None
    cpu_shares: Annotated[
        Count | None, Meta(description=f"v1 `cpu.shares`; 1024 is the default; {_ABSENT}")
    ] = None
    cpu_usage_seconds_total: Annotated[
        Seconds | None,
        Meta(description=f"v2 `usage_usec` in `cpu.stat`, v1 `cpuacct.usage`; {_ABSENT}"),
    ] = None
    cpu_used_cores: Annotated[
        Number | None,
        Meta(
            description="growth of the former per second, to compare with the limit; null "
            "where that is, in the first sample, and after a reset"
        ),
    ] = None
    cpu_periods_total: Annotated[
        Count | None,
        Meta(
            description="`nr_periods` in `cpu.stat` of the group that has the tightest quota; "
            f"{_NO_QUOTA}"
        ),
    ] = None
    cpu_throttled_periods_total: Annotated[
        Count | None,
        Meta(description=f"of these, in which the quota ran out: `nr_throttled`; {_NO_QUOTA}"),
    ] = None
    cpu_throttled_seconds_total: Annotated[
        Seconds | None,
        Meta(
            description=f"summed over CPUs: v2 `throttled_usec`, v1 `throttled_time`; {_NO_QUOTA}"
        ),
    ] = None
    cpu_throttled_periods_ratio: Annotated[
        Ratio | None,
        Meta(
            description="share of the periods in which the quota ran out; null where the "
            "totals are, in the first sample, after a reset, and without a period"
        ),
    ] = None
    cpu_throttled_seconds_per_second: Annotated[
        Number | None,
        Meta(
            description="summed over CPUs, so it may exceed 1; null where the total is, in the "
            "first sample, and after a reset"
        ),
    ] = None
    cpuset_cpus: Annotated[
        str | None, Meta(description=f"CPUs the group may run on, like `0-3,8`; {_ABSENT}")
    ] = None
    cpuset_cores: Annotated[
        Count | None, Meta(description="how many these are; null where `cpuset_cpus` is")
    ] = None
    tasks_count: Annotated[
        Count | None, Meta(description=f"processes and threads: `pids.current`; {_ABSENT}")
    ] = None
    tasks_limit: Annotated[Count | None, Meta(description=f"`pids.max`; {_UNLIMITED}")] = None
    pressure: Annotated[
        list[PressureMetrics] | None,
        Meta(
            description="the group's own; null with v1, and where the kernel has none or it "
            "failed (then in `errors`)"
        ),
    ] = None


class ProcessMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One process; `cpu_cores` is CPU seconds per second, so 2.0 = two cores busy."""

    pid: Annotated[Count, Meta(description="`/proc/<pid>/stat`, else `psutil.process_iter`")]
    name: Annotated[
        str, Meta(description="from the same, in full from `cmdline` where the kernel has cut it")
    ]
    cpu_cores: Annotated[
        Number | None,
        Meta(
            description="CPU seconds per second since the table was read before; null for one "
            "that was not in it"
        ),
    ] = None
    memory_rss_bytes: Annotated[
        Bytes | None, Meta(description="RAM that it has now, from the same; null: not allowed")
    ] = None
    threads: Annotated[Count | None, Meta(description="from the same; null: not allowed")] = None
