"""What a pool must carry, and how many replicas that takes."""

import pytest

from handlers.scaling.demand import Demand, Expected
from handlers.scaling.replicas import measure
from handlers.settings import ScalingSettings
from handlers.utilization.gpu_busy import GpuBusy
from schemas.engines import EngineMetrics
from tests.support.samples import engine
from tests.support.scaling import replica_loads


def demand(*engines: EngineMetrics, p90: float | None = None) -> Demand:
    expected = None if p90 is None else Expected(p90, 900.0)
    settings = ScalingSettings(ttft_target_seconds=2.0)
    loads = replica_loads(engines)
    return Demand(loads, measure(loads, settings), expected)


def kv(*values: float | None) -> Demand:
    return demand(*(engine(f"e{i}", kv=value) for i, value in enumerate(values)))


@pytest.mark.parametrize(
    ("found", "replicas"),
    [
        pytest.param(kv(0.425, 0.425), 1, id="0.85 / 0.85: exactly on target"),
        pytest.param(kv(0.43, 0.43), 2, id="0.86 / 0.85"),
        pytest.param(kv(0.3, None), 2, id="one not measured counts as full: 1.3 / 0.85"),
        pytest.param(demand(engine(waiting=5), engine("e1", waiting=5)), 2, id="10 / 5 wait"),
        pytest.param(demand(engine(waiting=1), engine("e1", kv=0)), 2, id="queue: 1 + 5, target 5"),
        pytest.param(demand(engine(running=64, running_max=64)), 2, id="1.0 / 0.80"),
        pytest.param(kv(0, 0), 0, id="nothing to carry"),
        pytest.param(
            demand(engine(kv=0.1, ttft_p95_seconds=6.0)), 1, id="nobody knows of the latency then"
        ),
    ],
)
def test_the_load_of_now_needs_replicas(found: Demand, replicas: int) -> None:
    assert found.needed == replicas


@pytest.mark.parametrize(
    ("engines", "p90", "replicas"),
    [
        pytest.param([engine(waiting=0, running=30, kv=0.6)], 90.0, 3, id="0.6 * 3 / 0.85 = 2.1"),
        pytest.param(
            [engine(waiting=0, running=30, kv=0.9)], 10.0, 2, id="never below that of now"
        ),
        pytest.param(
            [engine(waiting=20, running=10, running_max=10)], 30.0, 4, id="in the queue too: 20 / 5"
        ),
        pytest.param(
            [engine(waiting=0, running=0, running_max=10)], 24.0, 3, id="at rest: 24 / 10 / 0.8"
        ),
        pytest.param(
            [engine(waiting=0, running=1, running_max=10), engine("e1", kv=0.0)],
            1.0,
            2,
            id="one that does not tell counts as full: 1.1 / 0.8",
        ),
        pytest.param(
            [engine(waiting=0, running=0, running_max=9)], 0.9, 0, id="less than a request: none"
        ),
    ],
)
def test_the_load_expected_needs_more(
    engines: list[EngineMetrics], p90: float, replicas: int
) -> None:
    assert demand(*engines, p90=p90).needed == replicas


@pytest.mark.parametrize(
    ("kv", "waiting", "needed"),
    [
        pytest.param(0.95, 0, 2, id="1.9 of KV cache: 2 to the full, 3 at 0.85"),
        pytest.param(0.1, 8, 4, id="a queue has no other limit: 16 / 5"),
    ],
)
def test_by_a_plan_replicas_may_be_filled_to_the_full(kv: float, waiting: int, needed: int) -> None:
    loads = replica_loads([engine(name, kv=kv, waiting=waiting) for name in ("e0", "e1")])
    signals = measure(loads, ScalingSettings())

    assert Demand(loads, signals, None, is_planned=True).needed == needed


@pytest.mark.parametrize(
    ("load", "p90", "is_known"),
    [
        pytest.param({"running": 0, "waiting": 0, "kv": 0.0}, 5.0, False, id="at rest, no limit"),
        pytest.param({"running": 0, "waiting": 0, "kv": 0.0}, 0.5, True, id="nothing is expected"),
        pytest.param({"running": 0, "waiting": 0, "kv": 0.0}, None, True, id="no forecast"),
        pytest.param({"running": 0, "running_max": 8}, 5.0, True, id="at rest, with a limit"),
        pytest.param({"running": 1, "kv": 0.1}, 5.0, True, id="what one request takes is seen"),
    ],
)
def test_what_is_expected_of_a_pool_at_rest_may_not_be_known(
    load: dict[str, float], p90: float | None, is_known: bool
) -> None:
    assert (demand(engine(**load), p90=p90).unknown == "") == is_known  # type: ignore[arg-type]


def tokens_and_gpus(
    *rates: float | None, busy: float = 0.0, known: int = 4, p90: float | None = None
) -> Demand:
    """Replicas with two GPUs each, of which `busy` is the sum of the known ones."""
    settings = ScalingSettings(prompt_target_tokens_per_second=1000.0, gpu_busy_target_ratio=0.7)
    engines = [
        engine(f"e{number}", kv=0.1, waiting=0, running=10, prompt_tokens_per_second=rate)
        for number, rate in enumerate(rates)
    ]
    gpus = GpuBusy(2 * len(rates), known, busy, ("nvml",))
    loads = replica_loads(engines, with_rates=True)
    expected = None if p90 is None else Expected(p90, 900.0)
    return Demand(loads, measure(loads, settings, gpus), expected)


@pytest.mark.parametrize(
    ("found", "replicas"),
    [
        pytest.param(tokens_and_gpus(500, 500), 1, id="1000 tokens / 1000"),
        pytest.param(tokens_and_gpus(500, 501), 2, id="1001 / 1000"),
        pytest.param(tokens_and_gpus(500, None), 2, id="500 and one as on target"),
        pytest.param(tokens_and_gpus(900, 900, p90=40.0), 4, id="twice the requests: 3600"),
        pytest.param(tokens_and_gpus(0, 0, busy=1.4), 1, id="2 * 1.4/4 = 0.7"),
        pytest.param(tokens_and_gpus(0, 0, busy=1.5), 2, id="2 * 1.5/4 / 0.7 = 1.07"),
        pytest.param(
            tokens_and_gpus(0, 0, busy=1.0, known=3), 2, id="one not measured is full: 2 * 2/4"
        ),
        pytest.param(
            tokens_and_gpus(0, 0, 0, 0, busy=6 * 0.3, known=6), 3, id="4 * 3.8/8 = 1.9, by 0.7"
        ),
        pytest.param(tokens_and_gpus(0, 0, busy=1.4, p90=40.0), 2, id="twice as busy: 1.4"),
    ],
)
def test_rates_of_tokens_and_gpus_need_replicas(found: Demand, replicas: int) -> None:
    assert found.needed == replicas


def test_by_a_plan_gpus_may_be_filled_to_the_full() -> None:
    found = tokens_and_gpus(0, 0, busy=2.0)

    assert found.needed == 2
    assert (
        Demand(replica_loads([engine(), engine("e1")]), found.signals, None, is_planned=True).needed
        == 1
    )


def test_without_a_signal_that_is_shared_out_nothing_is_known_to_be_needed() -> None:
    assert demand(engine(ttft_p95_seconds=1.0)).needed == 0


def test_a_signal_that_has_a_target_must_be_measured() -> None:
    loads = replica_loads([engine(kv=0.1)])
    signals = measure(loads, ScalingSettings())

    found = Demand(loads, signals, None, optional=["gpu_busy_ratio"])

    assert found.unknown == "gpu_busy_ratio has a target, but is not measured"
    assert Demand(loads, signals, None, optional=["kv_cache_usage_ratio"]).unknown == ""
