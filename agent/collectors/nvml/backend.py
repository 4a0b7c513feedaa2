"""The NVIDIA driver: opened, its GPUs listed, closed."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.collectors.gpu import GpuSource, NoGpuError
from agent.collectors.nvml.binding import nvml, or_none
from agent.collectors.nvml.device import NvmlGpu
from agent.collectors.nvml.xid import WAIT_MILLISECONDS, XidLog
from schemas.labels import NO_LABELS

# The kernel driver's own list: one folder for each GPU it drives.
_DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
_START_ERRORS = {
    nvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA driver is installed but not loaded: try `nvidia-smi` or `modprobe nvidia`"
    ),
    nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA library and the loaded driver differ in version, as after an upgrade: "
        "reboot, or reload the driver and start the agent again"
    ),
    nvml.NVML_ERROR_NO_PERMISSION: "no permission to talk to the NVIDIA driver: /dev/nvidia*",
}


class NvmlBackend:
    """Every NVIDIA GPU of this node, by NVML."""

    name = "nvml"

    def __init__(
        self,
        *,
        node: str,
        pool: str | None,
        labels: Mapping[str, str] = NO_LABELS,
        driver_folder: Path = _DRIVER_FOLDER,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._pool = pool
        self._labels = dict(labels)
        self._driver_folder = driver_folder
        self._clock = clock
        self._monotonic = monotonic
        self._is_open = False
        self._gpus: list[NvmlGpu] = []
        self._listed: set[str] = set()
        self._logs: dict[str, XidLog] = {}
        self._logs_lock = threading.Lock()

    def open(self) -> list[GpuSource]:
        """Load the driver's library and count the GPUs. Blocks: seconds without persistence mode.

        Raises:
            NoGpuError: there is nothing to measure, and why.
        """
        self._listed = self._list()
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
            or_none(nvml.nvmlShutdown)
            raise NoGpuError(f"NVML does not count GPUs: {error}", degraded=True) from error
        if count == 0:
            or_none(nvml.nvmlShutdown)
            raise NoGpuError("no NVIDIA GPU: the driver sees none", degraded=False)
        self._is_open = True
        driver_version = or_none(nvml.nvmlSystemGetDriverVersion)
        self._gpus = [
            NvmlGpu(
                index,
                node=self._node,
                pool=self._pool,
                labels=self._labels,
                driver_version=driver_version,
                log_of=self._log_of,
                clock=self._clock,
                monotonic=self._monotonic,
            )
            for index in range(count)
        ]
        return list(self._gpus)

    def has_changed(self) -> bool:
        """Whether the kernel driver lists other GPUs than at `open`; NVML itself would not tell."""
        return self._list() != self._listed

    def close(self) -> None:
        """Shut NVML down; errors do not matter any more."""
        for gpu in self._gpus:
            gpu.close()
        watches = [gpu.watch for gpu in self._gpus if gpu.watch is not None]
        deadline = time.monotonic() + 2 * WAIT_MILLISECONDS / 1000
        # Under a call that still waits NVML may not be shut down; then it stays as it is.
        stopped = [watch.has_stopped(max(0.0, deadline - time.monotonic())) for watch in watches]
        if self._is_open and all(stopped):
            or_none(nvml.nvmlShutdown)
        self._is_open, self._gpus = False, []

    def _list(self) -> set[str]:
        try:
            return {folder.name for folder in self._driver_folder.iterdir()}
        except OSError:
            return set()  # not Linux, or out of sight in a container

    def _log_of(self, uuid: str) -> XidLog:
        with self._logs_lock:
            return self._logs.setdefault(uuid, XidLog(self._clock))
