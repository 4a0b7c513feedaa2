"""What is asked of a GPU and of a MIG instance, and how each answer becomes base units."""

from collections.abc import Callable
from typing import Any

from agent.collectors.gpu import share
from agent.collectors.nvml.answers import Reading
from agent.collectors.nvml.binding import nvml, or_none
from schemas.gpu import GpuProcess

_PER_MILLI = 1000
_PER_MEGA = 1e6

# nvml.h, `nvmlClocksEventReason*` and, for the last two, the older `nvmlClocksThrottleReason*`.
_THROTTLE_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
_PERFORMANCE_STATE_UNKNOWN = 32


def _milli(number: int) -> float:
    return number / _PER_MILLI


def _mega(number: int) -> float:
    return number * _PER_MEGA


def _memory_v2(handle: object) -> Any:  # noqa: ANN401 - a ctypes structure
    return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)


def _memory(info: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a ctypes structure
    # The first version has no `reserved`: there the driver's own share counts as used.
    reserved = getattr(info, "reserved", None)
    utilization = min(1.0, info.used / info.total) if info.total else None
    return info.total, info.used, info.free, reserved, utilization


def _of(call: Callable[..., Any], *which: int) -> Callable[[Any], Any]:
    """The NVML call with its other arguments: a sensor, a threshold, a clock."""
    return lambda handle: call(handle, *which)


def throttle_reasons(mask: int) -> list[str]:
    """The names of the bits; those that nobody has named are left out."""
    return [name for bit, name in _THROTTLE_REASONS.items() if mask & bit]


def performance_state(state: int) -> str | None:
    """`P0` to `P15`."""
    return None if state == _PERFORMANCE_STATE_UNKNOWN else f"P{state}"


def _processes(running: list[Any]) -> list[GpuProcess]:
    """Pids are the host's; their names are out of sight from inside a container."""
    return [
        GpuProcess(
            pid=process.pid,
            name=or_none(nvml.nvmlSystemGetProcessName, process.pid),
            memory_used_bytes=process.usedGpuMemory,
        )
        for process in running
    ]


def _remapped_rows(answer: tuple[int, int, int, int]) -> tuple[Any, ...]:
    corrected, uncorrected, is_pending, has_failed = answer
    return corrected, uncorrected, bool(is_pending), bool(has_failed)


def _one(
    field: str,
    convert: Callable[[Any], object],
    *calls: Callable[[Any], Any],
    constant: bool = False,
) -> Reading:
    """A reading of a single field."""
    return Reading((field,), calls, lambda answer: (convert(answer),), constant)


def _ecc_errors(field: str, kind: int, since: int) -> Reading:
    return _one(f"ecc.{field}", int, _of(nvml.nvmlDeviceGetTotalEccErrors, kind, since))


MIG_READINGS = (
    Reading(
        (
            "memory_total_bytes",
            "memory_used_bytes",
            "memory_free_bytes",
            "memory_reserved_bytes",
            "memory_utilization_ratio",
        ),
        (_memory_v2, nvml.nvmlDeviceGetMemoryInfo),
        _memory,
    ),
    _one(
        "processes",
        _processes,
        nvml.nvmlDeviceGetComputeRunningProcesses_v3,
        nvml.nvmlDeviceGetComputeRunningProcesses_v2,
    ),
)
GPU_READINGS = (
    Reading(
        ("kernel_activity_ratio", "memory_activity_ratio"),
        (nvml.nvmlDeviceGetUtilizationRates,),
        lambda rates: (share(rates.gpu), share(rates.memory)),
    ),
    *MIG_READINGS,
    # The encoder and decoder calls answer with a percentage and a sampling period.
    _one(
        "encoder_utilization_ratio",
        lambda answer: share(answer[0]),
        nvml.nvmlDeviceGetEncoderUtilization,
    ),
    _one(
        "decoder_utilization_ratio",
        lambda answer: share(answer[0]),
        nvml.nvmlDeviceGetDecoderUtilization,
    ),
    _one(
        "temperature_celsius",
        float,
        _of(nvml.nvmlDeviceGetTemperatureV, nvml.NVML_TEMPERATURE_GPU),
        _of(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
    ),
    _one(
        "temperature_slowdown_celsius",
        float,
        _of(nvml.nvmlDeviceGetTemperatureThreshold, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        constant=True,
    ),
    _one(
        "temperature_shutdown_celsius",
        float,
        _of(nvml.nvmlDeviceGetTemperatureThreshold, nvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN),
        constant=True,
    ),
    _one("power_watts", _milli, nvml.nvmlDeviceGetPowerUsage),
    _one(
        "power_limit_watts",
        _milli,
        nvml.nvmlDeviceGetEnforcedPowerLimit,
        nvml.nvmlDeviceGetPowerManagementLimit,
    ),
    _one("energy_joules_total", _milli, nvml.nvmlDeviceGetTotalEnergyConsumption),
    _one("clock_graphics_hertz", _mega, _of(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_GRAPHICS)),
    _one("clock_sm_hertz", _mega, _of(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM)),
    _one("clock_memory_hertz", _mega, _of(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM)),
    _one(
        "throttle_reasons",
        throttle_reasons,
        nvml.nvmlDeviceGetCurrentClocksEventReasons,
        nvml.nvmlDeviceGetCurrentClocksThrottleReasons,
    ),
    _one("performance_state", performance_state, nvml.nvmlDeviceGetPerformanceState),
    _one("fan_ratio", share, nvml.nvmlDeviceGetFanSpeed),
    _one("pcie.generation", int, nvml.nvmlDeviceGetCurrPcieLinkGeneration),
    _one("pcie.generation_max", int, nvml.nvmlDeviceGetMaxPcieLinkGeneration, constant=True),
    _one("pcie.lanes", int, nvml.nvmlDeviceGetCurrPcieLinkWidth),
    _one("pcie.lanes_max", int, nvml.nvmlDeviceGetMaxPcieLinkWidth, constant=True),
    _one("pcie.replays_total", int, nvml.nvmlDeviceGetPcieReplayCounter),
    # ECC is switched by a reset: the mode now, not the pending one.
    _one("ecc.is_enabled", lambda modes: bool(modes[0]), nvml.nvmlDeviceGetEccMode),
    _ecc_errors(
        "volatile_corrected_total",
        nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
        nvml.NVML_VOLATILE_ECC,
    ),
    _ecc_errors(
        "volatile_uncorrected_total",
        nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        nvml.NVML_VOLATILE_ECC,
    ),
    _ecc_errors(
        "aggregate_corrected_total",
        nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
        nvml.NVML_AGGREGATE_ECC,
    ),
    _ecc_errors(
        "aggregate_uncorrected_total",
        nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        nvml.NVML_AGGREGATE_ECC,
    ),
    Reading(
        (
            "ecc.rows_remapped_corrected_total",
            "ecc.rows_remapped_uncorrected_total",
            "ecc.is_remap_pending",
            "ecc.is_remap_failed",
        ),
        (nvml.nvmlDeviceGetRemappedRows,),
        _remapped_rows,
    ),
)
