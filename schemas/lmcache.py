"""The LMCache-style view of one namespace: its state, its configuration, and work on it.

The names of the fields are a promise to users, `_mb`, `_ms` and `_percent` included: 1 MB here is
1024·1024 bytes. A value that was not measured is null.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.api import Request
from schemas.units import Count, Instant, Number, Token

LmcacheState = Literal["enabled", "disabled", "initializing", "error"]
UNCHANGED = Meta(description="as in LmcacheConfig; null: stays as it is")
Percent = Annotated[float, Meta(ge=0, le=100, description="percent, 0 to 100")]


class LmcacheConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a namespace runs with. Every field acts, and takes effect at once when it changes."""

    enabled: Annotated[
        bool,
        Meta(
            description="off: every get misses and every put is refused (503); what RAM holds stays"
        ),
    ] = True
    max_size_mb: Annotated[
        float,
        Meta(
            gt=0,
            le=1e9,
            description="RAM for keys and values; less than is used evicts, into the archive",
            extra={"rule": "must be a positive number, at most 1000000000"},
        ),
    ] = 1024.0
    eviction_policy: Annotated[
        str, Meta(description="which entry leaves first when room is needed")
    ] = "lru"
    enable_prefix_caching: Annotated[
        bool,
        Meta(
            description="off: what is put from then on is a plain entry, whatever Fleet-Parent and "
            "Fleet-Prefix-Tokens say"
        ),
    ] = True
    min_prefix_length: Annotated[
        int,
        Meta(
            ge=1,
            le=2**53,
            description="entries put with fewer Fleet-Prefix-Tokens are not cached",
            extra={"rule": "must be a whole number of at least 1"},
        ),
    ] = 10
    cache_warmup: Annotated[
        bool,
        Meta(description="the hottest keys are archived at stop and brought back at start"),
    ] = False
    auto_eviction: Annotated[
        bool, Meta(description="off: a put that finds no room is refused (413)")
    ] = True
    enable_sharing: Annotated[
        bool, Meta(description="off: a key is private to the Fleet-Client that put it")
    ] = True
    max_concurrent_users: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="more distinct Fleet-Clients than that within a minute get 429",
            extra={"rule": "must be a whole number from 1 to 1000000"},
        ),
    ] = 100


class LmcacheMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes now, and counters since this instance took the namespace.

    A token count is null until an entry came with `Fleet-Prefix-Tokens`. Latencies are means of
    histograms measured in the service, from decoding the request to the finished answer: neither
    the network nor the server is in them.
    """

    status: Annotated[
        LmcacheState,
        Meta(description="initializing: warming up; error: the stored configuration is refused"),
    ]
    enabled: Annotated[bool, Meta(description="as configured")]
    total_size_mb: Annotated[Number, Meta(description="the limit in force now")]
    used_size_mb: Annotated[Number, Meta(description="keys and values in RAM")]
    available_size_mb: Annotated[Number, Meta(description="limit less used")]
    utilization_percent: Annotated[Percent, Meta(description="used by limit")]
    total_requests: Annotated[Count, Meta(description="lookups: hits and misses")]
    cache_hits: Annotated[Count, Meta(description="lookups that RAM or the outbox answered")]
    cache_misses: Annotated[Count, Meta(description="the others, answered by the archive or not")]
    hit_rate_percent: Annotated[
        Percent | None, Meta(description="hits by lookups; null before the first")
    ]
    tokens_cached: Annotated[
        Count | None,
        Meta(description="Fleet-Prefix-Tokens of the entries in RAM; null: none came with them"),
    ]
    tokens_served: Annotated[
        Count | None, Meta(description="the same of every hit, added up; null: none came with them")
    ]
    tokens_computed: Annotated[
        Count | None,
        Meta(
            description="the same of every put that was kept, added up; null: none came with them"
        ),
    ]
    avg_latency_ms: Annotated[
        Number | None,
        Meta(
            description="service time, mean of all look-ups by get and mget, of which each key has "
            "an equal share; null before the first"
        ),
    ]
    cache_hit_latency_ms: Annotated[
        Number | None, Meta(description="mean of those that hit; null before the first")
    ]
    cache_miss_latency_ms: Annotated[
        Number | None,
        Meta(
            description="mean of those that missed RAM, the archive's answer included; null before "
            "the first"
        ),
    ]
    memory_saved_mb: Annotated[Number, Meta(description="an estimate, by memory_saved_formula")]
    memory_savings_percent: Annotated[
        Percent | None,
        Meta(description="an estimate, by memory_saved_formula; null before the first put or hit"),
    ]
    memory_saved_formula: Annotated[str, Meta(description="how the two estimates are computed")]


class LmcacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry in RAM."""

    entry_id: Annotated[str, Meta(description="its key")]
    prefix_hash: Annotated[
        str | None,
        Meta(
            description="of an entry put with Fleet-Prefix-Tokens or Fleet-Parent: BLAKE2b of its "
            "key, which names the prefix (8 bytes, hexadecimal); null: a plain entry"
        ),
    ]
    token_count: Annotated[
        Count | None, Meta(description="its Fleet-Prefix-Tokens; null: it came without")
    ]
    size_mb: Annotated[Number, Meta(description="key and value")]
    hit_count: Annotated[Count, Meta(description="reads since it was put")]
    created_at: Annotated[Instant, Meta(description="when it was put, by the cache's clock")]
    last_accessed: Annotated[Instant, Meta(description="its last read, or put")]


class LmcacheStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at once."""

    timestamp: Annotated[Instant, Meta(description="when it was answered, by the cache's clock")]
    instance_id: Annotated[Token, Meta(description="cache that owns the namespace")]
    metrics: Annotated[LmcacheMetrics, Meta(description="its counters and sizes")]
    config: Annotated[LmcacheConfig, Meta(description="what it runs with")]
    lmcache_version: Annotated[
        str | None, Meta(description="null: no LMCache runs in this cache")
    ] = None
    backend: Annotated[str, Meta(description="where entries are kept")] = "memory"
    top_entries: Annotated[
        list[LmcacheEntry], Meta(description="the entries in RAM with the most hits")
    ]


class OptimizeReply(msgspec.Struct, frozen=True, kw_only=True):
    """What left RAM because it had expired or was worthless.

    Puts go on meanwhile, so `entries_after` may differ from before less evicted.
    """

    success: Annotated[bool, Meta(description="whether it ran to its end")]
    message: Annotated[str, Meta(description="what was done, in words")]
    entries_before: Annotated[Count, Meta(description="in RAM when it began")]
    entries_after: Annotated[Count, Meta(description="in RAM when it ended")]
    entries_evicted: Annotated[Count, Meta(description="that it took out")]
    memory_freed_mb: Annotated[Number, Meta(description="keys and values of those")]
    optimization_time_ms: Annotated[Number, Meta(description="how long it took")]


class LmcacheRequest(Request, frozen=True, kw_only=True):
    """Which namespace; null is the one the subject names, else `default`."""

    namespace: Annotated[
        Token | None, Meta(description="null: the one the subject names, else default")
    ] = None


class LmcacheStatusRequest(LmcacheRequest, frozen=True, kw_only=True):
    """How many top entries to list."""

    top: Annotated[int, Meta(ge=0, le=100, description="at most this many top entries")] = 10


class LmcacheConfigure(LmcacheRequest, frozen=True, kw_only=True):
    """The fields of LmcacheConfig to change; null and absent ones stay as they are.

    The header `Fleet-Version` compares and sets: 409 unless the configuration has that version.
    """

    enabled: Annotated[bool | None, UNCHANGED] = None
    max_size_mb: Annotated[float | None, UNCHANGED] = None
    eviction_policy: Annotated[str | None, UNCHANGED] = None
    enable_prefix_caching: Annotated[bool | None, UNCHANGED] = None
    min_prefix_length: Annotated[int | None, UNCHANGED] = None
    cache_warmup: Annotated[bool | None, UNCHANGED] = None
    auto_eviction: Annotated[bool | None, UNCHANGED] = None
    enable_sharing: Annotated[bool | None, UNCHANGED] = None
    max_concurrent_users: Annotated[int | None, UNCHANGED] = None
