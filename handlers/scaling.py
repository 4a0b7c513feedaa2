"""Scaling advice for each pool of engines, with evidence, expiry and idempotency key."""

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Literal

import msgspec

from handlers.advice import Direction, Report, recommend
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


@dataclasses.dataclass(slots=True)
class _Pool:
    """What is remembered of one pool."""

    engines: ExpiringDict[tuple[str, str], Report]
    fewest_desired: RollingMax  # of the negated count: its maximum is the minimum
    most_desired: RollingMax
    since_ns: int | None = None  # the load has been known without a break since then
    marks: deque[tuple[int, int]] = dataclasses.field(default_factory=deque)
    last: _Last | None = None


class ScalingHandler:
    """Advises on every pool by the HPA rule (`handlers/replicas.py`).

    Up: when more replicas have been desired for `up_hold_seconds`, to the fewest desired in that
    time. Down: when fewer have been desired for `down_hold_seconds`, to the most desired in that
    time, or to the next higher count that carries the load with one replica lost. The message
    that completes a condition brings the advice.

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
        self.window_ns = _FORGET_MARGIN_NS + max(
            longest_ns, int(settings.expires_after_seconds * SECOND_NS)
        )
        self._marks_ns = longest_ns
        self._pools: ExpiringDict[str, _Pool] = ExpiringDict(self.window_ns)

    def handle(self, message: EngineMetrics, now: Moment) -> Sequence[Emit]:
        """Judge the pool of this engine anew."""
        pool = self._pools.refresh(message.pool, self._new_pool, now.ns)
        if not pool.engines.items(now.ns):
            pool.since_ns = None
        pool.engines.put((message.node, message.engine), Report(now.ns, message), now.ns)
        self._mark(pool, now)
        reports = [
            report for _, report in sorted(pool.engines.items(now.ns), key=lambda item: item[0])
        ]
        signals = measure([report.metrics for report in reports], self._settings)
        if not signals:
            pool.since_ns = None
            return ()
        if pool.since_ns is None:
            pool.since_ns = now.ns
        if now.ns - pool.since_ns >= self._ttl_ns:  # by then every engine was heard
            _fulfil(pool, len(reports))
        wanted = self._wanted(pool, pool.since_ns, signals, len(reports), now)
        if wanted is None or not self._is_news(pool, *wanted, now):
            return ()
        return self._advise(pool, signals, reports, *wanted, now)

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Expire advice."""
        emits = []
        for _, pool in sorted(self._pools.items(now.ns), key=lambda item: item[0]):
            if pool.last and pool.last.is_standing and to_ns(pool.last.advice.expires_at) <= now.ns:
                pool.last.is_standing = False
                emits.append(_decision(pool.last.advice, "expired", "not carried out in time", now))
        return emits

    def snapshot(self) -> bytes | None:
        """The last advice of each pool, with the instant of the pool's last metrics."""
        return msgspec.json.encode(
            [(ns, pool.last) for ns, _, pool in self._pools.touched() if pool.last]
        )

    def restore(self, snapshot: bytes) -> None:
        """Take over the last advice of each pool."""
        restored = msgspec.json.decode(snapshot, type=list[tuple[int, _Last]])
        pools = {name: (ns, pool) for ns, name, pool in self._pools.touched()}
        for _, pool in pools.values():
            pool.last = None
        for ns, last in restored:
            _, pool = pools.setdefault(last.advice.pool, (ns, self._new_pool()))
            pool.last = last
        self._pools = ExpiringDict(self.window_ns)
        for name, (ns, pool) in sorted(pools.items(), key=lambda item: item[1][0]):
            self._pools.put(name, pool, ns)

    def _new_pool(self) -> _Pool:
        return _Pool(
            engines=ExpiringDict(self._ttl_ns),
            fewest_desired=RollingMax(max(1, self._hold_ns["scale_up"])),
            most_desired=RollingMax(max(1, self._hold_ns["scale_down"])),
        )

    def _mark(self, pool: _Pool, now: Moment) -> None:
        """Remember about once a second where in the stream we are, for the evidence."""
        if not pool.marks or now.ns - pool.marks[-1][0] >= _MARK_NS:
            pool.marks.append((now.ns, now.sequence))
        while len(pool.marks) > 1 and pool.marks[1][0] <= now.ns - self._marks_ns:
            pool.marks.popleft()

    def _wanted(
        self, pool: _Pool, since_ns: int, signals: list[Signal], replicas: int, now: Moment
    ) -> tuple[Direction, int] | None:
        """Direction and target that the load of the last while asks for, if any."""
        settings = self._settings
        desired = desired_replicas(signals, replicas, settings.tolerance_ratio)
        desired = min(max(desired, settings.min_replicas), settings.max_replicas)
        pool.fewest_desired.add(now.ns, -desired)
        pool.most_desired.add(now.ns, desired)
        known_ns = now.ns - since_ns
        fewest = -int(pool.fewest_desired.value(now.ns) or -desired)
        if known_ns >= self._hold_ns["scale_up"] and fewest > replicas:
            return "scale_up", fewest
        most = int(pool.most_desired.value(now.ns) or desired)
        if known_ns < self._hold_ns["scale_down"] or most >= replicas:
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
