"""The NVML stub: built with the C compiler, loaded in place of the driver's library."""

import ctypes
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynvml
import pytest

from agent.collectors.gpu import GpuSource
from agent.collectors.nvml.backend import NvmlBackend
from agent.collectors.nvml.device import NvmlGpu
from schemas.metrics import GpuMetrics

_SOURCE = Path(__file__).with_name("nvml_stub.c")
_WHOLE_GPU = 0xFFFFFFFF
_PATIENCE_SECONDS = 30.0
NOW_NS = 1_700_000_000_000_000_000
_nvml: Any = pynvml  # the binding has no types

# What `nvidia-smi -q` shows for a busy H100, in NVML's units; written by hand, not a capture.
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
    "mig_mode": "0 0",
    "pcie_generation": "4",
    "pcie_generation_max": "5",
    "pcie_lanes": "16",
    "pcie_lanes_max": "16",
    "pcie_replays": "3",
    "ecc_mode": "1 1",
    "ecc_volatile_corrected": "5",
    "ecc_volatile_uncorrected": "1",
    "ecc_aggregate_corrected": "50",
    "ecc_aggregate_uncorrected": "10",
    "rows": "2 1 1 0",
    "fields": "1",
    "field.82": "u 71",  # MEMORY_TEMP
    "field.230": "u 0",  # GET_GPU_RECOVERY_ACTION
    "field.197": "q 1000000",  # PCIE_COUNT_TX_BYTES
    "field.198": "q 3000000",  # PCIE_COUNT_RX_BYTES
    "field.91": "u 2",  # NVLINK_LINK_COUNT
    "field.138.all": "q 2000",  # NVLINK_THROUGHPUT_DATA_TX, KiB
    "field.139.all": "q 4000",  # NVLINK_THROUGHPUT_DATA_RX, KiB
    "field.38": "u 7",  # NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL
    "field.52": "u 8",  # NVLINK_REPLAY_ERROR_COUNT_TOTAL
    "field.59": "u 9",  # NVLINK_RECOVERY_ERROR_COUNT_TOTAL
    "nvlink0": "1",
    "nvlink1": "1",
    "gpm": "1",
    "gpm_sample": "1",
    "gpm.2": "61.5",  # SM_UTIL
    "gpm.3": "33.0",  # SM_OCCUPANCY
    "gpm.5": "20.0",  # ANY_TENSOR_UTIL
    "gpm.10": "75.0",  # DRAM_BW_UTIL
    "gpm.20": "3.0",  # PCIE_TX_PER_SEC, MiB/s
    "gpm.21": "4.0",
    "gpm.60": "6.0",  # NVLINK_TOTAL_RX_PER_SEC, MiB/s
    "gpm.61": "5.0",
    "events": "1",
    "event": f"0 0 {_WHOLE_GPU}",
}


class NvmlStub:
    """Steers the stub by its file: what every call of every GPU answers from now on."""

    def __init__(self, values_file: Path, gpus: int, library: ctypes.CDLL | None = None) -> None:
        self._library = library
        self._file = values_file
        self._events = 0
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
        if library is not None:
            library.nvml_stub_use(str(values_file).encode())

    def set(self, key: str, value: str) -> None:
        """Let the call answer `value`."""
        self._values[key] = value
        self._write()

    def fail(self, key: str, code: int) -> None:
        """Let the call return NVML error `code`."""
        self.set(key, f"!{code}")

    def hang(self, key: str) -> None:
        """Let the call hang until it is told otherwise."""
        self.set(key, "~")

    def remove(self, *keys: str) -> None:
        """Let the calls not be supported."""
        for key in keys:
            del self._values[key]
        self._write()

    def xid(self, gpu: int, xid: int, gpu_instance: int = _WHOLE_GPU) -> None:
        """Report an XID error."""
        self._events += 1
        self.set(f"{gpu}.event", f"{self._events} {xid} {gpu_instance}")

    def add_mig(self, gpu: int, index: int, gpu_instance: int) -> None:
        """Switch MIG on and add an instance, a third of an H100."""
        prefix = f"{gpu}.mig{index}"
        self._values |= {
            f"{gpu}.mig_mode": "1 1",
            f"{gpu}.mig_max": "7",
            f"{prefix}.handle": "1",
            f"{prefix}.uuid": f"MIG-5f2a1c9e-0000-0000-000{gpu}-00000000000{index}",
            f"{prefix}.name": "NVIDIA H100 80GB HBM3 MIG 2g.20gb",
            f"{prefix}.gpu_instance": str(gpu_instance),
            f"{prefix}.compute_instance": "0",
            f"{prefix}.memory": "20937965568 10000000000 10937965568 0",
            f"{prefix}.processes": "4242 9000000000",
            f"{gpu}.gi{gpu_instance}.gpm_sample": "1",
            f"{gpu}.gi{gpu_instance}.gpm.2": "25",
            f"{gpu}.gi{gpu_instance}.gpm.10": "50",
        }
        # With MIG on, the whole GPU tells neither of these.
        self._values[f"{gpu}.utilization"] = self._values[f"{gpu}.gpm_sample"] = "!3"
        self._write()

    def remove_mig(self, gpu: int, index: int) -> None:
        """Destroy an instance."""
        prefix = f"{gpu}.mig{index}."
        self._values = {k: v for k, v in self._values.items() if not k.startswith(prefix)}
        self._write()

    def calls(self, key: str) -> int:
        """How often the call was made."""
        assert self._library is not None
        return int(self._library.nvml_stub_calls(key.encode()))

    def release(self) -> None:
        """Let all that hangs return: without its file every call is unsupported."""
        self._file.unlink()

    def _write(self) -> None:
        text = "".join(f"{key} {value}\n" for key, value in self._values.items())
        whole = self._file.with_suffix(".new")
        whole.write_text(text)
        os.replace(whole, self._file)  # a call never sees half a file


class OpenedGpus:
    """The backend, opened at the first sample, and all its GPUs asked in this thread.

    It is always `now_ns`, yet to one GPU five seconds seem to pass between two samples.
    """

    def __init__(self) -> None:
        self.now_ns = NOW_NS
        ticks = itertools.count(10.0, 5.0)
        self.backend = NvmlBackend(
            node="n1", pool="p1", clock=lambda: self.now_ns, monotonic=lambda: next(ticks)
        )
        self._sources: list[GpuSource] | None = None

    def sample(self) -> list[GpuMetrics]:
        """One sample of every GPU."""
        if self._sources is None:
            self._sources = self.backend.open()
        return [gpu for source in self._sources for gpu in source.sample()]

    def sample_until(self, condition: Callable[[GpuMetrics], bool]) -> GpuMetrics:
        """Samples of the first GPU until one is as wanted: what its XID watch hears takes time."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition(gpu := self.sample()[0]):
            assert time.monotonic() < deadline, gpu
        return gpu

    def reopen(self) -> None:
        """Ask with new sources from now on."""
        self._sources = self.backend.open()

    def wait_for_watches(self) -> None:
        """Return when no GPU is listened to any more."""
        for source in self._sources or ():
            assert isinstance(source, NvmlGpu)
            assert source.watch is not None
            assert source.watch.has_stopped(_PATIENCE_SECONDS)

    def close(self) -> None:
        """End its threads."""
        self.backend.close()


def build_stub(folder: Path, *, is_old: bool = False) -> Path:
    """Compile the stub; the test is skipped where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the NVML stub")
    library = folder / "libnvidia-ml.so.1"  # the name that the binding loads
    options = ["-O1", "-Wall", "-fPIC", "-shared", "-pthread", *(["-DOLD_DRIVER"] * is_old)]
    subprocess.run([compiler, *options, "-o", str(library), str(_SOURCE)], check=True)
    return library


@contextmanager
def nvml_stub(library: Path, values_file: Path, *, gpus: int = 1) -> Iterator[NvmlStub]:
    """NVML answers from the stub; afterwards the binding is as if it had never been loaded."""
    loaded = ctypes.CDLL(str(library))
    _nvml._nvmlGetFunctionPointer_cache.clear()
    _nvml.nvmlLib = loaded
    stub = NvmlStub(values_file, gpus, loaded)
    try:
        yield stub
    finally:
        stub.release()
        _nvml.nvmlLib = None
        _nvml._nvmlGetFunctionPointer_cache.clear()
