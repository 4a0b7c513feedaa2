"""TTL heuristics: how long an evicted entry is worth keeping in the archive.

One function each; `decide` chooses by the settings. 0 seconds means: do not archive.
"""

import dataclasses
import math

from cache.entry import Entry
from cache.reuse import ReuseLearner, group, uses
from cache.settings import TtlSettings
from schemas.units import SECOND_NS
from schemas.worth import equal_idle_seconds

WRITER = "writer"
"""Stands for a heuristic where the entry came with a TTL of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What happens to an entry evicted now, and why; `deadline_ns` None: not archived."""

    heuristic: str
    deadline_ns: int | None
    score: float
    reason: str

    @property
    def outcome(self) -> str:
        """A name to count it by: the heuristic, and archived or refused."""
        return f"{self.heuristic}.{'refused' if self.deadline_ns is None else 'archived'}"


def adaptive_ttl_seconds(
    access_count: int,
    *,
    base_seconds: float = 3600.0,
    alpha: float = 0.25,
    min_seconds: float = 30.0,
    max_seconds: float = 604_800.0,
) -> float:
    """clamp(base · (1 + alpha · accesses), min, max): every access adds `alpha` of the base.

    With the defaults: 0 accesses → 3600, 1 → 4500, 2 → 5400, 4 → 7200, 8 → 10800, 10 → 12600,
    100 → 93600, 668 and more → 604800 (a week).

    Raises:
        ValueError: a negative, infinite or NaN input, or `min_seconds` above `max_seconds`.
    """
    _check(access_count=access_count, base_seconds=base_seconds, alpha=alpha)
    return _clamp(base_seconds * (1 + alpha * access_count), min_seconds, max_seconds)


def size_aware_ttl_seconds(
    size_bytes: int,
    *,
    base_seconds: float = 3600.0,
    reference_bytes: int = 65_536,
    min_seconds: float = 30.0,
    max_seconds: float = 604_800.0,
) -> float:
    """clamp(base · sqrt(reference / size), min, max): four times the size, half the life.

    With the defaults: 64 KiB → 3600, 16 KiB → 7200, 256 KiB → 1800, 16 MiB → 225,
    0 or 1 byte → 604800 (a week: 921600 is above it).

    Raises:
        ValueError: a negative, infinite or NaN input, or `min_seconds` above `max_seconds`.
    """
    _check(size_bytes=size_bytes, base_seconds=base_seconds, reference_bytes=reference_bytes)
    wanted_seconds = base_seconds * math.sqrt(reference_bytes / max(size_bytes, 1))
    return _clamp(wanted_seconds, min_seconds, max_seconds)


def reuse_ttl_seconds(
    score: float,
    idle_seconds: float,
    *,
    base_seconds: float = 3600.0,
    min_seconds: float = 30.0,
    max_seconds: float = 604_800.0,
    min_score: float = 0.1,
) -> float:
    """Until it is worth what score 1 is worth after `base_seconds` of idle time, in all.

    (base + 5) · score ^ (2/3) - 5 - idle, at most max; 0 (not archived) where that is below min,
    or the score below `min_score`. The same order as in a size-bound archive (`schemas.worth`),
    with a fixed price in place of a full store.

    With the defaults, idle 60: score 1 → 3540, 0.125 → 836.25, 8 → 14355, 0.09 → 0;
    score 1, idle 3571 → 0.

    Raises:
        ValueError: a negative, infinite or NaN input, or `min_seconds` above `max_seconds`.
    """
    _check(score=score, idle_seconds=idle_seconds, base_seconds=base_seconds, min_score=min_score)
    left_seconds = equal_idle_seconds(score, base_seconds) - idle_seconds
    limited_seconds = _clamp(left_seconds, min_seconds, max_seconds)
    return 0.0 if score < min_score or left_seconds < min_seconds else limited_seconds


def decide(settings: TtlSettings, entry: Entry, learner: ReuseLearner, now_ns: int) -> Decision:
    """Whether and until when `entry`, evicted now, is archived; its own TTL comes first."""
    score = learner.score(entry)
    if entry.ttl_seconds == 0:
        return Decision(WRITER, None, score, "put with a TTL of 0: not archived")
    if entry.expires_at_ns is not None:
        return Decision(WRITER, entry.expires_at_ns, score, "has a deadline of its own")
    ttl_seconds, reason = _by_heuristic(settings, entry, learner, score, now_ns)
    deadline_ns = now_ns + int(ttl_seconds * SECOND_NS) if ttl_seconds > 0 else None
    outcome = f"{ttl_seconds:.4g} s" if ttl_seconds > 0 else "not archived"
    return Decision(settings.heuristic, deadline_ns, score, f"{reason}: {outcome}")


def _by_heuristic(
    settings: TtlSettings, entry: Entry, learner: ReuseLearner, score: float, now_ns: int
) -> tuple[float, str]:
    limits = {"min_seconds": settings.min_seconds, "max_seconds": settings.max_seconds}
    base_seconds = settings.base_seconds
    if settings.heuristic == "static":
        return base_seconds, "the same for every entry"
    if settings.heuristic == "size_aware":
        ttl_seconds = size_aware_ttl_seconds(
            entry.size_bytes,
            base_seconds=base_seconds,
            reference_bytes=settings.reference_bytes,
            **limits,
        )
        return ttl_seconds, f"{entry.size_bytes} bytes"
    if settings.heuristic == "adaptive":
        ttl_seconds = adaptive_ttl_seconds(
            entry.access_count, base_seconds=base_seconds, alpha=settings.alpha, **limits
        )
        return ttl_seconds, f"read {entry.access_count} times"
    idle_seconds = max(0, now_ns - entry.last_accessed_ns) / SECOND_NS
    ttl_seconds = reuse_ttl_seconds(
        score, idle_seconds, base_seconds=base_seconds, min_score=settings.min_score, **limits
    )
    kind = f"used {uses(entry)} times" if group(entry) else "last of its chain, used once"
    cost = learner.cost_ratio(entry)
    reason = f"{kind}, idle {idle_seconds:.4g} s, score {score:.3g} (cost x {cost:.3g})"
    return ttl_seconds, reason


def _check(**inputs: float) -> None:
    for name, value in inputs.items():
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be a finite number of at least 0, not {value}")


def _clamp(wanted_seconds: float, min_seconds: float, max_seconds: float) -> float:
    _check(min_seconds=min_seconds, max_seconds=max_seconds)
    if min_seconds > max_seconds:
        raise ValueError(f"min_seconds {min_seconds} is above max_seconds {max_seconds}")
    return min(max(wanted_seconds, min_seconds), max_seconds)
