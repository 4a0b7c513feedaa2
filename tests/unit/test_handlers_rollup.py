from typing import Any

import msgspec
import pytest

from handlers.minute_summaries import summarise
from handlers.rollup import MAX_CACHES, RollupHandler
from handlers.settings import RollupSettings
from handlers.slots import STEP_NS, turn_of
from schemas.engines import CacheMetrics
from schemas.metrics import Rollup, Summary
from schemas.protocols import Emit
from schemas.units import SECOND_NS, instant, to_ns
from tests.support.samples import START_NS, at, engine, gpu, host


def rollups(emits: list[Emit]) -> list[Rollup]:
    return [emit.message for emit in emits if isinstance(emit.message, Rollup)]


def node_handler() -> RollupHandler:
    return RollupHandler(RollupSettings(), "node")


@pytest.mark.parametrize(
    ("values", "p95"),
    [
        pytest.param([7.0], 7.0, id="one value"),
        pytest.param(list(range(1, 11)), 10, id="of ten the highest"),
        pytest.param(list(range(1, 21)), 19, id="of twenty the nineteenth"),
        pytest.param(list(range(100, 0, -1)), 95, id="of a hundred, in any order"),
    ],
)
def test_p95_is_the_nearest_rank(values: list[float], p95: float) -> None:
    assert summarise(values).p95 == p95


def test_a_minute_is_summarised_once_it_is_over() -> None:
    handler = node_handler()
    for second, cpu in ((0, 0.25), (30, 0.5), (59.999, 0.75)):
        assert handler.handle(host(cpu=cpu), at(second)) == []

    emits = list(handler.tick(at(70)))

    assert [emit.message_id for emit in emits] == [f"rollup.host.n1.{START_NS}"]
    minute = rollups(emits)[0]
    assert to_ns(minute.minute_at) == START_NS
    assert minute.metrics == {
        "cpu_utilization_ratio": Summary(min=0.25, mean=0.5, max=0.75, p95=0.75, count=3)
    }


def test_a_sample_on_the_minute_is_of_the_next() -> None:
    handler = node_handler()
    emits: list[Emit] = []
    for second in (0, 60, 119.999):
        emits += handler.handle(host(cpu=0.5), at(second))

    minutes = rollups([*emits, *handler.tick(at(200))])

    counts = {to_ns(m.minute_at): m.metrics["cpu_utilization_ratio"].count for m in minutes}
    assert counts == {START_NS: 1, START_NS + 60 * SECOND_NS: 2}


def test_samples_that_measured_different_things_count_together() -> None:
    handler = node_handler()
    handler.handle(host(cpu=0.25, memory=0.5), at(0))
    handler.handle(host(cpu=0.75), at(5))
    handler.handle(host(memory=0.7), at(10))

    metrics = rollups(list(handler.tick(at(70))))[0].metrics

    assert metrics["cpu_utilization_ratio"].count == 2
    assert metrics["cpu_utilization_ratio"].mean == 0.5
    assert metrics["memory_utilization_ratio"].count == 2


@pytest.mark.parametrize(
    ("seconds", "count"), [pytest.param(-0.1, 0, id="before"), pytest.param(0, 1, id="over")]
)
def test_grace_and_the_turn_of_the_node_are_waited_for(seconds: float, count: int) -> None:
    handler = node_handler()
    handler.handle(host(cpu=0.5), at(10))
    turn_seconds = 65 + turn_of("n1") * STEP_NS / SECOND_NS

    assert len(handler.tick(at(turn_seconds + seconds))) == count


def test_many_nodes_take_turns() -> None:
    handler = node_handler()
    for number in range(200):
        handler.handle(host(f"node-{number}", cpu=0.5), at(10))

    early = handler.tick(at(64.5))
    counts = [len(handler.tick(at(65 + step / 2))) for step in range(10)]

    assert early == []
    assert sum(counts) == 200
    assert max(counts) < 40


def test_a_later_message_gives_the_minute_out_as_a_tick_would() -> None:
    ticked, told = node_handler(), node_handler()
    for handler in (ticked, told):
        handler.handle(host(cpu=0.5), at(10))

    assert told.handle(host("n2", cpu=0.1), at(71)) == ticked.tick(at(70))


def test_a_minute_is_given_out_once() -> None:
    handler = node_handler()
    handler.handle(host(cpu=0.5), at(10))
    handler.tick(at(70))

    late = handler.handle(host(cpu=0.9), at(59))

    assert late == []
    assert handler.tick(at(200)) == []


def test_what_was_not_measured_is_absent() -> None:
    handler = node_handler()
    handler.handle(gpu(temperature_celsius=50.0), at(0))
    handler.handle(engine(), at(0))

    minutes = rollups(list(handler.tick(at(70))))

    assert [(m.kind, m.id, list(m.metrics)) for m in minutes] == [
        ("gpu", "n1-g0", ["temperature_celsius"])
    ]
    assert minutes[0].energy_joules is None


@pytest.mark.parametrize(
    ("totals", "joules"),
    [
        pytest.param([(0, 100.0)], None, id="one reading is no difference"),
        pytest.param([(0, 100.0), (5, 150.0), (10, 170.0)], 70.0, id="sum of the rises"),
        pytest.param([(0, 100.0), (5, 150.0), (10, 30.0), (15, 40.0)], 60.0, id="counter reset"),
        pytest.param([(-5, 90.0), (5, 150.0)], 60.0, id="from the minute before"),
        pytest.param([(-130, 90.0), (5, 150.0)], None, id="after a long silence unknown"),
        pytest.param([(0, 100.0), (5, 100.0)], 0.0, id="no energy is measured zero"),
        pytest.param([(0, 100.0), (5, 9e14), (10, 9e14 + 8)], 8.0, id="no GPU draws as much"),
    ],
)
def test_energy_comes_from_the_counter(
    totals: list[tuple[float, float]], joules: float | None
) -> None:
    handler = node_handler()
    emits: list[Emit] = []
    for second, total in totals:
        emits += handler.handle(gpu(power_watts=1.0, energy_joules_total=total), at(second))
    emits += handler.tick(at(70))

    minute = next(m for m in rollups(emits) if to_ns(m.minute_at) == START_NS)
    assert minute.energy_joules == joules


def test_energy_after_a_silence_of_two_minutes_is_unknown_though_others_told() -> None:
    handler = node_handler()
    handler.handle(gpu(energy_joules_total=100.0), at(0))
    handler.tick(at(70))

    handler.handle(gpu(energy_joules_total=200.0), at(120))
    handler.handle(gpu(energy_joules_total=230.0), at(125))

    assert [minute.energy_joules for minute in rollups(list(handler.tick(at(190))))] == [30.0]


def test_a_pools_minute_holds_all_its_members() -> None:
    handler = RollupHandler(RollupSettings(), "pool")
    handler.handle(engine("e0", waiting=2, pool="chat"), at(0))
    handler.handle(engine("e1", waiting=6, pool="chat", simulated=True), at(1))
    handler.handle(host(cpu=0.5, pool="chat"), at(2))
    handler.handle(host(cpu=0.9), at(2))

    (minute,) = rollups(list(handler.tick(at(70))))

    assert (minute.kind, minute.id, minute.simulated) == ("pool", "chat", True)
    assert minute.metrics["engine_requests_waiting"].mean == 4.0
    assert minute.metrics["engines"].max == 2
    assert minute.metrics["host_cpu_utilization_ratio"].count == 1


def test_after_the_window_silence() -> None:
    handler = node_handler()
    handler.handle(host(cpu=0.5), at(0))
    handler.tick(at(70))

    assert [handler.tick(at(second)) for second in range(75, 900, 5)] == [[]] * 165


def test_minutes_of_names_that_look_alike_together_stay_apart() -> None:
    handler = node_handler()
    pairs = [("a", "b-c"), ("a-b", "c"), ("n" * 64, "g" * 64), ("n" * 64, "g" * 63 + "h")]
    for node, name in pairs:
        handler.handle(gpu(name, node=node, power_watts=1.0), at(0))
        handler.handle(engine(name, node=node, running=1), at(0))

    minutes = rollups(list(handler.tick(at(80))))

    subjects = [minute.subject() for minute in minutes]
    assert len(set(subjects)) == len(subjects) == 2 * len(pairs)
    assert {(one.node, one.gpu) for one in minutes if one.kind == "gpu"} == set(pairs)
    assert {(one.node, one.engine) for one in minutes if one.kind == "engine"} == set(pairs)
    for minute in minutes:
        assert msgspec.convert(msgspec.to_builtins(minute), Rollup) == minute


def test_engines_of_a_pool_are_counted_by_node_and_name() -> None:
    handler = RollupHandler(RollupSettings(), "pool")
    for node, name in (("a", "b-c"), ("a-b", "c")):
        handler.handle(engine(name, node=node, pool="chat", running=1), at(0))

    (minute,) = rollups(list(handler.tick(at(80))))

    assert minute.metrics["engines"].max == 2


def cache(name: str, namespace: str = "default", **fields: Any) -> CacheMetrics:
    return CacheMetrics(instance=name, namespace=namespace, observed_at=instant(START_NS), **fields)


def test_each_namespace_of_a_cache_has_a_minute_of_its_own() -> None:
    handler = RollupHandler(RollupSettings(), "fleet")
    handler.handle(cache("c1", entries=2, hits_total=10), at(0))
    handler.handle(cache("c1", "chat", entries=7), at(1))
    handler.handle(cache("c1", entries=4, hits_total=30), at(59))

    first, second = rollups(list(handler.tick(at(70))))

    assert (first.subject(), first.instance, first.namespace) == (
        "rollup.cache.c1-chat",
        "c1",
        "chat",
    )
    assert (second.id, second.node, to_ns(second.minute_at)) == ("c1-default", None, START_NS)
    assert second.metrics == {
        "entries": Summary(min=2, mean=3, max=4, p95=4, count=2),
        "hits_total": Summary(min=10, mean=20, max=30, p95=30, count=2),
    }


def test_caches_beyond_the_most_of_a_minute_are_left_out_and_long_names_are_tokens() -> None:
    handler = RollupHandler(RollupSettings(), "fleet")
    name = "i" * 128
    handler.handle(cache(name, "n" * 128, entries=1), at(0))
    for number in range(MAX_CACHES + 5):
        handler.handle(cache("c", f"n{number}", entries=1), at(1))

    found = rollups(list(handler.tick(at(70))))

    assert len(found) == MAX_CACHES
    (long,) = [one for one in found if one.instance == name]
    assert len(long.id) == 128
    assert msgspec.convert(msgspec.to_builtins(long), Rollup) == long


def test_a_cache_goes_on_from_minute_to_minute_and_one_left_out_costs_nothing() -> None:
    handler = RollupHandler(RollupSettings(), "fleet")
    handler.handle(cache("c1", entries=1), at(0))
    for number in range(MAX_CACHES):
        handler.handle(cache("c", f"n{number}", entries=1), at(1))
    handler.handle(cache("c1", entries=3), at(2))
    followed = len(handler._sources)
    first = [one for one in rollups(list(handler.tick(at(70)))) if one.instance == "c1"]
    handler.handle(cache("c", f"n{MAX_CACHES - 1}", entries=5), at(71))
    handler.handle(cache("c1", entries=7), at(80))
    second = rollups(list(handler.tick(at(130))))

    assert followed == MAX_CACHES
    assert [one.metrics["entries"].mean for one in first] == [2.0]
    assert {one.id: one.metrics["entries"].mean for one in second} == {
        "c1-default": 7.0,
        f"c-n{MAX_CACHES - 1}": 5.0,
    }


def test_a_machines_and_a_pools_minutes_have_no_caches() -> None:
    assert CacheMetrics not in RollupHandler(RollupSettings(), "node").consumes
    assert RollupHandler(RollupSettings(), "fleet").consumes == (CacheMetrics,)


def test_a_gpu_that_moves_counts_in_both_pools() -> None:
    handler = RollupHandler(RollupSettings(), "pool")
    for second, pool in ((0, "a"), (5, "a"), (10, "b"), (15, "a")):
        sample = gpu(pool=pool, temperature_celsius=50.0, energy_joules_total=100.0 * second)
        handler.handle(sample, at(second))

    found = {one.id: one for one in rollups(list(handler.tick(at(70))))}

    assert {pool: one.metrics["gpu_temperature_celsius"].count for pool, one in found.items()} == {
        "a": 3,
        "b": 1,
    }
    assert {pool: one.energy_joules for pool, one in found.items()} == {"a": 1000.0, "b": 500.0}


def test_the_energy_of_a_sample_too_late_for_its_minute_is_told_with_the_next() -> None:
    handler = node_handler()
    handler.handle(gpu(energy_joules_total=100.0), at(10))
    handler.tick(at(70))
    handler.handle(gpu(energy_joules_total=200.0), at(59))  # the server's clock was set back
    handler.handle(gpu(energy_joules_total=300.0), at(75))

    (minute,) = rollups(list(handler.tick(at(130))))

    assert (to_ns(minute.minute_at) - START_NS, minute.energy_joules) == (60 * SECOND_NS, 200.0)


def test_what_is_silent_for_two_minutes_is_forgotten() -> None:
    handler = node_handler()
    handler.handle(host(cpu=0.5), at(0))
    followed = []
    for second in (70, 190):
        handler.handle(host("n2", cpu=0.5), at(second))
        handler.tick(at(second))
        followed.append(len(handler._sources))

    assert followed == [2, 1]
