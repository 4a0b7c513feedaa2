from collections.abc import Callable

import msgspec
import pytest

from agent.collectors.simulated_engines import ENGINE_MODELS, SimulatedEngines, parse_engines
from agent.collectors.simulated_gpus import GPU_MODELS, SimulatedGpus, parse_gpus
from schemas.engines import EngineMetrics
from schemas.metrics import GpuMetrics
from schemas.units import SECOND_NS


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * SECOND_NS

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)


def engines(clock: Clock, count: int = 1, *, seed: int = 1) -> SimulatedEngines:
    return SimulatedEngines(count, "llama-3-70b", node="n1", seed=seed, clock=clock)


def settled(clock: Clock, pool: SimulatedEngines, load: float) -> list[EngineMetrics]:
    """The pool after five minutes at a fixed load; the last sample spans one minute."""
    pool.set_load(load)
    clock.advance(240)
    pool.sample()
    clock.advance(60)
    return pool.sample()


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        pytest.param(parse_gpus, "8xH100", (8, "H100"), id="GPUs"),
        pytest.param(parse_gpus, " 1Xl40s ", (1, "L40S"), id="GPUs, any case"),
        pytest.param(parse_engines, "4@llama-3-70b", (4, "llama-3-70b"), id="engines"),
        pytest.param(parse_engines, "2", (2, "llama-3-8b"), id="engines, default model"),
    ],
)
def test_a_simulation_is_named_in_one_word(
    parse: Callable[[str], tuple[int, str]], text: str, expected: tuple[int, str]
) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("parse", "text", "example"),
    [
        pytest.param(parse_gpus, "", "8xH100", id="no GPUs"),
        pytest.param(parse_gpus, "0xH100", "8xH100", id="zero GPUs"),
        pytest.param(parse_gpus, "8", "8xH100", id="GPUs without a model"),
        pytest.param(parse_gpus, "8xVoodoo2", "H200", id="unknown GPU"),
        pytest.param(parse_engines, "0", "4@llama-3-70b", id="zero engines"),
        pytest.param(parse_engines, "-1", "4@llama-3-70b", id="negative engines"),
        pytest.param(parse_engines, "four", "4@llama-3-70b", id="engines in words"),
        pytest.param(parse_engines, "4@", "4@llama-3-70b", id="engines without the model"),
        pytest.param(parse_engines, "4@gpt-99", "qwen-2.5-32b", id="unknown engine model"),
    ],
)
def test_a_simulation_that_makes_no_sense_is_refused_with_an_example(
    parse: Callable[[str], tuple[int, str]], text: str, example: str
) -> None:
    with pytest.raises(ValueError, match=example):
        parse(text)


@pytest.mark.parametrize("model", list(ENGINE_MODELS))
def test_engine_samples_are_valid_labelled_messages(model: str) -> None:
    clock = Clock()
    pool = SimulatedEngines(2, model, node="n1", clock=clock)
    for _ in range(100):
        clock.advance(10)

        samples = pool.sample()

        assert [sample.engine for sample in samples] == ["sim-0", "sim-1"]
        for sample in samples:
            assert msgspec.json.decode(msgspec.json.encode(sample), type=EngineMetrics) == sample
            assert sample.simulated is True
            assert sample.model == model


def test_the_pool_is_named_after_the_model_unless_it_has_a_name() -> None:
    named = SimulatedEngines(1, "qwen-2.5-32b", node="n1", pool="chat", clock=Clock())
    unnamed = SimulatedEngines(1, "llama-3-8b", node="n1", clock=Clock())

    assert named.sample()[0].pool == "chat"
    assert unnamed.sample()[0].pool == "llama-3-8b"


def test_the_first_engine_sample_has_no_rates() -> None:
    (sample,) = engines(Clock()).sample()

    assert sample.generation_tokens_per_second is None
    assert (sample.requests_running, sample.ttft_p95_seconds, sample.itl_p95_seconds) == (
        0,
        None,
        None,
    )


def test_half_the_load_runs_without_waiting_and_littles_law_holds() -> None:
    clock = Clock()
    pool = engines(clock)
    load = 0.5 * pool.requests_per_second_max

    (sample,) = settled(clock, pool, load)

    assert sample.requests_waiting == 0
    assert sample.requests_running is not None
    assert sample.itl_p95_seconds is not None
    itl = sample.itl_p95_seconds / 1.4
    time_in_batch = 1500 / 12_000 + 300 * itl
    # Little: requests inside = arrival rate times time inside; arrivals swing by a tenth.
    assert sample.requests_running == pytest.approx(load * time_in_batch, rel=0.15)
    assert sample.generation_tokens_per_second == pytest.approx(load * 300, rel=0.05)
    assert sample.prompt_tokens_per_second == pytest.approx(load * 1500, rel=0.05)


def test_more_load_than_a_replica_can_serve_fills_it_and_the_queue_grows() -> None:
    clock = Clock()
    pool = engines(clock)
    top = pool.requests_per_second_max

    (before,) = settled(clock, pool, 1.5 * top)
    clock.advance(60)
    (after,) = pool.sample()

    assert after.requests_running == after.requests_running_max == 64
    assert before.requests_waiting is not None
    assert after.requests_waiting is not None
    # A minute of half a replica's throughput too much.
    assert after.requests_waiting - before.requests_waiting == pytest.approx(30 * top, rel=0.2)
    assert after.ttft_p95_seconds == pytest.approx(after.requests_waiting / top, rel=0.05)
    assert after.generation_tokens_per_second == pytest.approx(300 * top, rel=0.02)


def test_a_second_replica_halves_the_load_of_the_first() -> None:
    clock = Clock()
    pool = engines(clock)
    (alone,) = settled(clock, pool, 0.8 * pool.requests_per_second_max)
    pool.set_replicas(2)

    together = settled(clock, pool, 0.8 * pool.requests_per_second_max)

    assert [sample.engine for sample in together] == ["sim-0", "sim-1"]
    for sample in together:
        assert sample.kv_cache_usage_ratio is not None
        assert alone.kv_cache_usage_ratio is not None
        assert sample.kv_cache_usage_ratio < 0.6 * alone.kv_cache_usage_ratio


def test_requests_of_a_removed_replica_queue_at_the_others() -> None:
    clock = Clock()
    pool = engines(clock, 2)
    settled(clock, pool, 3 * pool.requests_per_second_max)
    before = sum(_requests(sample) for sample in pool.sample())

    pool.set_replicas(1)
    (left,) = pool.sample()

    assert _requests(left) == pytest.approx(before, abs=4)  # each figure is rounded


def _requests(sample: EngineMetrics) -> int:
    return (sample.requests_running or 0) + (sample.requests_waiting or 0)


def test_no_replicas_is_an_empty_pool() -> None:
    clock = Clock()
    pool = engines(clock)
    pool.set_replicas(0)
    clock.advance(60)

    assert pool.sample() == []
    assert pool.load_ratio(0.0) == 0.0


def test_without_load_an_engine_runs_empty_and_has_no_latency() -> None:
    clock = Clock()
    pool = engines(clock)
    settled(clock, pool, pool.requests_per_second_max)

    (sample,) = settled(clock, pool, 0.0)

    assert (sample.requests_running, sample.requests_waiting) == (0, 0)
    assert (sample.ttft_p95_seconds, sample.itl_p95_seconds) == (None, None)


def test_a_negative_load_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        engines(Clock()).set_load(-1)


def test_the_default_load_swings_through_overload_and_near_idleness() -> None:
    clock = Clock()
    pool = engines(clock)
    waiting, usage = [], []
    for _ in range(96):  # one swing of 480 s
        clock.advance(5)
        (sample,) = pool.sample()
        waiting.append(sample.requests_waiting or 0)
        usage.append(sample.kv_cache_usage_ratio or 0.0)

    assert max(waiting) > 50
    assert waiting[-1] == 0
    assert max(usage) > 0.8
    assert usage[-1] < 0.15


def test_engines_depend_only_on_seed_clock_and_calls() -> None:
    def run(seed: int) -> list[EngineMetrics]:
        clock = Clock()
        pool = engines(clock, 2, seed=seed)
        samples = []
        for _ in range(20):
            clock.advance(7)
            samples += pool.sample()
        return samples

    assert run(seed=5) == run(seed=5)
    assert run(seed=5) != run(seed=6)


def test_a_clock_that_runs_backwards_stops_the_simulation_until_it_catches_up() -> None:
    clock = Clock()
    pool = engines(clock)
    (before,) = settled(clock, pool, 2.0)
    clock.advance(-30)

    (during,) = pool.sample()

    assert during.observed_at == before.observed_at
    assert during.generation_tokens_total == before.generation_tokens_total
    assert during.generation_tokens_per_second is None


@pytest.mark.parametrize("model", list(GPU_MODELS))
def test_gpu_samples_are_valid_labelled_messages_within_physics(model: str) -> None:
    clock = Clock()
    backend = SimulatedGpus(4, model, node="n1", pool="p1", clock=clock)
    for _ in range(100):
        clock.advance(10)

        samples = backend.sample()

        assert len({sample.gpu for sample in samples}) == 4
        for sample in samples:
            assert msgspec.json.decode(msgspec.json.encode(sample), type=GpuMetrics) == sample
            assert sample.simulated is True
            assert sample.memory_total_bytes == sum(
                part or 0
                for part in (
                    sample.memory_used_bytes,
                    sample.memory_free_bytes,
                    sample.memory_reserved_bytes,
                )
            )
            assert (sample.power_watts or 0) <= (sample.power_limit_watts or 0)
            assert (sample.temperature_celsius or 0) < (sample.temperature_slowdown_celsius or 0)


def test_energy_is_power_over_time() -> None:
    clock = Clock()
    backend = SimulatedGpus(1, "H100", node="n1", clock=clock)
    (before,) = backend.sample()
    clock.advance(2)

    (after,) = backend.sample()

    assert after.interval_seconds == 2.0
    assert after.power_watts is not None
    assert before.energy_joules_total == 0.0
    assert after.energy_joules_total == pytest.approx(2 * after.power_watts)


def test_gpus_follow_the_engines_that_live_on_them() -> None:
    clock = Clock()
    pool = engines(clock, 2)
    backend = SimulatedGpus(4, "H100", node="n1", clock=clock, engines=pool)
    idle = backend.sample()
    settled(clock, pool, 4 * pool.requests_per_second_max)

    busy = backend.sample()

    assert [gpu.utilization_ratio for gpu in idle] == [0.0] * 4
    assert [gpu.throttle_reasons for gpu in idle] == [["gpu_idle"]] * 4
    assert all((gpu.utilization_ratio or 0.0) > 0.95 for gpu in busy)
    assert all((gpu.power_watts or 0.0) > 600 for gpu in busy)


def test_gpus_are_of_the_pool_of_the_engines_that_live_on_them() -> None:
    clock = Clock()
    pool = engines(clock, 2)

    joined = SimulatedGpus(1, "H100", node="n1", clock=clock, engines=pool).sample()
    named = SimulatedGpus(1, "H100", node="n1", pool="p1", clock=clock, engines=pool).sample()

    assert [gpu.pool for gpu in joined] == [pool.sample()[0].pool]
    assert [gpu.pool for gpu in named] == ["p1"]


def test_gpus_are_shared_out_evenly_among_the_engines() -> None:
    clock = Clock()
    pool = engines(clock, 1)
    settled(clock, pool, 4 * pool.requests_per_second_max)
    pool.set_replicas(2)  # the second is still idle
    backend = SimulatedGpus(4, "H100", node="n1", clock=clock, engines=pool)

    utilizations = [gpu.utilization_ratio or 0.0 for gpu in backend.sample()]

    assert [utilization > 0.9 for utilization in utilizations] == [True, True, False, False]


def test_gpus_depend_only_on_node_seed_and_clock() -> None:
    def run(node: str, seed: int) -> list[float | None]:
        clock = Clock()
        backend = SimulatedGpus(2, "H100", node=node, seed=seed, clock=clock)
        clock.advance(100)
        return [gpu.utilization_ratio for gpu in backend.sample()]

    assert run("n1", 5) == run("n1", 5)
    assert run("n1", 5) != run("n1", 6)
    assert run("n1", 5) != run("n2", 5)
