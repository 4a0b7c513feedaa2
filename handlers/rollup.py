"""One minute of every host, GPU, engine, pool and cache as min, mean, max and p95."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Literal, TypeAlias

from handlers.settings import RollupSettings
from handlers.slots import STEP_NS, TICK_NS, turn_of
from handlers.window import OfLast
from schemas.analysis import Scope
from schemas.engines import CacheMetrics, EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics, Rollup, Summary
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant, to_ns, token
from schemas.views import cache_row, engine_row, gpu_row, host_row

Metrics: TypeAlias = HostMetrics | GpuMetrics | EngineMetrics | CacheMetrics
Kind: TypeAlias = Literal["host", "gpu", "engine", "pool", "cache"]

Names: TypeAlias = tuple[str, ...]
Values: TypeAlias = tuple[float | None, ...]

MINUTE_NS = 60 * SECOND_NS
SILENT_NS = 2 * MINUTE_NS
"""What a counter rose by in a longer time is of no minute."""
MAX_CACHES = 1_000
"""Namespaces of caches in the minutes not given out yet; further ones are left out."""


@dataclasses.dataclass(slots=True)
class _Bucket:
    """One source in one minute."""

    minute_ns: int
    node: str | None
    pool: str | None
    rows: dict[tuple[Kind, Names], list[Values]] = dataclasses.field(
        default_factory=lambda: defaultdict(list)
    )
    """The samples by their names, mostly all the same: put together by name at the end."""
    energy_joules: float | None = None
    engines: set[str] | None = None
    simulated: bool = False
    instance: str | None = None
    namespace: str | None = None


def _numbers(message: Metrics) -> tuple[Names, Values]:
    if isinstance(message, HostMetrics):
        return host_row(message)
    if isinstance(message, GpuMetrics):
        return gpu_row(message)
    return engine_row(message) if isinstance(message, EngineMetrics) else cache_row(message)


_row = OfLast(_numbers)
"""The numbers of a message; its node's and its pool's rollup ask one after the other."""


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
        self._late_ns = MINUTE_NS + int(settings.grace_seconds * SECOND_NS)
        # A minute, its grace, and the counters' last values from before it.
        self.window_ns = 2 * MINUTE_NS + self._late_ns + TICK_NS
        # By the instant at which they are given out.
        self._open: dict[int, dict[tuple[Kind, str, str], _Bucket]] = {}
        self._joules: dict[tuple[str, str], tuple[int, float]] = {}
        self._done_ns = self._next_ns = self._forget_ns = 0

    def handle(self, message: Metrics, now: Moment) -> list[Emit]:
        """Give out the minutes that are over, then add the sample to its own."""
        emits = list(self.tick(now)) if now.ns >= self._next_ns else []
        part, name = _source(message)
        node = message.node
        if isinstance(message, CacheMetrics):
            group, key = message.instance, (part, message.instance, name)
        elif self.scope == "node":
            group, key = message.node, (part, message.node, name)
        elif message.pool is not None:
            group, key, node = message.pool, ("pool", message.pool, ""), None
        else:
            return emits
        due_ns = now.ns - now.ns % MINUTE_NS + self._late_ns + turn_of(group) * STEP_NS
        if due_ns <= self._done_ns:
            return emits
        buckets = self._open.get(due_ns)
        if buckets is None:
            buckets = self._open[due_ns] = {}
            self._next_ns = min(self._open)
        bucket = buckets.get(key)
        if bucket is None:
            if part == "cache" and sum(map(len, self._open.values())) >= MAX_CACHES:
                return emits
            bucket = buckets[key] = _Bucket(now.ns // MINUTE_NS * MINUTE_NS, node, message.pool)
            if isinstance(message, CacheMetrics):
                bucket.instance, bucket.namespace = message.instance, message.namespace
        names, values = _row(message)
        bucket.rows[part, names].append(values)
        if message.simulated:
            bucket.simulated = True
        if isinstance(message, GpuMetrics):
            self._add_energy(bucket, message, now.ns)
        elif self.scope == "pool" and isinstance(message, EngineMetrics):
            bucket.engines = bucket.engines or set()
            bucket.engines.add(f"{message.node}-{message.engine}")
        return emits

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Give out the minutes whose grace is over, of the sources whose turn has come."""
        emits: list[Emit] = []
        if now.ns < self._next_ns:
            return emits
        for due_ns in sorted(self._open):
            if now.ns < due_ns:
                break
            self._done_ns = due_ns
            found = [
                _rollup(kind, f"{name}-{part}" if part else name, bucket)
                for (kind, name, part), bucket in self._open.pop(due_ns).items()
            ]
            emits += [
                Emit(one, f"rollup.{one.kind}.{one.id}.{to_ns(one.minute_at)}")
                for one in sorted(found, key=lambda one: (one.kind, one.id))
                if one.metrics or one.energy_joules is not None
            ]
        self._next_ns = min(self._open, default=0)
        self._forget_joules(now.ns)
        return emits

    def snapshot(self) -> bytes | None:
        """Nothing outlives the window."""
        return None

    def restore(self, snapshot: bytes) -> None:
        """Nothing to take over."""

    def _add_energy(self, bucket: _Bucket, message: GpuMetrics, now_ns: int) -> None:
        total = message.energy_joules_total
        if total is None:
            return
        key = (message.node, message.gpu)
        before_ns, before = self._joules.get(key, (now_ns, math.inf))
        self._joules[key] = (now_ns, total)
        if total >= before and now_ns - before_ns < SILENT_NS:
            bucket.energy_joules = (bucket.energy_joules or 0.0) + total - before

    def _forget_joules(self, now_ns: int) -> None:
        """Once a minute, of GPUs that are gone."""
        if now_ns >= self._forget_ns:
            self._forget_ns = now_ns + MINUTE_NS
            joules = self._joules.items()
            self._joules = {key: last for key, last in joules if now_ns - last[0] < SILENT_NS}


def _source(message: Metrics) -> tuple[Kind, str]:
    """What it is of, and that one's name on its node."""
    if isinstance(message, HostMetrics):
        return "host", ""
    if isinstance(message, GpuMetrics):
        return "gpu", message.gpu
    if isinstance(message, EngineMetrics):
        return "engine", message.engine
    return "cache", message.namespace


def _rollup(kind: Kind, id_: str, bucket: _Bucket) -> Rollup:
    columns: dict[str, list[float]] = defaultdict(list)
    for (part, names), rows in bucket.rows.items():
        prefix = f"{part}_" if kind == "pool" else ""
        for name, column in zip(names, zip(*rows, strict=True), strict=True):
            known = [float(value) for value in column if value is not None]
            if known:
                columns[prefix + name] += known
    metrics = {name: summarise(values) for name, values in sorted(columns.items())}
    if bucket.engines:
        metrics["engines"] = summarise([len(bucket.engines)])
    return Rollup(
        kind=kind,
        # Two names of a cache may be longer together than one token may be.
        id=id_ if kind != "cache" else token(id_),
        node=bucket.node,
        pool=bucket.pool,
        minute_at=instant(bucket.minute_ns),
        metrics=metrics,
        energy_joules=bucket.energy_joules,
        simulated=bucket.simulated,
        instance=bucket.instance,
        namespace=bucket.namespace,
    )


def summarise(values: Sequence[float]) -> Summary:
    """Min, mean, max and the nearest-rank 95th percentile of at least one value.

    Nearest rank: the smallest value that at least 95 % of the values do not exceed; of 1 … 20 it
    is 19, of fewer than 20 values the highest.
    """
    ranked = sorted(values)
    return Summary(
        min=ranked[0],
        mean=fmean(ranked),
        max=ranked[-1],
        p95=ranked[math.ceil(0.95 * len(ranked)) - 1],
        count=len(ranked),
    )
