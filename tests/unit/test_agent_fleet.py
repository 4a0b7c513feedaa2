"""The rows of the live view: latest values, ages, orders, filters; nothing invented."""

import time

import pytest

from agent.fleet import Choice, Fleet
from schemas.analysis import GpuUse, Utilization
from schemas.units import SECOND_NS, instant, token
from tests.support.advice import advice
from tests.support.samples import START_NS, engine, gpu, host

NOW_NS = START_NS


def heard(*messages: object, ago_seconds: float = 0.0) -> Fleet:
    fleet = Fleet()
    for message in messages:
        fleet.accept(message, NOW_NS - round(ago_seconds * SECOND_NS))  # type: ignore[arg-type]
    return fleet


def test_what_was_not_measured_stays_unknown() -> None:
    rows = heard(host(), gpu(), engine()).rows(Choice(), NOW_NS)

    (node,), (card,), (replica,), (pool,) = rows.nodes, rows.gpus, rows.engines, rows.pools
    assert (node.cpu_ratio, node.memory_ratio, node.disk_ratio) == (None, None, None)
    assert (card.busy_ratio, card.power_watts, card.state, card.note) == (None, None, None, "")
    assert (replica.waiting, replica.kv_ratio) == (None, None)
    assert (pool.engines, pool.waiting, pool.kv_ratio, pool.advice) == (1, None, None, None)


@pytest.mark.parametrize(
    ("interval_seconds", "ago_seconds", "is_stale"),
    [(5.0, 30.0, False), (5.0, 30.1, True), (20.0, 59.0, False), (20.0, 61.0, True)],
)
def test_a_row_is_stale_after_30_seconds_or_three_of_its_intervals(
    interval_seconds: float, ago_seconds: float, is_stale: bool
) -> None:
    fleet = heard(host(interval_seconds=interval_seconds), ago_seconds=ago_seconds)

    (row,) = fleet.rows(Choice(), NOW_NS).nodes

    assert row.is_stale == is_stale
    assert row.age_seconds == pytest.approx(ago_seconds)


def test_the_newest_message_counts_whatever_order_they_come_in() -> None:
    fleet = heard(host(cpu=0.9))
    fleet.accept(host(cpu=0.1), NOW_NS - 10 * SECOND_NS)

    assert [row.cpu_ratio for row in fleet.rows(Choice(), NOW_NS).nodes] == [0.9]


def test_what_is_silent_for_an_hour_is_forgotten() -> None:
    assert heard(host(), ago_seconds=3601).rows(Choice(), NOW_NS).nodes == []


def test_a_gpus_state_is_what_the_handlers_say() -> None:
    use = GpuUse(
        gpu="g0", node="n1", state="idle_held", utilization_ratio=None,
        memory_utilization_ratio=None, evidence=[],
    )  # fmt: skip
    judged = Utilization(
        scope="node", id="n1", decided_at=instant(0), window_seconds=60.0, level=None, health=None,
        efficiency_ratio=None, resources=[], bottlenecks=[], gpus=[use],
    )  # fmt: skip

    (row,) = heard(gpu(), judged).rows(Choice(), NOW_NS).gpus

    assert row.state == "idle_held"


def test_of_a_node_its_pools_are_shown_as_a_whole_and_no_others() -> None:
    fleet = heard(engine("a", "n1"), engine("b", "n2"), engine("c", "n2", pool="other"))

    one, two = (fleet.rows(Choice(node=name), NOW_NS) for name in ("n1", "n2"))

    assert [(row.pool, row.engines) for row in one.pools] == [("chat", 2)]
    assert [row.pool for row in two.pools] == ["chat", "other"]


def test_a_pool_sums_what_its_engines_measured_and_leaves_out_stale_ones() -> None:
    fleet = heard(engine("a", waiting=3, kv=0.5), engine("b", running=4), engine("c", kv=0.7))
    fleet.accept(engine("old", waiting=99, kv=1.0), NOW_NS - 60 * SECOND_NS)

    (pool,) = fleet.rows(Choice(), NOW_NS).pools

    assert (pool.engines, pool.waiting, pool.running) == (3, 3, 4)
    assert pool.kv_ratio == pytest.approx(0.6)


def test_rows_are_chosen_by_node_and_pool() -> None:
    fleet = heard(
        host("n1", pool="a"),
        host("n2", pool="b"),
        gpu("g", "n1", pool="a"),
        engine("e", "n2", pool="b"),
    )

    by_node = fleet.rows(Choice(node="n1"), NOW_NS)
    by_pool = fleet.rows(Choice(pool="b"), NOW_NS)

    assert [row.node for row in by_node.nodes] + [row.node for row in by_node.gpus] == ["n1"] * 2
    assert (by_node.engines, by_pool.gpus) == ([], [])
    assert [row.node for row in by_pool.nodes] + [row.node for row in by_pool.engines] == ["n2"] * 2
    assert [pool.pool for pool in by_pool.pools] == ["b"]


def test_rows_are_chosen_by_names_as_they_were_typed() -> None:
    pool, node = token("team a/1"), token("rack 1/node.a")
    fleet = heard(host(node, pool=pool), engine("e", node, pool=pool))
    advised = heard(advice(1, pool=pool))

    chosen = fleet.rows(Choice(node="rack 1/node.a", pool="team a/1"), NOW_NS)
    other = fleet.rows(Choice(node="rack 1/node.b", pool="team a/2"), NOW_NS)

    assert [len(rows) for rows in (chosen.nodes, chosen.engines, chosen.pools)] == [1] * 3
    assert (other.nodes, other.engines, other.pools) == ([], [], [])
    for name, count in (("team a/1", 1), ("team a/2", 0)):
        assert len(advised.rows(Choice(pool=name), time.time_ns()).advice) == count


def test_advice_on_the_cache_of_a_pool_does_not_hide_that_on_its_replicas() -> None:
    fleet = heard(advice(1), advice(2, action="scale_down"), advice(3, action="tune_cache"))

    rows = fleet.rows(Choice(), time.time_ns())

    assert sorted(one.action for one in rows.advice) == ["scale_down", "tune_cache"]
