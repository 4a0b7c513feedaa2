"""Readings that NVML answers many at a time, by number (`nvmlDeviceGetFieldValues`)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from agent.collectors.gpu import UNEXPECTED
from agent.collectors.nvml.answers import credible
from agent.collectors.nvml.binding import GPU_GONE, NOT_OFFERED, nvml

_ALL_LINKS = 0xFFFFFFFF
_KIBIBYTE = 1024
# nvml.h, `nvmlValueType_t`: which member of the union holds the value.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
# nvml.h, `nvmlDeviceGpuRecoveryAction_t`.
_RECOVERY_ACTIONS = (
    "none",
    "gpu_reset",
    "node_reboot",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex_domain",
    "bus_reset",
    "system_reboot",
)


class _Field(NamedTuple):
    """One value by its number; `convert` makes base units of it."""

    path: str
    number: int
    convert: Callable[[Any], Any] = int
    scope: int = 0


def _from_kibibytes(number: int) -> int:
    return number * _KIBIBYTE


def _recovery_action(number: int) -> str:
    is_known = 0 <= number < len(_RECOVERY_ACTIONS)
    return _RECOVERY_ACTIONS[number] if is_known else f"action_{number}"


# Of two with one path the first that is offered counts: Blackwell has other NVLink counters.
_FIELDS = (
    _Field("temperature_memory_celsius", nvml.NVML_FI_DEV_MEMORY_TEMP, float),
    _Field("recovery_action", nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, _recovery_action),
    _Field("pcie.sent_bytes_total", nvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES),
    _Field("pcie.received_bytes_total", nvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES),
    _Field("nvlink.links", nvml.NVML_FI_DEV_NVLINK_LINK_COUNT),
    _Field(
        "nvlink.sent_bytes_total",
        nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
        _from_kibibytes,
        _ALL_LINKS,
    ),
    _Field(
        "nvlink.received_bytes_total",
        nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
        _from_kibibytes,
        _ALL_LINKS,
    ),
    _Field(
        "nvlink.sent_bytes_total",
        nvml.NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES,
        scope=_ALL_LINKS,
    ),
    _Field(
        "nvlink.received_bytes_total",
        nvml.NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES,
        scope=_ALL_LINKS,
    ),
    _Field("nvlink.crc_errors_total", nvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL),
    _Field("nvlink.replays_total", nvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL),
    _Field("nvlink.recoveries_total", nvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL),
)


class FieldValues:
    """Asks one GPU for all values in one call; each has its own error, as in `Answers`."""

    def __init__(self) -> None:
        self._fields = list(_FIELDS)
        self._forbidden: dict[str, str] = {}

    def read(self, handle: object, errors: dict[str, str]) -> dict[str, Any]:
        """The values by path.

        Raises:
            NVMLError: the GPU is gone.
        """
        errors.update(self._forbidden)
        if not self._fields:
            return {}
        try:
            answers = nvml.nvmlDeviceGetFieldValues(
                handle, [(field.number, field.scope) for field in self._fields]
            )
        except nvml.NVMLError as error:
            if error.value in GPU_GONE:
                raise
            if error.value in NOT_OFFERED:
                self._fields = []
            elif error.value == nvml.NVML_ERROR_NO_PERMISSION:
                self._forbidden = {field.path: str(error) for field in self._fields}
                self._fields = []
                errors.update(self._forbidden)
            else:
                errors.update((field.path, str(error)) for field in self._fields)
            return {}
        values: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for field, answer in zip(tuple(self._fields), answers, strict=True):
            self._take(field, answer, values, failed)
        errors.update((path, text) for path, text in failed.items() if path not in values)
        return credible(values, errors)

    def _take(
        self,
        field: _Field,
        answer: Any,  # noqa: ANN401 - a ctypes structure
        values: dict[str, Any],
        failed: dict[str, str],
    ) -> None:
        code = answer.nvmlReturn
        if code == nvml.NVML_SUCCESS:
            try:
                number = getattr(answer.value, _MEMBERS[answer.valueType])
                values.setdefault(field.path, field.convert(number))
            except UNEXPECTED as error:
                failed[field.path] = f"unexpected answer: {error!r}"
        elif code in GPU_GONE:
            raise nvml.NVMLError(code)
        elif code in NOT_OFFERED or code == nvml.NVML_ERROR_INVALID_ARGUMENT:
            self._fields.remove(field)  # an older driver calls a number it does not know invalid
        else:
            failed[field.path] = str(nvml.NVMLError(code))
            if code == nvml.NVML_ERROR_NO_PERMISSION:
                self._forbidden[field.path] = failed[field.path]
                self._fields.remove(field)
