"""What is wrong with a cache, from its counters at both ends of a window. Pure."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from handlers.settings import TuneCacheSettings
from schemas.changes import CacheCause, CacheChange
from schemas.engines import CacheMetrics
from schemas.units import SECOND_NS, to_ns

OURS = "resource-agent"
COUNTERS = (
    "hits_total",
    "misses_total",
    "lookup_tokens_total",
    "hit_tokens_total",
    "evictions_total",
    "evictions_returned_total",
    "restores_total",
    "expired_lookups_total",
    "expired_lookups_late_seconds_total",
    "expired_idle_byte_seconds_total",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One condition over one window. `value` None: not known, or too little happened to tell."""

    signal: str
    value: float | None
    threshold: float
    fields: tuple[str, ...]
    change: CacheChange
    is_low: bool = False
    """The condition is a value below its threshold."""

    def holds(self, margin_ratio: float) -> bool:
        """Whether the value is past its threshold, that threshold eased by the margin."""
        if self.value is None:
            return False
        if self.is_low:
            return self.value < self.threshold * (1 + margin_ratio)
        return self.value > self.threshold * (1 - margin_ratio)


class Window:
    """What one cache counted between two samples."""

    def __init__(self, begin: CacheMetrics, end: CacheMetrics) -> None:
        self.begin = begin
        self.end = end
        self.seconds = (to_ns(end.observed_at) - to_ns(begin.observed_at)) / SECOND_NS

    @property
    def is_ours(self) -> bool:
        """Whether it is our own cache, whose settings have names that we know."""
        return self.end.source == OURS

    @property
    def is_whole(self) -> bool:
        """No counter fell: the cache did not start anew."""
        grown = (self.growth(name) for name in COUNTERS)
        return self.seconds > 0 and all(one is None or one >= 0 for one in grown)

    def growth(self, name: str) -> float | None:
        """How much a counter rose; None where one of the samples lacks it."""
        before, after = getattr(self.begin, name), getattr(self.end, name)
        return None if before is None or after is None else float(after - before)

    @property
    def lookups(self) -> tuple[float, float] | None:
        """Hits and misses; None: not counted."""
        hits, misses = self.growth("hits_total"), self.growth("misses_total")
        return None if hits is None or misses is None else (hits, misses)

    @property
    def returned(self) -> tuple[str, float | None]:
        """Evicted entries that were asked for again: the counter of them, and its growth.

        Those that the archive answered, where that is all there is.
        """
        counted = self.growth("evictions_returned_total")
        if counted is not None:
            return "evictions_returned_total", counted
        return "restores_total", self.growth("restores_total")

    @property
    def usage_ratio(self) -> float | None:
        """How full its RAM is at the end."""
        if self.end.usage_ratio is not None:
            return self.end.usage_ratio
        used, limit = self.end.used_bytes, self.end.limit_bytes
        return None if used is None or not limit else used / limit

    @property
    def usage_fields(self) -> tuple[str, ...]:
        """What `usage_ratio` is from."""
        return ("used_bytes", "limit_bytes") if self.end.usage_ratio is None else ("usage_ratio",)

    def hit_ratio(self, more_hits: float = 0.0) -> float | None:
        """Hits by lookups, had `more_hits` of the misses been hits; None without lookups."""
        if self.lookups is None or sum(self.lookups) == 0:
            return None
        hits, misses = self.lookups
        return (hits + min(more_hits, misses)) / (hits + misses)

    def hit_formula(self, more_hits: float) -> str:
        """The formula of `hit_ratio` with its numbers."""
        assert self.lookups is not None  # noqa: S101 - else there is no ratio to explain
        hits, misses = self.lookups
        return (
            f"(hits {hits:.0f} + misses that would be hits {min(more_hits, misses):.0f}) / "
            f"lookups {hits + misses:.0f}"
        )


Judge: TypeAlias = Callable[[Window, TuneCacheSettings], Finding]


def findings(window: Window, settings: TuneCacheSettings) -> dict[CacheCause, Finding]:
    """Every condition of one cache over one window."""
    return {cause: judge(window, settings) for cause, judge in _JUDGES.items()}


def known_ratio(metrics: CacheMetrics, judged: dict[CacheCause, Finding]) -> float:
    """The share of the conditions whose counters this cache has."""
    known = [
        all(getattr(metrics, name) is not None for name in one.fields) for one in judged.values()
    ]
    return sum(known) / len(known)


def _change(window: Window, cause: CacheCause, text: str, more_hits: float | None) -> CacheChange:
    """A change for more hits; None: how many is not known."""
    expected = None if more_hits is None else window.hit_ratio(more_hits)
    formula = "" if more_hits is None or expected is None else window.hit_formula(more_hits)
    return CacheChange(
        instance=window.end.instance,
        cause=cause,
        text=text,
        signal="hit_ratio",
        now=window.hit_ratio(),
        expected=expected,
        formula=formula,
    )


def _off(window: Window, _settings: TuneCacheSettings) -> Finding:
    states = (window.begin.is_enabled, window.end.is_enabled)
    before = window.end.hit_ratio
    change = CacheChange(
        instance=window.end.instance,
        cause="off",
        text="Switch it on (`enabled`): while it is off, no lookup finds anything.",
        signal="hit_ratio",
        now=0.0,
        expected=before,
        formula="" if before is None else f"its hit ratio while it was on: {before:.3f}",
    )
    value = None if None in states else float(any(states))
    return Finding("is_enabled", value, 0.5, ("is_enabled",), change, is_low=True)


def _thrash(window: Window, settings: TuneCacheSettings) -> Finding:
    field, returned = window.returned
    evicted = window.growth("evictions_total")
    value = None
    if returned is not None and evicted is not None and evicted >= settings.least_events:
        value = returned / evicted
    text = "Give it more room, or a policy that keeps what comes back."
    if window.is_ours:
        text = (
            "Give it more room (max_size_mb), or a policy that keeps what comes back "
            "(eviction_policy)."
        )
    return Finding(
        "returned_by_evicted_ratio",
        value,
        settings.thrash_ratio,
        (field, "evictions_total"),
        _change(window, "thrash", text, returned),
    )


def _ttl_short(window: Window, settings: TuneCacheSettings) -> Finding:
    expired = window.growth("expired_lookups_total")
    late = window.growth("expired_lookups_late_seconds_total")
    value = None
    if expired is not None and window.lookups and sum(window.lookups) >= settings.least_events:
        value = expired / sum(window.lookups)
    text = "Give entries a longer TTL (Fleet-Ttl-Seconds)"
    if expired and late is not None:
        text += f": they are asked for {late / expired:.0f} s after its end, on average"
    return Finding(
        "expired_by_lookups_ratio",
        value,
        settings.ttl_short_ratio,
        ("expired_lookups_total", "hits_total", "misses_total"),
        _change(window, "ttl_short", f"{text}.", expired),
    )


def _ttl_long(window: Window, settings: TuneCacheSettings) -> Finding:
    byte_seconds = window.growth("expired_idle_byte_seconds_total")
    limit, usage = window.end.limit_bytes, window.usage_ratio
    held = None if byte_seconds is None else byte_seconds / window.seconds
    is_full = usage is not None and usage > settings.full_ratio
    # Where there is room, what lies there idle costs nothing.
    value = held / limit if held is not None and limit and is_full else None
    return Finding(
        "held_in_vain_ratio",
        value,
        settings.ttl_long_ratio,
        ("expired_idle_byte_seconds_total", "limit_bytes"),
        CacheChange(
            instance=window.end.instance,
            cause="ttl_long",
            text="Give entries a shorter TTL (Fleet-Ttl-Seconds): they lie in RAM from their last "
            "use to its end.",
            signal="held_bytes",
            now=held,
            expected=None if held is None else 0.0,
            formula=""
            if byte_seconds is None
            else f"now: idle byte-seconds {byte_seconds:.0f} / {window.seconds:.0f} s; 0 where "
            "entries end with their last use",
        ),
    )


def _nearly_full(window: Window, settings: TuneCacheSettings) -> Finding:
    evicted, (_, returned) = window.growth("evictions_total"), window.returned
    lookups = sum(window.lookups) if window.lookups else 0.0
    # What was counted, and would gain nothing, is how a good cache looks.
    gains = returned is None or (lookups > 0 and returned / lookups >= settings.least_gain_ratio)
    is_short = evicted is not None and evicted >= settings.least_events
    value = window.usage_ratio if is_short and gains else None
    room = "more room (max_size_mb)" if window.is_ours else "more room"
    return Finding(
        "usage_ratio",
        value,
        settings.full_ratio,
        (*window.usage_fields, "evictions_total"),
        _change(
            window, "nearly_full", f"Give it {room}: it evicts what it has none for.", returned
        ),
    )


def _low_hit_ratio(window: Window, settings: TuneCacheSettings) -> Finding:
    fields: tuple[str, ...] = ("hits_total", "misses_total")
    value, looked_up = window.hit_ratio(), sum(window.lookups) if window.lookups else 0.0
    asked, found = window.growth("lookup_tokens_total"), window.growth("hit_tokens_total")
    if window.lookups is None and asked and found is not None:
        fields = ("hit_tokens_total", "lookup_tokens_total")
        value, looked_up = min(1.0, found / asked), asked
    _, returned = window.returned
    lost = [one for one in (returned, window.growth("expired_lookups_total")) if one is not None]
    change = _change(
        window,
        "low_hit_ratio",
        "Look at what is asked for: keys that never repeat, prefixes that differ early, or "
        "entries that left before they were asked for again.",
        sum(lost) if lost else None,
    )
    change = msgspec.structs.replace(change, now=value)
    return Finding(
        "hit_ratio",
        value if looked_up >= settings.least_events else None,
        settings.hit_ratio,
        fields,
        change,
        is_low=True,
    )


_JUDGES: dict[CacheCause, Judge] = {
    "off": _off,
    "thrash": _thrash,
    "ttl_short": _ttl_short,
    "ttl_long": _ttl_long,
    "nearly_full": _nearly_full,
    "low_hit_ratio": _low_hit_ratio,
}
"""The surest first."""
