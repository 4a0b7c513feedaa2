"""What goes with the KV caches of replicas that are removed, and what it takes to compute anew."""

import dataclasses
from collections.abc import Collection
from statistics import fmean

import msgspec

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


@dataclasses.dataclass(frozen=True, slots=True)
class Caches:
    """The KV caches of a pool."""

    engines: Collection[EngineMetrics]
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
        used = [tokens for engine in self.engines if (tokens := _used(engine)) is not None]
        if len(used) < len(self.engines):
            known = all(engine.kv_cache_usage_ratio is not None for engine in self.engines)
            return CacheLoss(
                unknown="kv_cache_capacity_tokens" if known else "kv_cache_usage_ratio"
            )
        if not any(used):
            return CacheLoss(0.0, 0.0)
        if self.hit_ratio is None:
            return CacheLoss(unknown="prefix_cache_hit_ratio")
        tokens = removed * fmean(used) * self.hit_ratio
        if tokens and self.tokens_per_second is None:
            return CacheLoss(tokens, unknown="prompt_tokens_per_second")
        return CacheLoss(tokens, tokens / (self.tokens_per_second or 1.0) / 3600.0)


def _used(engine: EngineMetrics) -> float | None:
    """Tokens in use of an engine's KV cache; an empty one has none, however large it is."""
    usage, room = engine.kv_cache_usage_ratio, engine.kv_cache_capacity_tokens
    if usage == 0:
        return 0.0
    return None if usage is None or room is None else usage * room
