"""What is judged, as numbers and words by name: of an event, and of the rollups behind it. Pure."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from handlers.spending.trend import METRICS, point
from handlers.spending.usage import figures
from schemas.analysis import Utilization
from schemas.consolidation import Consolidation
from schemas.history import AnalysisKind
from schemas.metrics import Rollup
from schemas.spending import Opportunity, Trend, Usage, Waste

Values: TypeAlias = dict[str, float | str]
Judgement: TypeAlias = Utilization | Waste | Trend | Opportunity | Consolidation

TYPES: Mapping[AnalysisKind, type[Judgement]] = {
    "utilization": Utilization,
    "waste": Waste,
    "trend": Trend,
    "opportunity": Opportunity,
    "consolidation": Consolidation,
}
_RESOURCE_OF: Mapping[str, str] = {
    "cpu_utilization_ratio": "cpu",
    "memory_utilization_ratio": "memory",
    "host_cpu_utilization_ratio": "cpu",
    "host_memory_utilization_ratio": "memory",
    "gpu_utilization_ratio": "gpu",
    "gpu_memory_utilization_ratio": "gpu_memory",
    "engine_kv_cache_usage_ratio": "kv_cache",
}
"""Of the rollup of a machine or a pool, which of its metrics a resource is judged by."""


def values_of(message: Judgement) -> Values:
    """The numbers and words of an event; what was not measured is absent."""
    return _OF[type(message)](message)


def _of_utilization(message: Utilization) -> Values:
    values: dict[str, float | str | None] = {
        "level": message.level,
        "health": message.health,
        "efficiency_ratio": message.efficiency_ratio,
        "balance_ratio": message.balance_ratio,
        "nodes": message.nodes,
        "bottlenecks": len(message.bottlenecks),
    }
    for use in message.resources:
        values[f"{use.resource}_mean_ratio"] = use.mean_ratio
        values[f"{use.resource}_peak_ratio"] = use.peak_ratio
    for state in ("active", "idle_held", "idle", None) if message.gpus else ():
        values[f"gpus_{state or 'unknown'}"] = sum(gpu.state == state for gpu in message.gpus)
    return _known(values)


def _of_waste(message: Waste) -> Values:
    return _known(msgspec.structs.asdict(message.figures))


def _of_trend(message: Trend) -> Values:
    values: dict[str, float | str | None] = {}
    for line in message.lines:
        values[line.metric] = line.last
        values[f"{line.metric}_slope_per_day"] = line.slope_per_day
        values[f"{line.metric}_change_ratio"] = line.change_ratio
        values[f"{line.metric}_direction"] = line.direction
    return _known(values)


def _of_opportunity(message: Opportunity) -> Values:
    values: dict[str, float | str | None] = {
        "saving_usd_per_month": message.saving_usd_per_month,
        "savings": len(message.savings),
    }
    for saving in message.savings:
        values[f"{saving.kind}_gpus"] = saving.gpus
        values[f"{saving.kind}_usd_per_month"] = saving.saving_usd_per_month
    return _known(values)


def _of_consolidation(message: Consolidation) -> Values:
    fields = ("nodes", "nodes_after", "saving_usd_per_hour")
    return _known(
        {"moves": len(message.moves), **{name: getattr(message, name) for name in fields}}
    )


_OF: Mapping[type[Judgement], Callable[[Any], Values]] = {
    Utilization: _of_utilization,
    Waste: _of_waste,
    Trend: _of_trend,
    Opportunity: _of_opportunity,
    Consolidation: _of_consolidation,
}


def values_of_hour(kind: AnalysisKind, usage: Usage) -> Values:
    """What an hour holds of a judgement: all of Waste, of a Trend the numbers, not their slopes.

    Of utilization only how busy the GPUs were.
    """
    if kind == "waste":
        return _known(msgspec.structs.asdict(figures([usage])))
    if kind == "trend":
        return _known(dict(zip(METRICS, point([usage]).values, strict=True)))
    return _known({"gpu_mean_ratio": usage.utilization_ratio})


def values_of_minute(rollup: Rollup) -> Values:
    """How busy a machine or pool was in a minute; without level, health and bottlenecks."""
    values: Values = {}
    for metric, resource in _RESOURCE_OF.items():
        summary = rollup.metrics.get(metric)
        if summary is not None:
            values[f"{resource}_mean_ratio"] = summary.mean
            values[f"{resource}_peak_ratio"] = summary.max
    return values


def _known(values: Mapping[str, float | str | None]) -> Values:
    return {name: value for name, value in values.items() if value is not None}
