"""What goes with the KV caches of replicas that are removed, and what it takes to compute anew."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Self

import msgspec

from handlers.scaling.replica_loads import ExactSum, Replica
from handlers.window import ExpiringDict
from schemas.engines import EngineMetrics
from schemas.units import SECOND_NS

HALF_DAY_NS = 12 * 3600 * SECOND_NS


class Pace(msgspec.Struct):
    """The most prompt tokens a second that one replica was seen to compute, of 12 to 24 hours."""

    half_day: int = 0
    most: float = 0.0
    before: float = 0.0
    """Of the half day before."""

    def see(self, metrics: EngineMetrics, now_ns: int) -> None:
        """Take a sample; what was found in the prefix cache was not computed."""
        rate, hits = metrics.prompt_tokens_per_second, metrics.prefix_cache_hit_ratio
        if rate is None or hits is None:
            return
        half_day = now_ns // HALF_DAY_NS
        if half_day != self.half_day:
            self.before = self.most if half_day == self.half_day + 1 else 0.0
            self.half_day, self.most = half_day, 0.0
        self.most = max(self.most, rate * (1.0 - hits))

    @property
    def tokens_per_second(self) -> float | None:
        """None: none was seen to compute any."""
        return max(self.most, self.before) or None


@dataclasses.dataclass(frozen=True, slots=True)
class CacheLoss:
    """Tokens that others will have to compute anew, and how long that keeps a replica busy.

    None: not known, as `unknown` is not measured.
    """

    tokens: float | None = None
    replica_hours: float | None = None
    unknown: str = ""


class UsedCaches:
    """What the KV caches of a pool hold together. An engine that comes, changes or goes: O(1).

    Each message of a pool too large for its load asks for it.
    """

    __slots__ = ("_tokens", "_without_usage", "engines")

    def __init__(self) -> None:
        self.engines = 0
        self._without_usage = 0
        self._tokens = ExactSum()

    @classmethod
    def of(cls, engines: Iterable[EngineMetrics]) -> Self:
        """Of all of these."""
        found = cls()
        for engine in engines:
            found.change(None, engine)
        return found

    def change(self, before: EngineMetrics | None, after: EngineMetrics | None) -> None:
        """Take one out, and another in; None: there is none."""
        gone = here = None
        if before is not None:
            gone = _used(before)
            self.engines -= 1
            self._without_usage -= before.kv_cache_usage_ratio is None
        if after is not None:
            here = _used(after)
            self.engines += 1
            self._without_usage += after.kv_cache_usage_ratio is None
        if gone != here:
            self._tokens.change(gone, here)

    @property
    def unknown(self) -> str:
        """What an engine does not measure; empty: the tokens of all are known."""
        if self._tokens.measured == self.engines:
            return ""
        return "kv_cache_usage_ratio" if self._without_usage else "kv_cache_capacity_tokens"

    @property
    def tokens(self) -> float:
        """Of all that tell, together."""
        return self._tokens.value()


class HitRatios:
    """The prefix caches' last hit ratios, each for `ttl_ns`. O(1) a sample."""

    def __init__(self, ttl_ns: int) -> None:
        self._ratios: dict[Replica, float] = {}
        self._sum = ExactSum()
        self._heard: ExpiringDict[Replica, None] = ExpiringDict(ttl_ns, on_forgotten=self._forget)

    def put(self, replica: Replica, ratio: float, now_ns: int) -> None:
        """Take the last one of a replica."""
        self._heard.put(replica, None, now_ns)
        self._sum.change(self._ratios.get(replica), ratio)
        self._ratios[replica] = ratio

    def mean(self, now_ns: int) -> float | None:
        """Of those of late; None: there is none."""
        self._heard.expire(now_ns)
        return self._sum.value() / len(self._ratios) if self._ratios else None

    def _forget(self, replica: Replica) -> None:
        self._sum.change(self._ratios.pop(replica), None)


@dataclasses.dataclass(frozen=True, slots=True)
class Caches:
    """The KV caches of a pool."""

    engines: Collection[EngineMetrics] | UsedCaches
    hit_ratio: float | None
    """Prompt tokens that are found there; None: not measured of late."""
    tokens_per_second: float | None
    """Prompt tokens that a replica computes; None: none was seen to."""

    def loss(self, removed: int) -> CacheLoss:
        """What goes with `removed` replicas, whichever: the mean of all, as often.

        Of what is in use the share that prompts find again: half of 200,000 tokens used, hit
        ratio 0.6 → 60,000 tokens a replica; at 8,000 a second 7.5 s = 0.0021 replica-hours. At
        most, as the pace is the best one seen, not the best there is.
        """
        used = self.engines
        if not isinstance(used, UsedCaches):
            used = UsedCaches.of(used)
        if used.unknown:
            return CacheLoss(unknown=used.unknown)
        if not used.tokens:
            return CacheLoss(0.0, 0.0)
        if self.hit_ratio is None:
            return CacheLoss(unknown="prefix_cache_hit_ratio")
        tokens = removed * (used.tokens / used.engines) * self.hit_ratio
        if tokens and self.tokens_per_second is None:
            return CacheLoss(tokens, unknown="prompt_tokens_per_second")
        return CacheLoss(tokens, tokens / (self.tokens_per_second or 1.0) / 3600.0)


def _used(engine: EngineMetrics) -> float | None:
    """Tokens in use of an engine's KV cache; an empty one has none, however large it is."""
    usage, room = engine.kv_cache_usage_ratio, engine.kv_cache_capacity_tokens
    if usage == 0:
        return 0.0
    return None if usage is None or room is None else usage * room
