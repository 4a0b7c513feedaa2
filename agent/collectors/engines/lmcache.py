"""CacheMetrics from LMCache: inside an engine (`lmcache:…`), or its own server (`lmcache_mp_…`).

Source: `lmcache/observability.py` and `lmcache/v1/mp_observability/`, 0.5. Most of its counters are
of tokens; a lookup is a hit here when it found at least one. `lmcache:remote_cache_usage` is never
set by any code and so not read; `retrieve_hit_rate` is about 1 by construction.
"""

import math
from typing import Any

from agent.collectors.engines.exposition import Names, Page
from agent.collectors.engines.growth import Key, Totals
from agent.collectors.engines.inference import STARTED, Place
from agent.collectors.engines.values import count, number, ratio
from schemas.engines import CacheMetrics
from schemas.units import instant, token

_GAUGES: dict[str, Names] = {
    "entries": ("lmcache:local_cpu_hot_cache_count",),
    "used_bytes": ("lmcache_mp_l1_memory_usage_bytes", "lmcache:local_cache_usage"),
    "disk_used_bytes": ("lmcache:local_storage_usage",),
    "remote_used_bytes": ("lmcache_mp_l2_usage_bytes",),
}
_USAGE: Names = ("lmcache_mp_l1_usage_ratio",)
_COUNTERS: dict[str, Names] = {
    "lookup_tokens": (
        "lmcache_mp_lookup_requested_tokens_total",
        "lmcache:num_lookup_tokens_total",
    ),
    "hit_tokens": ("lmcache_mp_lookup_hit_tokens_total", "lmcache:num_lookup_hits_total"),
    "evictions": (
        "lmcache_mp_l1_evicted_chunks_total",
        "lmcache_mp_l1_evicted_keys_total",
        "lmcache:local_cpu_evict_keys_count_total",
    ),
    "puts": (
        "lmcache_mp_l1_write_chunks_total",
        "lmcache_mp_l1_write_keys_total",
        "lmcache:num_store_requests_total",
    ),
}
_LOOKUPS: Names = ("lmcache:num_lookup_requests_total",)
_LOOKUPS_WITHOUT_HIT: Names = ("lmcache:lookup_0_hit_requests_total",)
_HISTOGRAMS: dict[str, Names] = {
    "lookup": ("lmcache:time_to_lookup",),
    "retrieve": ("lmcache:time_to_retrieve",),
    "store": ("lmcache:time_to_store",),
}
_MODEL_LABEL = "model_name"
FIELDS: dict[str, Names] = {
    **_GAUGES,
    "usage_ratio": _USAGE,
    **{f"{field}_total": names for field, names in _COUNTERS.items()},
    "hits_total": _LOOKUPS,
    "misses_total": _LOOKUPS_WITHOUT_HIT,
    **{f"{field}_p95_seconds": names for field, names in _HISTOGRAMS.items()},
}
"""Which metric is which field; hits are lookups less those without one."""


class LmcacheReader:
    """Reads the pages of one target; all models and workers on it are one cache."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._totals = Totals(place.forget_seconds)

    @property
    def restarts(self) -> int:
        """How often it was seen to have started anew."""
        return self._totals.restarts

    def wanted(self) -> frozenset[str]:
        """All names to look for on a page."""
        plain = [*_GAUGES.values(), *_COUNTERS.values(), _USAGE, _LOOKUPS, _LOOKUPS_WITHOUT_HIT]
        names = {name for group in plain for name in group} | set(STARTED)
        return frozenset(names | {f"{n}_bucket" for group in _HISTOGRAMS.values() for n in group})

    def missing(self, page: Page) -> dict[str, Names]:
        """The two fields that every kind of LMCache has; the others depend on kind and use."""
        expected = {
            "used_bytes": _GAUGES["used_bytes"],
            "lookup_tokens_total": _COUNTERS["lookup_tokens"],
        }
        return {field: names for field, names in expected.items() if not page.has(names)}

    def read(self, page: Page, now_ns: int) -> list[CacheMetrics]:
        """The cache on the page."""
        place = self._place
        counted = {field: page.total(names) for field, names in _COUNTERS.items()}
        totals: dict[Key, float] = {(f, None): v for f, v in counted.items() if v is not None}
        for field, names in _HISTOGRAMS.items():
            totals.update({(field, bound): v for bound, v in page.buckets(names).items()})
        growth = self._totals.advance(now_ns, totals, page.value(STARTED))

        fields: dict[str, Any] = {f: count(page.total(names)) for f, names in _GAUGES.items()}
        fields.update({f"{field}_total": count(value) for field, value in counted.items()})
        fields.update(_lookups(page))
        if growth is not None:
            fields["interval_seconds"] = growth.seconds
            fields["token_hit_ratio"] = growth.ratio("hit_tokens", "lookup_tokens")
            for field in _HISTOGRAMS:
                fields[f"{field}_p95_seconds"] = number(growth.quantile(field, 0.95))
        models = {
            series.labels[_MODEL_LABEL]
            for found in page.series.values()
            for series in found
            if _MODEL_LABEL in series.labels
        }
        return [
            CacheMetrics(
                instance=token(f"{place.node}-{place.name}"),
                namespace="lmcache",
                observed_at=instant(now_ns),
                source="lmcache",
                node=place.node,
                pool=place.pool or (token(min(models)) if len(models) == 1 else None),
                model=min(models) if len(models) == 1 else None,
                usage_ratio=ratio(page.value(_USAGE)),
                **fields,
            )
        ]


def _lookups(page: Page) -> dict[str, Any]:
    """Lookups that found something, and those that found nothing."""
    lookups, misses = page.total(_LOOKUPS), page.total(_LOOKUPS_WITHOUT_HIT)
    if lookups is None or misses is None or misses > lookups:
        return {}
    hits = lookups - misses
    return {
        "hits_total": count(hits),
        "misses_total": count(misses),
        "hit_ratio": None if math.isclose(lookups, 0) else ratio(hits / lookups),
    }
