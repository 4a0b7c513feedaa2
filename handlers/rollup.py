"""One minute of every host, GPU, engine, pool and cache as min, mean, max and p95."""

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from handlers.columns import MeasuredPacker, Names, Numbers, Packed, numbers
from handlers.minute_summaries import Kind, MinuteSummaries, size_of, summarise
from handlers.settings import RollupSettings
from handlers.slots import STEP_NS, TICK_NS, turn_of
from handlers.spending.gpu_minutes import MOST_WATTS
from handlers.window import OfLast
from schemas.analysis import Scope
from schemas.engines import CacheMetrics, EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics, Rollup
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant, paired, to_ns
from schemas.views import cache_row, engine_row, gpu_row, host_row

Metrics: TypeAlias = HostMetrics | GpuMetrics | EngineMetrics | CacheMetrics

MINUTE_NS = 60 * SECOND_NS
SILENT_NS = 2 * MINUTE_NS
"""What a counter rose by in a longer time is of no minute."""
LARGE_NUMBERS = 20_000
"""A pool with more of them in a minute, of some hundred GPUs, is summarised in shares from the end
of the minute until it is given out: 8,000 GPUs at once held up messages for 0.25 s."""
MAX_CACHES = 1_000
"""Namespaces of caches in the minutes not given out yet; further ones are left out."""


@dataclasses.dataclass(slots=True)
class _Bucket:
    """One source in one minute."""

    minute_ns: int
    node: str | None
    pool: str | None
    tables: dict[tuple[Kind, Names], Numbers] = dataclasses.field(default_factory=dict)
    """The samples by kind and by what was measured: put together by name at the end."""
    energy_joules: float | None = None
    engines: set[tuple[str, str]] = dataclasses.field(default_factory=set)
    simulated: bool = False
    instance: str | None = None
    namespace: str | None = None
    summaries: MinuteSummaries | None = None
    """Of a large pool, as far as they were found before it is given out."""

    def table(self, kind: Kind, names: Names) -> Numbers:
        """Where samples that have measured this go."""
        table = self.tables.get((kind, names))
        if table is None:
            table = self.tables[kind, names] = numbers()
        return table


Key: TypeAlias = tuple[Kind, str, str]
"""Of what, its node, and its name there; of a host the name is empty.

Of a cache its instance and namespace."""


@dataclasses.dataclass(slots=True)
class _Source:
    """A host, GPU, engine or cache, and where its samples of one minute go."""

    bucket: _Bucket
    group: str
    begin_ns: int
    end_ns: int
    """Of the minute."""
    due_ns: int
    """When the bucket is given out."""
    heard_ns: int
    names: Names | None = None
    """What its last sample had measured; None: there was none in the bucket."""
    numbers: Numbers = dataclasses.field(default_factory=numbers)
    """The table of the bucket for that."""
    joules: float = math.inf
    """The counter's last value; infinite: none."""
    joules_ns: int = 0


_Sample: TypeAlias = tuple[Key, Names, Packed, float | None]
"""Of which source, the names and numbers of what was measured, and joules."""

_packed_host, _packed_gpu, _packed_engine, _packed_cache = (MeasuredPacker() for _ in range(4))


def _sample_of(message: Metrics) -> _Sample:
    if isinstance(message, GpuMetrics):
        names, packed = _packed_gpu(*gpu_row(message))
        return ("gpu", message.node, message.gpu), names, packed, message.energy_joules_total
    if isinstance(message, HostMetrics):
        return ("host", message.node, ""), *_packed_host(*host_row(message)), None
    if isinstance(message, EngineMetrics):
        names, packed = _packed_engine(*engine_row(message))
        return ("engine", message.node, message.engine), names, packed, None
    names, packed = _packed_cache(*cache_row(message))
    return ("cache", message.instance, message.namespace), names, packed, None


_sample = OfLast(_sample_of)
"""The source, numbers and joules of a message; its node's and its pool's rollup ask one after the
other."""
_GROUP_OF: Mapping[Scope, Callable[[Metrics], str | None]] = {
    "node": operator.attrgetter("node"),
    "pool": operator.attrgetter("pool"),
    "fleet": operator.attrgetter("instance"),
}


class RollupHandler:
    """Summarises each minute of stream time, and gives it out once the minute is over.

    That is `grace_seconds` after it, and up to 5 s more: nodes and pools take turns, as thousands
    at once would hold up messages.

    One instance of scope node for hosts, GPUs and engines, one of scope pool, and one of scope
    fleet for caches, of which each namespace is a source. A pool's numbers
    are the samples of all its members together, named `host_…`, `gpu_…`, `engine_…`, and
    `engines`, how many reported. Energy is what the GPUs' counters rose by, sample to sample,
    and falls to the minute of the later sample; a counter that fell, or that was silent for two
    minutes, adds nothing.
    """

    tick_ns = STEP_NS

    def __init__(self, settings: RollupSettings, scope: Scope) -> None:
        self.name = f"rollup_{scope}"
        self.consumes: tuple[type[Message], ...] = (HostMetrics, GpuMetrics, EngineMetrics)
        if scope == "fleet":
            self.consumes = (CacheMetrics,)
        self.scope: Scope = scope
        self._group_of = _GROUP_OF[scope]
        self._late_ns = MINUTE_NS + int(settings.grace_seconds * SECOND_NS)
        # A minute, its grace, and the counters' last values from before it.
        self.window_ns = 2 * MINUTE_NS + self._late_ns + TICK_NS
        # By the instant at which they are given out.
        self._open: dict[int, dict[Key, _Bucket]] = {}
        self._sources: dict[Key, _Source] = {}
        self._done_ns = self._next_ns = self._forget_ns = 0
        self._large: list[tuple[int, _Bucket]] = []
        """Large pools whose minute is over, after the instant at which they are given out."""
        self._minute_end_ns = 0

    def handle(self, message: Metrics, now: Moment) -> Sequence[Emit]:
        """Give out the minutes that are over, then add the sample to its own."""
        ns = now.ns
        emits = self.tick(now) if ns >= self._next_ns else []
        key, names, packed, joules = _sample(message)
        group = self._group_of(message)
        if group is None:
            return emits
        source = self._sources.get(key)
        if (
            source is None
            or not source.begin_ns <= ns < source.end_ns
            or source.group != group
            or source.due_ns <= self._done_ns
        ):
            source = self._placed(key, source, message, group, ns)
            if source is None:
                return emits
        if source.names is not names:
            source.names = names
            source.numbers = source.bucket.table(key[0], names)
        source.numbers.frombytes(packed)
        source.heard_ns = ns
        if message.simulated:
            source.bucket.simulated = True
        if joules is not None:
            _add_energy(source, joules, ns)
        return emits

    def _placed(
        self, key: Key, before: _Source | None, message: Metrics, group: str, ns: int
    ) -> _Source | None:
        """The source with its bucket; None: the minute was given out, or has too many caches."""
        minute_ns = ns - ns % MINUTE_NS
        due_ns = minute_ns + self._late_ns + turn_of(group) * STEP_NS
        if due_ns <= self._done_ns:
            return None
        buckets = self._open.get(due_ns)
        if buckets is None:
            buckets = self._open[due_ns] = {}
            self._next_ns = min(self._open)
        is_pool = self.scope == "pool"
        of: Key = ("pool", group, "") if is_pool else key
        bucket = buckets.get(of)
        if bucket is None:
            if key[0] == "cache" and sum(map(len, self._open.values())) >= MAX_CACHES:
                return None
            node = None if is_pool else message.node
            bucket = buckets[of] = _Bucket(minute_ns, node, message.pool)
            if isinstance(message, CacheMetrics):
                bucket.instance, bucket.namespace = message.instance, message.namespace
        kind, node_name, name = key
        if is_pool and kind == "engine":
            bucket.engines.add((node_name, name))
        source = _Source(bucket, group, minute_ns, minute_ns + MINUTE_NS, due_ns, ns)
        if before is not None:
            source.joules, source.joules_ns = before.joules, before.joules_ns
        self._sources[key] = source
        return source

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Give out the minutes whose grace is over, of the sources whose turn has come."""
        if self.scope == "pool":
            self._summarise_some(now.ns)
        if now.ns < self._next_ns:
            return []
        emits: list[Emit] = []
        for due_ns in sorted(self._open):
            if now.ns < due_ns:
                break
            self._done_ns = due_ns
            found = [_rollup(key, bucket) for key, bucket in self._open.pop(due_ns).items()]
            emits += [
                Emit(one, f"rollup.{one.kind}.{one.id}.{to_ns(one.minute_at)}")
                for one in sorted(found, key=lambda one: (one.kind, one.id))
                if one.metrics or one.energy_joules is not None
            ]
        self._next_ns = min(self._open, default=0)
        self._forget(now.ns)
        return emits

    def _summarise_some(self, now_ns: int) -> None:
        """Of each large pool whose minute is over its share until it is given out."""
        if now_ns >= self._minute_end_ns:
            self._minute_end_ns = (now_ns // MINUTE_NS + 1) * MINUTE_NS
            for due_ns, buckets in self._open.items():
                for bucket in buckets.values():
                    is_over = bucket.minute_ns + MINUTE_NS <= now_ns < due_ns
                    is_large = is_over and size_of(bucket.tables) > LARGE_NUMBERS
                    if is_large and bucket.summaries is None:
                        bucket.summaries = MinuteSummaries(bucket.tables, prefixed=True)
                        self._large.append((due_ns, bucket))
        if self._large:
            self._large = [one for one in self._large if one[0] > now_ns]
            for due_ns, bucket in self._large:
                if bucket.summaries is not None:
                    steps = (due_ns - now_ns) // STEP_NS
                    bucket.summaries.find(math.ceil(bucket.summaries.left / max(1, steps)))

    def snapshot(self) -> bytes | None:
        """Nothing outlives the window."""
        return None

    def restore(self, snapshot: bytes) -> None:
        """Nothing to take over."""

    def _forget(self, now_ns: int) -> None:
        """Once a minute, sources that are gone."""
        if now_ns >= self._forget_ns:
            self._forget_ns = now_ns + MINUTE_NS
            sources = self._sources.items()
            self._sources = {key: one for key, one in sources if now_ns - one.heard_ns < SILENT_NS}


def _add_energy(source: _Source, total: float, now_ns: int) -> None:
    before, before_ns = source.joules, source.joules_ns
    source.joules, source.joules_ns = total, now_ns
    most = MOST_WATTS * (now_ns - before_ns + MINUTE_NS) / SECOND_NS
    if 0 <= total - before <= most and now_ns - before_ns < SILENT_NS:
        bucket = source.bucket
        bucket.energy_joules = (bucket.energy_joules or 0.0) + total - before


def _rollup(key: Key, bucket: _Bucket) -> Rollup:
    kind, name, part = key
    summaries = bucket.summaries
    if summaries is None or not summaries.is_whole:
        summaries = MinuteSummaries(bucket.tables, prefixed=kind == "pool")
    metrics = summaries.all()
    if bucket.engines:
        metrics["engines"] = summarise([len(bucket.engines)])
    return Rollup(
        kind=kind,
        id=paired(name, part) if part else name,
        node=bucket.node,
        pool=bucket.pool,
        minute_at=instant(bucket.minute_ns),
        metrics=metrics,
        energy_joules=bucket.energy_joules,
        simulated=bucket.simulated,
        instance=bucket.instance,
        namespace=bucket.namespace,
        gpu=part if kind == "gpu" else None,
        engine=part if kind == "engine" else None,
    )
