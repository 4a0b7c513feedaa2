"""Scaling advice for each pool of engines, with evidence, expiry and idempotency key."""

import dataclasses
from collections import deque
from collections.abc import Sequence
from statistics import fmean
from typing import Literal

import msgspec

from handlers.advice import Change, Report, recommend
from handlers.cache_loss import Caches, Pace
from handlers.demand import Demand, Expect
from handlers.held import HeldLog
from handlers.plan import HISTORY_NS, Plan, Planned, PlanState
from handlers.replicas import desired_replicas, lacking, measure
from handlers.scale_down import Held, scale_down
from handlers.settings import ScalingSettings
from handlers.window import ExpiringDict, RollingMax
from schemas.analysis import Scope
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.protocols import Emit, Moment
from schemas.scaling import Decision, HeldAdvice, Recommendation
from schemas.units import SECOND_NS, instant, to_ns

_MARK_NS = SECOND_NS
_FORGET_MARGIN_NS = 60 * SECOND_NS
_HOUR_NS = 3600 * SECOND_NS


class _Last(msgspec.Struct):
    """The last advice for a pool; `is_standing` until fulfilled, superseded or expired."""

    advice: Recommendation
    is_standing: bool = True


class _Kept(msgspec.Struct):
    """What outlives the window beside the last advice."""

    downs_ns: list[int] = []
    """When the pool was found scaled down as advised."""
    held: HeldLog = msgspec.field(default_factory=HeldLog)
    pace: Pace = msgspec.field(default_factory=Pace)


class _Snapshot(msgspec.Struct):
    """With the instant of the pool's last metrics each."""

    lasts: list[tuple[int, _Last]]
    plans: list[tuple[int, str, PlanState]] = []
    kept: list[tuple[int, str, _Kept]] = []


@dataclasses.dataclass(slots=True)
class _Pool:
    """What is remembered of one pool."""

    engines: ExpiringDict[tuple[str, str], Report]
    hits: ExpiringDict[tuple[str, str], float]  # the prefix caches' last hit ratios
    fewest_desired: RollingMax  # of the negated count: its maximum is the minimum
    most_desired: RollingMax
    since_ns: int | None = None  # the load has been known without a break since then
    marks: deque[tuple[int, int]] = dataclasses.field(default_factory=deque)
    last: _Last | None = None
    plan: Plan | None = None  # with the policy `forecast`
    kept: _Kept = dataclasses.field(default_factory=_Kept)
    held: HeldAdvice | None = None  # what the last message would have brought


class ScalingHandler:
    """Advises on every pool by the HPA rule (`handlers/replicas.py`), or by a plan.

    Up: when more replicas have been desired for `up_hold_seconds`, to the fewest desired in that
    time. Down: when fewer have been desired for `down_hold_seconds`, to the most desired in that
    time. The message that completes a condition brings the advice.

    With the policy `forecast` and a plan (`handlers/plan.py`): up at once to what is planned, or
    to what the HPA rule asks for where that is more; down to what is planned.

    Down only as far as `handlers/scale_down.py` finds safe, by what `expect` tells of the load to
    come, and worth it. What the load asks for and is not advised is told as HeldAdvice.

    One recommendation per decision. While it stands it is not repeated; a higher target (up),
    another target (down) or the other direction supersedes it, in the same direction not before
    the hold has passed again. It ends when the pool has reached its target, or expires. Up
    advice is not given again for the same target before new replicas can have started.
    """

    name = "scaling"
    scope: Scope = "pool"
    consumes: tuple[type[Message], ...] = (EngineMetrics,)

    def __init__(
        self, settings: ScalingSettings, expect: Expect = lambda pool, now_ns: None
    ) -> None:
        self._settings = settings
        self._expect = expect
        self._ttl_ns = int(settings.engine_ttl_seconds * SECOND_NS)
        self._hold_ns: dict[str, int] = {
            "scale_up": int(settings.up_hold_seconds * SECOND_NS),
            "scale_down": int(settings.down_hold_seconds * SECOND_NS),
        }
        self._lead_ns = int(settings.startup_lead_seconds * SECOND_NS)
        longest_ns = max(self._hold_ns.values()) + self._ttl_ns
        self._plans = settings.policy == "forecast"
        self.window_ns = _FORGET_MARGIN_NS + max(
            longest_ns, int(settings.expires_after_seconds * SECOND_NS)
        )
        self._marks_ns = longest_ns
        self._forget_ns = max(self.window_ns, HISTORY_NS) if self._plans else self.window_ns
        self._pools: ExpiringDict[str, _Pool] = ExpiringDict(self._forget_ns)

    def handle(self, message: EngineMetrics, now: Moment) -> Sequence[Emit]:
        """Judge the pool of this engine anew."""
        pool = self._pools.refresh(message.pool, self._new_pool, now.ns)
        if not pool.engines.items(now.ns):
            pool.since_ns = None
        engine = (message.node, message.engine)
        pool.engines.put(engine, Report(now.ns, message), now.ns)
        if message.prefix_cache_hit_ratio is not None:
            pool.hits.put(engine, message.prefix_cache_hit_ratio, now.ns)
            pool.kept.pace.see(message, now.ns)
        self._mark(pool, now)
        if pool.plan is not None:
            pool.plan.add(message, now.ns)
        reports = [
            report for _, report in sorted(pool.engines.items(now.ns), key=lambda item: item[0])
        ]
        engines = [report.metrics for report in reports]
        signals = measure(engines, self._settings)
        pool.held = None
        if not signals:
            pool.since_ns = None
            return ()
        if pool.since_ns is None:
            pool.since_ns = now.ns
        planned = None
        if now.ns - pool.since_ns >= self._ttl_ns:  # by then every engine was heard
            _fulfil(pool, len(reports), now.ns)
            planned = pool.plan.planned if pool.plan else None
        demand = Demand.of(engines, signals, self._expect(message.pool, now.ns))
        found = self._judge(pool, pool.since_ns, demand, reports, planned, now)
        if isinstance(found, Change):
            return (
                self._advise(pool, found, reports, now) if self._is_news(pool, found, now) else ()
            )
        if found is not None:
            pool.held = _held(found, reports, now)
        return ()

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Expire advice; tell what is held."""
        emits = []
        for name, pool in sorted(self._pools.items(now.ns), key=lambda item: item[0]):
            pool.engines.expire(now.ns)
            news = pool.kept.held.news(pool.held if len(pool.engines) else None, now.ns)
            if news is not None:
                emits.append(Emit(news, f"held_advice.{name}.{now.ns}"))
            if pool.last and pool.last.is_standing and to_ns(pool.last.advice.expires_at) <= now.ns:
                pool.last.is_standing = False
                emits.append(_decision(pool.last.advice, "expired", "not carried out in time", now))
        return emits

    def snapshot(self) -> bytes | None:
        """The last advice of each pool and what else is kept, and the plans as far as they fit."""
        touched = self._pools.touched()
        lasts = [(ns, pool.last) for ns, _, pool in touched if pool.last]
        kept = [(ns, name, pool.kept) for ns, name, pool in touched if pool.kept != _Kept()]
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
        restored = msgspec.json.decode(snapshot, type=_Snapshot | list[tuple[int, _Last]])
        if isinstance(restored, list):
            restored = _Snapshot(restored)
        pools = {name: (ns, pool) for ns, name, pool in self._pools.touched()}
        for _, pool in pools.values():
            pool.last, pool.kept = None, _Kept()
        for ns, last in restored.lasts:
            _, pool = pools.setdefault(last.advice.pool, (ns, self._new_pool()))
            pool.last = last
        for ns, name, kept in restored.kept:
            _, pool = pools.setdefault(name, (ns, self._new_pool()))
            pool.kept = kept
        for ns, name, state in restored.plans:
            _, pool = pools.setdefault(name, (ns, self._new_pool()))
            if pool.plan is not None:
                pool.plan.take_over(state)
        self._pools = ExpiringDict(self._forget_ns)
        for name, (ns, pool) in sorted(pools.items(), key=lambda item: item[1][0]):
            self._pools.put(name, pool, ns)

    def _new_pool(self) -> _Pool:
        return _Pool(
            engines=ExpiringDict(self._ttl_ns),
            hits=ExpiringDict(self._marks_ns),
            fewest_desired=RollingMax(max(1, self._hold_ns["scale_up"])),
            most_desired=RollingMax(max(1, self._hold_ns["scale_down"])),
            plan=Plan(self._settings) if self._plans else None,
        )

    def _mark(self, pool: _Pool, now: Moment) -> None:
        """Remember about once a second where in the stream we are, for the evidence."""
        if not pool.marks or now.ns - pool.marks[-1][0] >= _MARK_NS:
            pool.marks.append((now.ns, now.sequence))
        while len(pool.marks) > 1 and pool.marks[1][0] <= now.ns - self._marks_ns:
            pool.marks.popleft()

    def _judge(
        self,
        pool: _Pool,
        since_ns: int,
        demand: Demand,
        reports: list[Report],
        planned: Planned | None,
        now: Moment,
    ) -> Change | Held | None:
        """What the load of the last while, or the plan, asks for, if anything, or why not."""
        settings, replicas = self._settings, demand.replicas
        desired = desired_replicas(demand.signals, replicas, settings.tolerance_ratio)
        desired = min(max(desired, settings.min_replicas), settings.max_replicas)
        pool.fewest_desired.add(now.ns, -desired)
        pool.most_desired.add(now.ns, desired)
        known_ns = now.ns - since_ns
        fewest = -int(pool.fewest_desired.value(now.ns) or -desired)
        up = fewest if known_ns >= self._hold_ns["scale_up"] else replicas
        if planned is not None:
            up = max(up, planned.replicas)
        if up > replicas:
            return Change("scale_up", up, demand, planned)
        asked = int(pool.most_desired.value(now.ns) or desired)
        if planned is not None:
            asked = planned.replicas
        elif known_ns < self._hold_ns["scale_down"]:
            asked = replicas
        if asked < replicas:
            caches = self._caches(pool, reports, now.ns)
            found = scale_down(settings, demand, caches, asked, self._downs(pool, now.ns))
            if isinstance(found, Held):
                return found
            return Change("scale_down", found, demand, planned, caches.loss(replicas - found))
        if desired < replicas and planned is None:
            text = f"the load must have asked for it for {settings.down_hold_seconds:g} s"
            return Held(desired, "hold", text)
        missing = lacking(demand.signals, settings.tolerance_ratio)
        if missing and replicas > settings.min_replicas:
            text = f"the load is low, but {missing} is not measured"
            return Held(replicas - 1, "unknown", text)
        return None

    def _caches(self, pool: _Pool, reports: list[Report], now_ns: int) -> Caches:
        hits = [ratio for _, ratio in pool.hits.items(now_ns)]
        return Caches(
            [report.metrics for report in reports],
            fmean(hits) if hits else None,
            pool.kept.pace.tokens_per_second,
        )

    def _downs(self, pool: _Pool, now_ns: int) -> int:
        """How often the pool was scaled down in the last hour."""
        kept = pool.kept
        kept.downs_ns = [ns for ns in kept.downs_ns if now_ns - ns < _HOUR_NS]
        return len(kept.downs_ns)

    def _is_news(self, pool: _Pool, change: Change, now: Moment) -> bool:
        """Whether this change is a new decision, given the last one."""
        if pool.last is None:
            return True
        last, action, target = pool.last.advice, change.action, change.target
        age_ns = now.ns - to_ns(last.decided_at)
        if action != last.action:
            return True
        if action == "scale_up" and target <= last.replicas_to and age_ns < self._lead_ns:
            return False
        if not pool.last.is_standing:
            return True
        is_other = target > last.replicas_to if action == "scale_up" else target != last.replicas_to
        return is_other and age_ns >= self._hold_ns[action]

    def _advise(
        self, pool: _Pool, change: Change, reports: list[Report], now: Moment
    ) -> list[Emit]:
        old = pool.last.advice if pool.last and pool.last.is_standing else None
        # The hold, and before it the time in which every engine is sure to have been heard.
        start_ns = now.ns - self._hold_ns[change.action] - self._ttl_ns
        earlier = [sequence for ns, sequence in pool.marks if ns <= start_ns]
        new = recommend(
            self._settings,
            change,
            reports,
            now,
            stream_from=earlier[-1] if earlier else pool.marks[0][1],
            supersedes=old.recommendation_id if old else None,
        )
        pool.last = _Last(new)
        emits = [Emit(new, new.recommendation_id)]
        if old is not None:
            emits.append(_decision(old, "superseded", f"by {new.recommendation_id}", now))
        return emits


def _fulfil(pool: _Pool, replicas: int, now_ns: int) -> None:
    """Advice whose target is reached no longer stands."""
    if pool.last is None or not pool.last.is_standing:
        return
    advice = pool.last.advice
    if advice.action == "scale_up":
        reached = replicas >= advice.replicas_to
    else:
        reached = replicas <= advice.replicas_to
    if reached:
        pool.last.is_standing = False
        if advice.action == "scale_down":
            pool.kept.downs_ns = [*pool.kept.downs_ns, now_ns]


def _held(held: Held, reports: list[Report], now: Moment) -> HeldAdvice:
    return HeldAdvice(
        pool=reports[0].metrics.pool,
        decided_at=instant(now.ns),
        action="scale_down",
        replicas_from=len(reports),
        replicas_to=held.target,
        reason=held.reason,
        text=held.text,
        simulated=any(report.metrics.simulated for report in reports),
    )


def _decision(
    advice: Recommendation, verdict: Literal["superseded", "expired"], reason: str, now: Moment
) -> Emit:
    decision = Decision(
        verdict=verdict,
        pool=advice.pool,
        recommendation_id=advice.recommendation_id,
        decided_at=instant(now.ns),
        decided_by="handlers",
        reason=reason,
        simulated=advice.simulated,
    )
    return Emit(decision, f"{advice.recommendation_id}.{verdict}")
