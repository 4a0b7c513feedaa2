"""What is asked of an AMD GPU, and how amdsmi's answers become base units.

Every function takes the amdsmi module and a GPU's handle. The units are those of amdsmi.h and of
amd_smi.cc where the two differ.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from agent.collectors.gpu import share
from schemas.gpu import GpuProcess

# amdsmi's word for a value it does not have, and what is left where its binding misses to say it.
_NOT_AVAILABLE = ("N/A", None, 2**32 - 1, 2**64 - 1)
_MEGA = 1e6
_PER_MICRO = 1e6
_MEBIBYTE = 1 << 20
_FAN_MAX = 255  # amdsmi.h, AMDSMI_MAX_FAN_SPEED
# MT/s per lane to the generation of PCIe.
_GENERATIONS = {2500: 1, 5000: 2, 8000: 3, 16000: 4, 32000: 5, 64000: 6}


class Reading(NamedTuple):
    """One question to amdsmi; `ask` gives the values of `fields` in base units.

    A `constant` answer is asked for only once.
    """

    fields: tuple[str, ...]
    ask: Callable[[Any, Any], tuple[Any, ...]]
    constant: bool = False


def _number(value: Any, *, per: float = 1) -> float | None:  # noqa: ANN401 - number or "N/A"
    return None if value in _NOT_AVAILABLE else value / per


def _count(value: Any) -> int | None:  # noqa: ANN401 - number or "N/A"
    return None if value in _NOT_AVAILABLE else int(value)


def _name(value: Any) -> str | None:  # noqa: ANN401 - text or "N/A"
    return None if value in ("", *_NOT_AVAILABLE) else str(value)


def _share(value: Any, whole: float = 100) -> float | None:  # noqa: ANN401 - number or "N/A"
    number = _number(value)
    return None if number is None else share(number, whole)


def _activity(amdsmi: Any, handle: Any) -> tuple[Any, ...]:  # noqa: ANN401
    answer = amdsmi.amdsmi_get_gpu_activity(handle)
    return _share(answer["gfx_activity"]), _share(answer["umc_activity"])


def _memory(amdsmi: Any, handle: Any) -> tuple[Any, ...]:  # noqa: ANN401
    answer = amdsmi.amdsmi_get_gpu_vram_usage(handle)
    total, used = (int(answer[key]) * _MEBIBYTE for key in ("vram_total", "vram_used"))
    utilization = min(1.0, used / total) if total else None
    return total, used, max(0, total - used), utilization


def _temperature(amdsmi: Any, handle: Any, metric: str) -> tuple[float]:  # noqa: ANN401
    """Of the hot spot, in whole degrees (amd_smi.cc divides); of the edge where there is none."""
    kinds, metrics = amdsmi.AmdSmiTemperatureType, amdsmi.AmdSmiTemperatureMetric
    try:
        answer = amdsmi.amdsmi_get_temp_metric(handle, kinds.HOTSPOT, metrics[metric])
    except amdsmi.AmdSmiException:
        answer = amdsmi.amdsmi_get_temp_metric(handle, kinds.EDGE, metrics[metric])
    return (float(answer),)


def _memory_temperature(amdsmi: Any, handle: Any) -> tuple[float]:  # noqa: ANN401
    kind = amdsmi.AmdSmiTemperatureType.VRAM
    current = amdsmi.AmdSmiTemperatureMetric.CURRENT
    return (float(amdsmi.amdsmi_get_temp_metric(handle, kind, current)),)


def _power(amdsmi: Any, handle: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Watts. Which of the three is filled in depends on the GPU and the release."""
    answer = amdsmi.amdsmi_get_power_info(handle)
    keys = ("socket_power", "current_socket_power", "average_socket_power")
    watts = (_number(answer.get(key)) for key in keys)
    return (next((one for one in watts if one is not None), None),)


def _power_limit(amdsmi: Any, handle: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return (_number(amdsmi.amdsmi_get_power_cap_info(handle)["power_cap"], per=_PER_MICRO),)


def _energy(amdsmi: Any, handle: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """A counter of steps, each of so many microjoules."""
    answer = amdsmi.amdsmi_get_energy_count(handle)
    return (answer["energy_accumulator"] * answer["counter_resolution"] / _PER_MICRO,)


def _clock(amdsmi: Any, handle: Any, kind: str) -> tuple[Any, ...]:  # noqa: ANN401
    answer = amdsmi.amdsmi_get_clock_info(handle, amdsmi.AmdSmiClkType[kind])
    megahertz = _number(answer["clk"] if "clk" in answer else answer["cur_clk"])
    return (None if megahertz is None else megahertz * _MEGA,)


def _pcie(amdsmi: Any, handle: Any) -> tuple[Any, ...]:  # noqa: ANN401
    answer = amdsmi.amdsmi_get_pcie_info(handle)
    fixed, now = answer["pcie_static"], answer["pcie_metric"]
    return (
        _GENERATIONS.get(now["pcie_speed"]),
        _count(fixed["pcie_interface_version"]),
        _count(now["pcie_width"]),
        _count(fixed["max_pcie_width"]),
        _count(now["pcie_replay_count"]),
    )


def _ecc(amdsmi: Any, handle: Any) -> tuple[Any, ...]:  # noqa: ANN401
    answer = amdsmi.amdsmi_get_gpu_total_ecc_count(handle)
    return _count(answer["correctable_count"]), _count(answer["uncorrectable_count"])


def _processes(amdsmi: Any, handle: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return (
        [
            GpuProcess(
                pid=process["pid"],
                name=_name(process["name"]),
                memory_used_bytes=_count(process["memory_usage"]["vram_mem"]),
            )
            for process in amdsmi.amdsmi_get_gpu_process_list(handle)
        ],
    )


READINGS = (
    Reading(("uuid",), lambda a, h: (a.amdsmi_get_gpu_device_uuid(h),), constant=True),
    Reading(
        ("name",),
        lambda a, h: (_name(a.amdsmi_get_gpu_asic_info(h)["market_name"]),),
        constant=True,
    ),
    Reading(
        ("driver_version",),
        lambda a, h: (_name(a.amdsmi_get_gpu_driver_info(h)["driver_version"]),),
        constant=True,
    ),
    Reading(("kernel_activity_ratio", "memory_activity_ratio"), _activity),
    Reading(
        (
            "memory_total_bytes",
            "memory_used_bytes",
            "memory_free_bytes",
            "memory_utilization_ratio",
        ),
        _memory,
    ),
    Reading(("temperature_celsius",), lambda a, h: _temperature(a, h, "CURRENT")),
    Reading(("temperature_memory_celsius",), _memory_temperature),
    Reading(("temperature_slowdown_celsius",), lambda a, h: _temperature(a, h, "CRITICAL")),
    Reading(("temperature_shutdown_celsius",), lambda a, h: _temperature(a, h, "EMERGENCY")),
    Reading(("power_watts",), _power),
    Reading(("power_limit_watts",), _power_limit),
    Reading(("energy_joules_total",), _energy),
    Reading(("clock_graphics_hertz",), lambda a, h: _clock(a, h, "GFX")),
    Reading(("clock_memory_hertz",), lambda a, h: _clock(a, h, "MEM")),
    Reading(("fan_ratio",), lambda a, h: (_share(a.amdsmi_get_gpu_fan_speed(h, 0), _FAN_MAX),)),
    Reading(
        (
            "pcie.generation",
            "pcie.generation_max",
            "pcie.lanes",
            "pcie.lanes_max",
            "pcie.replays_total",
        ),
        _pcie,
    ),
    Reading(("ecc.volatile_corrected_total", "ecc.volatile_uncorrected_total"), _ecc),
    Reading(("processes",), _processes),
)
