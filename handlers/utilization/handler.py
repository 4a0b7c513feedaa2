"""How busy nodes, pools and the fleet are: levels, bottlenecks, health, efficiency."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from handlers.settings import Thresholds, UtilizationSettings
from handlers.slots import STEP_NS, TICK_NS, TURNS, turn_of
from handlers.utilization.gpu_busy import BusyGpu, GpuBusy, gpu_busy
from handlers.utilization.gpu_state import (
    SOURCE,
    GpuEvidence,
    PartKey,
    gpu_sample,
    gpu_state,
    in_words,
)
from handlers.utilization.levels import (
    RANK,
    balance,
    efficiency,
    health_of,
    level_of,
    power_efficiency,
    severity_of,
)
from handlers.window import MAX_ENTRIES, OfLast, RowWindow
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
# A resource of one part; None: the node itself, or the mean of all nodes.
SeriesKey: TypeAlias = tuple[Resource | Evidence, str | None]
Means: TypeAlias = Mapping[Resource | Evidence, Mapping[str | None, float]]
"""Of each resource, and evidence, the mean of each part that measured it."""

RESOURCES: tuple[Resource, ...] = ("cpu", "memory", "gpu", "gpu_memory", "kv_cache")
CALM_TURNS = 2 * TURNS
"""A calm group is judged once in so many steps."""
CALM_WINDOW_SECONDS = 60.0
"""A mean over so long, or longer, moves little from one judgement to the next."""
HOSTS, GPUS, ENGINES = range(3)
_PLACES: Mapping[Resource, tuple[int, int]] = {
    "cpu": (HOSTS, 0),
    "memory": (HOSTS, 1),
    "gpu": (GPUS, 0),
    "gpu_memory": (GPUS, 1),
    "kv_cache": (ENGINES, 0),
}
"""Of a resource, which parts have it, and its place in their rows."""
_ROWS: tuple[tuple[Resource | Evidence, ...], ...] = (
    ("cpu", "memory"),
    ("gpu", "gpu_memory", "gpu_activity", "gpu_power"),
    ("kv_cache", "requests_running"),
)
"""What the values in the rows of hosts, GPUs and engines are."""
_RESOURCES_OF_ROWS = (_ROWS[HOSTS], _ROWS[GPUS][:2], _ROWS[ENGINES][:1])
"""Without the evidence, which stands behind."""
_KEY = operator.itemgetter(0)


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


class _Part(RowWindow, kw_only=True, gc=False):
    """A host, GPU or engine of a group: its id there, and its samples."""

    id: str | None
    busy_source: str | None = None
    """What measured the last utilization; of GPUs whose pool is followed, no other."""
    is_divided: bool = False
    """A GPU with MIG: its instances count. As `busy_source`."""
    is_simulated: bool = False
    """As `busy_source`."""


Parts: TypeAlias = dict[PartKey, _Part]
"""By node and name; of a host the name is empty."""


@dataclasses.dataclass(slots=True)
class _Group:
    """What is remembered of one node, pool or the fleet."""

    turn: int
    """Which of the `CALM_TURNS` is the group's own: it is judged then, calm or not."""
    heard_ns: int
    parts: tuple[Parts, Parts, Parts] = dataclasses.field(default_factory=lambda: ({}, {}, {}))
    """Hosts, GPUs and engines."""
    levels: dict[Resource, Level] = dataclasses.field(default_factory=dict)
    severities: dict[SeriesKey, Severity] = dataclasses.field(default_factory=dict)
    simulated_ns: int | None = None
    published: _Told | None = None
    published_ns: int = 0
    busy: GpuBusy | None = None
    """As it was last judged, where that is followed."""


class _Use(NamedTuple):
    """A resource of a group: the mean of its parts' means."""

    resource: Resource
    mean: float
    level: Level


class UtilizationHandler:
    """Judges the means of the last `window_seconds` every 5 s, each group at instants of its own.

    Every 10 s while nothing changes: of a group whose last judgements changed nothing every other
    one is left out. A mean over 60 s moves little in 5 s; one over less is judged every 5 s always.
    One instance per scope. For a node the parts are its GPUs and engines; for a pool or the fleet
    they are `<node>`, `<node>-<gpu>`, `<node>-<engine>`, and a bottleneck without `resource_id`
    is one of the mean over all. Publishes when level, health, bottlenecks or the state of a GPU
    change, else every `publish_seconds`; of a pool or the fleet only the kinds of bottlenecks count
    as a change, so that one GPU among thousands does not publish them all. GPUs are listed for
    nodes only.

    With `follows_busy`, of pools, `busy` tells how busy their GPUs are. Those are judged every 5 s
    always: at which instants a calm group is depends on what was published of it, so a replay of
    what advice rests on would not see the GPUs as they were seen.
    """

    consumes: tuple[type[Message], ...] = (HostMetrics, GpuMetrics, EngineMetrics)
    # All of thousands at once would hold up messages for a second.
    tick_ns = STEP_NS

    def __init__(
        self, settings: UtilizationSettings, scope: Scope, *, follows_busy: bool = False
    ) -> None:
        self.name = f"utilization_{scope}"
        self._follows_busy = follows_busy
        self.scope: Scope = scope
        self._settings = settings
        self._span_ns = int(settings.window_seconds * SECOND_NS)
        self._publish_ns = int(settings.publish_seconds * SECOND_NS)
        # A mean over less moves more in 5 s.
        self._calms = settings.window_seconds >= CALM_WINDOW_SECONDS and not follows_busy
        self.window_ns = self._span_ns + self._publish_ns
        self._groups: dict[str, _Group] = {}
        # By turn, so that a tick looks at no other groups.
        self._turns: list[dict[str, _Group]] = [{} for _ in range(TURNS)]
        self._names = _ROWS if scope == "node" else _RESOURCES_OF_ROWS
        if follows_busy:
            self._names = (_ROWS[HOSTS], _ROWS[GPUS], _RESOURCES_OF_ROWS[ENGINES])
        self._ticked_ns = 0
        self._thresholds: dict[Resource | Evidence, Thresholds] = {
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
        group = self._groups.get(key)
        if group is None or now.ns - group.heard_ns >= self.window_ns:
            group = self._groups[key] = self._turns[turn_of(key)][key] = _Group(
                turn_of(key, CALM_TURNS), now.ns
            )
        group.heard_ns = now.ns
        if message.simulated:
            group.simulated_ns = now.ns
        kind, source, row = _sample(message, now.ns)
        parts = group.parts[kind]
        part = parts.get(source)
        if part is None:
            if len(parts) >= MAX_ENTRIES:
                return ()
            part = parts[source] = _Part(id=self._id(*source))
        part.add(row)
        if self._follows_busy and isinstance(message, GpuMetrics):
            part.is_divided = message.parent is None and bool(message.is_mig_enabled)
            part.is_simulated = message.simulated
            part.busy_source = message.utilization_source or part.busy_source
        return ()

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Judge the groups whose turn has come since the tick before."""
        before_ns, self._ticked_ns = self._ticked_ns, now.ns
        emits = []
        for step in _steps_between(before_ns, now.ns):
            groups = self._turns[step % TURNS]
            for key, group in sorted(groups.items(), key=_KEY):
                if now.ns - group.heard_ns >= self.window_ns:
                    del groups[key], self._groups[key]
                    continue
                if step % CALM_TURNS != group.turn and self._is_calm(group, now.ns):
                    continue
                message = self._judge(key, group, now.ns)
                if message is not None:
                    emits.append(Emit(message, f"utilization.{self.scope}.{key}.{now.ns}"))
        return emits

    def busy(self, pool: str) -> GpuBusy | None:
        """How busy its GPUs were in the last window, each 5 s anew; None: none was measured."""
        group = self._groups.get(pool)
        return None if group is None else group.busy

    def _is_calm(self, group: _Group, now_ns: int) -> bool:
        """Whether the judgement before published nothing, and it is not time to publish again.

        By what the snapshot has: a new owner judges at the same instants.
        """
        age_ns = now_ns - group.published_ns
        return self._calms and 2 * TICK_NS <= age_ns < self._publish_ns

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
                for key, group in self._groups.items()
            ]
        )

    def restore(self, snapshot: bytes) -> None:
        """Take them over for the groups that the replay has seen; any other is forgotten by now."""
        for memory in msgspec.json.decode(snapshot, type=list[_Memory]):
            group = self._groups.get(memory.key)
            if group is not None:
                group.levels = memory.levels
                group.severities = dict(memory.severities)
                group.published, group.published_ns = memory.published, memory.published_ns

    def _group_key(self, message: Metrics) -> str | None:
        if self.scope == "node":
            return message.node
        return message.pool if self.scope == "pool" else "all"

    def _id(self, node: str, name: str) -> str | None:
        """Of a part, as it is published."""
        if self.scope == "node":
            return name or None
        return f"{node}-{name}" if name else node

    def _judge(self, key: str, group: _Group, now_ns: int) -> Utilization | None:
        means = self._means(group, now_ns)
        group.busy = self._busy(group, means) if self._follows_busy else None
        if not any(group.parts):
            return None
        uses = self._uses(group, means)
        bottlenecks = self._bottlenecks(group, means, uses)
        # A GPU whose utilization is unknown is still the scarce resource: unknown, not the CPU's.
        scarce = "gpu" if group.parts[GPUS] else "cpu"
        use = next((use for use in uses if use.resource == scarce), None)
        health = health_of(bottlenecks, parts_degrade_only=self.scope != "node") if uses else None
        is_listed = self.scope == "node" and bool(group.parts[GPUS])
        evidence = self._gpu_evidence(group, means) if is_listed else {}
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
        of_gpus = means.get("gpu", {})
        return Utilization(
            scope=self.scope,
            id=key,
            decided_at=instant(now_ns),
            window_seconds=self._settings.window_seconds,
            level=told.level,
            health=health,
            efficiency_ratio=efficiency(use.mean) if use else None,
            resources=self._resources(group, uses),
            bottlenecks=bottlenecks[: self._settings.bottlenecks_max],
            gpus=[
                self._use(key, gpu, known, states[gpu], of_gpus.get(gpu))
                for gpu, known in evidence.items()
            ],
            balance_ratio=balance(list(of_gpus.values())),
            nodes=len({node for parts in group.parts for node, _ in parts}),
            simulated=simulated_ns is not None and now_ns - simulated_ns < self._span_ns,
        )

    def _means(self, group: _Group, now_ns: int) -> Means:
        """Those of the window; what was before it is forgotten."""
        oldest_ns = now_ns - self._span_ns
        means: dict[Resource | Evidence, dict[str | None, float]] = {}
        for parts, names in zip(group.parts, self._names, strict=True):
            if not parts:
                continue
            found = [means.setdefault(name, {}) for name in names]
            for key, part in list(parts.items()):
                id_, rows = part.id, part.rows
                if rows[0][-1] <= oldest_ns and not part.expire(oldest_ns):
                    del parts[key]
                    continue
                count, columns = len(rows), zip(*rows, strict=True)
                # Every number of every part each 5 s: as little as can be for each.
                try:
                    for of_parts, total in zip(found, map(sum, columns), strict=False):
                        of_parts[id_] = total / count
                except TypeError:  # one of them was not measured
                    for place, of_parts in enumerate(found):
                        known = [row[place] for row in rows if row[place] is not None]
                        if known:
                            of_parts[id_] = sum(known) / len(known)
        return means

    def _kinds(self, bottlenecks: list[Bottleneck]) -> tuple[tuple[str, Severity, str | None], ...]:
        """What counts of bottlenecks when it changes."""
        if not bottlenecks:
            return ()
        kinds = {
            (
                bottleneck.resource,
                bottleneck.severity,
                bottleneck.resource_id if self.scope == "node" else None,
            )
            for bottleneck in bottlenecks
        }
        return tuple(sorted(kinds, key=lambda kind: (kind[0], kind[1], kind[2] or "")))

    def _uses(self, group: _Group, means: Means) -> list[_Use]:
        """The use of each measured resource: the mean of its parts' means."""
        before, group.levels = group.levels, {}
        uses = []
        for resource in RESOURCES:
            values = means.get(resource)
            if values:
                mean = fmean(values.values())
                level = level_of(mean, before.get(resource), self._settings.margin_ratio)
                group.levels[resource] = level
                uses.append(_Use(resource, mean, level))
        return uses

    def _resources(self, group: _Group, uses: list[_Use]) -> list[ResourceUse]:
        """As they are published, with their peaks."""
        return [
            ResourceUse(
                resource=use.resource,
                mean_ratio=use.mean,
                peak_ratio=_peak(group, use.resource),
                level=use.level,
            )
            for use in uses
        ]

    def _bottlenecks(self, group: _Group, means: Means, uses: list[_Use]) -> list[Bottleneck]:
        """Critical before warning, then the highest value first."""
        before = group.severities
        candidates: dict[SeriesKey, float] = {}
        for resource, values in means.items():
            thresholds = self._thresholds.get(resource)
            if thresholds is not None:  # nearly all of thousands are below them
                least = thresholds.warning_ratio
                candidates |= {(resource, k): mean for k, mean in values.items() if mean >= least}
        for resource, id_ in before:
            mean = means.get(resource, {}).get(id_)
            if mean is not None:
                candidates[resource, id_] = mean
        if self.scope != "node":
            candidates |= {(use.resource, None): use.mean for use in uses}
        if not candidates:
            group.severities = {}
            return []
        found = []
        severities: dict[SeriesKey, Severity] = {}
        for series, mean in candidates.items():
            thresholds = self._thresholds.get(series[0])
            if thresholds is None:
                continue
            severity = severity_of(
                mean, thresholds, before.get(series), self._settings.margin_ratio
            )
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

    def _gpu_evidence(self, group: _Group, means: Means) -> dict[str, GpuEvidence]:
        """What tells the state of each GPU of a node, by name."""
        activity, memory, power, running = (
            means.get(name, {})
            for name in ("gpu_activity", "gpu_memory", "gpu_power", "requests_running")
        )
        requests_running = sum(running.values()) if running else None
        gpus = group.parts[GPUS]
        return {
            gpu: GpuEvidence(
                activity_ratio=activity.get(gpu),
                activity_source=gpus[node, gpu].rows[-1][SOURCE],
                memory_ratio=memory.get(gpu),
                power_ratio=power.get(gpu),
                requests_running=requests_running,
            )
            for node, gpu in sorted(gpus)
        }

    def _busy(self, group: _Group, means: Means) -> GpuBusy | None:
        """Of the GPUs of a pool: a MIG instance is one, the GPU that it is of is none."""
        ratios, memory, activity, power = (
            means.get(name, {}) for name in ("gpu", "gpu_memory", "gpu_activity", "gpu_power")
        )
        return gpu_busy(
            self._settings,
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
                for part in group.parts[GPUS].values()
                if not part.is_divided
            ),
        )

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


def _peak(group: _Group, resource: Resource) -> float:
    """The highest sample of a resource that was measured."""
    kind, place = _PLACES[resource]
    rows = [row for part in group.parts[kind].values() for row in part.rows]
    values = list(map(operator.itemgetter(place), rows))
    if None in values:
        values = [value for value in values if value is not None]
    return float(max(values))


def _steps_between(before_ns: int, now_ns: int) -> range:
    """The last of the steps that have come since `before_ns`, each turn once."""
    last = now_ns // STEP_NS
    return range(max(before_ns // STEP_NS, last - TURNS) + 1, last + 1)


def _sample_of(message: Metrics, ns: int) -> tuple[int, PartKey, tuple[Any, ...]]:
    """The kind of its part, which one, and the row: as `_ROWS` has it.

    Of a GPU it is more than that; last is the instant.
    """
    if isinstance(message, HostMetrics):
        cpu, memory = message.cpu, message.memory
        row = (
            cpu.utilization_ratio if cpu else None,
            memory.utilization_ratio if memory else None,
            ns,
        )
        return HOSTS, (message.node, ""), row
    if isinstance(message, GpuMetrics):
        sample = gpu_sample(message, ns)
        return GPUS, sample.key, sample.row
    row = (message.kv_cache_usage_ratio, message.requests_running, ns)
    return ENGINES, (message.node, message.engine), row


_sample = OfLast(_sample_of)
"""What a message says; its node's, its pool's and the fleet's handler ask one after the other."""
