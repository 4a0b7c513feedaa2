"""One minute of every host, GPU, engine and pool as min, mean, max and p95."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Literal, TypeAlias

from handlers.settings import RollupSettings
from handlers.window import ExpiringDict
from schemas.analysis import Scope
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics, Rollup, Summary
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant
from schemas.views import engine_numbers, gpu_numbers, host_numbers

Metrics: TypeAlias = HostMetrics | GpuMetrics | EngineMetrics
Kind: TypeAlias = Literal["host", "gpu", "engine", "pool"]

Names: TypeAlias = tuple[str, ...]
Values: TypeAlias = tuple[float, ...]

MINUTE_NS = 60 * SECOND_NS


@dataclasses.dataclass(slots=True)
class _Bucket:
    """One source in one minute."""

    node: str | None
    pool: str | None
    rows: dict[tuple[Kind, Names], list[Values]] = dataclasses.field(
        default_factory=lambda: defaultdict(list)
    )
    """The samples by what they measured, mostly all the same: put together by name at the end."""
    energy_joules: float | None = None
    engines: set[str] = dataclasses.field(default_factory=set)
    simulated: bool = False


class _Numbers:
    """The numbers of the last message: its node's and its pool's rollup ask one after the other."""

    def __init__(self) -> None:
        self._message: Metrics | None = None
        self._numbers: tuple[Names, Values] = (), ()

    def of(self, message: Metrics) -> tuple[Names, Values]:
        if message is not self._message:
            numbers = _numbers(message)
            self._message, self._numbers = message, (tuple(numbers), tuple(numbers.values()))
        return self._numbers


_NUMBERS = _Numbers()


def _numbers(message: Metrics) -> dict[str, float]:
    if isinstance(message, HostMetrics):
        return host_numbers(message)
    return gpu_numbers(message) if isinstance(message, GpuMetrics) else engine_numbers(message)


class RollupHandler:
    """Summarises each minute of stream time, and gives it out once the minute is over.

    One instance of scope node for hosts, GPUs and engines, one of scope pool. A pool's numbers
    are the samples of all its members together, named `host_…`, `gpu_…`, `engine_…`, and
    `engines`, how many reported. Energy is what the GPUs' counters rose by, sample to sample,
    and falls to the minute of the later sample; a counter that fell, or that was silent for two
    minutes, adds nothing.
    """

    consumes: tuple[type[Message], ...] = (HostMetrics, GpuMetrics, EngineMetrics)

    def __init__(self, settings: RollupSettings, scope: Literal["node", "pool"]) -> None:
        self.name = f"rollup_{scope}"
        self.scope: Scope = scope
        self._grace_ns = int(settings.grace_seconds * SECOND_NS)
        # A minute, its grace, and the counters' last values from before it.
        self.window_ns = 3 * MINUTE_NS + self._grace_ns
        self._minutes: dict[int, dict[tuple[Kind, str], _Bucket]] = {}
        self._joules: ExpiringDict[tuple[str, str], float] = ExpiringDict(2 * MINUTE_NS)
        self._done_ns = 0
        self._next_ns = 0  # when the oldest minute's grace is over

    def handle(self, message: Metrics, now: Moment) -> list[Emit]:
        """Give out the minutes that are over, then add the sample to its own."""
        emits = list(self.tick(now)) if now.ns >= self._next_ns else []
        minute_ns = now.ns // MINUTE_NS * MINUTE_NS
        if minute_ns < self._done_ns or (self.scope == "pool" and message.pool is None):
            return emits
        part, id_ = _source(message)
        kind, source = (part, id_) if self.scope == "node" else ("pool", message.pool or "")
        buckets = self._minutes.get(minute_ns)
        if buckets is None:
            buckets = self._minutes[minute_ns] = {}
            self._next_ns = min(self._minutes) + MINUTE_NS + self._grace_ns
        bucket = buckets.get((kind, source))
        if bucket is None:
            node = message.node if self.scope == "node" else None
            bucket = buckets[kind, source] = _Bucket(node, message.pool)
        names, values = _NUMBERS.of(message)
        bucket.rows[part, names].append(values)
        bucket.simulated |= message.simulated
        if isinstance(message, EngineMetrics):
            bucket.engines.add(f"{message.node}-{message.engine}")
        if isinstance(message, GpuMetrics):
            self._add_energy(bucket, message, now.ns)
        return emits

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Give out the minutes whose grace is over."""
        emits = []
        for minute_ns in sorted(self._minutes):
            if now.ns < minute_ns + MINUTE_NS + self._grace_ns:
                break
            self._done_ns = minute_ns + MINUTE_NS
            for (kind, source), bucket in sorted(self._minutes.pop(minute_ns).items()):
                message = _rollup(kind, source, minute_ns, bucket)
                if message.metrics or message.energy_joules is not None:
                    emits.append(Emit(message, f"rollup.{kind}.{source}.{minute_ns}"))
        self._next_ns = min(self._minutes, default=0) + MINUTE_NS + self._grace_ns
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
        before = self._joules.get(key, now_ns)
        self._joules.put(key, total, now_ns)
        if before is not None and total >= before:
            bucket.energy_joules = (bucket.energy_joules or 0.0) + total - before


def _source(message: Metrics) -> tuple[Kind, str]:
    if isinstance(message, HostMetrics):
        return "host", message.node
    if isinstance(message, GpuMetrics):
        return "gpu", f"{message.node}-{message.gpu}"
    return "engine", f"{message.node}-{message.engine}"


def _rollup(kind: Kind, source: str, minute_ns: int, bucket: _Bucket) -> Rollup:
    columns: dict[str, list[float]] = defaultdict(list)
    for (part, names), rows in bucket.rows.items():
        prefix = f"{part}_" if kind == "pool" else ""
        for name, column in zip(names, zip(*rows, strict=True), strict=True):
            columns[prefix + name].extend(column)
    metrics = {name: summarise(values) for name, values in sorted(columns.items())}
    if kind == "pool" and bucket.engines:
        metrics["engines"] = summarise([len(bucket.engines)])
    return Rollup(
        kind=kind,
        id=source,
        node=bucket.node,
        pool=bucket.pool,
        minute_at=instant(minute_ns),
        metrics=metrics,
        energy_joules=bucket.energy_joules,
        simulated=bucket.simulated,
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
