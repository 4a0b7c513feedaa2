"""TTL heuristics: how long an evicted entry is worth keeping in the archive."""

import math

from cache.settings import TtlSettings


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
    for name, value in (
        ("access_count", access_count),
        ("base_seconds", base_seconds),
        ("alpha", alpha),
        ("min_seconds", min_seconds),
        ("max_seconds", max_seconds),
    ):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be a finite number of at least 0, not {value}")
    if min_seconds > max_seconds:
        raise ValueError(f"min_seconds {min_seconds} is above max_seconds {max_seconds}")
    wanted_seconds = base_seconds * (1 + alpha * access_count)
    return min(max(wanted_seconds, min_seconds), max_seconds)


def archive_ttl_seconds(settings: TtlSettings, access_count: int) -> float:
    """Seconds from eviction that an entry read `access_count` times stays; 0: do not archive."""
    if settings.heuristic == "static":
        return settings.base_seconds
    return adaptive_ttl_seconds(
        access_count,
        base_seconds=settings.base_seconds,
        alpha=settings.alpha,
        min_seconds=settings.min_seconds,
        max_seconds=settings.max_seconds,
    )
