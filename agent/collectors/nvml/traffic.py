"""Bytes per second over a GPU's PCIe link and NVLinks."""

from collections.abc import Mapping
from typing import Any

from agent.collectors.counters import per_second
from agent.collectors.nvml.answers import Answers, Reading
from agent.collectors.nvml.binding import nvml

_PER_KILO = 1000
_RATES = ("sent_bytes", "received_bytes")


def _throughput(field: str, which: int) -> Reading:
    # Not a counter: the call itself watches the link for 20 ms (nvml.h).
    return Reading(
        (f"pcie.{field}_per_second",),
        (lambda handle: nvml.nvmlDeviceGetPcieThroughput(handle, which),),
        lambda kilobytes: (float(kilobytes * _PER_KILO),),
    )


_PCIE_THROUGHPUT = (
    _throughput("sent_bytes", nvml.NVML_PCIE_UTIL_TX_BYTES),
    _throughput("received_bytes", nvml.NVML_PCIE_UTIL_RX_BYTES),
)


class Traffic:
    """Rates from the counters where the GPU has some, as exact as the interval is long."""

    def __init__(self) -> None:
        self._before: Mapping[str, Any] = {}

    def read(
        self,
        counters: Mapping[str, Any],
        gpm: Mapping[str, float],
        answers: Answers,
        elapsed_seconds: float,
        errors: dict[str, str],
    ) -> dict[str, float | None]:
        """Every rate by path: from `counters`, else as GPM measured it, else as PCIe tells.

        Raises:
            NVMLError: the GPU is gone.
        """
        rates: dict[str, float | None] = {}
        for link in ("pcie", "nvlink"):
            for field in _RATES:
                total, path = f"{link}.{field}_total", f"{link}.{field}_per_second"
                rate = gpm.get(path)
                if total in counters:
                    rate = per_second(counters[total], self._before.get(total), elapsed_seconds)
                rates[path] = rate
        self._before = counters
        for reading in _PCIE_THROUGHPUT:
            path = reading.fields[0]
            total = path.replace("_per_second", "_total")
            if rates[path] is None and total not in counters and total not in errors:
                rates |= answers.read(reading, errors)
        return rates
