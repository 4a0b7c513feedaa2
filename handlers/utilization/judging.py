"""Levels and bottlenecks of a node, pool or the fleet by its means, with hysteresis. Pure."""

import heapq
from collections.abc import Mapping, Sequence
from math import fsum
from typing import NamedTuple, TypeAlias

from handlers.settings import Thresholds, UtilizationSettings
from handlers.utilization.levels import RANK, efficiency, level_of, severity_of
from handlers.utilization.means import (
    RESOURCES,
    Evidence,
    GroupParts,
    Means,
    Resource,
    peak,
)
from schemas.analysis import Bottleneck, Level, ResourceUse, Severity

# A resource of one part; None: the node itself, or the mean of all nodes.
SeriesKey: TypeAlias = tuple[Resource | Evidence, str | None]
Kinds: TypeAlias = tuple[tuple[str, Severity, str | None], ...]
"""Of bottlenecks: the resource, the severity, and of nodes the part."""


class Use(NamedTuple):
    """A resource of a group: the mean of its parts' means."""

    resource: Resource
    mean: float
    level: Level
    efficiency: float | None
    """None: of this resource no use is the best one."""


def uses_of(
    settings: UtilizationSettings, means: Means, before: Mapping[Resource, Level]
) -> list[Use]:
    """The use of each measured resource; `before`: the levels of the judgement before."""
    uses = []
    bands = {
        "cpu": settings.cpu_efficient,
        "memory": settings.memory_efficient,
        "gpu": settings.gpu_efficient,
    }
    for resource in RESOURCES:
        values = means.get(resource)
        if values:
            mean = fsum(values.values()) / len(values)
            level = level_of(mean, before.get(resource), settings.margin_ratio)
            band = bands.get(resource)
            uses.append(Use(resource, mean, level, efficiency(mean, band) if band else None))
    return uses


def resources_of(parts: GroupParts, uses: Sequence[Use]) -> list[ResourceUse]:
    """As they are published, with their peaks."""
    return [
        ResourceUse(
            resource=use.resource,
            mean_ratio=use.mean,
            peak_ratio=peak(parts, use.resource),
            level=use.level,
            efficiency_ratio=use.efficiency,
        )
        for use in uses
    ]


class Bottlenecks:
    """Finds what is at its threshold: of a node its parts, else the means over all parts, too."""

    def __init__(self, settings: UtilizationSettings, *, of_node: bool) -> None:
        self._of_node = of_node
        self._margin_ratio = settings.margin_ratio
        self._thresholds: dict[Resource | Evidence, Thresholds] = {
            "cpu": settings.cpu,
            "memory": settings.memory,
            "gpu": settings.gpu,
            "kv_cache": settings.kv_cache,
            "disk": settings.disk,
            "network": settings.network,
        }

    def find(
        self, means: Means, uses: Sequence[Use], before: Mapping[SeriesKey, Severity]
    ) -> dict[SeriesKey, Severity]:
        """How severe each is; `before`: what the judgement before found."""
        candidates: dict[SeriesKey, float] = {}
        for resource, values in means.items():
            thresholds = self._thresholds.get(resource)
            if thresholds is not None:  # nearly all of thousands are below them
                least = thresholds.warning_ratio
                for id_, mean in values.items():
                    if mean >= least:
                        candidates[resource, id_] = mean
        for resource, id_ in before:
            now = means.get(resource, {}).get(id_)
            if now is not None:
                candidates[resource, id_] = now
        if not self._of_node:
            candidates |= {(use.resource, None): use.mean for use in uses}
        severities: dict[SeriesKey, Severity] = {}
        for series, mean in candidates.items():
            thresholds = self._thresholds.get(series[0])
            if thresholds is None:
                continue
            severity = severity_of(mean, thresholds, before.get(series), self._margin_ratio)
            if severity is not None:
                severities[series] = severity
        return severities

    def worst(
        self,
        severities: Mapping[SeriesKey, Severity],
        means: Means,
        uses: Sequence[Use],
        most: int,
    ) -> list[Bottleneck]:
        """At most so many of them, critical before warning, then the highest value first."""
        of_all: dict[SeriesKey, float] = {}
        if not self._of_node:
            of_all = {(use.resource, None): use.mean for use in uses}
        ranks = []
        for series, severity in severities.items():
            resource, id_ = series
            value = of_all[series] if series in of_all else means[resource][id_]
            ranks.append((-RANK[severity], -value, resource, id_ or ""))
        ranked = heapq.nsmallest(most, ranks)
        return [
            self._bottleneck(resource, id_ or None, -negative, severities[resource, id_ or None])
            for _, negative, resource, id_ in ranked
        ]

    def _bottleneck(
        self, resource: Resource | Evidence, id_: str | None, value: float, severity: Severity
    ) -> Bottleneck:
        thresholds = self._thresholds[resource]
        is_critical = severity == "critical"
        return Bottleneck(
            resource=resource,
            resource_id=id_,
            severity=severity,
            value_ratio=value,
            threshold_ratio=thresholds.critical_ratio if is_critical else thresholds.warning_ratio,
        )

    def kinds(self, severities: Mapping[SeriesKey, Severity]) -> Kinds:
        """What counts of them when it changes."""
        if not severities:
            return ()
        kinds = {
            (resource, severity, id_ if self._of_node else None)
            for (resource, id_), severity in severities.items()
        }
        return tuple(sorted(kinds, key=lambda kind: (kind[0], kind[1], kind[2] or "")))
