"""The fleet as last heard of: rows of nodes, GPUs, engines, pools and caches. Pure."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from schemas.analysis import GpuState, Utilization
from schemas.engines import CacheMetrics, EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.scaling import SCALING, Recommendation
from schemas.units import SECOND_NS, to_ns, token

STALE_SECONDS = 30.0
STALE_INTERVALS = 3.0
FORGET_SECONDS = 3600.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One source; `age_seconds` since it was heard, and whether that is too long ago."""

    age_seconds: float
    is_stale: bool
    simulated: bool


class NodeRow(Row, frozen=True, kw_only=True):
    """A machine."""

    node: str
    pool: str | None
    gpus: int
    cpu_ratio: float | None
    load_1m: float | None
    memory_ratio: float | None
    memory_bytes: int | None
    disk_ratio: float | None
    received_bytes_per_second: float | None
    sent_bytes_per_second: float | None


class GpuRow(Row, frozen=True, kw_only=True):
    """A GPU or a MIG instance."""

    node: str
    gpu: str
    index: int
    pool: str | None
    model: str | None
    state: GpuState | None
    is_reachable: bool
    busy_ratio: float | None
    memory_ratio: float | None
    power_watts: float | None
    power_limit_watts: float | None
    temperature_celsius: float | None
    slowdown_celsius: float | None
    note: str


class EngineRow(Row, frozen=True, kw_only=True):
    """A replica."""

    engine: str
    node: str
    pool: str
    running: int | None
    waiting: int | None
    kv_ratio: float | None
    ttft_p95_seconds: float | None
    itl_p95_seconds: float | None
    tokens_per_second: float | None


class PoolRow(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas that scale together; sums and means of what was measured and is not stale."""

    pool: str
    engines: int
    gpus: int
    running: int | None
    waiting: int | None
    kv_ratio: float | None
    gpu_busy_ratio: float | None
    tokens_per_second: float | None
    advice: str | None


class FleetRows(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of one instant."""

    nodes: list[NodeRow]
    gpus: list[GpuRow]
    engines: list[EngineRow]
    pools: list[PoolRow]
    caches: list[CacheMetrics]
    advice: list[Recommendation]


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """Which rows, in which order; `sort` "" = by name."""

    node: str | None = None
    pool: str | None = None
    sort: str = ""
    reverse: bool = False

    @property
    def where(self) -> str:
        """`of node n1`, `in pool chat`; empty: everywhere."""
        node = "" if self.node is None else f"of node {self.node}"
        pool = "" if self.pool is None else f"in pool {self.pool}"
        return f"{node} {pool}".strip()

    def has_node(self, name: str) -> bool:
        """Whether rows of that node are wanted; either name may be as typed or as in subjects."""
        return self.node is None or token(self.node) == token(name)

    def has_pool(self, name: str | None) -> bool:
        """Whether rows of that pool are wanted; None: of no pool."""
        return self.pool is None or (name is not None and token(self.pool) == token(name))


SORTS: dict[str, tuple[str, ...]] = {
    "nodes": ("", "cpu_ratio", "memory_ratio", "disk_ratio", "age_seconds"),
    "gpus": ("", "busy_ratio", "memory_ratio", "power_watts", "temperature_celsius"),
    "engines": ("", "waiting", "running", "kv_ratio", "ttft_p95_seconds", "tokens_per_second"),
    "pools": ("", "waiting", "running", "kv_ratio", "gpu_busy_ratio"),
}
"""By what each section may be ordered, the highest first; "" is by name."""


class Fleet:
    """Remembers the last message of every source, for an hour."""

    def __init__(self) -> None:
        self._heard: dict[tuple[type[Message], str], tuple[int, Message]] = {}
        self._told: Sequence[Recommendation] | None = None
        self.messages = 0

    def accept(self, message: Message, heard_ns: int) -> None:
        """Take one message, heard at `heard_ns` by our clock; an older one changes nothing."""
        self.messages += 1
        key = (type(message), _name(message))
        before = self._heard.get(key)
        if before is None or before[0] <= heard_ns:
            self._heard[key] = (heard_ns, message)

    def tell_standing(self, advice: Sequence[Recommendation]) -> None:
        """What the handlers say stands; what was only heard may be decided or carried out."""
        self._told = advice

    def rows(self, choice: Choice, now_ns: int) -> FleetRows:
        """What matches, as of now."""
        for key, (ns, _) in list(self._heard.items()):
            if now_ns - ns > FORGET_SECONDS * SECOND_NS:
                del self._heard[key]
        of_node = {u.id: u for u in self._of(Utilization, now_ns) if u.scope == "node"}
        states = {(use.node, use.gpu): use.state for u in of_node.values() for use in u.gpus}
        gpus = [_gpu(m, age, states) for m, age in self._aged(GpuMetrics, now_ns)]
        engines = [_engine(m, age) for m, age in self._aged(EngineMetrics, now_ns)]
        gpus_of = Counter(gpu.node for gpu in gpus)
        nodes = [_node(m, age, gpus_of[m.node]) for m, age in self._aged(HostMetrics, now_ns)]
        advice = self._standing(now_ns)
        pools = _pools(engines, gpus, advice)
        engines, gpus = _chosen(engines, choice), _chosen(gpus, choice)
        if choice.node is not None:  # what its engines and GPUs are in
            names = {e.pool for e in engines} | {g.pool for g in gpus if g.pool}
            pools = [one for one in pools if one.pool in names]
            advice = [one for one in advice if one.pool in names | {token(name) for name in names}]
        return FleetRows(
            nodes=_ordered(_chosen(nodes, choice), "nodes", choice, lambda r: (r.node,)),
            gpus=_ordered(gpus, "gpus", choice, lambda r: (r.node, r.index, r.gpu)),
            engines=_ordered(engines, "engines", choice, lambda r: (r.pool, r.engine)),
            pools=_ordered(
                [p for p in pools if choice.has_pool(p.pool)],
                "pools",
                choice,
                lambda r: (r.pool,),
            ),
            caches=sorted(self._of(CacheMetrics, now_ns), key=lambda c: (c.namespace, c.instance)),
            advice=[a for a in advice if choice.has_pool(a.pool)],
        )

    def _of(self, kind: type[Any], now_ns: int) -> list[Any]:
        return [message for message, _ in self._aged(kind, now_ns)]

    def _aged(self, kind: type[Any], now_ns: int) -> list[tuple[Any, float]]:
        return [
            (message, max(0.0, (now_ns - ns) / SECOND_NS))
            for (of, _), (ns, message) in self._heard.items()
            if of is kind
        ]

    def _standing(self, now_ns: int) -> list[Recommendation]:
        """Advice that has not expired, the newest first; as heard, of a pool's each kind's newest.

        `scale_up` and `scale_down` are one kind.
        """
        standing = self._told
        if standing is None:
            heard = sorted(self._of(Recommendation, now_ns), key=lambda advice: advice.decided_at)
            standing = list(
                {(one.pool, one.action in SCALING or one.action): one for one in heard}.values()
            )
        standing = [advice for advice in standing if to_ns(advice.expires_at) > now_ns]
        return sorted(standing, key=lambda advice: advice.decided_at, reverse=True)


def _name(message: Message) -> str:
    match message:
        case CacheMetrics():
            return f"{message.instance} {message.namespace}"
        case Recommendation():
            return f"{message.pool} {message.action}"
    return message.subject()


def _is_stale(age_seconds: float, interval_seconds: float | None) -> bool:
    return age_seconds > max(STALE_SECONDS, STALE_INTERVALS * (interval_seconds or 0.0))


def _gpu(gpu: GpuMetrics, age: float, states: dict[tuple[str, str], GpuState | None]) -> GpuRow:
    reasons = [r for r in gpu.throttle_reasons or () if r != "gpu_idle"]
    note = ", ".join(reasons)
    if not gpu.is_reachable:
        note = f"unreachable: {gpu.errors.get('gpu', 'no answer')}"
    return GpuRow(
        age_seconds=age,
        is_stale=_is_stale(age, gpu.interval_seconds),
        simulated=gpu.simulated,
        node=gpu.node,
        gpu=gpu.gpu,
        index=gpu.index,
        pool=gpu.pool,
        model=gpu.name,
        state=states.get((gpu.node, gpu.gpu)),
        is_reachable=gpu.is_reachable,
        busy_ratio=gpu.utilization_ratio,
        memory_ratio=gpu.memory_utilization_ratio,
        power_watts=gpu.power_watts,
        power_limit_watts=gpu.power_limit_watts,
        temperature_celsius=gpu.temperature_celsius,
        slowdown_celsius=gpu.temperature_slowdown_celsius,
        note=note,
    )


def _engine(engine: EngineMetrics, age: float) -> EngineRow:
    # A pool that is called after its model, by the model's own name.
    pool = engine.model if engine.pool == token(engine.model) else engine.pool
    return EngineRow(
        age_seconds=age,
        is_stale=_is_stale(age, engine.interval_seconds),
        simulated=engine.simulated,
        engine=engine.engine,
        node=engine.node,
        pool=pool,
        running=engine.requests_running,
        waiting=engine.requests_waiting,
        kv_ratio=engine.kv_cache_usage_ratio,
        ttft_p95_seconds=engine.ttft_p95_seconds,
        itl_p95_seconds=engine.itl_p95_seconds,
        tokens_per_second=engine.generation_tokens_per_second,
    )


def _node(host: HostMetrics, age: float, gpus: int) -> NodeRow:
    cpu, memory = host.cpu, host.memory
    disks = [f.utilization_ratio for f in host.filesystems or ()]
    return NodeRow(
        age_seconds=age,
        is_stale=_is_stale(age, host.interval_seconds),
        simulated=host.simulated,
        node=host.node,
        pool=host.pool,
        gpus=gpus,
        cpu_ratio=cpu.utilization_ratio if cpu else None,
        load_1m=cpu.load_average_1m if cpu else None,
        memory_ratio=memory.utilization_ratio if memory else None,
        memory_bytes=memory.total_bytes if memory else None,
        disk_ratio=max((ratio for ratio in disks if ratio is not None), default=None),
        received_bytes_per_second=total(n.received_bytes_per_second for n in host.network or ()),
        sent_bytes_per_second=total(n.sent_bytes_per_second for n in host.network or ()),
    )


def _pools(
    engines: Sequence[EngineRow], gpus: Sequence[GpuRow], advice: Sequence[Recommendation]
) -> list[PoolRow]:
    names = {e.pool for e in engines} | {g.pool for g in gpus if g.pool}
    rows = []
    for name in names:
        of = [e for e in engines if e.pool == name and not e.is_stale]
        its_gpus = [g for g in gpus if g.pool == name and not g.is_stale]
        running, waiting = total(e.running for e in of), total(e.waiting for e in of)
        rows.append(
            PoolRow(
                pool=name,
                engines=len(of),
                gpus=len(its_gpus),
                running=None if running is None else int(running),
                waiting=None if waiting is None else int(waiting),
                kv_ratio=mean(e.kv_ratio for e in of),
                gpu_busy_ratio=mean(g.busy_ratio for g in its_gpus),
                tokens_per_second=total(e.tokens_per_second for e in of),
                advice=next((a.action for a in advice if a.pool in {name, token(name)}), None),
            )
        )
    return rows


def _chosen(rows: Iterable[Any], choice: Choice) -> list[Any]:
    return [row for row in rows if choice.has_node(row.node) and choice.has_pool(row.pool)]


def _ordered(
    rows: list[Any], section: str, choice: Choice, by_name: Callable[[Any], tuple[Any, ...]]
) -> list[Any]:
    """By name; or by a number, the highest first and what was not measured last."""
    rows = sorted(rows, key=by_name, reverse=choice.reverse and not choice.sort)
    if not choice.sort or choice.sort not in SORTS[section]:
        return rows
    known = [row for row in rows if getattr(row, choice.sort) is not None]
    unknown = [row for row in rows if getattr(row, choice.sort) is None]
    known.sort(key=lambda row: getattr(row, choice.sort), reverse=not choice.reverse)
    return known + unknown


def total(values: Iterable[float | None]) -> float | None:
    """The sum of what was measured; None = nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what was measured; None = nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
