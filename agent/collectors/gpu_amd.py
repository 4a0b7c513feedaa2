"""AMD GPUs, by ROCm's amdsmi: imported only where there is an AMD driver, and only if installed."""

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent.collectors.amd_readings import READINGS, Reading
from agent.collectors.gpu import ASK_AGAIN_SECONDS, UNEXPECTED, GpuSource, NoGpuError, in_parts
from schemas.labels import NO_LABELS
from schemas.metrics import GpuMetrics
from schemas.units import instant, token

_KERNEL_MODULE = Path("/sys/module/amdgpu")
# amdsmi.h, amdsmi_status_t: this call will never work here.
_NOT_OFFERED = (2, 3, 4, 5)  # NOT_SUPPORTED, NOT_YET_IMPLEMENTED, FAIL_LOAD_MODULE, _SYMBOL
_NO_PERMISSION = 10


class AmdBackend:
    """Every AMD GPU of this node."""

    name = "amdsmi"

    def __init__(
        self,
        *,
        node: str,
        pool: str | None,
        labels: Mapping[str, str] = NO_LABELS,
        kernel_module: Path = _KERNEL_MODULE,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._pool = pool
        self._labels = dict(labels)
        self._kernel_module = kernel_module
        self._clock = clock
        self._monotonic = monotonic
        self._amdsmi: Any = None

    def open(self) -> list[GpuSource]:
        """Import amdsmi, start it and list the GPUs.

        Raises:
            NoGpuError: there is nothing to measure, and why.
        """
        if not self._kernel_module.exists():
            raise NoGpuError("no AMD GPU: the amdgpu driver is not loaded", degraded=False)
        amdsmi = _load()
        try:
            amdsmi.amdsmi_init(amdsmi.AmdSmiInitFlags.INIT_AMD_GPUS)
            handles = amdsmi.amdsmi_get_processor_handles()
        except amdsmi.AmdSmiException as error:
            raise NoGpuError(f"amdsmi does not start: {_text(error)}", degraded=True) from error
        self._amdsmi = amdsmi
        if not handles:
            self.close()
            raise NoGpuError("no AMD GPU: amdsmi sees none", degraded=False)
        return [
            AmdGpu(
                amdsmi,
                handle,
                index,
                node=self._node,
                pool=self._pool,
                labels=self._labels,
                clock=self._clock,
                monotonic=self._monotonic,
            )
            for index, handle in enumerate(handles)
        ]

    def has_changed(self) -> bool:
        """Not told: amdsmi lists what was there when it was started."""
        return False

    def close(self) -> None:
        """Shut amdsmi down; errors do not matter any more."""
        if self._amdsmi is not None:
            with contextlib.suppress(self._amdsmi.AmdSmiException):
                self._amdsmi.amdsmi_shut_down()
            self._amdsmi = None


class AmdGpu:
    """One AMD GPU; each reading guarded on its own, and the GPU told as unreachable if all fail."""

    def __init__(
        self,
        amdsmi: Any,  # noqa: ANN401 - the binding has no types
        handle: Any,  # noqa: ANN401 - a ctypes pointer
        index: int,
        *,
        node: str,
        pool: str | None,
        labels: Mapping[str, str],
        clock: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._amdsmi = amdsmi
        self._handle = handle
        self._index = index
        self._node = node
        self._pool = pool
        self._labels = dict(labels)
        self._clock = clock
        self._monotonic = monotonic
        self._sampled_at: float | None = None
        self._off: set[str] = set()
        self._forbidden: dict[str, str] = {}
        self._ask_again_at = 0.0
        self._constants: dict[str, Any] = {}

    def identities(self) -> list[GpuMetrics]:
        """The GPU as far as it was seen."""
        return [self._message(self._since_sampled(self._monotonic()), {}, {})]

    def sample(self) -> list[GpuMetrics]:
        """The GPU now."""
        now = self._monotonic()
        interval = self._since_sampled(now)
        self._sampled_at = now
        if now >= self._ask_again_at:  # we may have been allowed to meanwhile
            self._forbidden.clear()
            self._ask_again_at = now + ASK_AGAIN_SECONDS
        errors: dict[str, str] = {}
        values: dict[str, Any] = {}
        for reading in READINGS:
            values |= self._read(reading, errors)
        if errors and not values:
            errors = {"gpu": next(iter(errors.values()))}
            values["is_reachable"] = False
        return [self._message(interval, values, errors)]

    def _since_sampled(self, now: float) -> float:
        return 0.0 if self._sampled_at is None else max(0.0, now - self._sampled_at)

    def _read(self, reading: Reading, errors: dict[str, str]) -> dict[str, Any]:
        key = reading.fields[0]
        if key in self._off or key in self._constants:
            return {}
        if key in self._forbidden:
            errors.update(dict.fromkeys(reading.fields, self._forbidden[key]))
            return {}
        try:
            answer = reading.ask(self._amdsmi, self._handle)
        except self._amdsmi.AmdSmiException as error:
            code = getattr(error, "err_code", None)
            if code in _NOT_OFFERED:
                self._off.add(key)
                return {}
            if code == _NO_PERMISSION:
                self._forbidden[key] = _text(error)
            errors.update(dict.fromkeys(reading.fields, _text(error)))
            return {}
        except AttributeError:
            self._off.add(key)  # an older release without this function
            return {}
        except UNEXPECTED as error:
            # Names and shapes of the answers differ between releases.
            errors.update(dict.fromkeys(reading.fields, f"unexpected answer: {error!r}"))
            return {}
        values = dict(zip(reading.fields, answer, strict=True))
        if reading.constant:
            self._constants |= values
            return {}
        return {field: value for field, value in values.items() if value is not None}

    def _message(
        self, interval_seconds: float, values: dict[str, Any], errors: dict[str, str]
    ) -> GpuMetrics:
        if "kernel_activity_ratio" in values:
            values["utilization_ratio"] = values["kernel_activity_ratio"]
            values["utilization_source"] = "amdsmi_gfx_activity"
        uuid = self._constants.get("uuid") or ""
        return GpuMetrics(
            node=self._node,
            gpu=token(uuid) if uuid else f"index-{self._index}",
            index=self._index,
            pool=self._pool,
            labels=self._labels,
            observed_at=instant(self._clock()),
            interval_seconds=interval_seconds,
            errors=errors,
            **in_parts({"uuid": uuid} | self._constants | values),
        )


def _load() -> Any:  # noqa: ANN401 - a module without types
    try:
        # The binding prints to stdout where its library is missing; stdout is for our own output.
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module("amdsmi")
    except ModuleNotFoundError as error:
        text = "AMD GPUs are not measured: the Python package amdsmi, which ROCm has, is missing"
        raise NoGpuError(text, degraded=False) from error
    except Exception as error:
        # It looks for its library while it is imported, and fails in whatever way that fails.
        raise NoGpuError(f"amdsmi cannot be imported: {error!r}", degraded=True) from error


def _text(error: Any) -> str:  # noqa: ANN401 - the binding has no types
    """`AMDSMI_STATUS_NO_PERM - Permission Denied`, without the lines around it."""
    return str(getattr(error, "err_info", None) or error)
