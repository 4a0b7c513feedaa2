"""What a GPU does: active, idle but held, or truly idle; from what was measured, by name."""

import msgspec

from handlers.columns import Packed, Packer
from handlers.settings import UtilizationSettings
from handlers.window import OfLast
from schemas.analysis import GpuState
from schemas.labels import FrozenLabels, frozen
from schemas.metrics import GpuMetrics

PartKey = tuple[str, str]
"""Node and GPU, or node and engine."""


class GpuEvidence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Means over a window. None: not measured in it."""

    activity_ratio: float | None
    activity_source: str | None
    memory_ratio: float | None
    power_ratio: float | None
    requests_running: float | None = None
    """Of all engines of the GPU's node: which engine is on which GPU is not told."""


def activity(metrics: GpuMetrics) -> tuple[float | None, str | None]:
    """A sign of work, 0 to 1, and what measured it.

    The busiest of SMs, tensor cores and memory bandwidth; where none is, the utilization.

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
        return best, source
    return metrics.utilization_ratio, metrics.utilization_source or "utilization"


UTILIZATION, MEMORY, ACTIVITY, POWER, JOULES, WATTS = range(6)
"""The numbers of a sample: three ratios, the share of the power limit, joules since the driver's
start, watts."""
WIDTH = 6


class GpuSample(msgspec.Struct, frozen=True, gc=False):
    """What a message says of its GPU that tells its state, cost and energy."""

    key: PartKey
    name: str | None
    pool: str | None
    simulated: bool
    source: str | None
    """What measured the activity."""
    numbers: Packed
    labels: FrozenLabels = ()
    """Of its node."""


_packed = Packer(WIDTH)


def _sample(message: GpuMetrics) -> GpuSample:
    watts, limit = message.power_watts, message.power_limit_watts
    ratio, source = activity(message)
    return GpuSample(
        (message.node, message.gpu),
        message.name,
        message.pool,
        message.simulated,
        source,
        _packed(
            message.utilization_ratio,
            message.memory_utilization_ratio,
            ratio,
            watts / limit if watts is not None and limit else None,
            message.energy_joules_total,
            watts,
        ),
        frozen(message.labels),
    )


gpu_sample = OfLast(_sample)
"""The sample of a message; handlers of its node, pool and fleet ask one after the other."""


def gpu_state(
    settings: UtilizationSettings, evidence: GpuEvidence
) -> tuple[GpuState | None, str | None]:
    """State of a GPU from its means over a window, and what told it.

    Active on one sign of work: activity, or power as a share of the limit, or, where memory is
    held and activity is above 0 or unknown, running requests of an engine on its node. Idle
    needs *measured* rest: a low activity, or, where that is unknown and memory is held, engines
    that run nothing. A measured memory use then tells held from truly idle; with less than that
    the state is None: unknown is not idle.
    """
    ratio, power = evidence.activity_ratio, evidence.power_ratio
    memory, running = evidence.memory_ratio, evidence.requests_running
    if ratio is not None and ratio >= settings.gpu_active_ratio:
        return "active", evidence.activity_source
    if power is not None and power >= settings.gpu_active_power_ratio:
        return "active", "power"
    is_held = None if memory is None else memory >= settings.gpu_held_memory_ratio
    if is_held and running is not None and ratio != 0:
        if running > 0:
            return "active", "engine"
        if ratio is None:
            return "idle_held", "engine"
    if ratio is None or is_held is None:
        return None, None
    return ("idle_held" if is_held else "idle"), evidence.activity_source


def in_words(settings: UtilizationSettings, evidence: GpuEvidence) -> list[str]:
    """Activity, power and memory against their thresholds, and requests where they are known."""
    source = "activity"
    if evidence.activity_ratio is not None:
        source += f" ({evidence.activity_source})"
    lines = []
    for label, ratio, threshold in (
        (source, evidence.activity_ratio, settings.gpu_active_ratio),
        ("power share of the limit", evidence.power_ratio, settings.gpu_active_power_ratio),
        ("memory held", evidence.memory_ratio, settings.gpu_held_memory_ratio),
    ):
        if ratio is None:
            lines.append(f"{label} not measured")
        else:
            sign = ">=" if ratio >= threshold else "<"
            lines.append(f"{label} {ratio:.2f} {sign} {threshold:.2f}")
    if evidence.requests_running is not None:
        lines.append(f"requests running on its node {evidence.requests_running:.1f}")
    return lines
