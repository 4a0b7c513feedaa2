"""How busy the GPUs of a pool are that carry its replicas. Pure."""

import dataclasses
import math
from collections.abc import Iterable

from handlers.settings import UtilizationSettings
from handlers.utilization.gpu_state import GpuEvidence, gpu_state


@dataclasses.dataclass(frozen=True, slots=True)
class BusyGpu:
    """A GPU, or a MIG instance, in the window. None: not measured."""

    ratio: float | None
    """The mean of `utilization_ratio`."""
    source: str | None
    """Where that is from: `utilization_source`."""
    evidence: GpuEvidence
    simulated: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class GpuBusy:
    """The GPUs of a pool that carry a replica, or may; at least one of them was measured."""

    gpus: int
    known: int
    """Of these, measured."""
    busy: float
    """The sum of the measured ones: 0.9 and 0.6 → 1.5."""
    sources: tuple[str, ...]
    """What measured them, by name."""
    simulated: bool = False


def gpu_busy(settings: UtilizationSettings, gpus: Iterable[BusyGpu]) -> GpuBusy | None:
    """What these come to, of real ones alone if there are any; None: none of them was measured.

    One that is truly idle, with no memory held, carries no replica and is left out: it would make
    the others look less busy than they are. Whether one at rest does that is not known where its
    memory is not measured, so it counts as not measured.
    """
    found = list(gpus)
    simulated = all(gpu.simulated for gpu in found)
    count = 0
    known: list[float] = []
    sources: set[str] = set()
    for gpu in found:
        state, _ = gpu_state(settings, gpu.evidence)
        if state == "idle" or gpu.simulated is not simulated:
            continue
        count += 1
        if state is not None and gpu.ratio is not None:
            known.append(gpu.ratio)
            sources.add(gpu.source or "unknown")
    # An exact sum: a process that takes over has heard of the GPUs in another order.
    busy = math.fsum(known)
    if not known:
        return None
    return GpuBusy(count, len(known), busy, tuple(sorted(sources)), simulated)
