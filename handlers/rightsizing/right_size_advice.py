"""Writes a recommendation of cheaper models of GPU: figures, evidence, money, and the text."""

from collections.abc import Sequence

from handlers.rightsizing.peaks import WINDOW_NS, packed
from handlers.rightsizing.right_size import Need, RightSize
from handlers.settings import GpuAdviceSettings
from schemas.money import usd
from schemas.protocols import Moment
from schemas.scaling import Evidence, Recommendation
from schemas.units import SECOND_NS, instant, paired

_FIELDS = {
    "memory": "memory_utilization_ratio",
    "bandwidth": "dram_activity_ratio",
    "tensor": "tensor_activity_ratio",
}
_SIGNALS = {
    "memory": "memory_used_bytes_p99",
    "bandwidth": "memory_bytes_per_second_p99",
    "tensor": "tensor_flops_p99",
}


def recommend(
    pool: str,
    found: Sequence[RightSize],
    settings: GpuAdviceSettings,
    end_ns: int,
    now: Moment,
) -> Recommendation:
    """The recommendation of all of `found`, at least one, in one pool."""
    advice_id = f"{pool}.right_size.{now.ns}"
    gpus = sum(one.change.gpus for one in found)
    saving = sum(one.saving_usd_per_hour for one in found)
    cost = sum(one.change.usd_per_hour_to for one in found) * settings.switch_seconds / 3600
    expires_ns = now.ns + int(settings.right_size.expires_after_seconds * SECOND_NS)
    return Recommendation(
        action="right_size",
        pool=pool,
        recommendation_id=advice_id,
        idempotency_key=advice_id,
        decided_at=instant(now.ns),
        expires_at=instant(expires_ns),
        replicas_from=gpus,
        replicas_to=gpus,
        reason="cheaper_model_fits",
        text=" ".join(_text(pool, one, settings) for one in found),
        evidence=[_evidence(need, settings, end_ns) for one in found for need in one.needs],
        confidence_ratio=min(one.known_ratio for one in found),
        risk="high" if any(one.is_older for one in found) else "medium",
        effective_after_seconds=settings.switch_seconds,
        saving_usd_per_hour=saving,
        one_off_cost_usd=cost,
        payback_hours=cost / saving,
        simulated=any(need.part.simulated for one in found for need in one.needs),
        gpu_changes=[one.change for one in found],
    )


def _evidence(need: Need, settings: GpuAdviceSettings, end_ns: int) -> Evidence:
    """The p99, and the ten minutes in which the GPU that needs most reached it."""
    values = need.history.values
    place = values.index(packed(need.history.p99))
    begin_ns = end_ns - (len(values) - place) * WINDOW_NS
    return Evidence(
        signal=_SIGNALS[need.signal],
        value=need.p99,
        threshold=need.threshold,
        window_seconds=settings.history_hours * 3600.0,
        subject=f"rollup.gpu.{paired(need.part.node, need.part.gpu)}",
        fields=[_FIELDS[need.signal]],
        measured_from=instant(begin_ns),
        measured_to=instant(begin_ns + WINDOW_NS),
    )


def _text(pool: str, one: RightSize, settings: GpuAdviceSettings) -> str:
    change = one.change
    older = (
        " It is of an older generation, which may lack a number format that is used."
        if one.is_older
        else ""
    )
    return (
        f"Replace {change.gpus} × {change.gpu_from} of pool {pool} by {change.gpu_to}: with "
        f"{settings.right_size.headroom_ratio:.0%} headroom the GPU that needs most needs "
        f"{change.memory_needed_bytes / 1e9:.1f} of {change.memory_bytes / 1e9:.0f} GB, "
        f"{change.memory_needed_bytes_per_second / 1e9:.0f} of "
        f"{change.memory_bytes_per_second / 1e9:.0f} GB/s and "
        f"{change.tensor_needed_flops / 1e12:.0f} of {change.tensor_flops / 1e12:.0f} TFLOPS "
        f"(p99 of {settings.history_hours} hours). {usd(change.usd_per_hour_from)}/h → "
        f"{usd(change.usd_per_hour_to)}/h.{older} Try one first: speed of links and software "
        "are not in these figures."
    )
