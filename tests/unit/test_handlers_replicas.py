import math
from typing import Any

import pytest

from handlers.scaling.replica_loads import load_of
from handlers.scaling.replicas import (
    GpuSignal,
    Signal,
    desired_replicas,
    lacking,
    measure,
    optional_signals,
)
from handlers.settings import ScalingSettings
from handlers.utilization.gpu_busy import GpuBusy
from tests.support.samples import engine
from tests.support.scaling import replica_loads


def signal(
    name: str, target: float, saturation: float | None, values: tuple[float | None, ...]
) -> Signal:
    known = [value for value in values if value is not None]
    return Signal(name, target, saturation, math.fsum(known), len(known), len(values))


def waiting(*values: float | None) -> Signal:
    return signal("requests_waiting", 5.0, None, values)


def kv(*values: float | None) -> Signal:
    return signal("kv_cache_usage_ratio", 0.85, 1.0, values)


def capacity(*values: float | None) -> Signal:
    return signal("capacity_usage_ratio", 0.80, 1.0, values)


def ttft(*values: float | None) -> Signal:
    return signal("ttft_p95_seconds", 2.0, None, values)


def prompt(*values: float | None) -> Signal:
    return signal("prompt_tokens_per_second", 1000.0, None, values)


def gpus(replicas: int, *, busy: float, known: int, gpus: int) -> Signal:
    """At a target of 0.7, of which `busy` is the sum of the known ones."""
    return GpuSignal.of_gpus(0.7, GpuBusy(gpus, known, busy, ("nvml",)), replicas)


@pytest.mark.parametrize(
    ("signals", "replicas", "desired"),
    [
        pytest.param([waiting(5, 5)], 2, 2, id="on target"),
        pytest.param([waiting(10, 10, 10, 10)], 4, 8, id="4 * 10/5"),
        pytest.param([waiting(12, 0, 8)], 3, 4, id="ceil(3 * 20/3/5) = 4"),
        pytest.param([waiting(5.5, 5.5)], 2, 2, id="ratio 1.10: edge of the tolerance"),
        pytest.param([waiting(5.6, 5.6)], 2, 3, id="ratio 1.12: past it"),
        pytest.param([kv(0.935)], 1, 1, id="0.935/0.85 = 1.10 in spite of floats"),
        pytest.param([kv(0.94)], 1, 2, id="0.94/0.85 = 1.106"),
        pytest.param([capacity(0.88)], 1, 1, id="0.88/0.80 = 1.10"),
        pytest.param([capacity(0.89)], 1, 2, id="0.89/0.80 = 1.11"),
        pytest.param([waiting(0, 0), kv(0.95, 1.0)], 2, 3, id="the highest signal decides"),
        pytest.param([waiting(10, 10, 10, None)], 4, 6, id="up: unknown counts as 0"),
        pytest.param([waiting(7, None)], 2, 2, id="up that the unknown takes back"),
        pytest.param([waiting(0, 0), kv(0.765, 0.765)], 2, 2, id="ratio 0.90: edge"),
        pytest.param([waiting(0, 0), kv(0.42, 0.42)], 2, 1, id="2 * 0.42/0.85 = 0.99"),
        pytest.param([waiting(0, 0), kv(0.2, None)], 2, 2, id="down: unknown is on target"),
        pytest.param(
            [waiting(0, 0, 0, 0), kv(0.1, 0.1, 0.1, None)], 4, 2, id="4 * (0.3+0.85)/4/0.85"
        ),
        pytest.param([waiting(0, 0), kv(0, 0)], 2, 1, id="idle needs one"),
        pytest.param([waiting(0, 0)], 2, 2, id="a queue alone proves no spare room"),
        pytest.param([kv(0.1, 0.1)], 2, 2, id="room alone proves no empty queue"),
        pytest.param([waiting(0, 0), capacity(0.1, 0.1)], 2, 1, id="queue and capacity"),
        pytest.param(
            [waiting(*[0] * 10), capacity(*[0.72] * 10)], 10, 10, id="0.72/0.80 = 0.90, edge"
        ),
        pytest.param(
            [waiting(0, 0, 0, 0), capacity(0.8, 0.8, 0.8, 0)], 4, 3, id="2.4/0.80 = 3, not 3.0…1"
        ),
        pytest.param([waiting(0, 0), kv(0.4, 0.4), ttft(3, 3)], 2, 3, id="2 * 3/2"),
        pytest.param([ttft(30, 30)], 2, 4, id="latency at most doubles"),
        pytest.param([ttft(3, None)], 2, 3, id="up: one without requests has no latency"),
        pytest.param(
            [waiting(0, 0, 0, 0), kv(0, 0, 0, 0), ttft(1, None, None, None)],
            4,
            2,
            id="down: 4 * 1/2, nor has it then",
        ),
        pytest.param([waiting(0, 0), ttft(0.1, 0.1)], 2, 2, id="latency proves no spare room"),
        pytest.param([kv(0.1, 0.1), ttft(0.1, 0.1)], 2, 2, id="nor an empty queue"),
        pytest.param([prompt(1500, 1500)], 2, 3, id="2 * 1500/1000"),
        pytest.param([prompt(5000, 5000)], 2, 10, id="tokens are shared: no limit as of latency"),
        pytest.param([prompt(2500, None)], 2, 3, id="up: a rate that is not known counts as 0"),
        pytest.param(
            [waiting(0, 0, 0, 0), kv(0, 0, 0, 0), prompt(500, 500, 500, None)],
            4,
            3,
            id="down: as on target, (1500 + 1000) / 1000",
        ),
        pytest.param([waiting(0, 0), prompt(1, 1)], 2, 2, id="tokens prove no spare room"),
        pytest.param([gpus(4, busy=7.6, known=8, gpus=8)], 4, 6, id="4 * 0.95/0.7 = 5.4"),
        pytest.param([gpus(4, busy=7.0, known=7, gpus=8)], 4, 5, id="up: 4 * 7/8/0.7 = 5"),
        pytest.param([gpus(4, busy=5.0, known=5, gpus=8)], 4, 4, id="up: 5/8 is below it"),
        pytest.param(
            [waiting(0, 0, 0, 0), kv(0, 0, 0, 0), gpus(4, busy=2.8, known=8, gpus=8)],
            4,
            2,
            id="down: 4 * 0.35/0.7",
        ),
        pytest.param(
            [waiting(0, 0, 0, 0), kv(0, 0, 0, 0), gpus(4, busy=1.4, known=4, gpus=8)],
            4,
            3,
            id="down: the others as on target, 4 * (1.4 + 2.8)/8/0.7",
        ),
        pytest.param(
            [waiting(0, 0), gpus(2, busy=0.0, known=2, gpus=2)], 2, 2, id="nor do GPUs at rest"
        ),
    ],
)
def test_the_hpa_rule(signals: list[Signal], replicas: int, desired: int) -> None:
    assert desired_replicas(signals, replicas, tolerance_ratio=0.10) == desired


@pytest.mark.parametrize(
    ("signals", "desired"),
    [
        pytest.param([waiting(0, 0), kv(0.1, 0.1)], 2, id="not measured: it stays"),
        pytest.param([waiting(0, 0), kv(0.1, 0.1), prompt(9, 9)], 1, id="measured"),
        pytest.param([waiting(20, 20), kv(0.1, 0.1)], 8, id="up all the same: 2 * 20/5"),
    ],
)
def test_what_has_a_target_and_is_not_measured_keeps_replicas(
    signals: list[Signal], desired: int
) -> None:
    optional = ["prompt_tokens_per_second"]

    assert desired_replicas(signals, 2, 0.10, optional) == desired
    assert lacking(signals, 0.10, optional) == (optional[0] if desired == 2 else "")


@pytest.mark.parametrize(
    ("signals", "missing"),
    [
        pytest.param([waiting(0), kv(0.1)], "", id="queue and fullness are known"),
        pytest.param([waiting(0)], "kv_cache_usage_ratio or capacity_usage_ratio", id="no room"),
        pytest.param(
            [waiting(0), ttft(0.1)], "kv_cache_usage_ratio or capacity_usage_ratio", id="latency"
        ),
        pytest.param([kv(0.1), capacity(0.1)], "requests_waiting", id="no queue"),
        pytest.param([kv(0.8)], "", id="the load is not low anyway: 0.8 / 0.85 = 0.94"),
    ],
)
def test_what_is_not_measured_is_named_where_it_keeps_replicas(
    signals: list[Signal], missing: str
) -> None:
    assert lacking(signals, tolerance_ratio=0.10) == missing


def test_only_measured_signals_count() -> None:
    engines = [engine("a", waiting=3), engine("b", running=4, running_max=0)]

    signals = measure(replica_loads(engines), ScalingSettings())

    assert signals == [waiting(3, None)]
    assert [signals[0].is_measured(load_of(one)) for one in engines] == [True, False]


def test_a_replica_that_sleeps_is_no_spare_room() -> None:
    awake = engine("a", waiting=0, kv=0.3)
    asleep = engine("b", waiting=0, kv=0.0, is_sleeping=True)

    signals = measure(replica_loads([awake, asleep]), ScalingSettings())

    assert signals == [waiting(0, None), kv(0.3, None)]
    assert desired_replicas(signals, 2, tolerance_ratio=0.10) == 2
    assert measure(replica_loads([asleep]), ScalingSettings()) == []


def test_latency_counts_where_it_has_a_target() -> None:
    engines = [engine("a", ttft_p95_seconds=1.5, itl_p95_seconds=0.02), engine("b")]
    settings = ScalingSettings(ttft_target_seconds=2.0)

    signals = measure(replica_loads(engines), settings)

    assert measure(replica_loads(engines), ScalingSettings()) == []
    assert signals == [ttft(1.5, None)]
    assert signals[0].total(0.0) == 3.0


def test_capacity_is_running_against_the_most_that_can_run() -> None:
    loads = replica_loads([engine(running=48, running_max=64)])

    (found,) = measure(loads, ScalingSettings())

    assert (found.name, found.mean) == ("capacity_usage_ratio", 0.75)


def test_rates_of_tokens_count_where_they_have_a_target() -> None:
    rates: dict[str, Any] = {
        "prompt_tokens_per_second": 800.0,
        "generation_tokens_per_second": 90.0,
    }
    engines = [engine("a", **rates), engine("b"), engine("c", is_sleeping=True, **rates)]
    settings = ScalingSettings(
        prompt_target_tokens_per_second=1000.0, generation_target_tokens_per_second=100.0
    )
    loads = replica_loads(engines, with_rates=True)

    signals = measure(loads, settings)

    assert measure(loads, ScalingSettings()) == []
    assert measure(replica_loads(engines), settings) == []
    assert signals == [
        signal("prompt_tokens_per_second", 1000.0, None, (800.0, None, None)),
        signal("generation_tokens_per_second", 100.0, None, (90.0, None, None)),
    ]
    of_each = [load_of(one, with_rates=True) for one in engines]
    assert [[one.is_measured(load) for load in of_each] for one in signals] == [
        [True, False, False],
        [True, False, False],
    ]


def test_gpus_count_where_they_have_a_target() -> None:
    busy, settings = GpuBusy(4, 3, 2.4, ("nvml",)), ScalingSettings(gpu_busy_target_ratio=0.7)
    loads = replica_loads([engine(), engine("b")])

    assert measure(loads, ScalingSettings(), busy) == []
    assert measure(loads, settings, None) == []
    (found,) = measure(loads, settings, busy)
    assert (found.name, found.target, found.saturation) == ("gpu_busy_ratio", 0.7, 1.0)
    assert found.mean == pytest.approx(0.8)
    assert found.total(0.0) == pytest.approx(2 * 2.4 / 4)
    assert found.total(1.0) == pytest.approx(2 * 3.4 / 4)
    assert found.measured == 1.5
    assert found.known == pytest.approx(2 * 2.4 / 4)
    assert not found.is_measured(load_of(engine(kv=0.1), with_rates=True))


def test_signals_with_a_target_of_their_own_must_be_measured() -> None:
    settings = ScalingSettings(
        prompt_target_tokens_per_second=1.0,
        generation_target_tokens_per_second=1.0,
        gpu_busy_target_ratio=1.0,
        ttft_target_seconds=1.0,  # null where there was no request
    )

    assert optional_signals(ScalingSettings()) == []
    assert optional_signals(settings) == [
        "prompt_tokens_per_second",
        "generation_tokens_per_second",
        "gpu_busy_ratio",
    ]
