"""One NVIDIA GPU with its MIG instances: everything that is measured of them, together."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from agent.collectors.gpu import ASK_AGAIN_SECONDS, in_parts
from agent.collectors.nvml.answers import Answers, Reading
from agent.collectors.nvml.binding import nvml, or_none
from agent.collectors.nvml.field_values import FieldValues
from agent.collectors.nvml.gpm import Gpm
from agent.collectors.nvml.mig import MigInstances, MigReading
from agent.collectors.nvml.readings import GPU_READINGS
from agent.collectors.nvml.traffic import Traffic
from agent.collectors.nvml.xid import XidLog, XidWatch
from schemas.labels import NO_LABELS
from schemas.metrics import GpuMetrics
from schemas.units import instant, token

_MIG_MODE = Reading(
    ("is_mig_enabled",), (nvml.nvmlDeviceGetMigMode,), lambda modes: (bool(modes[0]),)
)


_DENIED = str(nvml.NVMLError(nvml.NVML_ERROR_NO_PERMISSION))


class _Readers:
    """What reads one GPU, and remembers what it offers, for as long as its mode does not change."""

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 - a ctypes pointer
        self.answers = Answers(handle)
        self.fields = FieldValues()
        self.gpm = Gpm(handle)
        self.migs = MigInstances(handle)
        self.traffic = Traffic()

    def close(self) -> None:
        self.gpm.close()
        self.migs.close()


class NvmlGpu:
    """The GPU at one place of NVML's list. One that is out of reach is told, and asked again.

    `log_of` gives the XID log of a UUID.
    """

    def __init__(
        self,
        index: int,
        *,
        node: str,
        pool: str | None,
        labels: Mapping[str, str] = NO_LABELS,
        driver_version: str | None,
        log_of: Callable[[str], XidLog],
        clock: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.watch: XidWatch | None = None
        self._index = index
        self._node = node
        self._pool = pool
        self._labels = dict(labels)
        self._driver_version = driver_version
        self._log_of = log_of
        self._clock = clock
        self._monotonic = monotonic
        self._uuid = ""
        self._name: str | None = None
        self._readers: _Readers | None = None
        self._mig_mode: bool | None = None
        self._sampled_at: float | None = None
        self._migs: list[MigReading] = []
        self._denied_at: float | None = None

    def identities(self) -> list[GpuMetrics]:
        """The GPU with its XID errors, and the instances it last had."""
        errors: dict[str, str] = {}
        gpu = self._message(self._since_sampled(self._monotonic()), self._xid(errors), errors)
        return [gpu, *self._last_migs(gpu, {})]

    def sample(self) -> list[GpuMetrics]:
        """The GPU, then its MIG instances."""
        now = self._monotonic()
        interval = self._since_sampled(now)
        self._sampled_at = now
        errors: dict[str, str] = {}
        try:
            readers = self._identified()
            if self._denied_at is not None and now - self._denied_at >= ASK_AGAIN_SECONDS:
                readers = self._renewed(readers)  # we may have been allowed to meanwhile
                self._denied_at = None
            values = readers.answers.read(_MIG_MODE, errors)
            if values.get("is_mig_enabled", self._mig_mode) != self._mig_mode:
                self._mig_mode = values["is_mig_enabled"]
                readers = self._renewed(readers)  # what the GPU offers depends on it
            values |= self._read(readers, interval, errors)
            self._migs = readers.migs.read(errors) if self._mig_mode else []
            self._note_denials(errors, now)
        except nvml.NVMLError as error:  # what the readers do not handle: the GPU is gone
            self._forget()
            gone: dict[str, str] = {"gpu": str(error)}
            gpu = self._message(interval, {"is_reachable": False} | self._xid(gone), gone)
            return [gpu, *self._last_migs(gpu, {"gpu": str(error)})]
        gpu = self._message(interval, values, errors)
        return [gpu, *(self._mig_message(gpu, mig) for mig in self._migs)]

    def close(self) -> None:
        """Give back what the readings hold; the XID watch ends by itself."""
        if self.watch is not None:
            self.watch.stop()
        self._forget()

    def _note_denials(self, errors: dict[str, str], now: float) -> None:
        if self._denied_at is None:
            every = (errors, *(mig.errors for mig in self._migs))
            self._denied_at = now if any(_DENIED in one.values() for one in every) else None

    def _since_sampled(self, now: float) -> float:
        return 0.0 if self._sampled_at is None else max(0.0, now - self._sampled_at)

    def _last_migs(self, gpu: GpuMetrics, errors: dict[str, str]) -> list[GpuMetrics]:
        """The instances `gpu` last had, without readings, as reachable as it is."""
        values = {"is_reachable": gpu.is_reachable}
        return [
            self._mig_message(gpu, mig._replace(values=values, errors=errors)) for mig in self._migs
        ]

    def _identified(self) -> _Readers:
        """The readers; asks for handle, UUID and name first, once.

        Raises:
            NVMLError: the GPU does not answer.
        """
        if self._readers is None:
            handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
            self._uuid = nvml.nvmlDeviceGetUUID(handle)
            self._name = or_none(nvml.nvmlDeviceGetName, handle)
            self._readers = _Readers(handle)
            if self.watch is None:
                self.watch = XidWatch(handle, self._log_of(self._uuid))
        return self._readers

    def _renewed(self, readers: _Readers) -> _Readers:
        readers.close()
        self._readers = _Readers(readers.answers.handle)
        return self._readers

    def _forget(self) -> None:
        """Ask for the handle again next time: the old one may be of no use any more."""
        if self._readers is not None:
            self._readers.close()
            self._readers = None

    def _read(
        self, readers: _Readers, interval_seconds: float, errors: dict[str, str]
    ) -> dict[str, Any]:
        answers = readers.answers
        values: dict[str, Any] = {}
        for reading in GPU_READINGS:
            values |= answers.read(reading, errors)
        counters = readers.fields.read(answers.handle, errors)
        if counters.get("nvlink.links"):
            values |= _active_links(answers, counters["nvlink.links"], errors)
        gpm = readers.gpm.read(errors)
        rates = readers.traffic.read(counters, gpm, answers, interval_seconds, errors)
        return values | counters | gpm | rates | self._xid(errors)

    def _xid(self, errors: dict[str, str]) -> dict[str, Any]:
        return {"xid": self._log_of(self._uuid).read(errors)} if self._uuid else {}

    def _message(
        self, interval_seconds: float, values: dict[str, Any], errors: dict[str, str]
    ) -> GpuMetrics:
        return GpuMetrics(
            node=self._node,
            # A GPU that has not answered since we started has no identity but its place.
            gpu=token(self._uuid) if self._uuid else f"index-{self._index}",
            uuid=self._uuid,
            index=self._index,
            name=self._name,
            driver_version=self._driver_version,
            pool=self._pool,
            labels=self._labels,
            observed_at=instant(self._clock()),
            interval_seconds=interval_seconds,
            errors=errors,
            **in_parts(_with_utilization(values)),
        )

    def _mig_message(self, gpu: GpuMetrics, mig: MigReading) -> GpuMetrics:
        return GpuMetrics(
            node=gpu.node,
            gpu=token(mig.uuid),
            uuid=mig.uuid,
            index=gpu.index,
            name=mig.name,
            driver_version=gpu.driver_version,
            pool=gpu.pool,
            labels=gpu.labels,
            parent=gpu.gpu,
            mig=mig.instance,
            observed_at=gpu.observed_at,
            interval_seconds=gpu.interval_seconds,
            errors=mig.errors,
            **in_parts(_with_utilization(mig.values)),
        )


def _with_utilization(values: dict[str, Any]) -> dict[str, Any]:
    """How busy the GPU is by the best that was measured, and what that was."""
    for field, source in (
        ("sm_activity_ratio", "gpm_sm_activity"),
        ("kernel_activity_ratio", "nvml_utilization"),
    ):
        if values.get(field) is not None:
            return values | {"utilization_ratio": values[field], "utilization_source": source}
    return values


def _active_links(answers: Answers, links: int, errors: dict[str, str]) -> dict[str, Any]:
    def count(handle: Any) -> int:  # noqa: ANN401 - a ctypes pointer
        return sum(nvml.nvmlDeviceGetNvLinkState(handle, link) for link in range(links))

    return answers.read(
        Reading(("nvlink.links_active",), (count,), lambda number: (number,)), errors
    )
