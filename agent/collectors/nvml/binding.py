"""The binding of NVML, the only module that imports it; its errors by what they call for."""

from collections.abc import Callable
from typing import Any

import pynvml

nvml: Any = pynvml  # the binding has no types

# The GPU itself is out of reach: its other readings would fail, or block for seconds, as well.
GPU_GONE = (
    nvml.NVML_ERROR_GPU_IS_LOST,
    nvml.NVML_ERROR_RESET_REQUIRED,
    nvml.NVML_ERROR_GPU_NOT_FOUND,
    nvml.NVML_ERROR_UNINITIALIZED,
    nvml.NVML_ERROR_DRIVER_NOT_LOADED,
    nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)
# This call will never work on this GPU with this driver; an older one may.
NOT_OFFERED = (
    nvml.NVML_ERROR_NOT_SUPPORTED,
    nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    nvml.NVML_ERROR_DEPRECATED,
)


def or_none(call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - NVML's answer
    """The answer, or None: for what is nice to know and not a measurement."""
    try:
        return call(*arguments)
    except (nvml.NVMLError, UnicodeDecodeError):
        return None
