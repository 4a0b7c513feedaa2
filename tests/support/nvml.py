"""The NVML stub: built with the C compiler, loaded in place of the driver's library."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynvml
import pytest

_SOURCE = Path(__file__).with_name("nvml_stub.c")
_nvml: Any = pynvml  # the binding has no types

# What `nvidia-smi -q` shows for a busy H100, in NVML's units.
BUSY_GPU = {
    "handle": "1",
    "name": "NVIDIA H100 80GB HBM3",
    "utilization": "93 41",
    "encoder": "7",
    "decoder": "12",
    "memory": "85520809984 70000000000 14899000000 621809984",
    "memory_v1": "85520809984 70621809984 14899000000",
    "temperature": "64",
    "temperature_old": "63",
    "threshold0": "92",
    "threshold1": "87",
    "power": "651234",
    "power_limit": "700000",
    "energy": "123456789",
    "clock0": "1980",
    "clock1": "1965",
    "clock2": "2619",
    "reasons": "4",
    "state": "0",
    "fan": "30",
    "processes": "4242 68000000000 17 0",
}


class NvmlStub:
    """Steers the stub: what every call of every GPU answers from now on."""

    def __init__(self, library: ctypes.CDLL, values_file: Path, gpus: int) -> None:
        self._library = library
        self._file = values_file
        self._values = {
            "init": "0",
            "shutdown": "0",
            "driver": "580.95.05",
            "count": str(gpus),
            "process.4242": "/usr/bin/python3",
        }
        for index in range(gpus):
            self._values |= {f"{index}.{key}": value for key, value in BUSY_GPU.items()}
            self._values[f"{index}.uuid"] = f"GPU-5f2a1c9e-0000-0000-0000-00000000000{index}"
        self._write()
        library.nvml_stub_use(str(values_file).encode())

    def set(self, key: str, value: str) -> None:
        """Let the call answer `value`."""
        self._values[key] = value
        self._write()

    def fail(self, key: str, code: int) -> None:
        """Let the call return NVML error `code`."""
        self.set(key, f"!{code}")

    def calls(self, key: str) -> int:
        """How often the call was made."""
        return int(self._library.nvml_stub_calls(key.encode()))

    def _write(self) -> None:
        self._file.write_text("".join(f"{key} {value}\n" for key, value in self._values.items()))


def build_stub(folder: Path) -> Path:
    """Compile the stub; the test is skipped where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the NVML stub")
    library = folder / "libnvidia-ml-stub.so"
    command = [compiler, "-O1", "-Wall", "-fPIC", "-shared", "-o", str(library), str(_SOURCE)]
    subprocess.run(command, check=True)
    return library


@contextmanager
def nvml_stub(library: Path, values_file: Path, *, gpus: int = 1) -> Iterator[NvmlStub]:
    """NVML answers from the stub; afterwards the binding is as if it had never been loaded."""
    loaded = ctypes.CDLL(str(library))
    _nvml._nvmlGetFunctionPointer_cache.clear()
    _nvml.nvmlLib = loaded
    try:
        yield NvmlStub(loaded, values_file, gpus)
    finally:
        _nvml.nvmlLib = None
        _nvml._nvmlGetFunctionPointer_cache.clear()
