"""What machines and GPUs measure, and minutes of it. Base units; null means not measured."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from schemas.gpu import (
    EccMetrics,
    GpuProcess,
    MigInstance,
    NvlinkMetrics,
    PcieMetrics,
    XidMetrics,
)
from schemas.host import (
    CgroupMetrics,
    CpuMetrics,
    DiskIoMetrics,
    FilesystemMetrics,
    MemoryMetrics,
    NetworkMetrics,
    PressureMetrics,
    ProcessMetrics,
)
from schemas.labels import Labels
from schemas.message import Message, Simulated
from schemas.units import UNREAD, Bytes, Count, Instant, Number, Ratio, Seconds, Token

_NO_GPM = "null: by NVML before Hopper and in the first sample; AMD"


class HostMetrics(Message, frozen=True, kw_only=True):
    """One machine at one instant.

    Published by each node agent every `agent.interval_seconds` (5 by default), at most once: a
    lost sample is not sent again. `processes` is the top of the process table, present only in
    the samples in which it was read (every 30 s by default). `errors` names what could not be
    read, and why; what is null without an error is not offered here. `leaving` marks the last
    sample of an agent that stops: its silence afterwards is no alert.
    """

    SUBJECT: ClassVar[str] = "metrics.host.{node}"
    PUBLISHER: ClassVar[str] = "agent"
    STREAM: ClassVar[str | None] = "METRICS"
    DURABLE: ClassVar[bool] = False

    node: Annotated[Token, Meta(description="name of the machine as a subject token")]
    node_name: Annotated[
        str, Meta(description="the same as it was given: setting `node`, else the host name")
    ]
    pool: Annotated[Token | None, Meta(description="setting `pool`; null: in none")] = None
    labels: Labels = {}
    observed_at: Annotated[Instant, Meta(description="begin of the reading, by the node's clock")]
    interval_seconds: Annotated[
        Seconds, Meta(description="since the previous reading; 0: the first")
    ]
    boot_at: Annotated[
        Instant | None, Meta(description="`psutil.boot_time`; null: failed, then in `errors`")
    ] = None
    uptime_seconds: Annotated[
        Seconds | None, Meta(description="since `boot_at`; null where that is")
    ] = None
    cpu: Annotated[
        CpuMetrics | None,
        Meta(description="always there from our agent, field by field; null: not measured"),
    ] = None
    memory: Annotated[
        MemoryMetrics | None, Meta(description="RAM and swap; null: failed, then in `errors`")
    ] = None
    filesystems: Annotated[
        list[FilesystemMetrics] | None,
        Meta(
            description="chosen by `agent.filesystems`; null: the mounts could not be listed, "
            "then in `errors`"
        ),
    ] = None
    disks: Annotated[
        list[DiskIoMetrics] | None,
        Meta(description="block devices; null: failed, then in `errors`"),
    ] = None
    network: Annotated[
        list[NetworkMetrics] | None,
        Meta(description="of the agent's own network namespace; null: failed, then in `errors`"),
    ] = None
    connections_count: Annotated[
        Count | None,
        Meta(
            description="TCP and UDP sockets in any state but closed: `/proc/net/sockstat`, "
            "else `psutil.net_connections`; null: not readable"
        ),
    ] = None
    pressure: Annotated[
        list[PressureMetrics] | None,
        Meta(
            description="of the whole machine; null where the kernel has none, or failed (then "
            "in `errors`)"
        ),
    ] = None
    cgroup: Annotated[
        CgroupMetrics | None,
        Meta(
            description="the agent's own group; null on platforms without, or failed (then in "
            "`errors`)"
        ),
    ] = None
    processes: Annotated[
        list[ProcessMetrics] | None,
        Meta(
            description="busiest first; null in the samples in between, or failed (then in "
            "`errors`)"
        ),
    ] = None
    errors: Annotated[
        dict[str, str],
        Meta(
            description="field, with dots for nested ones, to reason, of each reading that failed"
        ),
    ] = {}
    leaving: Annotated[bool, Meta(description="the last sample of an agent that stops")] = False
    simulated: Simulated = False


class GpuMetrics(Message, frozen=True, kw_only=True):
    """One GPU, or one MIG instance of a GPU, at one instant.

    Published by each node agent with every host sample, and for GPUs that it scrapes from a
    dcgm-exporter, where `docs/engine_metrics.md` names the sources; at most once. A field is null
    where the GPU, its driver or its vendor does not offer the reading; where a reading failed it
    is null and `errors` names it (`power_watts`, `ecc.volatile_corrected_total`) with the reason.
    A GPU that does not answer at all is told too: `is_reachable` is false, `errors["gpu"]` says
    why, and all readings but `xid` are null. Of a MIG instance only memory, processes and activity
    can be measured.
    """

    SUBJECT: ClassVar[str] = "metrics.gpu.{node}.{gpu}"
    PUBLISHER: ClassVar[str] = "agent"
    STREAM: ClassVar[str | None] = "METRICS"
    DURABLE: ClassVar[bool] = False

    node: Annotated[Token, Meta(description="name of the machine as a subject token")]
    gpu: Annotated[
        Token,
        Meta(description="`uuid` as a subject token; `index-0` for one that never answered"),
    ]
    uuid: Annotated[
        str,
        Meta(
            description="`nvmlDeviceGetUUID`; AMD: `amdsmi_get_gpu_device_uuid`; empty for one "
            "that never answered"
        ),
    ]
    index: Annotated[
        Count,
        Meta(description="place in the driver's list, may change; of a MIG instance its GPU's"),
    ]
    name: Annotated[
        str | None,
        Meta(
            description="model: `nvmlDeviceGetName`; AMD: `market_name`; null: the driver does "
            "not tell, or never answered"
        ),
    ] = None
    driver_version: Annotated[
        str | None,
        Meta(
            description="`nvmlSystemGetDriverVersion`; AMD: `amdsmi_get_gpu_driver_info`; "
            "null: the driver does not tell"
        ),
    ] = None
    pool: Annotated[Token | None, Meta(description="setting `pool`; null: in none")] = None
    labels: Labels = {}
    parent: Annotated[
        Token | None, Meta(description="`gpu` of the GPU this MIG instance is of; null: it is none")
    ] = None
    mig: Annotated[
        MigInstance | None, Meta(description="which slice of `parent` this is; null: a whole GPU")
    ] = None
    is_mig_enabled: Annotated[
        bool | None,
        Meta(description="`nvmlDeviceGetMigMode`; null: the GPU has no MIG, or is an instance"),
    ] = None
    observed_at: Annotated[Instant, Meta(description="end of the reading, by the node's clock")]
    interval_seconds: Annotated[
        Seconds, Meta(description="since the previous reading; 0: the first")
    ]
    is_reachable: Annotated[
        bool,
        Meta(description="false: lost, hung or removed; an alert rule sees 0 and 1"),
    ] = True
    utilization_ratio: Annotated[
        Ratio | None,
        Meta(
            description="how busy: `sm_activity_ratio` where it was measured, else "
            "`kernel_activity_ratio`; null: neither was"
        ),
    ] = None
    utilization_source: Annotated[
        str | None,
        Meta(
            description="where the former is from: `gpm_sm_activity`, `nvml_utilization`, "
            "`amdsmi_gfx_activity`, `dcgm_sm_activity`, `dcgm_utilization`, `simulated`; "
            "null when it is"
        ),
    ] = None
    kernel_activity_ratio: Annotated[
        Ratio | None,
        Meta(
            description="share of time in which at least one kernel ran, however small, what "
            "nvidia-smi shows as GPU-Util: `nvmlDeviceGetUtilizationRates`; AMD: `gfx_activity`; "
            "null with MIG"
        ),
    ] = None
    sm_activity_ratio: Annotated[
        Ratio | None,
        Meta(
            description="mean share of SMs with work: GPM `SM_UTIL` since the previous "
            f"reading; {_NO_GPM}"
        ),
    ] = None
    sm_occupancy_ratio: Annotated[
        Ratio | None,
        Meta(description=f"warps resident by warps possible: GPM `SM_OCCUPANCY`; {_NO_GPM}"),
    ] = None
    tensor_activity_ratio: Annotated[
        Ratio | None,
        Meta(description=f"tensor cores' share of time: GPM `ANY_TENSOR_UTIL`; {_NO_GPM}"),
    ] = None
    dram_activity_ratio: Annotated[
        Ratio | None,
        Meta(description=f"memory bandwidth by its maximum: GPM `DRAM_BW_UTIL`; {_NO_GPM}"),
    ] = None
    memory_activity_ratio: Annotated[
        Ratio | None,
        Meta(
            description="share of time in which memory was read or written, not how full it is: "
            "`nvmlDeviceGetUtilizationRates`; AMD: `umc_activity`; null with MIG"
        ),
    ] = None
    encoder_utilization_ratio: Annotated[
        Ratio | None, Meta(description=f"`nvmlDeviceGetEncoderUtilization`; not for AMD; {UNREAD}")
    ] = None
    decoder_utilization_ratio: Annotated[
        Ratio | None, Meta(description=f"`nvmlDeviceGetDecoderUtilization`; not for AMD; {UNREAD}")
    ] = None
    memory_total_bytes: Annotated[
        Bytes | None,
        Meta(
            description=f"`nvmlDeviceGetMemoryInfo_v2`; AMD: `amdsmi_get_gpu_vram_usage`; {UNREAD}"
        ),
    ] = None
    memory_used_bytes: Annotated[
        Bytes | None,
        Meta(
            description="`nvmlDeviceGetMemoryInfo_v2`; AMD: as the total; before driver 510 "
            f"the driver's own share counts too; {UNREAD}"
        ),
    ] = None
    memory_free_bytes: Annotated[
        Bytes | None,
        Meta(description=f"`nvmlDeviceGetMemoryInfo_v2`; AMD: total minus used; {UNREAD}"),
    ] = None
    memory_reserved_bytes: Annotated[
        Bytes | None,
        Meta(
            description="the driver's own share: `nvmlDeviceGetMemoryInfo_v2`; null on an "
            "older driver, and for AMD"
        ),
    ] = None
    memory_utilization_ratio: Annotated[
        Ratio | None, Meta(description="used by total; null: one of them is")
    ] = None
    temperature_celsius: Annotated[
        float | None,
        Meta(
            description="`nvmlDeviceGetTemperatureV`, else `nvmlDeviceGetTemperature`; AMD: "
            f"`amdsmi_get_temp_metric` of the hot spot, else of the edge; {UNREAD}"
        ),
    ] = None
    temperature_memory_celsius: Annotated[
        float | None,
        Meta(
            description="NVML field `MEMORY_TEMP`; AMD: `amdsmi_get_temp_metric` of the VRAM; "
            f"{UNREAD}"
        ),
    ] = None
    temperature_slowdown_celsius: Annotated[
        float | None,
        Meta(
            description="from here on the driver slows the GPU down: "
            "`nvmlDeviceGetTemperatureThreshold`; AMD: the sensor's critical "
            f"temperature; {UNREAD}"
        ),
    ] = None
    temperature_shutdown_celsius: Annotated[
        float | None,
        Meta(
            description="from here on it is switched off: `nvmlDeviceGetTemperatureThreshold`; "
            f"AMD: the sensor's emergency temperature; {UNREAD}"
        ),
    ] = None
    power_watts: Annotated[
        Number | None,
        Meta(
            description="`nvmlDeviceGetPowerUsage`, a mean of 1 s from Ampere on (A100: now); "
            "AMD: `amdsmi_get_power_info`; may exceed the limit for a moment; "
            f"{UNREAD}"
        ),
    ] = None
    power_limit_watts: Annotated[
        Number | None,
        Meta(
            description="`nvmlDeviceGetEnforcedPowerLimit`, else "
            "`nvmlDeviceGetPowerManagementLimit`; AMD: "
            f"`amdsmi_get_power_cap_info`; {UNREAD}"
        ),
    ] = None
    energy_joules_total: Annotated[
        Number | None,
        Meta(
            description="since the driver was loaded: `nvmlDeviceGetTotalEnergyConsumption` "
            f"(from Volta on); AMD: `amdsmi_get_energy_count`; {UNREAD}"
        ),
    ] = None
    clock_graphics_hertz: Annotated[
        Number | None,
        Meta(
            description="`nvmlDeviceGetClockInfo`; AMD: `amdsmi_get_clock_info`, type GFX; "
            f"{UNREAD}"
        ),
    ] = None
    clock_sm_hertz: Annotated[
        Number | None, Meta(description=f"`nvmlDeviceGetClockInfo`; not for AMD; {UNREAD}")
    ] = None
    clock_memory_hertz: Annotated[
        Number | None,
        Meta(
            description="`nvmlDeviceGetClockInfo`; AMD: `amdsmi_get_clock_info`, type MEM; "
            f"{UNREAD}"
        ),
    ] = None
    throttle_reasons: Annotated[
        list[str] | None,
        Meta(
            description="why the clocks are low (empty: they are not): "
            "`nvmlDeviceGetCurrentClocksEventReasons`, else "
            f"`nvmlDeviceGetCurrentClocksThrottleReasons`; not for AMD; {UNREAD}"
        ),
    ] = None
    performance_state: Annotated[
        str | None,
        Meta(
            description="`P0` (highest) to `P15`: `nvmlDeviceGetPerformanceState`; not for "
            f"AMD; {UNREAD}"
        ),
    ] = None
    recovery_action: Annotated[
        str | None,
        Meta(
            description="what the driver wants: `none`, `gpu_reset`, `node_reboot`, `drain_p2p`, "
            "`drain_and_reset`, `recover_imex_domain`, `bus_reset`, `system_reboot`: NVML field "
            "`GET_GPU_RECOVERY_ACTION`; null on an older driver, and for AMD"
        ),
    ] = None
    fan_ratio: Annotated[
        Ratio | None,
        Meta(
            description="`nvmlDeviceGetFanSpeed`; AMD: `amdsmi_get_gpu_fan_speed` by 255; "
            "null: no fan of its own"
        ),
    ] = None
    pcie: Annotated[
        PcieMetrics | None, Meta(description="its link to the host; null: nothing of it measured")
    ] = None
    nvlink: Annotated[
        NvlinkMetrics | None,
        Meta(description="its links to other GPUs; null: nothing of it measured"),
    ] = None
    ecc: Annotated[
        EccMetrics | None, Meta(description="its memory errors; null: nothing of it measured")
    ] = None
    xid: Annotated[
        XidMetrics | None,
        Meta(
            description="errors that the driver reported; null: not offered, or not allowed "
            "(then in `errors`); a MIG instance's are with its GPU; AMD: null"
        ),
    ] = None
    processes: Annotated[
        list[GpuProcess] | None, Meta(description=f"compute processes; empty: none; {UNREAD}")
    ] = None
    errors: Annotated[
        dict[str, str],
        Meta(description="field (`gpu`: the whole GPU) to reason, of each reading that failed"),
    ] = {}
    simulated: Simulated = False


class Summary(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One metric over one minute; `p95` is the nearest-rank 95th percentile."""

    min: Annotated[float, Meta(description="lowest sample, in the unit of the metric's name")]
    mean: Annotated[float, Meta(description="mean of the samples")]
    max: Annotated[float, Meta(description="highest sample")]
    p95: Annotated[
        float,
        Meta(description="95th percentile by nearest rank: of fewer than 20 samples the highest"),
    ]
    count: Annotated[Count, Meta(description="samples; a pool's are those of all its members")]


class Rollup(Message, frozen=True, kw_only=True):
    """One minute of one host, GPU, engine, pool or cache.

    Published by the handlers once the minute is over, once per minute and source (its message id
    makes a second one a duplicate). `metrics` holds only what was measured in that minute.
    `energy_joules` comes from the GPU's own counter, else it is absent. `id` is the node for a
    host, `<node>-<gpu>` for a GPU, `<node>-<engine>` for an engine, the pool for a pool,
    `<instance>-<namespace>` for a cache; where two names could be taken for two others
    (the second has a dash) or are longer together than 128 characters, ten digits of a digest of
    both follow. The fields tell the names.
    """

    SUBJECT: ClassVar[str] = "rollup.{kind}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "ROLLUPS"

    kind: Annotated[
        Literal["host", "gpu", "engine", "pool", "cache"], Meta(description="what `id` names")
    ]
    id: Annotated[
        Token,
        Meta(
            description="node, `<node>-<gpu>`, `<node>-<engine>`, pool or "
            "`<instance>-<namespace>`; `-` and a digest follow where that is ambiguous or too long"
        ),
    ]
    node: Annotated[Token | None, Meta(description="its machine; null: a pool, or our cache")] = (
        None
    )
    pool: Annotated[Token | None, Meta(description="as its samples say; null: in none")] = None
    minute_at: Annotated[
        Instant, Meta(description="begin of the minute in which the stream stored the samples")
    ]
    metrics: Annotated[
        dict[str, Summary],
        Meta(
            description="by field of the sample, of a pool `host_…`, `gpu_…`, `engine_…`; "
            "absent: not measured"
        ),
    ]
    energy_joules: Annotated[
        Number | None,
        Meta(
            description="growth of the counter `energy_joules_total`, of a pool that of all "
            "its GPUs; null: no GPU with two readings"
        ),
    ] = None
    simulated: Simulated = False
    instance: Annotated[
        Token | None, Meta(description="`instance` of CacheMetrics; null: not a cache")
    ] = None
    namespace: Annotated[
        Token | None, Meta(description="`namespace` of CacheMetrics; null: not a cache")
    ] = None
    gpu: Annotated[
        Token | None,
        Meta(description="`gpu` of GpuMetrics; null: not one, or of an older version"),
    ] = None
    engine: Annotated[
        Token | None,
        Meta(description="`engine` of EngineMetrics; null: not one, or of an older version"),
    ] = None
