"""What every source of GPU metrics offers, whoever made the GPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from schemas.gpu import EccMetrics, NvlinkMetrics, PcieMetrics
from schemas.metrics import GpuMetrics

# How an answer fails that has another shape or size than we know, when it is converted.
UNEXPECTED = (ArithmeticError, LookupError, TypeError, ValueError)
ASK_AGAIN_SECONDS = 600.0
"""After this long, what we were not allowed to read is tried again."""
_WHOLE = 100
_MOST_WHOLES = 10
_PARTS: Mapping[str, Callable[..., Any]] = {
    "pcie": PcieMetrics,
    "nvlink": NvlinkMetrics,
    "ecc": EccMetrics,
}


class GpuSource(Protocol):
    """One GPU with its MIG instances; or several GPUs that cannot hang one by one.

    Blocking; called from a thread of its own, but for `identities`.
    """

    def sample(self) -> list[GpuMetrics]:
        """What it measures now; a GPU that does not answer is there with its errors."""
        ...

    def identities(self) -> list[GpuMetrics]:
        """Who is sampled here, without what only the driver knows: never blocks."""
        ...


class GpuBackend(Protocol):
    """A vendor's driver. Blocking; called from one thread."""

    @property
    def name(self) -> str:
        """What the source is called in health and logs."""
        ...

    def open(self) -> Sequence[GpuSource]:
        """Load the driver's library and list the GPUs.

        Raises:
            NoGpuError: there is nothing to measure, and why; may be tried again.
        """
        ...

    def has_changed(self) -> bool:
        """Whether GPUs came or went since `open`; only `close` and `open` show them."""
        ...

    def close(self) -> None:
        """Let go of the driver and of all that `open` gave; may be opened again."""
        ...


class NoGpuError(Exception):
    """There is no GPU to measure.

    `degraded` is False on a node that simply has none (no driver library, or no device) and True
    where there should be one but the driver does not work; `text` says what to do.
    """

    def __init__(self, text: str, *, degraded: bool) -> None:
        super().__init__(text)
        self.text = text
        self.degraded = degraded


def share(part: float, whole: float = _WHOLE) -> float:
    """Percent, or what `whole` counts, to a ratio from 0 to 1.

    Drivers round and average, and may say 101 %: no more than all of it.

    Raises:
        ValueError: no share, but the largest number there is, as a driver says that does not know.
    """
    if part > _MOST_WHOLES * whole:
        raise ValueError(f"{part} of {whole}")
    return min(1.0, max(0.0, part / whole))


def in_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `GpuMetrics` from readings by path: `{"ecc.is_enabled": True}` → `ecc`.

    A part of which nothing was measured is null.
    """
    fields: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        part, _, field = path.rpartition(".")
        if not part:
            fields[path] = value
        elif value is not None:
            parts.setdefault(part, {})[field] = value
    return fields | {part: _PARTS[part](**measured) for part, measured in parts.items()}
