"""vLLM's and SGLang's pages of several versions, as EngineMetrics."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.collectors.engines.exposition import PageError
from agent.collectors.engines.inference import Place
from agent.collectors.engines.page_reader import PageReader
from schemas.engines import EngineMetrics
from schemas.units import SECOND_NS
from tests.support.metrics_server import CAPTURES, capture
from tests.support.samples import START_NS

PLACE = Place(node="n1", name="e", pool=None)
MODELS = ((b"a", 1), (b"b", 2))


def read(*pages: bytes, place: Place = PLACE, seconds: float = 5.0) -> list[EngineMetrics]:
    """The engines on the last of `pages`, each so many seconds after the one before."""
    reader = PageReader(place)
    messages: list[Any] = []
    for index, page in enumerate(pages):
        messages = reader.read(page, START_NS + int(index * seconds * SECOND_NS))
    return [message for message in messages if isinstance(message, EngineMetrics)]


@pytest.mark.parametrize(
    ("name", "expected", "missing"),
    [
        pytest.param(
            "vllm-0.6",
            {
                "source": "vllm",
                "model": "facebook/opt-125m",
                "requests_running": 3,
                "requests_waiting": 1,
                "kv_cache_usage_ratio": 0.0423,
                "kv_cache_capacity_tokens": 27767 * 16,
                "prompt_tokens_total": 1196,
                "generation_tokens_total": 21815,
                "requests_completed_total": 213,
                "preemptions_total": 0,
                "is_sleeping": None,
            },
            {"vllm.queue_time", "vllm.prefix_cache_hits", "vllm.prefix_cache_lookups"},
            id="vllm-0.6",
        ),
        pytest.param(
            "vllm-0.9",
            {
                "requests_running": 42,
                "requests_waiting": 7,
                "kv_cache_usage_ratio": 0.6130952380952381,
                "kv_cache_capacity_tokens": 21504 * 16,
                "requests_completed_total": 314,
                "preemptions_total": 2,
            },
            set(),
            id="vllm-0.9",
        ),
        pytest.param(
            "sglang-0.4",
            {
                "source": "sglang",
                "model": "meta-llama/Llama-3.1-8B-Instruct",
                "requests_running": 6,
                "requests_waiting": 2,
                "kv_cache_usage_ratio": 0.28,
                "kv_cache_capacity_tokens": None,
                "requests_completed_total": 125,
                "preemptions_total": None,
            },
            {
                "sglang.kv_cache_capacity_tokens",
                "sglang.preemptions",
                "sglang.queue_time",
                "sglang.prefix_cache_hits",
            },
            id="sglang-0.4",
        ),
        pytest.param(
            "sglang-0.5.10-tp2",
            {
                "requests_running": 16,
                "requests_waiting": 3,
                "kv_cache_usage_ratio": 0.915,
                "kv_cache_capacity_tokens": 262144,
                "preemptions_total": 4,
                "prompt_tokens_total": 64000,
            },
            set(),
            id="sglang-0.5.10-of-two-workers-the-first",
        ),
    ],
)
def test_each_version_fills_what_it_has_and_the_rest_is_null(
    name: str, expected: dict[str, object], missing: set[str]
) -> None:
    reader = PageReader(PLACE)

    (engine,) = reader.read(capture(name), START_NS)

    assert {field: getattr(engine, field) for field in expected} == expected
    assert set(reader.missing) == missing


def test_two_pages_give_rates_ratios_and_quantiles() -> None:
    engine, other = read(capture("vllm-0.33-dp2"), capture("vllm-0.33-dp2-later"))

    # In 5 s: 40 requests, 10,000 prompt tokens of which 2,500 were cached, 4,000 generated.
    assert engine.interval_seconds == 5.0
    assert engine.requests_completed_per_second == 8.0
    assert engine.prompt_tokens_per_second == 2000.0
    assert engine.generation_tokens_per_second == 800.0
    assert engine.prefix_cache_hit_ratio == 0.25
    # 10 up to 0.1 s, 20 up to 0.25, 8 up to 0.5, 2 beyond 2,560 … those are above rank 38 of 40.
    assert engine.ttft_p50_seconds == pytest.approx(0.1 + 0.15 * 10 / 20)
    assert engine.ttft_p95_seconds == pytest.approx(0.5)
    # 400 up to 0.01 s, 100 up to 0.025.
    assert engine.itl_p50_seconds == pytest.approx(0.01 * 250 / 400)
    assert engine.itl_p95_seconds == pytest.approx(0.01 + 0.015 * 75 / 100)
    # 30 up to 5 s (from 2.5), 10 up to 10.
    assert engine.e2e_p95_seconds == pytest.approx(5 + 5 * 8 / 10)
    assert engine.queue_time_p95_seconds == pytest.approx(0.8 + 0.2 * 3 / 5)
    assert other.preemptions_per_second == 1.0
    assert other.prefix_cache_hit_ratio == 0.0


def test_the_page_of_vllms_own_logger_is_read_completely() -> None:
    reader = PageReader(PLACE)

    (engine,) = reader.read(capture("vllm-0.33.0-logger"), START_NS)

    assert reader.missing == {}
    assert isinstance(engine, EngineMetrics)
    assert (engine.model, engine.is_sleeping) == ("Qwen/Qwen3-32B", False)
    assert (engine.requests_running, engine.requests_waiting) == (14, 5)
    assert (engine.kv_cache_usage_ratio, engine.kv_cache_capacity_tokens) == (0.47, 30000 * 16)
    assert (engine.prompt_tokens_total, engine.generation_tokens_total) == (12000, 3000)
    assert (engine.requests_completed_total, engine.preemptions_total) == (30, 0)


def test_ranks_behind_one_address_are_engines_of_their_own() -> None:
    engines = read(capture("vllm-0.33-dp2"))

    assert [(e.engine, e.requests_running, e.requests_waiting) for e in engines] == [
        ("e", 31, 0),
        ("e-1", 60, 5),
    ]
    assert {e.pool for e in engines} == {"meta-llama-Llama-3-1-70B-Instruct-376674"}
    assert {e.is_sleeping for e in engines} == {False}
    assert [e.kv_cache_capacity_tokens for e in engines] == [480000, 479840]


def test_tokens_of_the_whole_server_are_no_ranks_but_its_latencies_are_each_ones() -> None:
    page = capture("sglang-0.5.10-dp2")
    later = re.sub(
        rb"(sglang:time_to_first_token_seconds_bucket\{.*\} )(.+)",
        lambda line: line[1] + b"%f" % (2 * float(line[2])),
        page,
    )

    first, second = read(page, later)

    assert (first.requests_running, second.requests_running) == (8, 11)
    assert (first.kv_cache_usage_ratio, second.kv_cache_usage_ratio) == (0.25, 0.5)
    assert (first.generation_tokens_total, second.generation_tokens_total) == (None, None)
    assert first.ttft_p95_seconds is not None
    assert first.ttft_p95_seconds == second.ttft_p95_seconds


def test_a_first_page_has_no_rates_and_nothing_new_no_quantiles() -> None:
    (first,) = read(capture("vllm-0.9"))
    (second,) = read(capture("vllm-0.9"), capture("vllm-0.9"))

    assert first.interval_seconds is None
    assert first.generation_tokens_per_second is None
    assert first.ttft_p95_seconds is None
    assert second.generation_tokens_per_second == 0.0
    assert second.ttft_p95_seconds is None
    assert second.prefix_cache_hit_ratio is None


def test_a_restarted_engine_has_no_rates_on_its_first_page() -> None:
    before = capture("vllm-0.9")
    after = before.replace(b"} 41207.0", b"} 3.0").replace(b"} 88211.0", b"} 9.0")
    reader = PageReader(PLACE)
    reader.read(before, START_NS)

    (engine,) = reader.read(after, START_NS + 5 * SECOND_NS)
    (later,) = reader.read(after, START_NS + 10 * SECOND_NS)

    assert isinstance(engine, EngineMetrics)
    assert isinstance(later, EngineMetrics)
    assert reader.restarts == 1
    assert engine.generation_tokens_total == 3
    assert engine.generation_tokens_per_second is None
    assert later.generation_tokens_per_second == 0.0


def test_a_restart_faster_than_its_counters_show_is_seen_by_the_start_of_the_process() -> None:
    before = capture("vllm-0.9").replace(b"} 41207.0", b"} 7.0")
    after = before.replace(b"} 7.0", b"} 9.0").replace(b" 1.7511e+09", b" 1.7512e+09")

    (engine,) = read(before, after)

    assert engine.generation_tokens_total == 9
    assert engine.generation_tokens_per_second is None


def test_a_metric_that_is_renamed_is_null_and_named() -> None:
    page = capture("vllm-0.9").replace(b"num_requests_waiting", b"num_requests_in_line")
    reader = PageReader(PLACE)

    (engine,) = reader.read(page, START_NS)

    assert isinstance(engine, EngineMetrics)
    assert engine.requests_waiting is None
    assert engine.requests_running == 42
    assert reader.missing == {"vllm.requests_waiting": ("vllm:num_requests_waiting",)}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        pytest.param(b"vllm:num_requests_running NaN", "requests_running", id="nan"),
        pytest.param(b"vllm:num_requests_running -1", "requests_running", id="negative"),
        pytest.param(b"vllm:num_requests_running 1e300", "requests_running", id="huge"),
        pytest.param(b"vllm:kv_cache_usage_perc 1.2", "kv_cache_usage_ratio", id="no-share"),
        pytest.param(b"vllm:generation_tokens_total +Inf", "generation_tokens_total", id="inf"),
        pytest.param(
            b'vllm:cache_config_info{num_gpu_blocks="None",block_size="16"} 1',
            "kv_cache_capacity_tokens",
            id="no-blocks-yet",
        ),
        pytest.param(
            "vllm:cache_config_info{num_gpu_blocks=\"²\",block_size=\"16\"} 1".encode(),
            "kv_cache_capacity_tokens",
            id="a-digit-that-is-no-number",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_null(line: bytes, field: str) -> None:
    (engine,) = read(b"vllm:num_requests_waiting 3\n" + line + b"\n")

    assert getattr(engine, field) is None
    assert engine.requests_waiting == 3


def test_a_share_a_little_above_one_is_one() -> None:
    (engine,) = read(b"vllm:kv_cache_usage_perc 1.0000002\n")

    assert engine.kv_cache_usage_ratio == 1.0


def test_a_sleeping_engine_says_so() -> None:
    page = capture("vllm-0.33-dp2").replace(
        b'sleep_state="awake"} 1.0', b'sleep_state="awake"} 0.0', 1
    )

    engines = read(page)

    assert [engine.is_sleeping for engine in engines] == [True, False]


def test_names_come_from_the_settings_or_else_from_the_model() -> None:
    page = b'vllm:num_requests_running{model_name="org/m-1"} 1\n'

    (by_model,) = read(page)
    (by_settings,) = read(page, place=Place("n2", "chat-0", "chat", requests_running_max=256))
    (nameless,) = read(b"vllm:num_requests_running 1\n")

    assert (by_model.engine, by_model.pool[:8], by_model.requests_running_max) == (
        "e", "org-m-1-", None,
    )  # fmt: skip
    assert (by_settings.node, by_settings.engine, by_settings.pool) == ("n2", "chat-0", "chat")
    assert by_settings.requests_running_max == 256
    assert (nameless.model, nameless.pool) == ("unknown", "unknown")


def test_models_on_one_page_are_engines_of_their_own() -> None:
    page = b"".join(b'vllm:num_requests_running{model_name="%c"} %d\n' % pair for pair in MODELS)

    engines = read(page)

    assert [(e.engine, e.model, e.requests_running) for e in engines] == [
        ("e-a", "a", 1),
        ("e-b", "b", 2),
    ]


def test_more_engines_than_anyone_has_behind_one_address_are_refused() -> None:
    page = b"".join(b'vllm:num_requests_running{engine="%d"} 1\n' % i for i in range(65))

    with pytest.raises(PageError, match="65 ranks"):
        read(page)


def test_an_engine_that_comes_back_begins_anew() -> None:
    page = capture("vllm-0.33-dp2")
    alone = b"\n".join(line for line in page.split(b"\n") if b'engine="1"' not in line)
    reader = PageReader(PLACE)
    for index, body in enumerate((page, alone)):
        reader.read(body, START_NS + index * 5 * SECOND_NS)

    engines = reader.read(page, START_NS + 10 * SECOND_NS)

    rates = [e.generation_tokens_per_second for e in engines if isinstance(e, EngineMetrics)]
    assert rates == [0.0, None]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>welcome</html>", id="another-page"),
        pytest.param(b"node_load1 0.5\nprocess_start_time_seconds 1\n", id="another-exporter"),
    ],
)
def test_a_page_of_nothing_we_know_is_refused(body: bytes) -> None:
    with pytest.raises(PageError, match="no metrics of vLLM, SGLang"):
        read(body)


@pytest.mark.parametrize("name", sorted(path.stem for path in CAPTURES.glob("*.prom")))
def test_what_is_published_is_what_every_reader_accepts(name: str) -> None:
    reader = PageReader(PLACE)
    reader.read(capture(name), START_NS)

    messages = reader.read(capture(name), START_NS + 5 * SECOND_NS)

    assert messages
    for message in messages:
        assert msgspec.json.decode(msgspec.json.encode(message), type=type(message)) == message


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*.prom")), ids=lambda path: str(path.stem))
def test_every_page_says_whether_it_was_captured_or_written_by_hand(path: Path) -> None:
    head = path.read_text().splitlines()[:4]

    assert any(line.startswith(("# Captured from ", "# Not captured: ")) for line in head)
