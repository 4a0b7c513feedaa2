"""Activity of SMs, tensor cores and memory, from the GPU's own counters (GPM, Hopper and newer)."""

import math
from collections.abc import Callable
from typing import Any

from agent.collectors.nvml.binding import GPU_GONE, NOT_OFFERED, nvml, or_none

_PERCENT = 100
_MEBIBYTE = 1 << 20


def _share(percent: float) -> float:
    return min(1.0, percent / _PERCENT)


def _from_mebibytes(number: float) -> float:
    return number * _MEBIBYTE


_METRICS: dict[int, tuple[str, Callable[[float], float]]] = {
    nvml.NVML_GPM_METRIC_SM_UTIL: ("sm_activity_ratio", _share),
    nvml.NVML_GPM_METRIC_SM_OCCUPANCY: ("sm_occupancy_ratio", _share),
    nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: ("tensor_activity_ratio", _share),
    nvml.NVML_GPM_METRIC_DRAM_BW_UTIL: ("dram_activity_ratio", _share),
    nvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC: ("pcie.sent_bytes_per_second", _from_mebibytes),
    nvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC: ("pcie.received_bytes_per_second", _from_mebibytes),
    nvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC: (
        "nvlink.sent_bytes_per_second",
        _from_mebibytes,
    ),
    nvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC: (
        "nvlink.received_bytes_per_second",
        _from_mebibytes,
    ),
}
_ACTIVITY = tuple(path for path, convert in _METRICS.values() if convert is _share)


class Gpm:
    """Means between two looks at the counters of one GPU or MIG instance.

    The first reading has nothing to compare with and gives nothing. Where the GPU or its driver
    has no GPM, nothing is given and nothing is an error; where we may not use it, the activity
    fields are errors and it is not tried again.
    """

    def __init__(self, gpu: object, mig_instance: int | None = None) -> None:
        """`gpu` is the whole GPU's handle; of a MIG instance `mig_instance` is its GPU instance."""
        self._gpu = gpu
        self._mig_instance = mig_instance
        self._buffers: list[Any] | None = None
        self._has_previous = False
        self._is_off = False
        self._forbidden = ""

    def read(self, errors: dict[str, str]) -> dict[str, float]:
        """Activity and traffic by path, since the previous reading.

        Raises:
            NVMLError: the GPU is gone.
        """
        if self._forbidden:
            errors.update(dict.fromkeys(_ACTIVITY, self._forbidden))
        if self._is_off:
            return {}
        try:
            return self._difference(errors)
        except nvml.NVMLError as error:
            self._has_previous = False
            if error.value in GPU_GONE:
                raise
            if error.value in NOT_OFFERED:
                self.close()
                return {}
            if error.value == nvml.NVML_ERROR_NO_PERMISSION:
                self._forbidden = str(error)
                self.close()
            errors.update(dict.fromkeys(_ACTIVITY, str(error)))
            return {}

    def close(self) -> None:
        """Give the buffers back; nothing is read any more."""
        self._is_off = True
        for buffer in self._buffers or ():
            or_none(nvml.nvmlGpmSampleFree, buffer)
        self._buffers = None

    def _difference(self, errors: dict[str, str]) -> dict[str, float]:
        if self._buffers is None:
            if not nvml.nvmlGpmQueryDeviceSupport(self._gpu).isSupportedDevice:
                self.close()
                return {}
            self._buffers = [nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()]
        previous, latest = self._buffers
        if self._mig_instance is None:
            nvml.nvmlGpmSampleGet(self._gpu, latest)
        else:
            nvml.nvmlGpmMigSampleGet(self._gpu, self._mig_instance, latest)
        self._buffers = [latest, previous]
        if not self._has_previous:
            self._has_previous = True
            return {}
        return _metrics(previous, latest, errors)


def _metrics(previous: object, latest: object, errors: dict[str, str]) -> dict[str, float]:
    question = nvml.c_nvmlGpmMetricsGet_t()
    question.version = nvml.NVML_GPM_METRICS_GET_VERSION
    question.numMetrics = len(_METRICS)
    question.sample1, question.sample2 = previous, latest
    for place, number in enumerate(_METRICS):
        question.metrics[place].metricId = number
    nvml.nvmlGpmMetricsGet(question)
    values = {}
    for place, (path, convert) in enumerate(_METRICS.values()):
        answer = question.metrics[place]
        if answer.nvmlReturn == nvml.NVML_SUCCESS and math.isfinite(answer.value):
            values[path] = max(0.0, convert(answer.value))
        elif answer.nvmlReturn not in NOT_OFFERED and path in _ACTIVITY:
            failed = answer.nvmlReturn != nvml.NVML_SUCCESS
            errors[path] = (
                str(nvml.NVMLError(answer.nvmlReturn)) if failed else f"GPM says {answer.value}"
            )
    return values
