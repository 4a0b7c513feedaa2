"""Advice on how caches are set up: room, time to live, switched off."""

import dataclasses
from collections.abc import Sequence

import msgspec

from handlers.cache_tuning.findings import Finding, Window, findings, known_ratio
from handlers.given import GivenAdvice, GivenState
from handlers.settings import TuneCacheSettings
from schemas.analysis import Scope
from schemas.changes import CacheCause
from schemas.engines import CacheMetrics
from schemas.message import Message
from schemas.protocols import Emit, Moment
from schemas.scaling import Evidence, Recommendation
from schemas.units import SECOND_NS, instant

MAX_CACHES = 256
"""Further ones are not judged; the state of each is about 1.5 KB in the snapshot."""
MIB = 1024 * 1024
FRESH_NS = 60 * SECOND_NS
"""A cache silent for so long before the end of a window is not judged over it."""


class _Condition(msgspec.Struct, array_like=True):
    """Whether a condition of a cache is on, and for how many windows it has been otherwise."""

    is_on: bool = False
    windows: int = 0
    since_sequence: int = 0
    """First message of the windows that confirmed it."""

    def judge(self, finding: Finding, begin_sequence: int, settings: TuneCacheSettings) -> None:
        """Take the next window; a value that is not known holds no condition."""
        if finding.holds(settings.margin_ratio if self.is_on else 0.0) == self.is_on:
            self.windows = 0
            return
        if not self.is_on and self.windows == 0:
            self.since_sequence = begin_sequence
        self.windows += 1
        if self.windows >= settings.confirm_windows:
            self.is_on, self.windows = not self.is_on, 0


class _Cache(msgspec.Struct, array_like=True):
    """One cache instance: the sample at the begin of the window, and its conditions."""

    begin: CacheMetrics
    begin_ns: int
    begin_sequence: int
    conditions: dict[CacheCause, _Condition] = {}


class _Snapshot(msgspec.Struct):
    caches: list[_Cache]
    given: GivenState


@dataclasses.dataclass(frozen=True, slots=True)
class _Confirmed:
    """A condition that is on, as the last window had it."""

    finding: Finding
    since_sequence: int
    known_ratio: float
    metrics: CacheMetrics


class TuneCacheHandler:
    """Judges each cache over windows on a fixed grid, from its counters at both ends.

    A condition begins once it has held for `confirm_windows` windows in a row, and ends once it
    has not for as many, with a margin: a window without enough lookups, samples or counters holds
    none. One recommendation for each pool (of a cache without one: its namespace) with all that is
    confirmed of its caches; given anew when that changes, or has expired.
    """

    name = "tune_cache"
    scope: Scope = "fleet"
    consumes: tuple[type[Message], ...] = (CacheMetrics,)
    # Of the window itself only the last sample counts; its begin is in the snapshot.
    window_ns = 2 * FRESH_NS

    def __init__(self, settings: TuneCacheSettings) -> None:
        self._settings = settings
        self._span_ns = int(settings.window_seconds * SECOND_NS)
        self._next_ns = 0
        self._latest: dict[str, tuple[CacheMetrics, Moment]] = {}
        self._caches: dict[str, _Cache] = {}
        self._given = GivenAdvice(_content)
        self._snapshot: bytes | None = None

    def handle(self, message: CacheMetrics, now: Moment) -> Sequence[Emit]:
        """Remember the last sample of each cache."""
        if message.instance in self._latest or len(self._latest) < MAX_CACHES:
            self._latest[message.instance] = (message, now)
        return ()

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Judge the window that is over."""
        if now.ns < self._next_ns:
            return ()
        end_ns = now.ns // self._span_ns * self._span_ns
        is_first = self._next_ns == 0
        self._next_ns = end_ns + self._span_ns
        if is_first:
            return ()
        self._snapshot = None
        confirmed: dict[str, list[_Confirmed]] = {}
        for instance, (message, told) in sorted(self._latest.items()):
            if told.ns < end_ns - FRESH_NS:
                del self._latest[instance]
                continue
            group = message.pool or message.namespace
            confirmed.setdefault(group, []).extend(self._judge(message, told, end_ns))
        self._caches = {name: one for name, one in self._caches.items() if name in self._latest}
        return [*self._given.expire(now), *self._advise(confirmed, now)]

    def snapshot(self) -> bytes | None:
        """The begins of the open windows, the conditions, and the advice that stands."""
        if self._snapshot is None:
            caches = [self._caches[name] for name in sorted(self._caches)]
            self._snapshot = msgspec.json.encode(_Snapshot(caches, self._given.snapshot()))
        return self._snapshot

    def restore(self, snapshot: bytes) -> None:
        """Take them over."""
        restored = msgspec.json.decode(snapshot, type=_Snapshot)
        self._caches = {cache.begin.instance: cache for cache in restored.caches}
        self._given.restore(restored.given)
        self._snapshot = None

    def _judge(self, message: CacheMetrics, told: Moment, end_ns: int) -> list[_Confirmed]:
        """The conditions of one cache that are on after this window."""
        # Most of it, and not looked at.
        message = msgspec.structs.replace(message, classes=None, archive=None)
        cache = self._caches.get(message.instance)
        if cache is None or cache.begin_ns != end_ns - self._span_ns:
            # Its first window, or nothing is known of the one before: conditions begin anew.
            self._caches[message.instance] = _Cache(message, end_ns, told.sequence)
            return []
        window, begin_sequence = Window(cache.begin, message), cache.begin_sequence
        cache.begin, cache.begin_ns, cache.begin_sequence = message, end_ns, told.sequence
        if not window.is_whole:
            cache.conditions = {}
            return []
        judged = findings(window, self._settings)
        for cause, finding in judged.items():
            condition = cache.conditions.setdefault(cause, _Condition())
            condition.judge(finding, begin_sequence, self._settings)
        on = {cause for cause, condition in cache.conditions.items() if condition.is_on}
        if "thrash" in on:
            on.discard("nearly_full")  # the same advice, with less known
        known = known_ratio(message, judged)
        return [
            _Confirmed(finding, cache.conditions[cause].since_sequence, known, message)
            for cause, finding in judged.items()
            if cause in on
        ]

    def _advise(self, confirmed: dict[str, list[_Confirmed]], now: Moment) -> list[Emit]:
        emits: list[Emit] = []
        for group in sorted({*confirmed, *self._given.pools()}):
            found = confirmed.get(group)
            new = self._recommend(group, found, now) if found else None
            emits += self._given.propose(group, new, now)
        return emits

    def _recommend(self, group: str, found: list[_Confirmed], now: Moment) -> Recommendation:
        caches = len({one.metrics.instance for one in found})
        changes = [one.finding.change for one in found]
        advice_id = f"{group}.{self.name}.{now.ns}"
        touches_ttl = any(change.cause in ("ttl_short", "ttl_long") for change in changes)
        return Recommendation(
            action="tune_cache",
            pool=group,
            recommendation_id=advice_id,
            idempotency_key=advice_id,
            decided_at=instant(now.ns),
            expires_at=instant(now.ns + int(self._settings.expires_after_seconds * SECOND_NS)),
            replicas_from=caches,
            replicas_to=caches,
            reason=changes[0].cause,
            text=f"Tune the cache of {group}. " + " ".join(_in_words(one) for one in found),
            evidence=[
                self._evidence(one, one.finding.value, now)
                for one in found
                if one.finding.value is not None
            ],
            confidence_ratio=sum(one.known_ratio for one in found) / len(found),
            risk="medium" if touches_ttl else "low",
            effective_after_seconds=0.0,
            simulated=any(one.metrics.simulated for one in found),
            cache_changes=changes,
        )

    def _evidence(self, one: _Confirmed, value: float, now: Moment) -> Evidence:
        return Evidence(
            signal=one.finding.signal,
            value=value,
            threshold=one.finding.threshold,
            window_seconds=self._settings.window_seconds,
            stream_from=one.since_sequence,
            stream_to=now.sequence,
            subject=one.metrics.subject(),
            fields=list(one.finding.fields),
        )


_MEASURED: dict[CacheCause, str] = {
    "off": "it is switched off",
    "thrash": "{value:.2f} lookups of what it evicted for each eviction, above {threshold:g}",
    "ttl_short": "{value:.1%} of the lookups find what has expired, above {threshold:.0%}",
    "ttl_long": "{value:.1%} of its RAM is held from last use to expiry, above {threshold:.0%}",
    "nearly_full": "{value:.1%} of its RAM is used, above {threshold:.0%}, and it evicts",
    "low_hit_ratio": "{value:.1%} of what is looked up is found, below {threshold:.0%}",
}


def _in_words(one: _Confirmed) -> str:
    finding, change = one.finding, one.finding.change
    measured = "not measured now"
    if finding.value is not None:
        words = _MEASURED[change.cause]
        measured = words.format(value=finding.value, threshold=finding.threshold)
    expected = ""
    if change.expected is not None and change.now is not None:
        if change.signal == "hit_ratio":
            expected = f" Hit ratio now {change.now:.1%}, then up to {change.expected:.1%}"
        else:
            expected = f" Held in vain {change.now / MIB:.1f} MiB"
        expected += f": {change.formula}."
    return f"{change.instance} ({change.cause}): {measured}. {change.text}{expected}"


def _content(advice: Recommendation) -> str:
    """The causes of each cache; figures move from window to window."""
    return " ".join(sorted(f"{one.instance}.{one.cause}" for one in advice.cache_changes))
