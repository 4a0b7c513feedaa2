"""The GPUs of a node one by one, and those of a pool that are busy, by their means. Pure."""

from handlers.settings import UtilizationSettings
from handlers.utilization.gpu_busy import BusyGpu, GpuBusy, gpu_busy
from handlers.utilization.gpu_state import GpuEvidence, in_words
from handlers.utilization.levels import power_efficiency
from handlers.utilization.means import Means, Parts
from schemas.analysis import GpuState, GpuUse


def evidence_of(gpus: Parts, means: Means) -> dict[str, GpuEvidence]:
    """What tells the state of each GPU of a node, by name."""
    activity, memory, power, running = (
        means.get(name, {})
        for name in ("gpu_activity", "gpu_memory", "gpu_power", "requests_running")
    )
    requests_running = sum(running.values()) if running else None
    return {
        gpu: GpuEvidence(
            activity_ratio=activity.get(gpu),
            activity_source=gpus[node, gpu].source,
            memory_ratio=memory.get(gpu),
            power_ratio=power.get(gpu),
            requests_running=requests_running,
        )
        for node, gpu in sorted(gpus)
    }


def use_of(
    settings: UtilizationSettings,
    node: str,
    gpu: str,
    evidence: GpuEvidence,
    told_by: tuple[GpuState | None, str | None],
    utilization: float | None,
) -> GpuUse:
    """A GPU of a node as it is published; `told_by`: its state, and what told it."""
    return GpuUse(
        gpu=gpu,
        node=node,
        state=told_by[0],
        source=told_by[1],
        utilization_ratio=utilization,
        memory_utilization_ratio=evidence.memory_ratio,
        power_efficiency_ratio=power_efficiency(utilization, evidence.power_ratio),
        evidence=in_words(settings, evidence),
    )


def busy_of(settings: UtilizationSettings, gpus: Parts, means: Means) -> GpuBusy | None:
    """Of the GPUs of a pool: a MIG instance is one, the GPU that it is of is none."""
    ratios, memory, activity, power = (
        means.get(name, {}) for name in ("gpu", "gpu_memory", "gpu_activity", "gpu_power")
    )
    return gpu_busy(
        settings,
        (
            BusyGpu(
                ratios.get(part.id),
                part.busy_source,
                GpuEvidence(
                    activity_ratio=activity.get(part.id),
                    activity_source=None,
                    memory_ratio=memory.get(part.id),
                    power_ratio=power.get(part.id),
                ),
                part.is_simulated,
            )
            for part in gpus.values()
            if not part.is_divided
        ),
    )
