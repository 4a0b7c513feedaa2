"""GpuMetrics from dcgm-exporter: DCGM's fields, in our units.

Source: DCGM's field identifiers (`dcgm_fields.h`) and dcgm-exporter's `default-counters.csv` and
`dcp-metrics-included.csv`, 2.x to 4.x. Only what the exporter was told to export can be read.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from agent.collectors.engines.exposition import Names, Page, PageError, Series
from agent.collectors.engines.inference import Place
from agent.collectors.engines.values import count, number, ratio
from schemas.metrics import GpuMetrics
from schemas.units import SECOND_NS, instant, token

MAX_GPUS = 256
_MAX_UUID_LENGTH = 128
_MAX_INDEX_DIGITS = 6
_MIB = 1024 * 1024
_BLANK = 140737488355328.0
"""DCGM_FP64_BLANK (2^47); this and above, as DCGM_INT64_BLANK, stand for no value."""


class _Reading(NamedTuple):
    field: str
    convert: Callable[[float], Any]


def _percent(value: float) -> float | None:
    return ratio(value / 100)


def _mebibytes(value: float) -> int | None:
    return count(value * _MIB)


def _megahertz(value: float) -> float | None:
    return number(value * 1e6)


def _millijoules(value: float) -> float | None:
    return number(value / 1000)


# Of two for one field the later one counts.
_READINGS: Mapping[str, _Reading] = {
    "DCGM_FI_DEV_MEM_COPY_UTIL": _Reading("memory_activity_ratio", _percent),
    "DCGM_FI_DEV_ENC_UTIL": _Reading("encoder_utilization_ratio", _percent),
    "DCGM_FI_DEV_DEC_UTIL": _Reading("decoder_utilization_ratio", _percent),
    "DCGM_FI_DEV_FB_TOTAL": _Reading("memory_total_bytes", _mebibytes),
    "DCGM_FI_DEV_FB_USED": _Reading("memory_used_bytes", _mebibytes),
    "DCGM_FI_DEV_FB_FREE": _Reading("memory_free_bytes", _mebibytes),
    "DCGM_FI_DEV_FB_RESERVED": _Reading("memory_reserved_bytes", _mebibytes),
    "DCGM_FI_DEV_GPU_TEMP": _Reading("temperature_celsius", float),
    "DCGM_FI_DEV_SLOWDOWN_TEMP": _Reading("temperature_slowdown_celsius", float),
    "DCGM_FI_DEV_SHUTDOWN_TEMP": _Reading("temperature_shutdown_celsius", float),
    "DCGM_FI_DEV_POWER_USAGE": _Reading("power_watts", number),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": _Reading("power_limit_watts", number),
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": _Reading("power_limit_watts", number),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": _Reading("energy_joules_total", _millijoules),
    "DCGM_FI_DEV_SM_CLOCK": _Reading("clock_sm_hertz", _megahertz),
    "DCGM_FI_DEV_MEM_CLOCK": _Reading("clock_memory_hertz", _megahertz),
    "DCGM_FI_DEV_FAN_SPEED": _Reading("fan_ratio", _percent),
}
_UTILIZATION: tuple[tuple[str, Callable[[float], float | None]], ...] = (
    ("DCGM_FI_PROF_SM_ACTIVE", ratio),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", ratio),
    ("DCGM_FI_DEV_GPU_UTIL", _percent),
)
"""What "busy" is, best first: SMs with work, any engine with work, any kernel running."""
_USED_SHARE = "DCGM_FI_DEV_FB_USED_PERCENT"
_UUID_LABELS = ("UUID", "uuid")


class DcgmReader:
    """Reads the pages of one target: every GPU and every MIG instance on them."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._at_ns: int | None = None
        self.restarts = 0

    def wanted(self) -> frozenset[str]:
        """All names to look for on a page."""
        return frozenset([*_READINGS, *(name for name, _ in _UTILIZATION), _USED_SHARE])

    def missing(self, page: Page) -> dict[str, Names]:
        """The fields that alerts and advice need; the others are the exporter's choice."""
        expected: dict[str, Names] = {
            "utilization_ratio": tuple(name for name, _ in _UTILIZATION),
            "memory_used_bytes": ("DCGM_FI_DEV_FB_USED",),
            "temperature_celsius": ("DCGM_FI_DEV_GPU_TEMP",),
            "power_watts": ("DCGM_FI_DEV_POWER_USAGE",),
        }
        return {field: names for field, names in expected.items() if not page.has(names)}

    def read(self, page: Page, now_ns: int) -> list[GpuMetrics]:
        """Every GPU on the page.

        Raises:
            PageError: more of them than any machine has.
        """
        interval_ns = 0 if self._at_ns is None else max(0, now_ns - self._at_ns)
        self._at_ns = now_ns
        gpus: dict[tuple[str, str], dict[str, Series]] = {}
        for name, found in page.series.items():
            for series in found:
                uuid = next((series.labels[k] for k in _UUID_LABELS if k in series.labels), "")
                if uuid and 0 <= series.value < _BLANK:
                    key = (uuid[:_MAX_UUID_LENGTH], series.labels.get("GPU_I_ID", ""))
                    gpus.setdefault(key, {})[name] = series
        if len(gpus) > MAX_GPUS:
            raise PageError(f"{len(gpus)} GPUs on one page")
        return [
            self._metrics(uuid, instance, of, now_ns, interval_ns / SECOND_NS)
            for (uuid, instance), of in sorted(gpus.items())
        ]

    def _metrics(
        self,
        uuid: str,
        instance: str,
        readings: Mapping[str, Series],
        now_ns: int,
        interval_seconds: float,
    ) -> GpuMetrics:
        place = self._place
        labels = next(iter(readings.values())).labels
        fields = {
            reading.field: reading.convert(readings[name].value)
            for name, reading in _READINGS.items()
            if name in readings
        }
        busy, source = _busy(readings)
        index = labels.get("gpu", "")
        name = " ".join(
            text for text in (labels.get("modelName"), labels.get("GPU_I_PROFILE")) if text
        )
        return GpuMetrics(
            node=place.node,
            gpu=token(f"{uuid}-gi{instance}" if instance else uuid),
            uuid=uuid,
            index=int(index) if index.isdecimal() and len(index) <= _MAX_INDEX_DIGITS else 0,
            name=name or None,
            driver_version=labels.get("DCGM_FI_DRIVER_VERSION"),
            pool=place.pool,
            observed_at=instant(now_ns),
            interval_seconds=interval_seconds,
            utilization_ratio=busy,
            utilization_source=source,
            memory_utilization_ratio=_memory_share(readings),
            **fields,
        )


def _busy(readings: Mapping[str, Series]) -> tuple[float | None, str | None]:
    for name, convert in _UTILIZATION:
        if name in readings and (busy := convert(readings[name].value)) is not None:
            return busy, name
    return None, None


def _memory_share(readings: Mapping[str, Series]) -> float | None:
    """DCGM's own share; else used by total; else used by what is not the driver's (used + free)."""
    if _USED_SHARE in readings:
        return ratio(readings[_USED_SHARE].value)
    used = readings.get("DCGM_FI_DEV_FB_USED")
    if used is None:
        return None
    total = readings.get("DCGM_FI_DEV_FB_TOTAL")
    free = readings.get("DCGM_FI_DEV_FB_FREE")
    of = total.value if total is not None else used.value + free.value if free is not None else 0.0
    return ratio(used.value / of) if of > 0 else None
