"""LMCache's pages as CacheMetrics: inside an engine, and in its own process."""

import pytest

from agent.collectors.engines.inference import Place
from agent.collectors.engines.page_reader import PageReader
from schemas.engines import CacheMetrics
from schemas.units import SECOND_NS
from tests.support.metrics_server import capture
from tests.support.samples import START_NS

PLACE = Place(node="n1", name="e", pool=None)


def read(*pages: bytes) -> CacheMetrics:
    reader = PageReader(PLACE)
    for index, page in enumerate(pages):
        messages = reader.read(page, START_NS + index * 5 * SECOND_NS)
    (cache,) = [message for message in messages if isinstance(message, CacheMetrics)]
    return cache


def test_inside_an_engine_its_workers_are_one_cache() -> None:
    cache = read(capture("vllm-lmcache-0.5"), capture("vllm-lmcache-0.5-later"))

    assert (cache.instance, cache.namespace, cache.source) == ("n1-e", "lmcache", "lmcache")
    assert (cache.node, cache.model) == ("n1", "Qwen/Qwen3-32B")
    assert cache.used_bytes == 2 * 2**31
    assert cache.disk_used_bytes == 2 * 2**30
    assert cache.entries == 128
    assert cache.evictions_total == 16
    # 120 lookups, 65 of them found nothing.
    assert (cache.hits_total, cache.misses_total, cache.hit_ratio) == (55, 65, 55 / 120)
    # In the 5 s between: 8,000 tokens asked for, 6,000 found.
    assert (cache.lookup_tokens_total, cache.hit_tokens_total) == (59200, 26480)
    assert (cache.interval_seconds, cache.token_hit_ratio) == (5.0, 0.75)
    # 10 lookups up to 1 ms and 10 up to 5 ms: rank 19 of 20.
    assert cache.lookup_p95_seconds == pytest.approx(0.001 + 0.004 * 9 / 10)


def test_what_lmcache_does_not_measure_is_null() -> None:
    cache = read(capture("vllm-lmcache-0.5"))

    absent = ("limit_bytes", "policy", "outbox_bytes", "evictions_lost_total", "restores_total")
    assert {getattr(cache, field) for field in absent} == {None}
    assert cache.remote_used_bytes is None, "lmcache:remote_cache_usage is never set"
    assert cache.token_hit_ratio is None


def test_in_its_own_process_the_first_level_is_ram_and_the_second_remote() -> None:
    cache = read(capture("lmcache-mp-0.5"))

    assert cache.used_bytes == 6 * 2**30
    assert cache.usage_ratio == 0.75
    assert cache.remote_used_bytes == 3 * 2**30
    assert (cache.lookup_tokens_total, cache.hit_tokens_total) == (5120, 2048)
    assert (cache.model, cache.pool) == (None, None)
    assert cache.evictions_total is None, "absent until the first eviction: not zero"
    assert (cache.hits_total, cache.hit_ratio) == (None, None)


def test_the_page_of_a_running_server_is_read() -> None:
    reader = PageReader(PLACE)

    (cache,) = reader.read(capture("lmcache-0.5.6-server"), START_NS)

    assert reader.missing == {}
    assert isinstance(cache, CacheMetrics)
    assert (cache.model, cache.pool) == ("test-model", "test-model")
    assert (cache.used_bytes, cache.usage_ratio) == (1536 * 1024, 0.00146484375)
    assert (cache.lookup_tokens_total, cache.hit_tokens_total) == (6144, 3072)
    assert cache.puts_total == 48


def test_no_lookup_yet_is_no_ratio() -> None:
    page = b"lmcache:num_lookup_requests_total 0\nlmcache:lookup_0_hit_requests_total 0\n"

    cache = read(page)

    assert (cache.hits_total, cache.misses_total, cache.hit_ratio) == (0, 0, None)


def test_counters_that_contradict_each_other_say_nothing() -> None:
    page = b"lmcache:num_lookup_requests_total 3\nlmcache:lookup_0_hit_requests_total 4\n"

    assert read(page).misses_total is None


def test_a_vllm_page_with_lmcache_gives_both() -> None:
    reader = PageReader(PLACE)

    messages = reader.read(capture("vllm-lmcache-0.5"), START_NS)

    assert reader.kinds == ("vllm", "lmcache")
    assert [type(message).__name__ for message in messages] == ["EngineMetrics", "CacheMetrics"]
    assert not [field for field in reader.missing if field.startswith("lmcache.")]


def test_an_lmcache_without_its_main_metrics_names_them() -> None:
    reader = PageReader(PLACE)

    reader.read(b"lmcache:num_store_requests_total 4\n", START_NS)

    assert set(reader.missing) == {"lmcache.used_bytes", "lmcache.lookup_tokens_total"}
