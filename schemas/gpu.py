"""The parts of a GPU's metrics. Base units; null means not measured."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.units import UNREAD, Bytes, Count, Instant, Number


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One process that holds GPU memory.

    Source: `nvmlDeviceGetComputeRunningProcesses_v3`, else `_v2`; AMD:
    `amdsmi_get_gpu_process_list`.
    """

    pid: Annotated[Count, Meta(description="the host's process id, also inside a container")]
    name: Annotated[
        str | None,
        Meta(description="`nvmlSystemGetProcessName`; null: out of sight, as from a container"),
    ] = None
    memory_used_bytes: Annotated[
        Bytes | None, Meta(description="on this GPU; null: the driver does not tell")
    ] = None


class MigInstance(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which slice of its GPU a MIG device is.

    Two compute instances of one GPU instance share its memory, and both report all of it.
    """

    index: Annotated[
        Count | None,
        Meta(description="argument of `nvmlDeviceGetMigDeviceHandleByIndex`; null: by DCGM"),
    ] = None
    gpu_instance: Annotated[
        Count | None, Meta(description="`nvmlDeviceGetGpuInstanceId`; null: the call failed")
    ] = None
    compute_instance: Annotated[
        Count | None, Meta(description="`nvmlDeviceGetComputeInstanceId`; null: the call failed")
    ] = None


class PcieMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The PCIe link of one GPU; sent = from the GPU to the host."""

    generation: Annotated[
        Count | None,
        Meta(
            description="now, lower while the GPU idles: "
            "`nvmlDeviceGetCurrPcieLinkGeneration`; AMD: from `pcie_speed` of "
            f"`amdsmi_get_pcie_info`; {UNREAD}"
        ),
    ] = None
    generation_max: Annotated[
        Count | None,
        Meta(
            description="of GPU and slot together: `nvmlDeviceGetMaxPcieLinkGeneration`; AMD: "
            f"`pcie_interface_version`; {UNREAD}"
        ),
    ] = None
    lanes: Annotated[
        Count | None,
        Meta(description=f"now: `nvmlDeviceGetCurrPcieLinkWidth`; AMD: `pcie_width`; {UNREAD}"),
    ] = None
    lanes_max: Annotated[
        Count | None,
        Meta(description=f"`nvmlDeviceGetMaxPcieLinkWidth`; AMD: `max_pcie_width`; {UNREAD}"),
    ] = None
    sent_bytes_total: Annotated[
        Bytes | None,
        Meta(description=f"may wrap: NVML field `PCIE_COUNT_TX_BYTES`; not for AMD; {UNREAD}"),
    ] = None
    received_bytes_total: Annotated[
        Bytes | None,
        Meta(description=f"may wrap: NVML field `PCIE_COUNT_RX_BYTES`; not for AMD; {UNREAD}"),
    ] = None
    sent_bytes_per_second: Annotated[
        Number | None,
        Meta(
            description="growth of the counter; without one GPM `PCIE_TX_PER_SEC`, else "
            "`nvmlDeviceGetPcieThroughput`; null in the first sample, after a wrap, and for AMD"
        ),
    ] = None
    received_bytes_per_second: Annotated[
        Number | None,
        Meta(
            description="growth of the counter; without one GPM `PCIE_RX_PER_SEC`, else "
            "`nvmlDeviceGetPcieThroughput`; null in the first sample, after a wrap, and for AMD"
        ),
    ] = None
    replays_total: Annotated[
        Count | None,
        Meta(
            description="packets sent again; growth means a bad link: "
            f"`nvmlDeviceGetPcieReplayCounter`; AMD: `pcie_replay_count`; {UNREAD}"
        ),
    ] = None


class NvlinkMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All NVLinks of one GPU together, payload only; null where there are none, and for AMD."""

    links: Annotated[
        Count | None, Meta(description=f"NVML field `NVLINK_LINK_COUNT`; {UNREAD}")
    ] = None
    links_active: Annotated[
        Count | None,
        Meta(description=f"links whose `nvmlDeviceGetNvLinkState` says active; {UNREAD}"),
    ] = None
    sent_bytes_total: Annotated[
        Bytes | None,
        Meta(
            description="NVML field `NVLINK_THROUGHPUT_DATA_TX`, else "
            f"`NVLINK_COUNT_XMIT_BYTES`; {UNREAD}"
        ),
    ] = None
    received_bytes_total: Annotated[
        Bytes | None,
        Meta(
            description="NVML field `NVLINK_THROUGHPUT_DATA_RX`, else "
            f"`NVLINK_COUNT_RCV_BYTES`; {UNREAD}"
        ),
    ] = None
    sent_bytes_per_second: Annotated[
        Number | None,
        Meta(
            description="growth of the counter, without one GPM `NVLINK_TOTAL_TX_PER_SEC`; "
            "null in the first sample and after a reset"
        ),
    ] = None
    received_bytes_per_second: Annotated[
        Number | None,
        Meta(
            description="growth of the counter, without one GPM `NVLINK_TOTAL_RX_PER_SEC`; "
            "null in the first sample and after a reset"
        ),
    ] = None
    crc_errors_total: Annotated[
        Count | None, Meta(description=f"NVML field `NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL`; {UNREAD}")
    ] = None
    replays_total: Annotated[
        Count | None, Meta(description=f"NVML field `NVLINK_REPLAY_ERROR_COUNT_TOTAL`; {UNREAD}")
    ] = None
    recoveries_total: Annotated[
        Count | None, Meta(description=f"NVML field `NVLINK_RECOVERY_ERROR_COUNT_TOTAL`; {UNREAD}")
    ] = None


class EccMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Memory errors of one GPU. Volatile: since the driver was loaded; aggregate: of its life.

    Null where the GPU has no ECC memory or it is switched off.
    """

    is_enabled: Annotated[
        bool | None, Meta(description=f"`nvmlDeviceGetEccMode`; not for AMD; {UNREAD}")
    ] = None
    volatile_corrected_total: Annotated[
        Count | None,
        Meta(
            description="`nvmlDeviceGetTotalEccErrors`; AMD: `correctable_count` of "
            f"`amdsmi_get_gpu_total_ecc_count`; {UNREAD}"
        ),
    ] = None
    volatile_uncorrected_total: Annotated[
        Count | None,
        Meta(description=f"`nvmlDeviceGetTotalEccErrors`; AMD: `uncorrectable_count`; {UNREAD}"),
    ] = None
    aggregate_corrected_total: Annotated[
        Count | None, Meta(description=f"`nvmlDeviceGetTotalEccErrors`; not for AMD; {UNREAD}")
    ] = None
    aggregate_uncorrected_total: Annotated[
        Count | None, Meta(description=f"`nvmlDeviceGetTotalEccErrors`; not for AMD; {UNREAD}")
    ] = None
    rows_remapped_corrected_total: Annotated[
        Count | None,
        Meta(
            description="rows replaced after corrected errors: `nvmlDeviceGetRemappedRows`; "
            "null before Ampere, and for AMD"
        ),
    ] = None
    rows_remapped_uncorrected_total: Annotated[
        Count | None,
        Meta(
            description="rows replaced after uncorrected errors: `nvmlDeviceGetRemappedRows`; "
            "null before Ampere, and for AMD"
        ),
    ] = None
    is_remap_pending: Annotated[
        bool | None,
        Meta(
            description="a row is replaced at the next reset: `nvmlDeviceGetRemappedRows`; "
            "null before Ampere, and for AMD"
        ),
    ] = None
    is_remap_failed: Annotated[
        bool | None,
        Meta(
            description="a replacement failed, the GPU wants to be exchanged: "
            "`nvmlDeviceGetRemappedRows`; null before Ampere, and for AMD"
        ),
    ] = None


class XidEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One error that the driver reported (an XID)."""

    xid: Annotated[Count, Meta(description="number in NVIDIA's catalog: `eventData`")]
    observed_at: Annotated[Instant, Meta(description="when the agent was told")]
    severity: Annotated[
        Literal["info", "warning", "critical"],
        Meta(description="ours: info = an application's fault, critical = drain, reset or replace"),
    ]
    text: Annotated[str, Meta(description="the catalog's meaning, in short")]
    gpu_instance: Annotated[
        Count | None, Meta(description="the MIG instance it is about; null: the whole GPU")
    ] = None


class XidMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """XID errors since this agent began to watch: `nvmlEventSetWait_v2`."""

    events_total: Annotated[Count, Meta(description="since the agent began to watch")]
    critical_10m_count: Annotated[
        Count, Meta(description="of severity critical in the last 10 minutes")
    ]
    recent: Annotated[
        list[XidEvent], Meta(description="of the last 10 minutes, oldest first, at most 20")
    ]
