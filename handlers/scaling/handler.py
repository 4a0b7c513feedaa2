"""Scaling advice for each pool of engines, with evidence, expiry and idempotency key."""

import functools
from collections.abc import Sequence

import msgspec

from handlers.decisions.book import DecisionBook
from handlers.given import closing
from handlers.scaling.advice import Change, recommend
from handlers.scaling.at_once import may_start, most_at_once
from handlers.scaling.cache_loss import Caches
from handlers.scaling.demand import Demand, Expect
from handlers.scaling.gpu_facts import GpuFacts
from handlers.scaling.plan import Planned
from handlers.scaling.pools import Last, Pool, Pools
from handlers.scaling.replica_price import DerivedPrice
from handlers.scaling.replicas import (
    desired_replicas,
    lacking,
    measure,
    optional_signals,
    shared_gpus,
)
from handlers.scaling.scale_down import Held, fewest_safe, scale_down
from handlers.settings import ScalingSettings
from schemas.analysis import Scope
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.protocols import Emit, Moment
from schemas.scaling import HeldAdvice
from schemas.units import SECOND_NS, instant, to_ns


class ScalingHandler:
    """Advises on every pool by the HPA rule (`replicas.py`), or by a plan.

    Up: when more replicas have been desired for `up_hold_seconds`, or more than `panic_ratio` times
    as many for `panic_hold_seconds`, to the fewest desired in that time. Down: when fewer have been
    desired for `down_hold_seconds`, to the most desired in that time. The message that completes a
    condition brings the advice.

    With the policy `forecast` and a plan (`plan.py`): up at once to what is planned, or to what
    the HPA rule asks for where that is more; down to what is planned.

    Down only as far as `scale_down.py` finds safe, by what `expect` tells of the load to come,
    and worth it. What the load asks for and is not advised is told as HeldAdvice.

    One recommendation per decision. While it stands it is not repeated; a higher target (up),
    another target (down) or the other direction supersedes it, in the same direction not before
    the hold has passed again. It ends when the pool has reached its target, when it expires, when
    the load has spoken against it for `up_hold_seconds`, or when `book` says that it was rejected
    or carried out. Up advice is not given again for the
    same target before new replicas can have started. What was rejected is not advised again for
    `rejected_hold_seconds`, unless more replicas are asked for; after advice was carried out,
    none is given before the hold has passed.

    `gpus` tells how busy the GPUs of a pool are, which counts where that has a target, and what
    they cost, which is the price of a replica where none is given.
    """

    name = "scaling"
    scope: Scope = "pool"
    consumes: tuple[type[Message], ...] = (EngineMetrics,)

    def __init__(
        self,
        settings: ScalingSettings,
        expect: Expect = lambda pool, now_ns: None,
        book: DecisionBook | None = None,
        gpus: GpuFacts | None = None,
    ) -> None:
        self._settings = settings
        self._gpus = gpus or GpuFacts()
        self._counts_gpus = settings.gpu_busy_target_ratio is not None
        self._optional = optional_signals(settings)
        self._at_price = functools.lru_cache(maxsize=256)(
            lambda usd: msgspec.structs.replace(settings, usd_per_replica_hour=usd)
        )
        self._expect = expect
        self._book = book or DecisionBook()
        self._rejected_ns = int(settings.rejected_hold_seconds * SECOND_NS)
        self._pools = Pools(settings, self._gpus.busy_window_ns)
        self._hold_ns = self._pools.hold_ns
        self.window_ns = self._pools.window_ns

    def handle(self, message: EngineMetrics, now: Moment) -> Sequence[Emit]:
        """Judge the pool of this engine anew."""
        pool = self._pools.refresh(message.pool, now.ns)
        self._settle(message.pool, pool, now.ns)
        engines = pool.engines
        engines.expire(now.ns)
        if not engines.metrics:
            pool.since_ns = None
        engines.put(message, now.ns)
        if message.prefix_cache_hit_ratio is not None:
            pool.hits.put((message.node, message.engine), message.prefix_cache_hit_ratio, now.ns)
            pool.kept.pace.see(message, now.ns)
        pool.mark(now, self._pools.marks_ns, self._pools.ttl_ns)
        if pool.plan is not None:
            pool.plan.add(message, now.ns)
        busy = self._gpus.busy(message.pool) if self._counts_gpus else None
        growth = pool.kept.growth
        is_shared = busy is not None and growth.is_shared(len(engines.metrics), busy.gpus)
        signals = measure(engines.loads, self._settings, busy, shares_gpus=is_shared)
        pool.held = None
        if not signals:
            pool.since_ns = None
            return ()
        if pool.since_ns is None:
            pool.since_ns = now.ns
        planned = None
        if now.ns - pool.since_ns >= self._pools.ttl_ns:  # by then every engine was heard
            _fulfil(pool, len(engines.metrics), now.ns)
            if busy is not None:
                growth.see(len(engines.metrics), busy.gpus, now.ns, self._pools.busy_window_ns)
            if self._settings.usd_per_replica_hour is None:
                self._see_gpus(message, pool)
            planned = pool.plan.planned if pool.plan else None
        expected = self._expect(message.pool, now.ns)
        is_planned = planned is not None
        demand = Demand(
            engines.loads, signals, expected, is_planned=is_planned, optional=self._optional
        )
        found = self._judge(pool, pool.since_ns, demand, planned, now)
        if isinstance(found, Change):
            if not self._is_news(pool, found, now):
                return self._withdraw(pool, demand, planned, now)
            found = self._held_after_decision(pool, found, now.ns) or found
        if isinstance(found, Change):
            return self._advise(pool, found, now)
        pool.held = found
        return self._withdraw(pool, demand, planned, now)

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Expire advice; tell what is held."""
        emits = []
        for name, pool in self._pools.items(now.ns):
            self._settle(name, pool, now.ns)
            news = pool.kept.held.news(_held(name, pool, now), now.ns)
            if news is not None:
                emits.append(Emit(news, f"held_advice.{name}.{now.ns}"))
            if pool.last and pool.last.is_standing and to_ns(pool.last.advice.expires_at) <= now.ns:
                pool.last.is_standing = False
                emits.append(closing(pool.last.advice, "expired", "not carried out in time", now))
        return emits

    def snapshot(self) -> bytes | None:
        """What is kept of the pools."""
        return self._pools.snapshot()

    def restore(self, snapshot: bytes) -> None:
        """Take it over."""
        self._pools.restore(snapshot)

    def _settle(self, name: str, pool: Pool, now_ns: int) -> None:
        """Hear what became of the last advice: rejected or carried out it does not stand."""
        executed_ns, executed = self._book.executed(name, now_ns) or (0, "")
        pool.executed_ns = executed_ns
        if pool.last is None or not pool.last.is_standing:
            return
        advice = pool.last.advice
        rejected_ns = self._book.rejected_ns(advice.recommendation_id, now_ns)
        if executed == advice.recommendation_id:
            pool.last.is_standing = False
            if advice.action == "scale_down":
                pool.kept.downs_ns = [*pool.kept.downs_ns, executed_ns]
        elif rejected_ns is not None:
            pool.last.is_standing = False
            size = abs(advice.replicas_to - advice.replicas_from)
            pool.kept.rejected = pool.kept.rejected | {advice.action: (rejected_ns, size)}

    def _judge(
        self,
        pool: Pool,
        since_ns: int,
        demand: Demand,
        planned: Planned | None,
        now: Moment,
    ) -> Change | Held | None:
        """What the load of the last while, or the plan, asks for, if anything, or why not."""
        settings, replicas, optional = self._settings, demand.replicas, self._optional
        desired = desired_replicas(demand.signals, replicas, settings.tolerance_ratio, optional)
        is_minimum = desired < settings.min_replicas
        desired = max(desired, settings.min_replicas)
        pool.most_desired.add(now.ns, desired)
        known_ns = now.ns - since_ns
        up, is_panic = self._asked_up(pool, replicas, desired, known_ns, now.ns)
        most = most_at_once(settings, replicas, pool.last, pool.executed_ns, now.ns)
        at_once = min(up, most)
        if planned is not None:
            up, at_once = max(up, planned.replicas), max(at_once, planned.replicas)
        target = min(at_once, settings.max_replicas)
        if target > replicas:
            is_minimum = is_minimum and target == settings.min_replicas
            return Change(
                "scale_up",
                target,
                demand,
                planned,
                is_panic=is_panic,
                is_minimum=is_minimum,
                asked=up,
            )
        if up > replicas:
            return Held("scale_up", up, "limit", f"max_replicas is {settings.max_replicas}")
        asked = int(pool.most_desired.value(now.ns) or desired)
        if planned is not None:
            # A pool that is larger than a plan may make it is not to shrink for that.
            asked = planned.replicas if planned.replicas < settings.max_replicas else replicas
        elif known_ns < self._hold_ns["scale_down"]:
            asked = replicas
        if asked < replicas:
            caches = _caches(pool, now.ns)
            settings, _ = self._priced(pool, now.ns)
            found = scale_down(settings, demand, caches, asked, pool.kept.downs(now.ns))
            if isinstance(found, Held):
                return found
            return Change("scale_down", found, demand, planned, caches.loss(replicas - found))
        if desired < replicas and planned is None:
            text = f"the load must have asked for it for {settings.down_hold_seconds:g} s"
            return Held("scale_down", desired, "hold", text)
        if why := shared_gpus(demand.signals, settings.tolerance_ratio):
            return Held("scale_up", replicas + 1, "unknown", why)
        missing = lacking(demand.signals, settings.tolerance_ratio, optional)
        if missing and replicas > settings.min_replicas:
            text = f"the load is low, but {missing} is not measured"
            return Held("scale_down", replicas - 1, "unknown", text)
        return None

    def _asked_up(
        self, pool: Pool, replicas: int, desired: int, known_ns: int, now_ns: int
    ) -> tuple[int, bool]:
        """The fewest replicas desired in the hold; or in the shorter one of panic, and if so."""
        pool.fewest_desired.add(now_ns, -desired)
        pool.fewest_in_panic.add(now_ns, -desired)
        held = -int(pool.fewest_desired.value(now_ns) or -desired)
        up = held if known_ns >= self._hold_ns["scale_up"] else replicas
        fewest = -int(pool.fewest_in_panic.value(now_ns) or -desired)
        is_flood = fewest > max(up, self._settings.panic_ratio * replicas)
        if is_flood and known_ns >= self._pools.ttl_ns:  # by then every engine was heard
            return fewest, True
        return up, False

    def _see_gpus(self, message: EngineMetrics, pool: Pool) -> None:
        """How many GPUs a replica has, by the last minute of the pool."""
        found = self._gpus.priced(message.pool, message.simulated)
        if found is None or found.end_ns == pool.kept.gpus.minute_ns:
            return
        engines = pool.engines
        if engines.simulated == (len(engines.metrics) if message.simulated else 0):
            pool.kept.gpus.see(found, len(engines.metrics))

    def _priced(self, pool: Pool, now_ns: int) -> tuple[ScalingSettings, DerivedPrice | None]:
        """The settings, with the price that was derived where there is none; and that price."""
        if self._settings.usd_per_replica_hour is not None:
            return self._settings, None
        price = pool.kept.gpus.price(self._settings.gpus_per_replica, now_ns)
        if price is None:
            return self._settings, None
        return self._at_price(price.usd_per_hour), price

    def _withdraw(
        self, pool: Pool, demand: Demand, planned: Planned | None, now: Moment
    ) -> list[Emit]:
        """End advice that stands and that the load has spoken against for `up_hold_seconds`.

        Down: what would be left could not lose a replica any more. Up: more than there are has not
        been asked for within `down_hold_seconds`.
        """
        if pool.last is None or not pool.last.is_standing:
            return []
        advice = pool.last.advice
        if advice.action == "scale_down":
            is_contrary = fewest_safe(self._settings, demand) > advice.replicas_to
            reason = "the load is too much by now for what would be left"
        else:
            most = int(pool.most_desired.value(now.ns) or 0)
            is_contrary = max(most, planned.replicas if planned else 0) <= demand.replicas
            reason = "the load does not ask for it any more"
        if not is_contrary:
            pool.contrary_ns = None
            return []
        if pool.contrary_ns is None:
            pool.contrary_ns = now.ns
        if now.ns - pool.contrary_ns < self._hold_ns["scale_up"]:
            return []
        pool.last.is_standing, pool.last.is_withdrawn = False, True
        return [closing(advice, "expired", reason, now)]

    def _is_news(self, pool: Pool, change: Change, now: Moment) -> bool:
        """Whether this change is a new decision, given the last one."""
        if pool.last is None:
            return True
        last, action, target = pool.last.advice, change.action, change.target
        age_ns = now.ns - to_ns(last.decided_at)
        if action != last.action:
            return True
        if action == "scale_up":
            is_other = target > last.replicas_to
            if not is_other and may_start(self._settings, pool.last, pool.executed_ns, now.ns):
                return False
        else:
            is_other = target != last.replicas_to
        if not pool.last.is_standing:
            return not pool.last.is_withdrawn or age_ns >= self._hold_ns[action]
        return is_other and age_ns >= self._hold_ns[action]

    def _held_after_decision(self, pool: Pool, change: Change, now_ns: int) -> Held | None:
        """Why not, by what was decided on such advice before, and carried out."""
        action, target = change.action, change.target
        rejected_ns, size = pool.kept.rejected.get(action, (0, 0))
        until_ns = rejected_ns + self._rejected_ns
        if rejected_ns and now_ns < until_ns and abs(target - change.demand.replicas) <= size:
            text = (
                f"advice on as many replicas was rejected at {instant(rejected_ns):%F %T}Z, and "
                f"is not given again before {instant(until_ns):%F %T}Z"
            )
            return Held(action, target, "rejected", text)
        changed_ns = pool.executed_ns
        if action == "scale_down":
            changed_ns = max([changed_ns, *pool.kept.downs_ns])
        hold_ns = self._hold_ns[action]
        if changed_ns and now_ns < changed_ns + hold_ns:
            text = (
                f"the pool was changed at {instant(changed_ns):%F %T}Z; the load must have asked "
                f"for it for {hold_ns / SECOND_NS:g} s since"
            )
            return Held(action, target, "settling", text)
        return None

    def _advise(self, pool: Pool, change: Change, now: Moment) -> list[Emit]:
        old = pool.last.advice if pool.last and pool.last.is_standing else None
        # The hold, and before it the time in which every engine is sure to have been heard.
        start_ns = now.ns - self._hold_ns[change.action] - self._pools.ttl_ns
        start_ns -= self._pools.busy_window_ns
        earlier = [sequence for ns, sequence in pool.marks if ns <= start_ns]
        settings, derived = self._priced(pool, now.ns)
        new = recommend(
            settings,
            change,
            pool.engines.reports(),
            now,
            stream_from=earlier[-1] if earlier else pool.marks[0][1],
            supersedes=old.recommendation_id if old else None,
            price=derived,
        )
        pool.last = Last(new)
        emits = [Emit(new, new.recommendation_id)]
        if old is not None:
            emits.append(closing(old, "superseded", f"by {new.recommendation_id}", now))
        return emits


def _caches(pool: Pool, now_ns: int) -> Caches:
    return Caches(pool.engines.caches, pool.hits.mean(now_ns), pool.kept.pace.tokens_per_second)


def _fulfil(pool: Pool, replicas: int, now_ns: int) -> None:
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


def _held(name: str, pool: Pool, now: Moment) -> HeldAdvice | None:
    """What is held of a pool of which anything is heard; None: nothing."""
    pool.engines.expire(now.ns)
    held, engines = pool.held, pool.engines
    if held is None or not engines.metrics:
        return None
    return HeldAdvice(
        pool=name,
        decided_at=instant(now.ns),
        action=held.action,
        replicas_from=len(engines.metrics),
        replicas_to=held.target,
        reason=held.reason,
        text=held.text,
        simulated=engines.simulated > 0,
    )
