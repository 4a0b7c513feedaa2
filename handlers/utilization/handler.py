"""How busy nodes, pools and the fleet are: levels, bottlenecks, health, efficiency."""

import dataclasses
import functools
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Literal, TypeAlias

import msgspec

from handlers.settings import Thresholds, UtilizationSettings
from handlers.slots import STEP_NS, TICK_NS
from handlers.utilization.gpu_state import GpuEvidence, gpu_sample, gpu_state, in_words
from handlers.utilization.levels import (
    RANK,
    balance,
    efficiency,
    health_of,
    level_of,
    power_efficiency,
    severity_of,
)
from handlers.window import MAX_ENTRIES, ExpiringDict, LastSeen, RollingWindow
from schemas.analysis import (
    Bottleneck,
    GpuState,
    GpuUse,
    Health,
    Level,
    ResourceUse,
    Scope,
    Severity,
    Utilization,
)
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant

Metrics: TypeAlias = HostMetrics | GpuMetrics | EngineMetrics
Resource: TypeAlias = Literal["cpu", "memory", "gpu", "gpu_memory", "kv_cache"]
# What tells the state of a GPU beside its resources; of nodes only, whose GPUs are listed.
Evidence: TypeAlias = Literal["gpu_activity", "gpu_power", "requests_running"]
# A resource, or evidence, of one part; None: the node itself.
SeriesKey: TypeAlias = tuple[Resource | Evidence, str | None]

_TURNS = TICK_NS // STEP_NS
RESOURCES: tuple[Resource, ...] = ("cpu", "memory", "gpu", "gpu_memory", "kv_cache")


class _Told(msgspec.Struct, frozen=True):
    """What counts as a change when it differs from what was last published."""

    level: Level | None
    health: Health | None
    bottlenecks: tuple[tuple[str, Severity, str | None], ...]
    gpus: tuple[tuple[str, GpuState | None], ...] = ()


class _Memory(msgspec.Struct, frozen=True):
    """What does not follow from the samples of the window: hysteresis, and what was published."""

    key: str
    levels: dict[Resource, Level]
    severities: list[tuple[SeriesKey, Severity]]
    published: _Told | None
    published_ns: int


@dataclasses.dataclass(slots=True)
class _Group:
    """What is remembered of one node, pool or the fleet."""

    nodes: LastSeen[str]
    gpus: LastSeen[str]
    series: dict[SeriesKey, RollingWindow] = dataclasses.field(default_factory=dict)
    activity_sources: dict[str, str | None] = dataclasses.field(default_factory=dict)
    levels: dict[Resource, Level] = dataclasses.field(default_factory=dict)
    severities: dict[SeriesKey, Severity] = dataclasses.field(default_factory=dict)
    simulated_ns: int | None = None
    published: _Told | None = None
    published_ns: int = 0


class UtilizationHandler:
    """Judges the means of the last `window_seconds` every 5 s, each group at instants of its own.

    One instance per scope. For a node the parts are its GPUs and engines; for a pool or the fleet
    they are `<node>`, `<node>-<gpu>`, `<node>-<engine>`, and a bottleneck without `resource_id`
    is one of the mean over all. Publishes when level, health, bottlenecks or the state of a GPU
    change, else every `publish_seconds`; of a pool or the fleet only the kinds of bottlenecks count
    as a change, so that one GPU among thousands does not publish them all. GPUs are listed for
    nodes only.
    """

    consumes: tuple[type[Message], ...] = (HostMetrics, GpuMetrics, EngineMetrics)
    # All of thousands at once would hold up messages for a second.
    tick_ns = STEP_NS

    def __init__(self, settings: UtilizationSettings, scope: Scope) -> None:
        self.name = f"utilization_{scope}"
        self.scope: Scope = scope
        self._settings = settings
        self._span_ns = int(settings.window_seconds * SECOND_NS)
        self._publish_ns = int(settings.publish_seconds * SECOND_NS)
        self.window_ns = self._span_ns + self._publish_ns
        # By turn, so that a tick looks at no other groups.
        self._groups: list[ExpiringDict[str, _Group]] = [
            ExpiringDict(self.window_ns) for _ in range(_TURNS)
        ]
        self._ticked_ns = 0
        self._thresholds: dict[str, Thresholds] = {
            "cpu": settings.cpu,
            "memory": settings.memory,
            "gpu": settings.gpu,
            "kv_cache": settings.kv_cache,
        }

    def handle(self, message: Metrics, now: Moment) -> Sequence[Emit]:
        """Remember one sample; judging waits for the next tick."""
        key = self._group_key(message)
        if key is None:
            return ()
        group = self._groups[_turn_of(key)].refresh(key, self._new_group, now.ns)
        group.nodes.see(message.node, now.ns)
        if message.simulated:
            group.simulated_ns = now.ns
        part = self._part(message)
        if isinstance(message, GpuMetrics) and part is not None:
            group.gpus.see(part, now.ns)
        for resource, value in _samples(message):
            self._add(group, resource, part, value, now.ns)
        if self.scope == "node":
            self._add_evidence(group, message, part, now.ns)
        return ()

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Judge the groups whose turn has come since the tick before."""
        before_ns, self._ticked_ns = self._ticked_ns, now.ns
        turns = _turns_between(before_ns, now.ns)
        due = [one for turn in turns for one in self._groups[turn].items(now.ns)]
        emits = []
        for key, group in sorted(due):
            message = self._judge(key, group, now.ns)
            if message is not None:
                emits.append(Emit(message, f"utilization.{self.scope}.{key}.{now.ns}"))
        return emits

    def snapshot(self) -> bytes | None:
        """The levels and severities of each group, and what was last published of it."""
        return msgspec.json.encode(
            [
                _Memory(
                    key,
                    group.levels,
                    list(group.severities.items()),
                    group.published,
                    group.published_ns,
                )
                for groups in self._groups
                for key, group in groups.items()
            ]
        )

    def restore(self, snapshot: bytes) -> None:
        """Take them over for the groups that the replay has seen; any other is forgotten by now."""
        groups = {key: group for some in self._groups for key, group in some.items()}
        for memory in msgspec.json.decode(snapshot, type=list[_Memory]):
            group = groups.get(memory.key)
            if group is not None:
                group.levels = memory.levels
                group.severities = dict(memory.severities)
                group.published, group.published_ns = memory.published, memory.published_ns

    def _add(
        self,
        group: _Group,
        name: Resource | Evidence,
        part: str | None,
        value: float | None,
        now_ns: int,
    ) -> None:
        if value is None:
            return
        window = group.series.get((name, part))
        if window is None:
            if len(group.series) >= MAX_ENTRIES:
                return
            window = group.series[name, part] = RollingWindow(self._span_ns)
        window.add(now_ns, value)

    def _add_evidence(self, group: _Group, message: Metrics, part: str | None, now_ns: int) -> None:
        if isinstance(message, GpuMetrics):
            sample = gpu_sample(message)
            group.activity_sources[message.gpu] = sample.activity_source
            self._add(group, "gpu_activity", part, sample.activity_ratio, now_ns)
            self._add(group, "gpu_power", part, sample.power_ratio, now_ns)
        elif isinstance(message, EngineMetrics):
            self._add(group, "requests_running", part, message.requests_running, now_ns)

    def _group_key(self, message: Metrics) -> str | None:
        if self.scope == "node":
            return message.node
        return message.pool if self.scope == "pool" else "all"

    def _part(self, message: Metrics) -> str | None:
        if isinstance(message, HostMetrics):
            return None if self.scope == "node" else message.node
        part = message.gpu if isinstance(message, GpuMetrics) else message.engine
        return part if self.scope == "node" else f"{message.node}-{part}"

    def _new_group(self) -> _Group:
        return _Group(nodes=LastSeen(self._span_ns), gpus=LastSeen(self._span_ns))

    def _judge(self, key: str, group: _Group, now_ns: int) -> Utilization | None:
        group.nodes.forget(now_ns)
        group.gpus.forget(now_ns)
        if not group.nodes:
            return None
        means: dict[SeriesKey, float] = {}
        peaks: dict[str, float] = defaultdict(float)
        for series, window in list(group.series.items()):
            summary = window.mean_and_peak(now_ns)
            if summary is None:
                del group.series[series]
                continue
            means[series], peak = summary
            peaks[series[0]] = max(peaks[series[0]], peak)
        resources = self._resources(group, means, peaks)
        bottlenecks = self._bottlenecks(group, means, resources)
        # A GPU whose utilization is unknown is still the scarce resource: unknown, not the CPU's.
        scarce = "gpu" if group.gpus else "cpu"
        use = next((use for use in resources if use.resource == scarce), None)
        health = (
            health_of(bottlenecks, parts_degrade_only=self.scope != "node") if resources else None
        )
        evidence = self._gpu_evidence(group, means) if self.scope == "node" else {}
        states = {gpu: gpu_state(self._settings, known) for gpu, known in evidence.items()}
        told = _Told(
            use.level if use else None,
            health,
            self._kinds(bottlenecks),
            tuple((gpu, state) for gpu, (state, _) in states.items()),
        )
        if told == group.published and now_ns - group.published_ns < self._publish_ns:
            return None
        group.published, group.published_ns = told, now_ns
        simulated_ns = group.simulated_ns
        return Utilization(
            scope=self.scope,
            id=key,
            decided_at=instant(now_ns),
            window_seconds=self._settings.window_seconds,
            level=told.level,
            health=health,
            efficiency_ratio=efficiency(use.mean_ratio) if use else None,
            resources=resources,
            bottlenecks=bottlenecks[: self._settings.bottlenecks_max],
            gpus=[
                self._use(key, gpu, known, states[gpu], means.get(("gpu", gpu)))
                for gpu, known in evidence.items()
            ],
            balance_ratio=balance([mean for (name, _), mean in means.items() if name == "gpu"]),
            nodes=len(group.nodes),
            simulated=simulated_ns is not None and now_ns - simulated_ns < self._span_ns,
        )

    def _kinds(self, bottlenecks: list[Bottleneck]) -> tuple[tuple[str, Severity, str | None], ...]:
        """What counts of bottlenecks when it changes."""
        kinds = {
            (
                bottleneck.resource,
                bottleneck.severity,
                bottleneck.resource_id if self.scope == "node" else None,
            )
            for bottleneck in bottlenecks
        }
        return tuple(sorted(kinds, key=lambda kind: (kind[0], kind[1], kind[2] or "")))

    def _resources(
        self, group: _Group, means: dict[SeriesKey, float], peaks: dict[str, float]
    ) -> list[ResourceUse]:
        """The use of each measured resource: the mean of its parts' means, and their peak."""
        by_resource = defaultdict(list)
        for (name, _), mean in means.items():
            by_resource[name].append(mean)
        uses = []
        for resource in RESOURCES:
            values = by_resource.get(resource)
            if not values:
                group.levels.pop(resource, None)
                continue
            mean = fmean(values)
            level = level_of(mean, group.levels.get(resource), self._settings.margin_ratio)
            group.levels[resource] = level
            uses.append(
                ResourceUse(
                    resource=resource, mean_ratio=mean, peak_ratio=peaks[resource], level=level
                )
            )
        return uses

    def _bottlenecks(
        self, group: _Group, means: dict[SeriesKey, float], resources: list[ResourceUse]
    ) -> list[Bottleneck]:
        """Critical before warning, then the highest value first."""
        candidates = dict(means)
        if self.scope != "node":
            candidates |= {(use.resource, None): use.mean_ratio for use in resources}
        found = []
        severities: dict[SeriesKey, Severity] = {}
        for series, mean in candidates.items():
            thresholds = self._thresholds.get(series[0])
            if thresholds is None:
                continue
            before = group.severities.get(series)
            if before is None and mean < thresholds.warning_ratio:
                continue  # nearly all of thousands
            severity = severity_of(mean, thresholds, before, self._settings.margin_ratio)
            if severity is None:
                continue
            severities[series] = severity
            found.append(
                Bottleneck(
                    resource=series[0],
                    resource_id=series[1],
                    severity=severity,
                    value_ratio=mean,
                    threshold_ratio=thresholds.critical_ratio
                    if severity == "critical"
                    else thresholds.warning_ratio,
                )
            )
        group.severities = severities
        return sorted(
            found,
            key=lambda b: (-RANK[b.severity], -b.value_ratio, b.resource, b.resource_id or ""),
        )

    def _gpu_evidence(self, group: _Group, means: dict[SeriesKey, float]) -> dict[str, GpuEvidence]:
        """What tells the state of each GPU of a node, by name."""
        sources = group.activity_sources
        for gpu in sources.keys() - set(group.gpus):
            del sources[gpu]
        running = [mean for (name, _), mean in means.items() if name == "requests_running"]
        requests_running = sum(running) if running else None
        return {
            gpu: GpuEvidence(
                activity_ratio=means.get(("gpu_activity", gpu)),
                activity_source=sources.get(gpu),
                memory_ratio=means.get(("gpu_memory", gpu)),
                power_ratio=means.get(("gpu_power", gpu)),
                requests_running=requests_running,
            )
            for gpu in sorted(group.gpus)
        }

    def _use(
        self,
        node: str,
        gpu: str,
        evidence: GpuEvidence,
        told_by: tuple[GpuState | None, str | None],
        utilization: float | None,
    ) -> GpuUse:
        return GpuUse(
            gpu=gpu,
            node=node,
            state=told_by[0],
            source=told_by[1],
            utilization_ratio=utilization,
            memory_utilization_ratio=evidence.memory_ratio,
            power_efficiency_ratio=power_efficiency(utilization, evidence.power_ratio),
            evidence=in_words(self._settings, evidence),
        )


@functools.lru_cache(maxsize=1 << 17)
def _turn_of(key: str) -> int:
    """Which step of each 5 s is the group's, the same everywhere."""
    return zlib.crc32(key.encode()) % _TURNS


def _turns_between(before_ns: int, now_ns: int) -> set[int]:
    """The turns that have come since `before_ns`."""
    last = now_ns // STEP_NS
    return {step % _TURNS for step in range(max(before_ns // STEP_NS, last - _TURNS) + 1, last + 1)}


def _samples(message: Metrics) -> Iterator[tuple[Resource, float | None]]:
    if isinstance(message, HostMetrics):
        yield "cpu", message.cpu.utilization_ratio if message.cpu else None
        yield "memory", message.memory.utilization_ratio if message.memory else None
    elif isinstance(message, GpuMetrics):
        yield "gpu", message.utilization_ratio
        yield "gpu_memory", message.memory_utilization_ratio
    else:
        yield "kv_cache", message.kv_cache_usage_ratio
