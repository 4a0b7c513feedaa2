"""NVIDIA GPUs, by NVML (the one pynvml module), and what any GPU backend must offer."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import pynvml

from schemas.metrics import GpuMetrics, GpuProcess
from schemas.units import instant, token

nvml: Any = pynvml  # the binding has no types

_PERCENT = 100
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

# The GPU itself is out of reach: its other readings would fail, or block for seconds, as well.
_GPU_GONE = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)
# This call will never work on this GPU with this driver; an older one may.
_NOT_OFFERED = (
    nvml.NVML_ERROR_NOT_SUPPORTED,
    nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    nvml.NVML_ERROR_DEPRECATED,
)
_START_ERRORS = {
    nvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA driver is installed but not loaded: try `nvidia-smi` or `modprobe nvidia`"
    ),
    nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA library and the loaded driver differ in version, as after an upgrade: "
        "reboot, or reload the driver"
    ),
    nvml.NVML_ERROR_NO_PERMISSION: "no permission to talk to the NVIDIA driver: /dev/nvidia*",
}


class GpuBackend(Protocol):
    """A source of GPU samples. Blocking; called from one thread."""

    @property
    def name(self) -> str:
        """What the source is called in health and logs."""
        ...

    def sample(self) -> list[GpuMetrics]:
        """Every GPU of the node, in a stable order; one that fails is there with its errors."""
        ...

    def close(self) -> None:
        """Let go of the driver; the backend cannot be used again."""
        ...


class NoGpuError(Exception):
    """There is no GPU to measure.

    `degraded` is False on a node that simply has none (no driver library, or no device) and True
    where there should be one but the driver does not work; `text` says what to do.
    """

    def __init__(self, text: str, *, degraded: bool) -> None:
        super().__init__(text)
        self.text = text
        self.degraded = degraded


class _Reading(NamedTuple):
    """One question to NVML.

    `calls` are ways to ask it, newest first; `convert` turns the answer into the values of
    `fields`, in base units. A `constant` answer is asked for only once.
    """

    fields: tuple[str, ...]
    calls: tuple[Callable[[Any], Any], ...]
    convert: Callable[[Any], tuple[Any, ...]]
    constant: bool = False


class _Device:
    """One GPU and what we learned about it: its identity, and which call answers which reading."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.handle: Any = None
        self.uuid = ""
        self.name: str | None = None
        # By the first field of a reading: the call to make next, or why none may be made, or the
        # answer where it never changes.
        self.call_of: dict[str, int] = {}
        self.forbidden: dict[str, str] = {}
        self.constants: dict[str, dict[str, Any]] = {}

    def identify(self) -> None:
        """Ask for handle, UUID and name, once.

        Raises:
            NVMLError: the GPU does not answer.
        """
        if self.handle is None:
            handle = nvml.nvmlDeviceGetHandleByIndex(self.index)
            self.uuid = nvml.nvmlDeviceGetUUID(handle)
            self.name = _or_none(nvml.nvmlDeviceGetName, handle)
            self.handle = handle


class NvmlBackend:
    """Every NVIDIA GPU of this node, by NVML.

    Each reading is guarded on its own. A call that the GPU or driver does not offer is replaced by
    its older form, and where there is none left the field stays null without an error; a call we
    may not make stays null with its error; neither is made again. Any other failure is an error of
    this one sample. A GPU that fell off the bus stays in the list: its identity, and
    `errors["gpu"]`.
    """

    name = "nvml"

    def __init__(
        self,
        count: int,
        *,
        node: str,
        pool: str | None,
        clock: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._devices = [_Device(index) for index in range(count)]
        self._node = node
        self._pool = pool
        self._clock = clock
        self._monotonic = monotonic
        self._sampled_at: float | None = None
        self._driver_version = _or_none(nvml.nvmlSystemGetDriverVersion)

    @classmethod
    def open(
        cls,
        *,
        node: str,
        pool: str | None,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> "NvmlBackend":
        """Load the driver's library and count the GPUs. Blocks: seconds without persistence mode.

        Raises:
            NoGpuError: there is nothing to measure, and why.
        """
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                raise NoGpuError("no NVIDIA GPU: no driver library", degraded=False) from error
            text = _START_ERRORS.get(error.value, f"NVML does not start: {error}")
            raise NoGpuError(text, degraded=True) from error
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            _or_none(nvml.nvmlShutdown)
            raise NoGpuError(f"NVML does not count GPUs: {error}", degraded=True) from error
        if count == 0:
            _or_none(nvml.nvmlShutdown)
            raise NoGpuError("no NVIDIA GPU: the driver sees none", degraded=False)
        return cls(count, node=node, pool=pool, clock=clock, monotonic=monotonic)

    def sample(self) -> list[GpuMetrics]:
        """One sample of every GPU, in NVML's order."""
        now = self._monotonic()
        interval = 0.0 if self._sampled_at is None else max(0.0, now - self._sampled_at)
        self._sampled_at = now
        return [self._measure(device, interval) for device in self._devices]

    def close(self) -> None:
        """Shut NVML down; errors do not matter any more."""
        _or_none(nvml.nvmlShutdown)

    def _measure(self, device: _Device, interval_seconds: float) -> GpuMetrics:
        values: dict[str, Any] = {}
        errors: dict[str, str] = {}
        try:
            device.identify()
            for reading in _READINGS:
                values |= _read(device, reading, errors)
        except nvml.NVMLError as error:  # what `_read` does not handle: the GPU is gone
            errors = {"gpu": str(error)}
            values = {}
        return GpuMetrics(
            node=self._node,
            # A GPU that has not answered since we started has no identity but its place.
            gpu=token(device.uuid) if device.uuid else f"index-{device.index}",
            uuid=device.uuid,
            index=device.index,
            name=device.name,
            driver_version=self._driver_version,
            pool=self._pool,
            observed_at=instant(self._clock()),
            interval_seconds=interval_seconds,
            utilization_source="nvml_utilization" if "utilization_ratio" in values else None,
            errors=errors,
            **values,
        )


def _read(device: _Device, reading: _Reading, errors: dict[str, str]) -> dict[str, Any]:
    """The reading's fields, or nothing: see `NvmlBackend` for what happens to a failure.

    Raises:
        NVMLError: the GPU is gone.
    """
    key = reading.fields[0]
    if key in device.constants:
        return device.constants[key]
    if key in device.forbidden:
        errors.update(dict.fromkeys(reading.fields, device.forbidden[key]))
        return {}
    while (number := device.call_of.get(key, 0)) < len(reading.calls):
        try:
            answer = reading.calls[number](device.handle)
        except nvml.NVMLError as error:
            if error.value in _GPU_GONE:
                raise
            if error.value in _NOT_OFFERED:
                device.call_of[key] = number + 1
                continue
            if error.value == nvml.NVML_ERROR_NO_PERMISSION:
                device.forbidden[key] = str(error)
            errors.update(dict.fromkeys(reading.fields, str(error)))
            return {}
        values = dict(zip(reading.fields, reading.convert(answer), strict=True))
        if reading.constant:
            device.constants[key] = values
        return values
    return {}


def _or_none(call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - NVML's answer
    """The answer, or None: for what is nice to know and not a measurement."""
    try:
        return call(*arguments)
    except (nvml.NVMLError, UnicodeDecodeError):
        return None


def _share(percent: int) -> float:
    """Percent to a ratio. NVML rounds and averages, and may say 101 %: no more than all of it."""
    return min(1.0, percent / _PERCENT)


def _milli(number: int) -> float:
    return number / _PER_MILLI


def _mega(number: int) -> float:
    return number * _PER_MEGA


def _memory_v2(handle: object) -> Any:  # noqa: ANN401 - a ctypes structure
    return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)


def _memory(info: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a ctypes structure
    # The first version has no `reserved`: there the driver's own share counts as used.
    reserved = getattr(info, "reserved", None)
    utilization = info.used / info.total if info.total else None
    return info.total, info.used, info.free, reserved, utilization


def _of(call: Callable[..., Any], which: int) -> Callable[[Any], Any]:
    """The NVML call with its second argument: a sensor, a threshold, a clock."""
    return lambda handle: call(handle, which)


def _throttle_reasons(mask: int) -> list[str]:
    return [name for bit, name in _THROTTLE_REASONS.items() if mask & bit]


def _performance_state(state: int) -> str | None:
    return None if state == _PERFORMANCE_STATE_UNKNOWN else f"P{state}"


def _processes(running: list[Any]) -> list[GpuProcess]:
    """Pids are the host's; their names are out of sight from inside a container."""
    return [
        GpuProcess(
            pid=process.pid,
            name=_or_none(nvml.nvmlSystemGetProcessName, process.pid),
            memory_used_bytes=process.usedGpuMemory,
        )
        for process in running
    ]


def _one(
    field: str,
    convert: Callable[[Any], object],
    *calls: Callable[[Any], Any],
    constant: bool = False,
) -> _Reading:
    """A reading of a single field."""
    return _Reading((field,), calls, lambda answer: (convert(answer),), constant)


_READINGS = (
    _Reading(
        ("utilization_ratio", "memory_activity_ratio"),
        (nvml.nvmlDeviceGetUtilizationRates,),
        lambda rates: (_share(rates.gpu), _share(rates.memory)),
    ),
    _Reading(
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
    # The encoder and decoder calls answer with a percentage and a sampling period.
    _one(
        "encoder_utilization_ratio",
        lambda answer: _share(answer[0]),
        nvml.nvmlDeviceGetEncoderUtilization,
    ),
    _one(
        "decoder_utilization_ratio",
        lambda answer: _share(answer[0]),
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
        _throttle_reasons,
        nvml.nvmlDeviceGetCurrentClocksEventReasons,
        nvml.nvmlDeviceGetCurrentClocksThrottleReasons,
    ),
    _one("performance_state", _performance_state, nvml.nvmlDeviceGetPerformanceState),
    _one("fan_ratio", _share, nvml.nvmlDeviceGetFanSpeed),
    _one(
        "processes",
        _processes,
        nvml.nvmlDeviceGetComputeRunningProcesses_v3,
        nvml.nvmlDeviceGetComputeRunningProcesses_v2,
    ),
)
