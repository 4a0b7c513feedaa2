"""SGLang (`--enable-metrics`): which of its metrics is which field; 0.4 to 0.5, newest name first.

Source: `python/sglang/srt/observability/metrics_collector.py`, before `srt/metrics/collector.py`.
"""

from agent.collectors.engines.inference import EngineMap

SGLANG = EngineMap(
    source="sglang",
    model_labels=("model_name", "name"),
    rank_label="dp_rank",
    gauges={
        "requests_running": ("sglang:num_running_reqs",),
        "requests_waiting": ("sglang:num_queue_reqs",),
        "kv_cache_usage_ratio": ("sglang:token_usage",),
        "kv_cache_capacity_tokens": ("sglang:max_total_num_tokens",),
        "requests_running_max": ("sglang:max_running_requests",),
    },
    counters={
        "prompt_tokens": ("sglang:prompt_tokens_total",),
        "generation_tokens": ("sglang:generation_tokens_total",),
        "requests_completed": ("sglang:num_requests_total",),
        "preemptions": ("sglang:num_retracted_requests_total",),
    },
    histograms={
        "ttft": ("sglang:time_to_first_token_seconds",),
        "itl": ("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
        "e2e": ("sglang:e2e_request_latency_seconds",),
        "queue_time": ("sglang:queue_time_seconds",),
    },
    hits=("sglang:cached_tokens_total",),
    lookups=("sglang:prompt_tokens_total",),
    seldom=frozenset({"requests_running_max"}),
)
