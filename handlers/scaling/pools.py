"""What scaling remembers of pools, and what of it outlives a restart."""

import dataclasses
from collections import deque
from typing import TypeAlias

import msgspec

from handlers.scaling.advice import Report
from handlers.scaling.cache_loss import HitRatios, Pace, UsedCaches
from handlers.scaling.gpu_growth import GpuGrowth
from handlers.scaling.held import HeldLog
from handlers.scaling.plan import HISTORY_NS, Plan, PlanState
from handlers.scaling.replica_loads import Replica, ReplicaLoads, load_of
from handlers.scaling.replica_price import ReplicaGpus
from handlers.scaling.replicas import counts_rates
from handlers.scaling.scale_down import Held
from handlers.settings import ScalingSettings
from handlers.window import ExpiringDict, RollingMax
from schemas.engines import EngineMetrics
from schemas.protocols import Moment
from schemas.scaling import Recommendation
from schemas.units import SECOND_NS

HOUR_NS = 3600 * SECOND_NS
_MARK_NS = SECOND_NS
_FORGET_MARGIN_NS = 60 * SECOND_NS


class Last(msgspec.Struct):
    """The last advice for a pool; it stands until it is settled, superseded or expired."""

    advice: Recommendation
    is_standing: bool = True
    is_withdrawn: bool = False
    """It does not stand because the load spoke against it."""


Samples: TypeAlias = list[tuple[int, float]]


class Holds(msgspec.Struct):
    """What was desired within the holds, as `RollingMax.samples` has it, and since when.

    Kept where GPUs have a say in it: a process that takes over reads the engines' messages of the
    holds again, of the GPUs' the last ones only.
    """

    since_ns: int | None
    contrary_ns: int | None
    fewest: Samples
    fewest_in_panic: Samples
    most: Samples


class Kept(msgspec.Struct):
    """What outlives the window beside the last advice."""

    downs_ns: list[int] = []
    """When the pool was scaled down as advised."""
    rejected: dict[str, tuple[int, int]] = {}
    """By action: when advice was last rejected, and by how many replicas it went."""
    held: HeldLog = msgspec.field(default_factory=HeldLog)
    pace: Pace = msgspec.field(default_factory=Pace)
    gpus: ReplicaGpus = msgspec.field(default_factory=ReplicaGpus)
    growth: GpuGrowth = msgspec.field(default_factory=GpuGrowth)
    holds: Holds | None = None

    def downs(self, now_ns: int) -> int:
        """How often the pool was scaled down in the last hour."""
        self.downs_ns = [ns for ns in self.downs_ns if now_ns - ns < HOUR_NS]
        return len(self.downs_ns)


class _Snapshot(msgspec.Struct):
    """With the instant of the pool's last metrics each."""

    lasts: list[tuple[int, Last]]
    plans: list[tuple[int, str, PlanState]] = []
    kept: list[tuple[int, str, Kept]] = []


class Engines:
    """The engines of a pool that were heard of within `ttl_ns`: metrics and loads.

    Each message of a pool judges all of it: a sample of an engine costs O(1).
    """

    def __init__(self, ttl_ns: int, *, with_rates: bool = False) -> None:
        self._with_rates = with_rates
        self.metrics: dict[Replica, EngineMetrics] = {}
        self.loads = ReplicaLoads()
        self.caches = UsedCaches()
        self.simulated = 0
        """How many of them are."""
        self._heard: ExpiringDict[Replica, None] = ExpiringDict(ttl_ns, on_forgotten=self._forget)

    def put(self, message: EngineMetrics, now_ns: int) -> None:
        """Take the last sample of an engine."""
        engine = (message.node, message.engine)
        self._heard.put(engine, None, now_ns)
        before = self.metrics.get(engine)
        self.caches.change(before, message)
        self.simulated += message.simulated - (before is not None and before.simulated)
        self.metrics[engine] = message
        self.loads.put(engine, load_of(message, with_rates=self._with_rates))

    def expire(self, now_ns: int) -> None:
        """Forget those that were silent."""
        self._heard.expire(now_ns)

    def reports(self) -> list[Report]:
        """What each said last, and when, by node and name."""
        heard = sorted((engine, ns) for ns, engine, _ in self._heard.touched())
        return [Report(ns, self.metrics[engine]) for engine, ns in heard]

    def _forget(self, engine: Replica) -> None:
        gone = self.metrics.pop(engine)
        self.caches.change(gone, None)
        self.simulated -= gone.simulated
        self.loads.discard(engine)


@dataclasses.dataclass(slots=True)
class Pool:
    """What is remembered of one pool."""

    engines: Engines
    hits: HitRatios
    fewest_desired: RollingMax  # of the negated count: its maximum is the minimum
    fewest_in_panic: RollingMax  # the same, over a shorter hold
    most_desired: RollingMax
    since_ns: int | None = None  # the load has been known without a break since then
    marks: deque[tuple[int, int]] = dataclasses.field(default_factory=deque)
    last: Last | None = None
    plan: Plan | None = None  # with the policy `forecast`
    kept: Kept = dataclasses.field(default_factory=Kept)
    held: Held | None = None  # by the last message
    contrary_ns: int | None = None  # the load has spoken against the last advice since then
    executed_ns: int = 0  # when advice was last carried out; 0: not of late

    def mark(self, now: Moment, keep_ns: int, ttl_ns: int) -> None:
        """Remember the first message of each second of the last `keep_ns`, for the evidence.

        By the stream's seconds, and none before a silence in which all engines were forgotten: who
        takes over begins at another message, and names the same ones.
        """
        if not self.marks or now.ns // _MARK_NS != self.marks[-1][0] // _MARK_NS:
            self.marks.append((now.ns, now.sequence))
        oldest_ns = now.ns - keep_ns
        while len(self.marks) > 1 and self.marks[1][0] <= oldest_ns:
            self.marks.popleft()
        if len(self.marks) > 1 and self.marks[0][0] <= oldest_ns - ttl_ns:
            self.marks.popleft()

    def keep_holds(self) -> None:
        """Put what was desired within the holds into what is kept."""
        self.kept.holds = Holds(
            self.since_ns,
            self.contrary_ns,
            self.fewest_desired.samples(),
            self.fewest_in_panic.samples(),
            self.most_desired.samples(),
        )

    def restore_holds(self, kept: Holds) -> None:
        """Go on with what was kept."""
        self.since_ns, self.contrary_ns = kept.since_ns, kept.contrary_ns
        self.fewest_desired.restore(kept.fewest)
        self.fewest_in_panic.restore(kept.fewest_in_panic)
        self.most_desired.restore(kept.most)


class Pools:
    """The pools of a slot. `window_ns` is how long a message counts, `hold_ns` by action.

    `busy_window_ns`: a GPU's sample counts for so long, where they count at all.
    """

    def __init__(self, settings: ScalingSettings, busy_window_ns: int = 0) -> None:
        self._settings = settings
        self._with_rates = counts_rates(settings)
        self._keeps_holds = settings.gpu_busy_target_ratio is not None
        self.busy_window_ns = busy_window_ns if self._keeps_holds else 0
        self.ttl_ns = int(settings.engine_ttl_seconds * SECOND_NS)
        self.hold_ns: dict[str, int] = {
            "scale_up": int(settings.up_hold_seconds * SECOND_NS),
            "scale_down": int(settings.down_hold_seconds * SECOND_NS),
        }
        self.marks_ns = max(self.hold_ns.values()) + self.ttl_ns + self.busy_window_ns
        self.window_ns = _FORGET_MARGIN_NS + max(
            self.marks_ns, int(settings.expires_after_seconds * SECOND_NS)
        )
        self._plans = settings.policy == "forecast"
        self._forget_ns = max(self.window_ns, HISTORY_NS) if self._plans else self.window_ns
        self._pools: ExpiringDict[str, Pool] = ExpiringDict(self._forget_ns)

    def refresh(self, name: str, now_ns: int) -> Pool:
        """The pool of this name, made anew where nothing is remembered of it."""
        return self._pools.refresh(name, self._new, now_ns)

    def items(self, now_ns: int) -> list[tuple[str, Pool]]:
        """Those remembered, by name."""
        return sorted(self._pools.items(now_ns), key=lambda item: item[0])

    def snapshot(self) -> bytes:
        """The last advice of each pool and what else is kept, and the plans as far as they fit."""
        touched = self._pools.touched()
        if self._keeps_holds:
            for _, _, pool in touched:
                pool.keep_holds()
        lasts = [(ns, pool.last) for ns, _, pool in touched if pool.last]
        kept = [(ns, name, pool.kept) for ns, name, pool in touched if pool.kept != Kept()]
        return msgspec.json.encode(_Snapshot(lasts, self._plans_that_fit(), kept))

    def _plans_that_fit(self) -> list[tuple[int, str, PlanState]]:
        plans, size = [], 0
        for ns, name, pool in sorted(self._pools.touched(), key=lambda one: one[1]):
            if pool.plan is not None:
                size += len(msgspec.json.encode(pool.plan.state))
                if size > self._settings.plan_snapshot_bytes:
                    break
                plans.append((ns, name, pool.plan.state))
        return plans

    def restore(self, snapshot: bytes) -> None:
        """Take over what is kept of each pool, and the plans that were made by these settings.

        Older versions stored a list of the advice alone.
        """
        restored = msgspec.json.decode(snapshot, type=_Snapshot | list[tuple[int, Last]])
        if isinstance(restored, list):
            restored = _Snapshot(restored)
        pools = {name: (ns, pool) for ns, name, pool in self._pools.touched()}
        for _, pool in pools.values():
            pool.last, pool.kept = None, Kept()
        for ns, last in restored.lasts:
            _, pool = pools.setdefault(last.advice.pool, (ns, self._new()))
            pool.last = last
        for ns, name, kept in restored.kept:
            _, pool = pools.setdefault(name, (ns, self._new()))
            pool.kept = kept
            if self._keeps_holds and kept.holds is not None:
                pool.restore_holds(kept.holds)
            kept.holds = None
        for ns, name, state in restored.plans:
            _, pool = pools.setdefault(name, (ns, self._new()))
            if pool.plan is not None:
                pool.plan.take_over(state)
        self._pools = ExpiringDict(self._forget_ns)
        for name, (ns, pool) in sorted(pools.items(), key=lambda item: item[1][0]):
            self._pools.put(name, pool, ns)

    def _new(self) -> Pool:
        return Pool(
            engines=Engines(self.ttl_ns, with_rates=self._with_rates),
            hits=HitRatios(self.marks_ns),
            fewest_desired=RollingMax(max(1, self.hold_ns["scale_up"])),
            fewest_in_panic=RollingMax(max(1, int(self._settings.panic_hold_seconds * SECOND_NS))),
            most_desired=RollingMax(max(1, self.hold_ns["scale_down"])),
            plan=Plan(self._settings) if self._plans else None,
        )
