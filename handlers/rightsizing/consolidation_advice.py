"""Writes a plan to empty nodes, and the recommendation of it: figures, evidence, text."""

from collections import Counter
from collections.abc import Sequence

from handlers.rightsizing.consolidation_replay import Peak, Replay
from handlers.rightsizing.node_loads import IDLE, NodeLoad
from handlers.rightsizing.peaks import WINDOW_NS
from handlers.settings import GpuAdviceSettings
from schemas.changes import Move
from schemas.consolidation import Consolidation
from schemas.money import usd
from schemas.protocols import Moment
from schemas.scaling import Evidence, Recommendation
from schemas.units import SECOND_NS, instant, paired

_FIELDS = {
    "memory": "memory_utilization_ratio",
    "busy": "utilization_ratio",
    "host": "memory_utilization_ratio",
}
_SIGNALS = {
    "memory": "gpu_memory_ratio_projected",
    "busy": "gpu_busy_ratio_projected",
    "host": "host_memory_ratio_projected",
}


def plan_message(
    pool: str,
    nodes: Sequence[NodeLoad],
    left_out: Counter[str],
    moves: Sequence[Move],
    replayed: Replay,
    settings: GpuAdviceSettings,
    now: Moment,
    *,
    simulated: bool,
) -> Consolidation:
    """The plan, with or without moves."""
    peaks = {peak.signal: round(peak.ratio, 4) for peak in replayed.peaks}
    after = len(nodes) - len(replayed.emptied)
    saving = saving_of(moves)
    if moves:
        worth = "no price is known" if saving is None else f"saves {usd(saving)}/h"
        number = "1 move" if len(moves) == 1 else f"{len(moves)} moves"
        text = (
            f"Empty {', '.join(replayed.emptied)} of pool {pool} in {number}: {len(nodes)} → "
            f"{after} nodes, {worth}. Replayed over {settings.history_hours} h, where work goes it "
            f"comes to {peaks['memory']:.0%} of a GPU's memory, {peaks['busy']:.0%} activity and "
            f"{peaks['host']:.0%} host memory at most"
        )
    else:
        text = f"No node of pool {pool} can be emptied: {len(nodes)} could be judged"
        least = settings.consolidate.least_nodes
        if 0 < len(nodes) <= least:
            text += f", and {least} keep work (least_nodes)"
    reasons = [f"{count} left out ({reason})" for reason, count in sorted(left_out.items())]
    text = f"{', '.join([text, *reasons])}."
    if moves:
        text += " Requests under way are not moved: drain each engine first."
    return Consolidation(
        id=pool,
        decided_at=instant(now.ns),
        history_seconds=settings.history_hours * 3600.0,
        nodes=len(nodes),
        nodes_after=after,
        left_out=dict(sorted(left_out.items())),
        moves=list(moves),
        saving_usd_per_hour=saving,
        gpu_memory_peak_ratio=peaks.get("memory"),
        gpu_busy_peak_ratio=peaks.get("busy"),
        host_memory_peak_ratio=peaks.get("host"),
        text=text,
        simulated=simulated,
    )


def saving_of(moves: Sequence[Move]) -> float | None:
    """Of all of them; None: one has no price, or there are none."""
    known = [move.saving_usd_per_hour for move in moves if move.saving_usd_per_hour is not None]
    return sum(known) if moves and len(known) == len(moves) else None


def recommend(
    plan: Consolidation,
    nodes: Sequence[NodeLoad],
    replayed: Replay,
    settings: GpuAdviceSettings,
    end_ns: int,
    now: Moment,
) -> Recommendation | None:
    """The recommendation of a plan; None where it does not save enough, or that is not known."""
    limits, saving = settings.consolidate, plan.saving_usd_per_hour
    prices = [node.usd_per_hour for node in nodes]
    cost = sum(usd for usd in prices if usd is not None)
    if saving is None or saving <= 0 or saving < limits.least_saving_usd_per_hour:
        return None
    if saving < limits.least_saving_ratio * cost:
        return None
    gpus = {(node.node, gpu.gpu): gpu for node in nodes for gpu in node.gpus}
    moved = sum(gpus[move.node, move.gpu].usd_per_hour or 0.0 for move in plan.moves)
    once = moved * settings.switch_seconds / 3600
    unknown = sum(count for reason, count in plan.left_out.items() if reason != IDLE)
    advice_id = f"{plan.id}.consolidate.{now.ns}"
    return Recommendation(
        action="consolidate",
        pool=plan.id,
        recommendation_id=advice_id,
        idempotency_key=advice_id,
        decided_at=instant(now.ns),
        expires_at=instant(now.ns + int(limits.expires_after_seconds * SECOND_NS)),
        replicas_from=plan.nodes,
        replicas_to=plan.nodes,
        reason="fewer_nodes_hold_it",
        text=plan.text,
        evidence=[one for peak in replayed.peaks for one in _evidence(peak, settings, end_ns)],
        confidence_ratio=plan.nodes / (plan.nodes + unknown),
        risk="medium",
        effective_after_seconds=settings.switch_seconds,
        saving_usd_per_hour=saving,
        one_off_cost_usd=once,
        payback_hours=once / saving,
        simulated=plan.simulated,
        moves=plan.moves,
    )


def _evidence(peak: Peak, settings: GpuAdviceSettings, end_ns: int) -> list[Evidence]:
    """The peak after the moves, by the ten minutes and by each GPU or host that it is from."""
    windows = settings.history_hours * 3600 * SECOND_NS // WINDOW_NS
    begin_ns = end_ns - (windows - peak.window) * WINDOW_NS
    return [
        Evidence(
            signal=_SIGNALS[peak.signal],
            value=peak.ratio,
            threshold=peak.limit,
            window_seconds=settings.history_hours * 3600.0,
            subject=f"rollup.gpu.{paired(node, gpu)}" if gpu else f"rollup.host.{node}",
            fields=[_FIELDS[peak.signal]],
            measured_from=instant(begin_ns),
            measured_to=instant(begin_ns + WINDOW_NS),
        )
        for node, gpu in peak.sources
    ]
