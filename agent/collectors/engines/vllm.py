"""vLLM: which of its metrics is which field; engine 0.6 to 0.33, newest name first.

Source: `vllm/v1/metrics/loggers.py`, before 0.8 `vllm/engine/metrics.py`.
"""

from typing import Any

from agent.collectors.engines.exposition import Page
from agent.collectors.engines.inference import EngineMap
from agent.collectors.engines.values import count

SLEEP = ("vllm:engine_sleep_state",)
CACHE_CONFIG = ("vllm:cache_config_info",)


def _extras(page: Page) -> dict[str, Any]:
    awake = [s.value for s in page.find(SLEEP) if s.labels.get("sleep_state") == "awake"]
    return {
        "is_sleeping": awake[0] == 0 if awake else None,
        "kv_cache_capacity_tokens": _capacity_tokens(page),
    }


def _capacity_tokens(page: Page) -> int | None:
    """Blocks by tokens in each; the labels hold `None` until the cache is made."""
    sizes = {
        (series.labels.get("num_gpu_blocks", ""), series.labels.get("block_size", ""))
        for series in page.find(CACHE_CONFIG)
    }
    if len(sizes) != 1:
        return None
    blocks, tokens = sizes.pop()
    return (
        count(float(blocks) * float(tokens)) if blocks.isdecimal() and tokens.isdecimal() else None
    )


VLLM = EngineMap(
    source="vllm",
    model_labels=("model_name",),
    rank_label="engine",
    gauges={
        "requests_running": ("vllm:num_requests_running",),
        "requests_waiting": ("vllm:num_requests_waiting",),
        "kv_cache_usage_ratio": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    },
    counters={
        "prompt_tokens": ("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
        "generation_tokens": ("vllm:generation_tokens_total", "vllm:generation_tokens"),
        "requests_completed": ("vllm:request_success_total", "vllm:request_success"),
        "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    },
    histograms={
        "ttft": ("vllm:time_to_first_token_seconds",),
        "itl": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        "e2e": ("vllm:e2e_request_latency_seconds",),
        "queue_time": ("vllm:request_queue_time_seconds",),
    },
    hits=(
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_hits",
        "vllm:gpu_prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_hits",
    ),
    lookups=(
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_queries",
        "vllm:gpu_prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_queries",
    ),
    labels={"is_sleeping": SLEEP, "kv_cache_capacity_tokens": CACHE_CONFIG},
    extras=_extras,
)
