"""How busy nodes, pools and the fleet are: levels, bottlenecks, health, efficiency."""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence

import msgspec

from handlers.columns import NUMBER_BYTES
from handlers.settings import UtilizationSettings
from handlers.slots import FLEET, STEP_NS, TICK_NS, TURNS, turn_of
from handlers.utilization.gpu_busy import GpuBusy
from handlers.utilization.gpu_state import gpu_state
from handlers.utilization.gpu_uses import busy_of, evidence_of, use_of
from handlers.utilization.judging import Bottlenecks, Kinds, SeriesKey, resources_of, uses_of
from handlers.utilization.levels import balance, health_of
from handlers.utilization.means import (
    ENGINES,
    GPUS,
    HOSTS,
    RESOURCES_OF_ROWS,
    ROWS,
    GroupParts,
    Means,
    Metrics,
    Part,
    Resource,
    means_of,
    sample,
)
from handlers.utilization.tenths import Tenths, is_large
from handlers.window import MAX_ENTRIES
from schemas.analysis import GpuState, Health, Level, Scope, Severity, Utilization
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant

CALM_TURNS = 2 * TURNS
"""A calm group is judged once in so many steps."""
CALM_WINDOW_SECONDS = 60.0
"""A mean over so long, or longer, moves little from one judgement to the next."""
_KEY = operator.itemgetter(0)
_KEY_OF: Mapping[Scope, Callable[[Metrics], str | None]] = {
    "node": operator.attrgetter("node"),
    "pool": operator.attrgetter("pool"),
    "fleet": lambda message: FLEET,
}
"""The group of a message."""


class _Told(msgspec.Struct, frozen=True):
    """What counts as a change when it differs from what was last published."""

    level: Level | None
    health: Health | None
    bottlenecks: Kinds
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

    turn: int
    """Which of the `CALM_TURNS` is the group's own: it is judged then, calm or not."""
    heard_ns: int
    parts: GroupParts = dataclasses.field(default_factory=lambda: ({}, {}, {}))
    levels: dict[Resource, Level] = dataclasses.field(default_factory=dict)
    severities: dict[SeriesKey, Severity] = dataclasses.field(default_factory=dict)
    simulated_ns: int | None = None
    published: _Told | None = None
    published_ns: int = 0
    busy: GpuBusy | None = None
    """As it was last judged, where that is followed."""
    tenths: Tenths | None = None
    """Of a large group."""


class UtilizationHandler:
    """Judges the means of the last `window_seconds` every 5 s, each group at instants of its own.

    Every 10 s while nothing changes: of a group whose last judgements changed nothing every other
    one is left out. A mean over 60 s moves little in 5 s; one over less is judged every 5 s always.
    A pool or fleet of more than 1,000 parts is judged by tenths of them (`Tenths`).
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
        self._key_of = _KEY_OF[scope]
        self._settings = settings
        self._span_ns = int(settings.window_seconds * SECOND_NS)
        self._publish_ns = int(settings.publish_seconds * SECOND_NS)
        # A mean over less moves more in 5 s.
        self._calms = settings.window_seconds >= CALM_WINDOW_SECONDS and not follows_busy
        self.window_ns = self._span_ns + self._publish_ns
        self._groups: dict[str, _Group] = {}
        # By turn, so that a tick looks at no other groups.
        self._turns: list[dict[str, _Group]] = [{} for _ in range(TURNS)]
        self._large: dict[str, _Group] = {}
        """Those with tenths."""
        self._names = ROWS if scope == "node" else RESOURCES_OF_ROWS
        if follows_busy:
            self._names = (ROWS[HOSTS], ROWS[GPUS], RESOURCES_OF_ROWS[ENGINES])
        self._wants_evidence = [self._names[kind] == ROWS[kind] for kind in (HOSTS, GPUS, ENGINES)]
        self._ticked_ns = 0
        self._of_node = scope == "node"
        self._bottlenecks = Bottlenecks(settings, of_node=self._of_node)

    def handle(self, message: Metrics, now: Moment) -> Sequence[Emit]:
        """Remember one sample; judging waits for the next tick."""
        key, ns = self._key_of(message), now.ns
        if key is None:
            return ()
        group = self._groups.get(key)
        if group is None or ns - group.heard_ns >= self.window_ns:
            group = self._groups[key] = self._turns[turn_of(key)][key] = _Group(
                turn_of(key, CALM_TURNS), ns
            )
            self._large.pop(key, None)
        group.heard_ns = ns
        if message.simulated:
            group.simulated_ns = ns
        kind, source, packed, resources, told_by = sample(message)
        if not self._wants_evidence[kind]:
            packed = resources
        parts = group.parts[kind]
        part = parts.get(source)
        if part is None:
            if len(parts) >= MAX_ENTRIES:
                return ()
            part = parts[source] = Part(id=self._id(*source), width=len(packed) // NUMBER_BYTES)
            if group.tenths is not None:
                group.tenths.add(kind, source, part)
        part.add(packed, ns)
        part.source = told_by
        if self._follows_busy and isinstance(message, GpuMetrics):
            part.is_divided = message.parent is None and bool(message.is_mig_enabled)
            part.is_simulated = message.simulated
            part.busy_source = message.utilization_source or part.busy_source
        return ()

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Judge the groups whose turn has come since the tick before."""
        before_ns, self._ticked_ns = self._ticked_ns, now.ns
        if not self._groups:  # of seven slots of eight the fleet's
            return ()
        for group in self._large.values():
            if group.tenths is not None and not self._is_passed_over(group, now.ns):
                group.tenths.find(now.ns)
        emits = []
        for step in _steps_between(before_ns, now.ns):
            groups = self._turns[step % TURNS]
            if not groups:
                continue
            calm_turn = step % CALM_TURNS
            for key, group in sorted(groups.items(), key=_KEY):
                if now.ns - group.heard_ns >= self.window_ns:
                    del groups[key], self._groups[key]
                    self._large.pop(key, None)
                    continue
                if calm_turn != group.turn and self._is_calm(group, now.ns):
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

    def _id(self, node: str, name: str) -> str | None:
        """Of a part, as it is published."""
        if self.scope == "node":
            return name or None
        return f"{node}-{name}" if name else node

    def _is_passed_over(self, group: _Group, now_ns: int) -> bool:
        """Whether its next judgement is left out, should nothing change until then."""
        step = now_ns // STEP_NS
        ahead = (group.turn - step) % TURNS
        return (step + ahead) % CALM_TURNS != group.turn and self._is_calm(
            group, now_ns + ahead * STEP_NS
        )

    def _means(self, key: str, group: _Group, now_ns: int) -> Means:
        if self._of_node or not is_large(group.parts):
            group.tenths = None
            self._large.pop(key, None)
        elif group.tenths is not None:
            return group.tenths.means(now_ns)
        else:  # now at once: nodes may have been heard only since the last steps of their tenths
            group.tenths = Tenths(group.parts, self._names, self._span_ns)
            self._large[key] = group
        return means_of(group.parts, self._names, now_ns - self._span_ns, now_ns)

    def _judge(self, key: str, group: _Group, now_ns: int) -> Utilization | None:
        settings, gpus = self._settings, group.parts[GPUS]
        means = self._means(key, group, now_ns)
        group.busy = busy_of(settings, gpus, means) if self._follows_busy else None
        if not any(group.parts):
            return None
        uses = uses_of(settings, means, group.levels)
        group.levels = {use.resource: use.level for use in uses}
        severities = self._bottlenecks.find(means, uses, group.severities)
        group.severities = severities
        # A GPU whose utilization is unknown is still the scarce resource: unknown, not the CPU's.
        scarce = "gpu" if gpus else "cpu"
        use = None
        for one in uses:
            if one.resource == scarce:
                use = one
        by_part = ((part, severity) for (_, part), severity in severities.items())
        health = health_of(by_part, parts_degrade_only=not self._of_node) if uses else None
        evidence = evidence_of(gpus, means) if gpus and self._of_node else {}
        states = {gpu: gpu_state(settings, known) for gpu, known in evidence.items()}
        told = _Told(
            use.level if use else None,
            health,
            self._bottlenecks.kinds(severities),
            tuple([(gpu, state) for gpu, (state, _) in states.items()]),
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
            window_seconds=settings.window_seconds,
            level=told.level,
            health=health,
            efficiency_ratio=use.efficiency if use else None,
            resources=resources_of(group.parts, uses),
            bottlenecks=self._bottlenecks.worst(severities, means, uses, settings.bottlenecks_max),
            gpus=[
                use_of(settings, key, gpu, known, states[gpu], of_gpus.get(gpu))
                for gpu, known in evidence.items()
            ],
            balance_ratio=balance(list(of_gpus.values())),
            nodes=len({node for parts in group.parts for node, _ in parts}),
            simulated=simulated_ns is not None and now_ns - simulated_ns < self._span_ns,
        )


def _steps_between(before_ns: int, now_ns: int) -> range:
    """The last of the steps that have come since `before_ns`, each turn once."""
    last = now_ns // STEP_NS
    return range(max(before_ns // STEP_NS, last - TURNS) + 1, last + 1)
