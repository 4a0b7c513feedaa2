"""Scaling advice for each pool of engines, with evidence, expiry and idempotency key."""

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Literal

import msgspec

from handlers.advice import Direction, Report, recommend
from handlers.plan import HISTORY_NS, Plan, Planned, PlanState
from handlers.replicas import Signal, can_hold, desired_replicas, measure
from handlers.settings import ScalingSettings
from handlers.window import ExpiringDict, RollingMax
from schemas.analysis import Scope
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.protocols import Emit, Moment
from schemas.scaling import Decision, Recommendation
from schemas.units import SECOND_NS, instant, to_ns

_MARK_NS = SECOND_NS
_FORGET_MARGIN_NS = 60 * SECOND_NS


class _Last(msgspec.Struct):
    """The last advice for a pool; `is_standing` until fulfilled, superseded or expired."""

    advice: Recommendation
    is_standing: bool = True


class _Snapshot(msgspec.Struct):
    """With the instant of the pool's last metrics each."""

    lasts: list[tuple[int, _Last]]
    plans: list[tuple[int, str, PlanState]] = []


@dataclasses.dataclass(slots=True)
class _Pool:
    """What is remembered of one pool."""

    engines: ExpiringDict[tuple[str, str], Report]
    fewest_desired: RollingMax  # of the negated count: its maximum is the minimum
    most_desired: RollingMax
    since_ns: int | None = None  # the load has been known without a break since then
    marks: deque[tuple[int, int]] = dataclasses.field(default_factory=deque)
    last: _Last | None = None
    plan: Plan | None = None  # with the policy `forecast`


class ScalingHandler:
    """Advises on every pool by the HPA rule (`handlers/replicas.py`), or by a plan.

    Up: when more replicas have been desired for `up_hold_seconds`, to the fewest desired in that
    time. Down: when fewer have been desired for `down_hold_seconds`, to the most desired in that
    time, or to the next higher count that carries the load with one replica lost. The message
    that completes a condition brings the advice.

    With the policy `forecast` and a plan (`handlers/plan.py`): up at once to what is planned, or
    to what the HPA rule asks for where that is more; down to what is planned, or to the next
    higher count that carries the load of now with one replica lost.

    One recommendation per decision. While it stands it is not repeated; a higher target (up),
    another target (down) or the other direction supersedes it, in the same direction not before
    the hold has passed again. It ends when the pool has reached its target, or expires. Up
    advice is not given again for the same target before new replicas can have started.
    """

    name = "scaling"
    scope: Scope = "pool"
    consumes: tuple[type[Message], ...] = (EngineMetrics,)

    def __init__(self, settings: ScalingSettings) -> None:
        self._settings = settings
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
        pool.engines.put((message.node, message.engine), Report(now.ns, message), now.ns)
        self._mark(pool, now)
        if pool.plan is not None:
            pool.plan.add(message, now.ns)
        reports = [
            report for _, report in sorted(pool.engines.items(now.ns), key=lambda item: item[0])
        ]
        signals = measure([report.metrics for report in reports], self._settings)
        if not signals:
            pool.since_ns = None
            return ()
        if pool.since_ns is None:
            pool.since_ns = now.ns
        planned = None
        if now.ns - pool.since_ns >= self._ttl_ns:  # by then every engine was heard
            _fulfil(pool, len(reports))
            planned = pool.plan.planned if pool.plan else None
        wanted = self._wanted(pool, pool.since_ns, signals, len(reports), planned, now)
        if wanted is None or not self._is_news(pool, *wanted, now):
            return ()
        return self._advise(pool, signals, reports, *wanted, planned, now)

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Expire advice."""
        emits = []
        for _, pool in sorted(self._pools.items(now.ns), key=lambda item: item[0]):
            if pool.last and pool.last.is_standing and to_ns(pool.last.advice.expires_at) <= now.ns:
                pool.last.is_standing = False
                emits.append(_decision(pool.last.advice, "expired", "not carried out in time", now))
        return emits

    def snapshot(self) -> bytes | None:
        """The last advice of each pool, and the plans as far as they fit."""
        lasts = [(ns, pool.last) for ns, _, pool in self._pools.touched() if pool.last]
        return msgspec.json.encode(_Snapshot(lasts, self._plans_that_fit()))

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
        """Take over the last advice of each pool, and the plans that were made by these settings.

        Older versions stored a list of the advice alone.
        """
        restored = msgspec.json.decode(snapshot, type=_Snapshot | list[tuple[int, _Last]])
        if isinstance(restored, list):
            restored = _Snapshot(restored)
        pools = {name: (ns, pool) for ns, name, pool in self._pools.touched()}
        for _, pool in pools.values():
            pool.last = None
        for ns, last in restored.lasts:
            _, pool = pools.setdefault(last.advice.pool, (ns, self._new_pool()))
            pool.last = last
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

    def _wanted(
        self,
        pool: _Pool,
        since_ns: int,
        signals: list[Signal],
        replicas: int,
        planned: Planned | None,
        now: Moment,
    ) -> tuple[Direction, int] | None:
        """Direction and target that the load of the last while, or the plan, asks for, if any."""
        settings = self._settings
        desired = desired_replicas(signals, replicas, settings.tolerance_ratio)
        desired = min(max(desired, settings.min_replicas), settings.max_replicas)
        pool.fewest_desired.add(now.ns, -desired)
        pool.most_desired.add(now.ns, desired)
        known_ns = now.ns - since_ns
        fewest = -int(pool.fewest_desired.value(now.ns) or -desired)
        up = fewest if known_ns >= self._hold_ns["scale_up"] else replicas
        if planned is not None:
            up = max(up, planned.replicas)
        if up > replicas:
            return "scale_up", up
        most = int(pool.most_desired.value(now.ns) or desired)
        if planned is not None:
            most = planned.replicas
        elif known_ns < self._hold_ns["scale_down"]:
            return None
        if most >= replicas:
            return None
        safe = (count for count in range(most, replicas) if can_hold(signals, count))
        target = next(safe, None)
        return None if target is None else ("scale_down", target)

    def _is_news(self, pool: _Pool, action: Direction, target: int, now: Moment) -> bool:
        """Whether this target is a new decision, given the last one."""
        if pool.last is None:
            return True
        last = pool.last.advice
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
        self,
        pool: _Pool,
        signals: list[Signal],
        reports: list[Report],
        action: Direction,
        target: int,
        planned: Planned | None,
        now: Moment,
    ) -> list[Emit]:
        old = pool.last.advice if pool.last and pool.last.is_standing else None
        # The hold, and before it the time in which every engine is sure to have been heard.
        start_ns = now.ns - self._hold_ns[action] - self._ttl_ns
        earlier = [sequence for ns, sequence in pool.marks if ns <= start_ns]
        new = recommend(
            self._settings,
            action,
            target,
            signals,
            reports,
            now,
            planned=planned,
            stream_from=earlier[-1] if earlier else pool.marks[0][1],
            supersedes=old.recommendation_id if old else None,
        )
        pool.last = _Last(new)
        emits = [Emit(new, new.recommendation_id)]
        if old is not None:
            emits.append(_decision(old, "superseded", f"by {new.recommendation_id}", now))
        return emits


def _fulfil(pool: _Pool, replicas: int) -> None:
    """Advice whose target is reached no longer stands."""
    if pool.last is None:
        return
    advice = pool.last.advice
    if advice.action == "scale_up":
        reached = replicas >= advice.replicas_to
    else:
        reached = replicas <= advice.replicas_to
    if reached:
        pool.last.is_standing = False


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
