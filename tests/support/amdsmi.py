"""A stand-in for ROCm's Python package amdsmi, for tests.

The names, the shapes of the answers and their units follow the published interface (amdsmi 7.0:
amdsmi_interface.py and amdsmi.h); the values were written by hand for a busy MI300X, they are not
a capture.
"""

import copy
import enum
from types import ModuleType
from typing import Any

NOT_SUPPORTED, NO_PERMISSION, IO_ERROR = 2, 10, 12

BUSY_GPU: dict[str | tuple[str, ...], Any] = {
    "amdsmi_get_gpu_device_uuid": "e2ff74a1-0000-1000-80f5-1e4c0c1d2a3b",
    "amdsmi_get_gpu_asic_info": {"market_name": "AMD Instinct MI300X"},
    "amdsmi_get_gpu_driver_info": {"driver_name": "amdgpu", "driver_version": "6.14.14"},
    "amdsmi_get_gpu_activity": {"gfx_activity": 87, "umc_activity": 41, "mm_activity": "N/A"},
    "amdsmi_get_gpu_vram_usage": {"vram_total": 196_592, "vram_used": 150_000},  # MiB
    ("amdsmi_get_temp_metric", "HOTSPOT", "CURRENT"): 71,
    ("amdsmi_get_temp_metric", "HOTSPOT", "CRITICAL"): 100,
    ("amdsmi_get_temp_metric", "HOTSPOT", "EMERGENCY"): 105,
    ("amdsmi_get_temp_metric", "EDGE", "CURRENT"): 55,
    ("amdsmi_get_temp_metric", "VRAM", "CURRENT"): 62,
    "amdsmi_get_power_info": {
        "socket_power": 640,
        "current_socket_power": 640,
        "average_socket_power": "N/A",
    },
    "amdsmi_get_power_cap_info": {"power_cap": 750_000_000},  # µW
    "amdsmi_get_energy_count": {
        "energy_accumulator": 2_000_000_000,
        "counter_resolution": 15.25,  # µJ
        "timestamp": 1,
    },
    ("amdsmi_get_clock_info", "GFX"): {"clk": 2100, "min_clk": 132, "max_clk": 2100},
    ("amdsmi_get_clock_info", "MEM"): {"clk": 1300, "min_clk": 900, "max_clk": 1300},
    "amdsmi_get_gpu_fan_speed": 51,
    "amdsmi_get_pcie_info": {
        "pcie_static": {"max_pcie_width": 16, "pcie_interface_version": 5, "slot_type": "OAM"},
        "pcie_metric": {"pcie_width": 16, "pcie_speed": 32_000, "pcie_replay_count": 4},
    },
    "amdsmi_get_gpu_total_ecc_count": {
        "correctable_count": 6,
        "uncorrectable_count": 1,
        "deferred_count": 0,
    },
    "amdsmi_get_gpu_process_list": [
        {"name": "python3", "pid": 4242, "memory_usage": {"vram_mem": 150_000_000_000}},
        {"name": "N/A", "pid": 17, "memory_usage": {"vram_mem": 0}},
    ],
}


class AmdSmiException(Exception):
    """What all of amdsmi's errors are."""


class AmdSmiLibraryException(AmdSmiException):
    """An error with its code, as amdsmi_exception.py has it."""

    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code
        self.err_info = f"AMDSMI_STATUS_{err_code} - an error of the stand-in"


class AmdSmiInitFlags(enum.IntEnum):
    INIT_AMD_GPUS = 2


class AmdSmiTemperatureType(enum.IntEnum):
    EDGE = 0
    HOTSPOT = 1
    VRAM = 3


class AmdSmiTemperatureMetric(enum.IntEnum):
    CURRENT = 0
    CRITICAL = 6
    EMERGENCY = 8


class AmdSmiClkType(enum.IntEnum):
    GFX = 1
    MEM = 4


class AmdSmi(ModuleType):
    """The package: its answers by function, or by function and the names of its arguments.

    An answer that is an exception is raised; one that is missing makes the function be missing.
    """

    AmdSmiException = AmdSmiException
    AmdSmiInitFlags = AmdSmiInitFlags
    AmdSmiTemperatureType = AmdSmiTemperatureType
    AmdSmiTemperatureMetric = AmdSmiTemperatureMetric
    AmdSmiClkType = AmdSmiClkType

    def __init__(self, gpus: int = 1) -> None:
        super().__init__("amdsmi")
        self.answers: dict[Any, Any] = copy.deepcopy(BUSY_GPU)
        self.answers["amdsmi_init"] = None
        self.answers["amdsmi_shut_down"] = None
        self.gpus = gpus
        self.calls: list[str] = []

    def amdsmi_get_processor_handles(self) -> list[int]:
        return list(range(self.gpus))

    def fail(self, name: Any, code: int) -> None:
        """Let the function raise this error."""
        self.answers[name] = AmdSmiLibraryException(code)

    def __getattr__(self, name: str) -> Any:
        if not any(name in (key, key[0]) for key in self.answers):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            names = [value.name for value in arguments if isinstance(value, enum.Enum)]
            answer = self.answers.get(name)
            if name not in self.answers:
                answer = self.answers.get((name, *names), AmdSmiLibraryException(NOT_SUPPORTED))
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call
