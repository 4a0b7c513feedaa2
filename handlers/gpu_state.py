"""What a GPU does: active, idle but held, or truly idle; from what was measured, by name."""

import dataclasses
from typing import NamedTuple

from handlers.settings import UtilizationSettings
from schemas.analysis import GpuState
from schemas.metrics import GpuMetrics


class Activity(NamedTuple):
    """One sample's sign of work, 0 to 1, and what measured it."""

    ratio: float | None
    source: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class GpuEvidence:
    """Means over a window. None: not measured in it."""

    activity_ratio: float | None
    activity_source: str | None
    memory_ratio: float | None
    power_ratio: float | None
    requests_running: float | None = None
    """Of all engines of the GPU's node: which engine is on which GPU is not told."""


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """The state, what decided it, and the evidence in words."""

    state: GpuState | None
    source: str | None
    lines: list[str]


def activity(metrics: GpuMetrics) -> Activity:
    """The busiest of SMs, tensor cores and memory bandwidth; where none is, the utilization.

    The driver's counts any kernel, one that only waits as well; these do not: SMs 0.01, tensor
    cores 0, bandwidth 0.02 beside a utilization of 1 → 0.02 by `dram_activity`.
    """
    best, source = metrics.sm_activity_ratio, "sm_activity"
    tensor, dram = metrics.tensor_activity_ratio, metrics.dram_activity_ratio
    if tensor is not None and (best is None or tensor > best):
        best, source = tensor, "tensor_activity"
    if dram is not None and (best is None or dram > best):
        best, source = dram, "dram_activity"
    if best is not None:
        return Activity(best, source)
    return Activity(metrics.utilization_ratio, metrics.utilization_source or "utilization")


def power_ratio(metrics: GpuMetrics) -> float | None:
    """Power as a share of its limit; None: not measured, or no limit."""
    if metrics.power_watts is None or not metrics.power_limit_watts:
        return None
    return metrics.power_watts / metrics.power_limit_watts


def gpu_state(settings: UtilizationSettings, evidence: GpuEvidence) -> Judged:
    """State of a GPU from its means over a window.

    Active on one sign of work: activity, or power as a share of the limit, or, where memory is
    held and activity is above 0 or unknown, running requests of an engine on its node. Idle
    needs *measured* rest: a low activity, or, where that is unknown and memory is held, engines
    that run nothing. A measured memory use then tells held from truly idle; with less than that
    the state is None: unknown is not idle.
    """
    lines: list[str] = []

    def reaches(label: str, ratio: float | None, threshold: float) -> bool | None:
        if ratio is None:
            lines.append(f"{label} not measured")
            return None
        reached = ratio >= threshold
        lines.append(f"{label} {ratio:.2f} {'>=' if reached else '<'} {threshold:.2f}")
        return reached

    source = evidence.activity_source
    label = f"activity ({source})" if evidence.activity_ratio is not None else "activity"
    busy = reaches(label, evidence.activity_ratio, settings.gpu_active_ratio)
    powered = reaches(
        "power share of the limit", evidence.power_ratio, settings.gpu_active_power_ratio
    )
    held = reaches("memory held", evidence.memory_ratio, settings.gpu_held_memory_ratio)
    if busy:
        return Judged("active", source, lines)
    if powered:
        return Judged("active", "power", lines)
    running = evidence.requests_running
    if held and running is not None and evidence.activity_ratio != 0:
        lines.append(f"requests running on its node {running:.1f}")
        if running > 0:
            return Judged("active", "engine", lines)
        if busy is None:
            return Judged("idle_held", "engine", lines)
    if busy is None or held is None:
        return Judged(None, None, lines)
    return Judged("idle_held" if held else "idle", source, lines)
