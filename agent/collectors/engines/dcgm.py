"""GpuMetrics from dcgm-exporter 2.4 to 4.9: DCGM's fields, in our units.

Source: `dcgm_fields.h` and dcgm-exporter's `default-counters.csv`. DCGM 4.6 renamed most fields,
and 4.7 the others with new units (MHz to Hz, mJ to J, percent to 0 to 1, MiB to bytes), which
dcgm-exporter exports since 4.9. Only what the exporter was told to export can be read.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from agent.collectors.engines.exposition import Names, Page, PageError, Series
from agent.collectors.engines.inference import Place
from agent.collectors.engines.values import count, number, ratio
from agent.collectors.gpu import in_parts
from agent.collectors.nvml.readings import performance_state, throttle_reasons
from agent.collectors.nvml.xid import XidLog
from schemas.gpu import MigInstance
from schemas.metrics import GpuMetrics
from schemas.units import SECOND_NS, instant, token

MAX_GPUS = 256
_MAX_UUID_LENGTH = 128
_MAX_INDEX_DIGITS = 6
_MIB = 1024 * 1024
_BLANK = 140737488355328.0
"""DCGM_FP64_BLANK (2^47); this and above, as DCGM_INT64_BLANK, stand for no value."""

Reading: TypeAlias = tuple[tuple[str, Callable[[float], Any]], ...]
"""Names of one metric, newest first, and what makes base units of its value."""


def _percent(value: float) -> float | None:
    return ratio(value / 100)


def _mebibytes(value: float) -> int | None:
    return count(value * _MIB)


def _mega(value: float) -> float | None:
    return number(value * 1e6)


def _milli(value: float) -> float | None:
    return number(value / 1000)


def _is_set(value: float) -> bool:
    return value > 0


def _state(value: float) -> str | None:
    return performance_state(int(value))


def _reasons(value: float) -> list[str]:
    return throttle_reasons(int(value))


def _same(convert: Callable[[float], Any], *names: str) -> Reading:
    return tuple((f"DCGM_FI_{name}", convert) for name in names)


_OF_INSTANCE: Mapping[str, Reading] = {
    "kernel_activity_ratio": (
        *_same(ratio, "DEV_GPU_UTIL_RATIO"),
        *_same(_percent, "DEV_GPU_UTIL"),
        *_same(ratio, "PROF_GR_ENGINE_UTIL_RATIO", "PROF_GR_ENGINE_ACTIVE"),
    ),
    "sm_activity_ratio": _same(ratio, "PROF_SM_UTIL_RATIO", "PROF_SM_ACTIVE"),
    "sm_occupancy_ratio": _same(ratio, "PROF_SM_OCCUPANCY_RATIO", "PROF_SM_OCCUPANCY"),
    "tensor_activity_ratio": _same(ratio, "PROF_TENSOR_UTIL_RATIO", "PROF_PIPE_TENSOR_ACTIVE"),
    "dram_activity_ratio": _same(ratio, "PROF_DRAM_UTIL_RATIO", "PROF_DRAM_ACTIVE"),
    "memory_total_bytes": (
        *_same(count, "DEV_FB_CAPACITY_BYTES"),
        *_same(_mebibytes, "DEV_FB_TOTAL"),
    ),
    "memory_used_bytes": (*_same(count, "DEV_FB_USED_BYTES"), *_same(_mebibytes, "DEV_FB_USED")),
    "memory_free_bytes": (*_same(count, "DEV_FB_FREE_BYTES"), *_same(_mebibytes, "DEV_FB_FREE")),
    "memory_reserved_bytes": (
        *_same(count, "DEV_FB_RESERVED_BYTES"),
        *_same(_mebibytes, "DEV_FB_RESERVED"),
    ),
    "memory_utilization_ratio": _same(ratio, "DEV_FB_USED_RATIO", "DEV_FB_USED_PERCENT"),
}
"""What can be measured of a MIG instance, and of a whole GPU too."""
_OF_GPU: Mapping[str, Reading] = {
    "memory_activity_ratio": (
        *_same(ratio, "DEV_MEMORY_UTIL_RATIO"),
        *_same(_percent, "DEV_MEM_COPY_UTIL"),
    ),
    "encoder_utilization_ratio": (
        *_same(ratio, "DEV_ENC_UTIL_RATIO"),
        *_same(_percent, "DEV_ENC_UTIL"),
    ),
    "decoder_utilization_ratio": (
        *_same(ratio, "DEV_DEC_UTIL_RATIO"),
        *_same(_percent, "DEV_DEC_UTIL"),
    ),
    "temperature_celsius": _same(number, "DEV_GPU_TEMP_CELSIUS", "DEV_GPU_TEMP"),
    "temperature_memory_celsius": _same(number, "DEV_MEMORY_TEMP_CELSIUS", "DEV_MEMORY_TEMP"),
    "temperature_slowdown_celsius": _same(
        number, "DEV_GPU_TEMP_SLOWDOWN_CELSIUS", "DEV_SLOWDOWN_TEMP"
    ),
    "temperature_shutdown_celsius": _same(
        number, "DEV_GPU_TEMP_SHUTDOWN_CELSIUS", "DEV_SHUTDOWN_TEMP"
    ),
    "power_watts": _same(number, "DEV_BOARD_POWER_WATTS", "DEV_POWER_USAGE"),
    "power_limit_watts": _same(
        number,
        "DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS",
        "DEV_ENFORCED_POWER_LIMIT",
        "DEV_BOARD_POWER_LIMIT_REQUESTED_WATTS",
        "DEV_POWER_MGMT_LIMIT",
    ),
    "energy_joules_total": (
        *_same(number, "DEV_GPU_ENERGY_JOULES_TOTAL"),
        *_same(_milli, "DEV_TOTAL_ENERGY_CONSUMPTION"),
    ),
    "clock_sm_hertz": (*_same(number, "DEV_SM_CLOCK_HERTZ"), *_same(_mega, "DEV_SM_CLOCK")),
    "clock_memory_hertz": (
        *_same(number, "DEV_MEMORY_CLOCK_HERTZ"),
        *_same(_mega, "DEV_MEM_CLOCK"),
    ),
    "throttle_reasons": _same(_reasons, "DEV_CLOCKS_EVENT_REASONS", "DEV_CLOCK_THROTTLE_REASONS"),
    "performance_state": _same(_state, "DEV_GPU_PSTATE", "DEV_PSTATE"),
    "fan_ratio": (*_same(ratio, "DEV_FAN_SPEED_RATIO"), *_same(_percent, "DEV_FAN_SPEED")),
    "pcie.generation": _same(count, "DEV_PCIE_LINK_GEN"),
    "pcie.generation_max": _same(count, "DEV_PCIE_MAX_LINK_GEN"),
    "pcie.lanes": _same(count, "DEV_PCIE_LINK_WIDTH"),
    "pcie.lanes_max": _same(count, "DEV_PCIE_MAX_LINK_WIDTH"),
    # DCGM says "number of bytes" and gives a rate; its collector files say so since 3.3.
    "pcie.sent_bytes_per_second": _same(number, "PROF_PCIE_TX_BYTES"),
    "pcie.received_bytes_per_second": _same(number, "PROF_PCIE_RX_BYTES"),
    "pcie.replays_total": _same(count, "DEV_PCIE_REPLAY_TOTAL", "DEV_PCIE_REPLAY_COUNTER"),
    # DEV_NVLINK_BANDWIDTH_TOTAL is not read: both directions in one, MB/s in spite of its name.
    "nvlink.sent_bytes_per_second": _same(number, "PROF_NVLINK_TX_BYTES"),
    "nvlink.received_bytes_per_second": _same(number, "PROF_NVLINK_RX_BYTES"),
    "nvlink.crc_errors_total": _same(
        count, "DEV_NVLINK_CRC_FLIT_ERROR_TOTAL", "DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL"
    ),
    "nvlink.replays_total": _same(
        count, "DEV_NVLINK_REPLAY_ERROR_TOTAL", "DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL"
    ),
    "nvlink.recoveries_total": _same(
        count, "DEV_NVLINK_RECOVERY_ERROR_TOTAL", "DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL"
    ),
    "ecc.is_enabled": _same(_is_set, "DEV_ECC_MODE", "DEV_ECC_CURRENT"),
    "ecc.volatile_corrected_total": _same(count, "DEV_ECC_SBE_VOL_TOTAL"),
    "ecc.volatile_uncorrected_total": _same(count, "DEV_ECC_DBE_VOL_TOTAL"),
    "ecc.aggregate_corrected_total": _same(count, "DEV_ECC_SBE_AGG_TOTAL"),
    "ecc.aggregate_uncorrected_total": _same(count, "DEV_ECC_DBE_AGG_TOTAL"),
    "ecc.rows_remapped_corrected_total": _same(
        count, "DEV_ROW_REMAP_CORRECTABLE_TOTAL", "DEV_CORRECTABLE_REMAPPED_ROWS"
    ),
    "ecc.rows_remapped_uncorrected_total": _same(
        count, "DEV_ROW_REMAP_UNCORRECTABLE_TOTAL", "DEV_UNCORRECTABLE_REMAPPED_ROWS"
    ),
    "ecc.is_remap_pending": _same(_is_set, "DEV_ROW_REMAP_PENDING"),
    "ecc.is_remap_failed": _same(_is_set, "DEV_ROW_REMAP_FAILED", "DEV_ROW_REMAP_FAILURE"),
}
READINGS: Mapping[str, Reading] = {**_OF_INSTANCE, **_OF_GPU}
XID: Names = ("DCGM_FI_DEV_XID_ERROR", "DCGM_FI_DEV_XID_ERRORS")
_EXPECTED: Mapping[str, Names] = {
    "utilization_ratio": ("sm_activity_ratio", "kernel_activity_ratio"),
    "memory_used_bytes": ("memory_used_bytes",),
    "temperature_celsius": ("temperature_celsius",),
    "power_watts": ("power_watts",),
}
_UUID_LABELS = ("UUID", "uuid")
_DRIVER_LABELS = ("DCGM_FI_SYSTEM_DRIVER_VERSION", "DCGM_FI_DRIVER_VERSION")
_BUSY = (
    ("sm_activity_ratio", "dcgm_sm_activity"),
    ("kernel_activity_ratio", "dcgm_utilization"),
)

Found: TypeAlias = dict[str, Series]
"""What the page says of one GPU or instance, by metric name."""


class DcgmReader:
    """Reads the pages of one target: every GPU and every MIG instance on them.

    Of a GPU with MIG instances the exporter repeats temperature, power and the like with each;
    here they are the GPU's, once, so that sums over messages are right.
    """

    def __init__(self, place: Place, clock: Callable[[], int] = time.time_ns) -> None:
        self._place = place
        self._clock = clock
        self._at_ns: int | None = None
        self._xids: dict[str, _LastXid] = {}
        self.restarts = 0

    def wanted(self) -> frozenset[str]:
        """All names to look for on a page."""
        return frozenset([*XID, *(name for of in READINGS.values() for name, _ in of)])

    def missing(self, page: Page) -> dict[str, Names]:
        """The fields that alerts and advice need; the others are the exporter's choice."""
        expected = {
            field: tuple(name for of in readings for name, _ in READINGS[of])
            for field, readings in _EXPECTED.items()
        }
        return {field: names for field, names in expected.items() if not page.has(names)}

    def read(self, page: Page, now_ns: int) -> list[GpuMetrics]:
        """Every GPU on the page, each followed by its MIG instances.

        Raises:
            PageError: more of them than any machine has.
        """
        interval_ns = 0 if self._at_ns is None else max(0, now_ns - self._at_ns)
        self._at_ns = now_ns
        found: dict[str, dict[str, Found]] = {}
        for name, every in page.series.items():
            for series in every:
                uuid = next((series.labels[k] for k in _UUID_LABELS if k in series.labels), "")
                if uuid and 0 <= series.value < _BLANK:
                    instance = series.labels.get("GPU_I_ID", "")
                    of_gpu = found.setdefault(uuid[:_MAX_UUID_LENGTH], {})
                    of_gpu.setdefault(instance, {})[name] = series
        if (gpus := sum(map(len, found.values()))) > MAX_GPUS:
            raise PageError(f"{gpus} GPUs and MIG instances on one page")
        self._xids = {uuid: self._xids.get(uuid, _LastXid(self._clock)) for uuid in found}
        messages = []
        for uuid, parts in sorted(found.items()):
            messages += self._gpu(uuid, parts, now_ns, interval_ns / SECOND_NS)
        return messages

    def _gpu(
        self, uuid: str, parts: dict[str, Found], now_ns: int, interval_seconds: float
    ) -> list[GpuMetrics]:
        whole = parts.pop("", {})
        shared = {name: one for part in parts.values() for name, one in part.items()} | whole
        labels = next(iter(shared.values())).labels
        model = labels.get("modelName")
        same: dict[str, Any] = {
            "node": self._place.node,
            "uuid": uuid,
            "index": _index(labels.get("gpu", "")) or 0,
            "driver_version": next((labels[k] for k in _DRIVER_LABELS if k in labels), None),
            "pool": self._place.pool,
            "labels": dict(self._place.labels),
            "observed_at": instant(now_ns),
            "interval_seconds": interval_seconds,
        }
        gpu = GpuMetrics(
            gpu=token(uuid),
            name=model,
            is_mig_enabled=True if parts else None,
            xid=self._xids[uuid].read(next((shared[name] for name in XID if name in shared), None)),
            **same,
            **in_parts(_values(_OF_INSTANCE, whole) | _values(_OF_GPU, shared)),
        )
        return [
            gpu,
            *(
                GpuMetrics(
                    gpu=token(f"{uuid}-gi{instance}"),
                    name=_instance_name(model, part),
                    parent=gpu.gpu,
                    mig=MigInstance(gpu_instance=_index(instance)),
                    **same,
                    **_values(_OF_INSTANCE, part),
                )
                for instance, part in sorted(parts.items())
            ),
        ]


class _LastXid:
    """Tells an XID error by its number: DCGM gives the last one, again and again.

    The first one seen may be of any age and is none; of two equal ones in a row the second is not
    noticed.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._log = XidLog(clock)
        self._last: int | None = None

    def read(self, series: Series | None) -> Any:  # noqa: ANN401 - XidMetrics or None
        if series is not None:
            xid = int(series.value)
            if self._last is None:
                self._log.set_watched()
            elif xid not in (0, self._last):
                self._log.add(xid, None)
            self._last = xid
        return self._log.read({})


def _values(readings: Mapping[str, Reading], found: Found) -> dict[str, Any]:
    """Fields by path, with what follows from them."""
    values: dict[str, Any] = {}
    for field, names in readings.items():
        known = (convert(found[name].value) for name, convert in names if name in found)
        values[field] = next((value for value in known if value is not None), None)
    if readings is _OF_INSTANCE:
        values |= _memory(values)
        busy = next(((values[f], source) for f, source in _BUSY if values[f] is not None), None)
        values["utilization_ratio"], values["utilization_source"] = busy or (None, None)
    return values


def _memory(values: Mapping[str, Any]) -> dict[str, Any]:
    """The total where only its parts are exported, and used by total.

    Without the driver's own part the share is used by what can be used (used + free), which is
    what DCGM's share is too.
    """
    used, free = values["memory_used_bytes"], values["memory_free_bytes"]
    total, reserved = values["memory_total_bytes"], values["memory_reserved_bytes"]
    if total is None and None not in (used, free, reserved):
        total = used + free + reserved
    share = values["memory_utilization_ratio"]
    if used is not None and (total or share is None):
        whole = total or (used + free if free is not None else 0)
        share = ratio(used / whole) if whole else None
    return {"memory_total_bytes": total, "memory_utilization_ratio": share}


def _index(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= _MAX_INDEX_DIGITS else None


def _instance_name(model: str | None, part: Found) -> str | None:
    """As the driver names them: `NVIDIA H100 80GB HBM3 MIG 3g.40gb`."""
    profile = next(iter(part.values())).labels.get("GPU_I_PROFILE")
    return f"{model} MIG {profile}" if model and profile else model
