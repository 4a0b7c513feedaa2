"""What machines, GPUs, engines and caches measure. Base units; null means not measured."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from schemas.message import Message
from schemas.units import Bytes, Count, Instant, Number, Ratio, Seconds, Token


class CpuMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """CPU use since the previous sample, and counters since boot.

    The frequency is the mean over all cores, at most 30 s old.
    """

    utilization_ratio: Ratio | None
    per_core_utilization_ratio: list[Ratio]
    logical_cores: Count | None
    physical_cores: Count | None = None
    frequency_hertz: Number | None = None
    frequency_min_hertz: Number | None = None
    frequency_max_hertz: Number | None = None
    load_average_1m: Number | None = None
    load_average_5m: Number | None = None
    load_average_15m: Number | None = None
    user_seconds_total: Seconds | None = None
    system_seconds_total: Seconds | None = None
    idle_seconds_total: Seconds | None = None
    iowait_seconds_total: Seconds | None = None
    context_switches_total: Count | None = None
    interrupts_total: Count | None = None


class MemoryMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Host memory. `used` is total minus available: page cache is not pressure."""

    total_bytes: Bytes
    available_bytes: Bytes
    used_bytes: Bytes
    free_bytes: Bytes
    utilization_ratio: Ratio
    cached_bytes: Bytes | None = None
    buffers_bytes: Bytes | None = None
    swap_total_bytes: Bytes | None = None
    swap_used_bytes: Bytes | None = None
    swap_free_bytes: Bytes | None = None
    swap_utilization_ratio: Ratio | None = None
    swap_in_bytes_total: Bytes | None = None
    swap_out_bytes_total: Bytes | None = None


class FilesystemMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One mounted file system; the numbers are null where it did not answer in time."""

    mountpoint: str
    device: str
    fstype: str
    total_bytes: Bytes | None = None
    used_bytes: Bytes | None = None
    free_bytes: Bytes | None = None
    utilization_ratio: Ratio | None = None
    inodes_count: Annotated[
        Count | None,
        Meta(description="statvfs `f_files`; null where their number is not fixed (btrfs, NFS)"),
    ] = None
    inodes_free_count: Annotated[Count | None, Meta(description="statvfs `f_ffree`")] = None
    is_read_only: Annotated[
        bool | None, Meta(description="mounted `ro`, as ext4 does after an error")
    ] = None


class DiskIoMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One block device: counters since boot, rates since the previous sample."""

    device: str
    read_bytes_total: Bytes
    write_bytes_total: Bytes
    reads_total: Count
    writes_total: Count
    busy_seconds_total: Seconds | None = None
    read_bytes_per_second: Number | None = None
    write_bytes_per_second: Number | None = None
    reads_per_second: Number | None = None
    writes_per_second: Number | None = None
    busy_ratio: Ratio | None = None


class NetworkMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One network interface: counters since boot, rates since the previous sample."""

    interface: str
    received_bytes_total: Bytes
    sent_bytes_total: Bytes
    received_packets_total: Count
    sent_packets_total: Count
    receive_errors_total: Count
    send_errors_total: Count
    receive_drops_total: Count
    send_drops_total: Count
    received_bytes_per_second: Number | None = None
    sent_bytes_per_second: Number | None = None
    received_packets_per_second: Number | None = None
    sent_packets_per_second: Number | None = None
    is_up: bool | None = None
    speed_bits_per_second: Number | None = None


class PressureMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Linux pressure stall information: share of the last 10 s and 60 s in which tasks waited.

    `some`: at least one task waited; `full`: all did. Totals count since boot.
    Source: the kernel's `Documentation/accounting/psi.rst`.
    """

    resource: Literal["cpu", "memory", "io"]
    some_10s_ratio: Ratio
    some_60s_ratio: Ratio
    some_seconds_total: Seconds
    full_10s_ratio: Ratio | None = None
    full_60s_ratio: Ratio | None = None
    full_seconds_total: Seconds | None = None


class CgroupMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The control group this agent runs in (a container, a systemd unit), cgroup v1 or v2.

    A limit is the tightest of the group's own and of those ancestors that can be seen; null =
    unlimited, or the controller is off. The machine's own numbers stand beside it in `cpu` and
    `memory`. Rates are since the previous sample, totals since the group was made.
    """

    version: Literal[1, 2]
    group: Annotated[
        str | None,
        Meta(description="path in `/proc/self/cgroup`; `/` in a container that sees only itself"),
    ] = None
    memory_limit_bytes: Annotated[
        Bytes | None,
        Meta(description="v2 `memory.max`, v1 `hierarchical_memory_limit`: above it, OOM kill"),
    ] = None
    memory_high_bytes: Annotated[
        Bytes | None, Meta(description="v2 `memory.high`: above it, slowed down; v1 has none")
    ] = None
    memory_used_bytes: Annotated[
        Bytes | None,
        Meta(description="working set as the kubelet has it: current minus inactive file pages"),
    ] = None
    memory_current_bytes: Annotated[
        Bytes | None,
        Meta(description="page cache included: v2 `memory.current`, v1 `memory.usage_in_bytes`"),
    ] = None
    memory_peak_bytes: Annotated[
        Bytes | None,
        Meta(
            description="highest current: v2 `memory.peak` (5.19), v1 `memory.max_usage_in_bytes`"
        ),
    ] = None
    memory_utilization_ratio: Annotated[
        Ratio | None,
        Meta(description="working set by limit, the highest of the group and its ancestors"),
    ] = None
    memory_limit_hits_total: Annotated[
        Count | None,
        Meta(description="times the limit was reached: v2 `max` in `memory.events`, v1 `failcnt`"),
    ] = None
    oom_kills_total: Annotated[
        Count | None,
        Meta(description="`oom_kill` in v2 `memory.events` (descendants too), v1 `oom_control`"),
    ] = None
    swap_limit_bytes: Annotated[
        Bytes | None,
        Meta(description="v2 `memory.swap.max`; v1: limit of memory and swap minus that of memory"),
    ] = None
    swap_used_bytes: Annotated[
        Bytes | None, Meta(description="v2 `memory.swap.current`, v1 `total_swap`")
    ] = None
    cpu_limit_cores: Annotated[
        Number | None, Meta(description="quota by period: v2 `cpu.max`, v1 `cpu.cfs_quota_us`")
    ] = None
    cpu_weight: Annotated[
        Count | None, Meta(description="v2 `cpu.weight`, 1 to 10,000; 100 is the default")
    ] = None
    cpu_shares: Annotated[
        Count | None, Meta(description="v1 `cpu.shares`; 1024 is the default")
    ] = None
    cpu_usage_seconds_total: Annotated[
        Seconds | None, Meta(description="v2 `usage_usec` in `cpu.stat`, v1 `cpuacct.usage`")
    ] = None
    cpu_used_cores: Annotated[
        Number | None, Meta(description="CPU seconds per second, to compare with the limit")
    ] = None
    cpu_periods_total: Annotated[
        Count | None,
        Meta(description="`nr_periods` in `cpu.stat` of the group that has the tightest quota"),
    ] = None
    cpu_throttled_periods_total: Annotated[
        Count | None, Meta(description="of these, in which the quota ran out: `nr_throttled`")
    ] = None
    cpu_throttled_seconds_total: Annotated[
        Seconds | None,
        Meta(description="summed over CPUs: v2 `throttled_usec`, v1 `throttled_time`"),
    ] = None
    cpu_throttled_periods_ratio: Annotated[
        Ratio | None, Meta(description="share of the periods in which the quota ran out")
    ] = None
    cpu_throttled_seconds_per_second: Annotated[
        Number | None, Meta(description="summed over CPUs, so it may exceed 1")
    ] = None
    cpuset_cpus: Annotated[
        str | None, Meta(description="CPUs the group may run on, like `0-3,8`")
    ] = None
    cpuset_cores: Annotated[Count | None, Meta(description="how many these are")] = None
    tasks_count: Annotated[
        Count | None, Meta(description="processes and threads: `pids.current`")
    ] = None
    tasks_limit: Annotated[Count | None, Meta(description="`pids.max`")] = None
    pressure: Annotated[
        list[PressureMetrics] | None, Meta(description="the group's own; v2 and hybrid only")
    ] = None


class ProcessMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One process; `cpu_cores` is CPU seconds per second, so 2.0 = two cores busy."""

    pid: Count
    name: str
    cpu_cores: Number | None = None
    memory_rss_bytes: Bytes | None = None
    threads: Count | None = None


class HostMetrics(Message, frozen=True, kw_only=True):
    """One machine at one instant.

    Published by each node agent every `agent.interval_seconds` (5 by default), at most once: a
    lost sample is not sent again. `processes` is the top of the process table, present only in
    the samples in which it was read (every 30 s by default). `errors` names what could not be
    read, and why. `leaving` marks the last sample of an agent that stops: its silence afterwards
    is no alert.
    """

    SUBJECT: ClassVar[str] = "metrics.host.{node}"
    PUBLISHER: ClassVar[str] = "agent"
    STREAM: ClassVar[str | None] = "METRICS"
    DURABLE: ClassVar[bool] = False

    node: Token
    node_name: str
    pool: Token | None = None
    observed_at: Instant
    interval_seconds: Seconds
    boot_at: Instant | None = None
    uptime_seconds: Seconds | None = None
    cpu: CpuMetrics | None = None
    memory: MemoryMetrics | None = None
    filesystems: list[FilesystemMetrics] | None = None
    disks: list[DiskIoMetrics] | None = None
    network: list[NetworkMetrics] | None = None
    connections_count: Count | None = None
    pressure: list[PressureMetrics] | None = None
    cgroup: CgroupMetrics | None = None
    processes: list[ProcessMetrics] | None = None
    errors: dict[str, str] = {}
    leaving: bool = False
    simulated: bool = False


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One process that holds GPU memory."""

    pid: Count
    name: str | None = None
    memory_used_bytes: Bytes | None = None


class GpuMetrics(Message, frozen=True, kw_only=True):
    """One GPU at one instant. A reading that failed is null and named in `errors`.

    Published by each node agent with every host sample, at most once.
    """

    SUBJECT: ClassVar[str] = "metrics.gpu.{node}.{gpu}"
    PUBLISHER: ClassVar[str] = "agent"
    STREAM: ClassVar[str | None] = "METRICS"
    DURABLE: ClassVar[bool] = False

    node: Token
    gpu: Token
    uuid: str
    index: Count
    name: str | None = None
    driver_version: str | None = None
    pool: Token | None = None
    observed_at: Instant
    interval_seconds: Seconds
    utilization_ratio: Ratio | None = None
    utilization_source: str | None = None
    memory_activity_ratio: Ratio | None = None
    encoder_utilization_ratio: Ratio | None = None
    decoder_utilization_ratio: Ratio | None = None
    memory_total_bytes: Bytes | None = None
    memory_used_bytes: Bytes | None = None
    memory_free_bytes: Bytes | None = None
    memory_reserved_bytes: Bytes | None = None
    memory_utilization_ratio: Ratio | None = None
    temperature_celsius: float | None = None
    temperature_slowdown_celsius: float | None = None
    temperature_shutdown_celsius: float | None = None
    power_watts: Number | None = None
    power_limit_watts: Number | None = None
    energy_joules_total: Number | None = None
    clock_graphics_hertz: Number | None = None
    clock_sm_hertz: Number | None = None
    clock_memory_hertz: Number | None = None
    throttle_reasons: list[str] | None = None
    performance_state: str | None = None
    fan_ratio: Ratio | None = None
    processes: list[GpuProcess] | None = None
    errors: dict[str, str] = {}
    simulated: bool = False


class EngineMetrics(Message, frozen=True, kw_only=True):
    """Load of one inference engine (one replica of a pool) at one instant.

    Published by anyone who knows: the agent's scrapers, a simulator, the engine itself; every
    5 s or faster, at most once. Names follow vLLM's metrics where it has one:
    `requests_running` = `vllm:num_requests_running`, `requests_waiting` =
    `vllm:num_requests_waiting`, `kv_cache_usage_ratio` = `vllm:kv_cache_usage_perc`.
    """

    SUBJECT: ClassVar[str] = "metrics.engine.{node}.{engine}"
    PUBLISHER: ClassVar[str] = "agent, or anyone who may publish metrics"
    STREAM: ClassVar[str | None] = "METRICS"
    DURABLE: ClassVar[bool] = False

    node: Token
    engine: Token
    pool: Token
    model: str
    observed_at: Instant
    requests_running: Count | None = None
    requests_waiting: Count | None = None
    requests_running_max: Count | None = None
    kv_cache_usage_ratio: Ratio | None = None
    prompt_tokens_total: Count | None = None
    generation_tokens_total: Count | None = None
    prompt_tokens_per_second: Number | None = None
    generation_tokens_per_second: Number | None = None
    ttft_p95_seconds: Seconds | None = None
    itl_p95_seconds: Seconds | None = None
    simulated: bool = False


class CacheMetrics(Message, frozen=True, kw_only=True):
    """One cache instance since it started: counters, and sizes now.

    Published by the cache every 5 s, at most once.
    """

    SUBJECT: ClassVar[str] = "metrics.cache.{instance}"
    PUBLISHER: ClassVar[str] = "cache"
    STREAM: ClassVar[str | None] = "METRICS"
    DURABLE: ClassVar[bool] = False

    instance: Token
    namespace: Token
    observed_at: Instant
    policy: str
    entries: Count
    used_bytes: Bytes
    limit_bytes: Bytes
    hits_total: Count
    misses_total: Count
    hit_ratio: Ratio | None
    puts_total: Count
    evictions_total: Count
    evictions_acknowledged_total: Count
    evictions_lost_total: Count
    restores_total: Count
    outbox_entries: Count
    outbox_bytes: Bytes
    simulated: bool = False


class Summary(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One metric over one minute; `p95` is the nearest-rank 95th percentile."""

    min: float
    mean: float
    max: float
    p95: float
    count: Count


class Rollup(Message, frozen=True, kw_only=True):
    """One minute of one host, GPU, engine or pool.

    Published by the handlers once the minute is over, once per minute and source (its message id
    makes a second one a duplicate). `metrics` holds only what was measured in that minute.
    `energy_joules` comes from the GPU's own counter, else it is absent. `id` is the node for a
    host, `<node>-<gpu>` for a GPU, `<node>-<engine>` for an engine, the pool for a pool.
    """

    SUBJECT: ClassVar[str] = "rollup.{kind}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "ROLLUPS"

    kind: Literal["host", "gpu", "engine", "pool"]
    id: Token
    node: Token | None = None
    pool: Token | None = None
    minute_at: Instant
    metrics: dict[str, Summary]
    energy_joules: Number | None = None
    simulated: bool = False
