"""What inference engines and caches say of themselves."""

from typing import Annotated, ClassVar

from msgspec import Meta

from schemas.archive_money import ArchiveUse
from schemas.cache import ClassStats
from schemas.message import Message, Simulated
from schemas.units import Bytes, Count, Instant, Number, Ratio, Seconds, Token

_NOT_ON_PAGE = "null: not on the page"
_NO_GROWTH = "null where `interval_seconds` is, or the total was not on both pages"
_LMCACHE_ONLY = "null: not on the page; ours: null"


class EngineMetrics(Message, frozen=True, kw_only=True):
    """Load of one inference engine (one replica of a pool) at one instant.

    Published by anyone who knows: the agent's scrapers, a simulator, the engine itself; every
    5 s or faster, at most once. Nothing is published while an engine does not answer. A field is
    null where its metric is not on the page; rates, quantiles and the hit ratio also in the first
    sample, after a restart and where nothing happened in `interval_seconds`. Metrics are named as
    today's vLLM and SGLang call them; older names are known too (`docs/engines.md`).
    """

    SUBJECT: ClassVar[str] = "metrics.engine.{node}.{engine}"
    PUBLISHER: ClassVar[str] = "agent, or anyone who may publish metrics"
    STREAM: ClassVar[str | None] = "METRICS"
    DURABLE: ClassVar[bool] = False

    node: Annotated[
        Token,
        Meta(description="machine that scrapes it, or the target's `node`"),
    ]
    engine: Annotated[
        Token,
        Meta(description="name of the target; `-1` and so on for further data-parallel ranks"),
    ]
    pool: Annotated[
        Token,
        Meta(
            description="replicas that scale together: the target's `pool`, the agent's, else the "
            "model"
        ),
    ]
    model: Annotated[
        str,
        Meta(description="label `model_name`; `unknown` where there is none"),
    ]
    observed_at: Annotated[
        Instant,
        Meta(description="when the page was read"),
    ]
    requests_running: Annotated[
        Count | None,
        Meta(description=f"`vllm:num_requests_running`; `sglang:num_running_reqs`; {_NOT_ON_PAGE}"),
    ] = None
    requests_waiting: Annotated[
        Count | None,
        Meta(
            description="in the queue: `vllm:num_requests_waiting`; `sglang:num_queue_reqs`; "
            f"{_NOT_ON_PAGE}"
        ),
    ] = None
    requests_running_max: Annotated[
        Count | None,
        Meta(
            description="most that run at once: the target's setting (few engines tell: "
            "`sglang:max_running_requests`); null: not set"
        ),
    ] = None
    kv_cache_usage_ratio: Annotated[
        Ratio | None,
        Meta(description=f"`vllm:kv_cache_usage_perc`; `sglang:token_usage`; {_NOT_ON_PAGE}"),
    ] = None
    prompt_tokens_total: Annotated[
        Count | None,
        Meta(
            description="since its start: `vllm:prompt_tokens_total`; "
            f"`sglang:prompt_tokens_total`; {_NOT_ON_PAGE}"
        ),
    ] = None
    generation_tokens_total: Annotated[
        Count | None,
        Meta(
            description="since its start: `vllm:generation_tokens_total`; "
            f"`sglang:generation_tokens_total`; {_NOT_ON_PAGE}"
        ),
    ] = None
    prompt_tokens_per_second: Annotated[
        Number | None, Meta(description=f"growth of `prompt_tokens_total`; {_NO_GROWTH}")
    ] = None
    generation_tokens_per_second: Annotated[
        Number | None, Meta(description=f"growth of `generation_tokens_total`; {_NO_GROWTH}")
    ] = None
    ttft_p95_seconds: Annotated[
        Seconds | None,
        Meta(
            description="to the first token: histograms `vllm:time_to_first_token_seconds`, "
            "`sglang:time_to_first_token_seconds`; null: not on both pages, or no "
            "request in between"
        ),
    ] = None
    itl_p95_seconds: Annotated[
        Seconds | None,
        Meta(
            description="between tokens: histograms `vllm:inter_token_latency_seconds`, "
            "`sglang:inter_token_latency_seconds`; null: not on both pages, or no "
            "token in between"
        ),
    ] = None
    simulated: Simulated = False
    source: Annotated[
        str | None,
        Meta(description="what was scraped: `vllm`, `sglang`; null: published by someone else"),
    ] = None
    interval_seconds: Annotated[
        Seconds | None,
        Meta(
            description="between the two scrapes that rates and quantiles compare; null: the "
            "first one, after a restart, or after an outage of a minute"
        ),
    ] = None
    requests_completed_total: Annotated[
        Count | None,
        Meta(
            description="since its start: `vllm:request_success_total`; "
            f"`sglang:num_requests_total`; {_NOT_ON_PAGE}"
        ),
    ] = None
    requests_completed_per_second: Annotated[
        Number | None, Meta(description=f"growth of `requests_completed_total`; {_NO_GROWTH}")
    ] = None
    preemptions_total: Annotated[
        Count | None,
        Meta(
            description="requests that lost their KV cache to make room, the sign of too "
            "little: `vllm:num_preemptions_total`; "
            f"`sglang:num_retracted_requests_total`; {_NOT_ON_PAGE}"
        ),
    ] = None
    preemptions_per_second: Annotated[
        Number | None, Meta(description=f"growth of `preemptions_total`; {_NO_GROWTH}")
    ] = None
    prefix_cache_hit_ratio: Annotated[
        Ratio | None,
        Meta(
            description="prompt tokens found in the engine's own prefix cache by those looked "
            "for: growth of `vllm:prefix_cache_hits_total` by "
            "`vllm:prefix_cache_queries_total`; `sglang:cached_tokens_total` by "
            "`sglang:prompt_tokens_total`; null: none in the interval"
        ),
    ] = None
    kv_cache_capacity_tokens: Annotated[
        Count | None,
        Meta(
            description="room of the KV cache: labels `num_gpu_blocks` by `block_size` of "
            "`vllm:cache_config_info`; `sglang:max_total_num_tokens`; "
            f"{_NOT_ON_PAGE}"
        ),
    ] = None
    ttft_p50_seconds: Annotated[
        Seconds | None, Meta(description="median, as `ttft_p95_seconds`, and null with it")
    ] = None
    itl_p50_seconds: Annotated[
        Seconds | None, Meta(description="median, as `itl_p95_seconds`, and null with it")
    ] = None
    e2e_p50_seconds: Annotated[
        Seconds | None, Meta(description="median, as `e2e_p95_seconds`, and null with it")
    ] = None
    e2e_p95_seconds: Annotated[
        Seconds | None,
        Meta(
            description="whole requests: histograms `vllm:e2e_request_latency_seconds`, "
            "`sglang:e2e_request_latency_seconds`; null: not on both pages, or "
            "none ended in between"
        ),
    ] = None
    queue_time_p50_seconds: Annotated[
        Seconds | None, Meta(description="median, as `queue_time_p95_seconds`, and null with it")
    ] = None
    queue_time_p95_seconds: Annotated[
        Seconds | None,
        Meta(
            description="waiting before a request runs: histograms "
            "`vllm:request_queue_time_seconds`, `sglang:queue_time_seconds`; null: "
            "not on both pages, or none began in between"
        ),
    ] = None
    is_sleeping: Annotated[
        bool | None,
        Meta(
            description="its weights are out of the GPU, neither idle nor dead: "
            "`vllm:engine_sleep_state`; null: not on the page, as with SGLang"
        ),
    ] = None


class CacheMetrics(Message, frozen=True, kw_only=True):
    """One cache instance since it started: counters, and sizes now.

    Published by the cache every 5 s, and by the agent for an LMCache it scrapes; at most once.
    Our own cache measures every field up to `outbox_bytes` and none below `source`. Of an LMCache
    a field is null where no metric is named for it, or that metric is not on the page:
    `lmcache:…` is an LMCache inside an engine, `lmcache_mp_…` one in a process of its own.
    """

    SUBJECT: ClassVar[str] = "metrics.cache.{instance}"
    PUBLISHER: ClassVar[str] = "cache; agent"
    STREAM: ClassVar[str | None] = "METRICS"
    DURABLE: ClassVar[bool] = False

    instance: Annotated[
        Token,
        Meta(description="of an LMCache: node and name of the target"),
    ]
    namespace: Annotated[
        Token,
        Meta(description="of an LMCache: `lmcache`"),
    ]
    observed_at: Annotated[
        Instant,
        Meta(description="when it was measured"),
    ]
    policy: Annotated[
        str | None,
        Meta(description="eviction policy; LMCache: null"),
    ] = None
    entries: Annotated[
        Count | None,
        Meta(
            description="values in RAM; LMCache: chunks, `lmcache:local_cpu_hot_cache_count`; "
            f"{_NOT_ON_PAGE}"
        ),
    ] = None
    used_bytes: Annotated[
        Bytes | None,
        Meta(
            description="of RAM; LMCache: `lmcache_mp_l1_memory_usage_bytes`, "
            f"`lmcache:local_cache_usage`; {_NOT_ON_PAGE}"
        ),
    ] = None
    limit_bytes: Annotated[
        Bytes | None,
        Meta(description="of RAM, `cache.max_memory_mb`; LMCache: null"),
    ] = None
    hits_total: Annotated[
        Count | None,
        Meta(
            description="lookups that found their key; LMCache: at least one token, "
            f"`lmcache:num_lookup_requests_total` less misses; {_NOT_ON_PAGE}"
        ),
    ] = None
    misses_total: Annotated[
        Count | None,
        Meta(
            description="lookups that did not; LMCache: `lmcache:lookup_0_hit_requests_total`; "
            f"{_NOT_ON_PAGE}"
        ),
    ] = None
    hit_ratio: Annotated[
        Ratio | None,
        Meta(
            description="hits by lookups since the start; null: no lookup yet, or not on the page"
        ),
    ] = None
    puts_total: Annotated[
        Count | None,
        Meta(
            description="values stored; LMCache: `lmcache_mp_l1_write_chunks_total`, "
            f"`lmcache:num_store_requests_total`; {_NOT_ON_PAGE}"
        ),
    ] = None
    evictions_total: Annotated[
        Count | None,
        Meta(
            description="values that left RAM for want of room; LMCache: "
            "`lmcache_mp_l1_evicted_chunks_total`, "
            f"`lmcache:local_cpu_evict_keys_count_total`; {_NOT_ON_PAGE}"
        ),
    ] = None
    evictions_acknowledged_total: Annotated[
        Count | None,
        Meta(description="of these, on their way to the archive for certain; LMCache: null"),
    ] = None
    evictions_lost_total: Annotated[
        Count | None,
        Meta(description="of these, dropped because the way was full; LMCache: null"),
    ] = None
    restores_total: Annotated[
        Count | None,
        Meta(description="misses in RAM that the archive answered; LMCache: null"),
    ] = None
    restores_declined_total: Annotated[
        Count | None,
        Meta(
            description="misses that computing anew answers quicker than the archive, by its "
            "estimate; LMCache: null"
        ),
    ] = None
    restored_bytes_total: Annotated[
        Bytes | None,
        Meta(description="values that came back from the archive; LMCache: null"),
    ] = None
    restored_cost_seconds_total: Annotated[
        Number | None,
        Meta(description="sum of their `Fleet-Cost-Seconds`: computing avoided; LMCache: null"),
    ] = None
    outbox_entries: Annotated[
        Count | None,
        Meta(
            description="evictions and deletions not known to be in the archive yet; LMCache: null"
        ),
    ] = None
    outbox_bytes: Annotated[
        Bytes | None,
        Meta(description="their size; LMCache: null"),
    ] = None
    classes: Annotated[
        dict[str, ClassStats] | None,
        Meta(description="by `Fleet-Class`, up to 32 and `other`; LMCache: null"),
    ] = None
    simulated: Simulated = False
    source: Annotated[
        str,
        Meta(description="whose cache: `resource-agent`, or `lmcache` for a scraped one"),
    ] = "resource-agent"
    node: Annotated[
        Token | None,
        Meta(description="machine that scrapes it, or the target's `node`; ours: null"),
    ] = None
    pool: Annotated[
        Token | None,
        Meta(
            description="the target's `pool`, the agent's, else the model where there is one; "
            "ours: null"
        ),
    ] = None
    model: Annotated[
        str | None,
        Meta(
            description="label `model_name` where all have the same; null: they do not; ours: null"
        ),
    ] = None
    interval_seconds: Annotated[
        Seconds | None,
        Meta(
            description="between the two scrapes that ratio and quantiles compare; null: the "
            "first one, after a restart or a long outage; ours: null"
        ),
    ] = None
    usage_ratio: Annotated[
        Ratio | None,
        Meta(description=f"how full its RAM is: `lmcache_mp_l1_usage_ratio`; {_LMCACHE_ONLY}"),
    ] = None
    disk_used_bytes: Annotated[
        Bytes | None,
        Meta(description=f"on its local disk: `lmcache:local_storage_usage`; {_LMCACHE_ONLY}"),
    ] = None
    remote_used_bytes: Annotated[
        Bytes | None,
        Meta(description=f"in its second level: `lmcache_mp_l2_usage_bytes`; {_LMCACHE_ONLY}"),
    ] = None
    lookup_tokens_total: Annotated[
        Count | None,
        Meta(
            description="tokens asked for: `lmcache_mp_lookup_requested_tokens_total`, "
            f"`lmcache:num_lookup_tokens_total`; {_LMCACHE_ONLY}"
        ),
    ] = None
    hit_tokens_total: Annotated[
        Count | None,
        Meta(
            description="of these, found: `lmcache_mp_lookup_hit_tokens_total`, "
            f"`lmcache:num_lookup_hits_total`; {_LMCACHE_ONLY}"
        ),
    ] = None
    token_hit_ratio: Annotated[
        Ratio | None,
        Meta(
            description="growth of `hit_tokens_total` by that of `lookup_tokens_total`; "
            "null: nothing asked for; ours: null"
        ),
    ] = None
    lookup_p95_seconds: Annotated[
        Seconds | None,
        Meta(
            description="histogram `lmcache:time_to_lookup`; null: none in the interval; ours: null"
        ),
    ] = None
    retrieve_p95_seconds: Annotated[
        Seconds | None,
        Meta(
            description="histogram `lmcache:time_to_retrieve`; null: none in the interval; "
            "ours: null"
        ),
    ] = None
    store_p95_seconds: Annotated[
        Seconds | None,
        Meta(
            description="histogram `lmcache:time_to_store`; null: none in the interval; ours: null"
        ),
    ] = None
    is_enabled: Annotated[
        bool | None,
        Meta(description="setting `enabled` of the namespace; LMCache: null"),
    ] = None
    evictions_returned_total: Annotated[
        Count | None,
        Meta(
            description="evicted entries that were asked for again, of the last "
            "`cache.ttl.watched_evictions`; LMCache: null"
        ),
    ] = None
    expired_lookups_total: Annotated[
        Count | None,
        Meta(description="lookups of a value in RAM whose own TTL was over; LMCache: null"),
    ] = None
    expired_lookups_late_seconds_total: Annotated[
        Number | None,
        Meta(description="sum over these of how long it was over; LMCache: null"),
    ] = None
    expired_idle_byte_seconds_total: Annotated[
        Number | None,
        Meta(
            description="sum over values that left RAM past their own TTL: size by the time from "
            "the last use to the end of the TTL; LMCache: null"
        ),
    ] = None
    archive: Annotated[
        dict[str, ArchiveUse] | None,
        Meta(
            description="`classes` of the last ArchiveMetrics of this namespace: what the archive "
            "counted, not this cache; null: nothing was said for a minute; LMCache: null"
        ),
    ] = None
    archive_counted_since: Annotated[
        Instant | None,
        Meta(description="`counted_since` of that; null: as `archive`"),
    ] = None
