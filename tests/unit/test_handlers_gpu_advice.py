"""Plans for fewer nodes from the stream: when they are told, advised, kept, and withdrawn."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from handlers.rightsizing.handler import GpuAdviceHandler
from handlers.settings import ConsolidateSettings, GpuAdviceSettings, HandlersSettings
from handlers.slots import Routed, Slot, Watermark
from schemas.consolidation import Consolidation
from schemas.protocols import Emit, Moment
from schemas.scaling import Decision, Recommendation
from schemas.units import instant, to_ns
from tests.support.fleets import H100, minute_end, recorded
from tests.support.samples import at, host

GB = 10**9
MINUTES = range(120)
HOUR = HandlersSettings(
    gpu_advice=GpuAdviceSettings(history_hours=1, consolidate=ConsolidateSettings(least_nodes=1))
)


def work(node: str, memory: float | None = 0.3, busy: float = 0.2, **fields: Any) -> dict[str, Any]:
    return {
        "gpu_id": "g0",
        "node": node,
        "name": H100,
        "pool": "chat",
        "memory_total_bytes": 80 * GB,
        "memory_utilization_ratio": memory,
        "utilization_ratio": busy,
        **fields,
    }


def stream(
    parts: Sequence[dict[str, Any]],
    minutes: range = MINUTES,
    hosts: Sequence[str] = ("n1", "n2", "n3"),
) -> list[Routed]:
    """These GPUs, and the hosts of these nodes with 25 % of 64 GiB used."""
    of_gpus = recorded(minutes, lambda _: parts)
    of_hosts = [
        Routed(host(name, memory=0.25, pool="chat"), at(minute * 60 + 30, 0))
        for minute in minutes
        for name in hosts
    ]
    ordered = sorted([*of_gpus, *of_hosts], key=lambda one: one.now.ns)
    return [Routed(one.message, Moment(one.now.ns, n)) for n, one in enumerate(ordered, start=1)]


def slot(settings: HandlersSettings = HOUR, since: Watermark | None = None) -> Slot:
    return Slot(0, 1, [GpuAdviceHandler(settings)], since or Watermark(sequence=0, ns=0))


def said(messages: Sequence[Routed], settings: HandlersSettings = HOUR) -> list[Emit]:
    one = slot(settings)
    emits = [emit for routed in messages for emit in one.feed(routed)]
    return [*emits, *one.advance(minute_end(messages))]


def of(kind: type[Any], emits: Sequence[Emit]) -> list[Any]:
    return [emit.message for emit in emits if isinstance(emit.message, kind)]


TWO = [work("n1"), work("n2", 0.4, 0.3)]


def test_a_plan_is_told_every_ten_minutes_and_advised_once_it_held_three_times() -> None:
    emits = said(stream(TWO, hosts=("n1", "n2")))

    plans = of(Consolidation, emits)
    told = [to_ns(plan.decided_at) for plan in plans[1:]]
    assert {after - before for before, after in itertools.pairwise(told)} == {600 * 10**9}
    first = next(plan for plan in plans if plan.moves)
    assert (first.id, first.nodes, first.nodes_after, first.left_out) == ("chat", 2, 1, {})
    assert (first.gpu_memory_peak_ratio, first.gpu_busy_peak_ratio) == (0.7, 0.5)
    assert first.host_memory_peak_ratio == pytest.approx(0.5)
    assert first.saving_usd_per_hour == 3.99
    (advice,) = of(Recommendation, emits)
    assert to_ns(advice.decided_at) - to_ns(first.decided_at) == 2 * 600 * 10**9
    assert (advice.action, advice.pool, advice.reason) == (
        "consolidate",
        "chat",
        "fewer_nodes_hold_it",
    )
    assert advice.moves == first.moves
    assert [(m.node, m.to_node, m.memory_bytes) for m in advice.moves] == [("n1", "n2", 24 * GB)]
    assert (advice.saving_usd_per_hour, advice.risk, advice.confidence_ratio) == (3.99, "medium", 1)
    assert advice.one_off_cost_usd == pytest.approx(3.99 / 6)  # 600 s
    assert advice.payback_hours == pytest.approx(1 / 6)
    assert advice.text.startswith("Empty n1 of pool chat in 1 move: 2 → 1 nodes")


def test_evidence_names_each_gpu_and_host_and_the_ten_minutes_of_the_peak() -> None:
    (advice,) = of(Recommendation, said(stream(TWO, hosts=("n1", "n2"))))

    memory = advice.evidence[:2]
    assert [one.subject for one in memory] == ["rollup.gpu.n2-g0", "rollup.gpu.n1-g0"]
    assert [one.value for one in memory] == pytest.approx([0.7, 0.7])
    assert {one.threshold for one in memory} == {0.9}
    assert {one.signal for one in memory} == {"gpu_memory_ratio_projected"}
    assert [one.subject for one in advice.evidence[4:]] == ["rollup.host.n2", "rollup.host.n1"]
    begin = memory[0].measured_from
    assert memory[0].measured_to == instant(to_ns(begin) + 600 * 10**9)
    assert at(0).ns <= to_ns(begin) < to_ns(advice.decided_at) - 600 * 10**9


@pytest.mark.parametrize(
    ("parts", "left_out"),
    [
        pytest.param(
            [work("n1"), work("n2", None)],
            {"a GPU not measured for long enough": 1},
            id="memory unknown",
        ),
        pytest.param([work("n1"), work("n2", 0.0, 0.0)], {"idle": 1}, id="idle"),
        pytest.param([work("n1"), work("n2", 0.7)], {}, id="no room"),
        pytest.param(
            [work("n1"), work("x")], {"host memory not measured for long enough": 1}, id="no host"
        ),
    ],
)
def test_without_moves_the_plan_says_why(
    parts: list[dict[str, Any]], left_out: dict[str, int]
) -> None:
    emits = said(stream(parts))

    plan = of(Consolidation, emits)[-1]
    assert (plan.moves, plan.left_out, plan.saving_usd_per_hour) == ([], left_out, None)
    assert plan.gpu_memory_peak_ratio is None
    assert plan.text.startswith("No node of pool chat can be emptied")
    assert of(Recommendation, emits) == []


def test_a_plan_without_a_price_is_told_and_not_advised() -> None:
    parts = [work("n1", name="AMD Instinct MI300X"), work("n2", name="AMD Instinct MI300X")]

    emits = said(stream(parts))

    assert len(of(Consolidation, emits)[-1].moves) == 1
    assert of(Consolidation, emits)[-1].saving_usd_per_hour is None
    assert of(Recommendation, emits) == []


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"least_saving_usd_per_hour": 4.0}, id="too little"),
        pytest.param({"least_saving_ratio": 0.51}, id="too small a share"),
    ],
)
def test_what_saves_too_little_is_told_and_not_advised(fields: dict[str, Any]) -> None:
    limits = ConsolidateSettings(least_nodes=1, **fields)
    settings = HandlersSettings(gpu_advice=GpuAdviceSettings(history_hours=1, consolidate=limits))

    emits = said(stream(TWO), settings)

    assert len(of(Consolidation, emits)[-1].moves) == 1
    assert of(Recommendation, emits) == []


def test_what_is_simulated_stays_so_and_counts_only_alone() -> None:
    simulated = [work(name, simulated=True) for name in ("n1", "n2")]

    alone = said(stream(simulated))
    beside = said(stream([*simulated, work("n3")]))

    assert {one.simulated for one in (*of(Consolidation, alone), *of(Recommendation, alone))} == {
        True
    }
    assert len(of(Recommendation, alone)) == 1
    assert beside == []


def test_a_pool_of_one_node_has_no_plan() -> None:
    assert said(stream([work("n1")])) == []


def test_a_plan_that_still_fits_is_kept_though_another_day_finds_another() -> None:
    before = stream(TWO, range(120))
    # n1 now holds more than n2: found anew, n2 would be emptied.
    after = stream([work("n1", 0.45, 0.35), work("n2", 0.4, 0.3)], range(120, 260))
    emits = said(_one_after_the_other(before, after))

    assert len(of(Recommendation, emits)) == 1
    assert {tuple(move.node for move in plan.moves) for plan in of(Consolidation, emits)} == {
        (),
        ("n1",),
    }
    assert of(Consolidation, emits)[-1].moves[0].memory_bytes == 36 * GB


def test_a_plan_that_does_not_fit_any_more_is_withdrawn() -> None:
    before = stream(TWO, range(120))
    after = stream([work("n1"), work("n2", 0.7)], range(120, 200))

    emits = said(_one_after_the_other(before, after))

    assert len(of(Recommendation, emits)) == 1
    (end,) = of(Decision, emits)
    assert (end.verdict, end.reason) == ("expired", "nothing of it holds any more")
    assert of(Consolidation, emits)[-1].moves == []


def test_a_node_that_fell_silent_is_left_out_and_takes_nothing() -> None:
    before = stream([*TWO, work("n3", 0.1, 0.1)], range(60))
    after = stream(TWO, range(60, 100), hosts=("n1", "n2"))

    plan = of(Consolidation, said(_one_after_the_other(before, after)))[-1]

    assert plan.left_out == {"a GPU that fell silent": 1}
    assert [(move.node, move.to_node) for move in plan.moves] == [("n1", "n2")]
    assert plan.text.endswith(
        "50% host memory at most, 1 left out (a GPU that fell silent). Requests under way are not "
        "moved: drain each engine first."
    )


def test_the_plan_says_how_many_nodes_keep_work_where_there_are_no_more() -> None:
    emits = said(stream(TWO), HandlersSettings(gpu_advice=GpuAdviceSettings(history_hours=1)))

    assert of(Consolidation, emits)[-1].text == (
        "No node of pool chat can be emptied: 2 could be judged, and 2 keep work (least_nodes)."
    )


def test_a_better_plan_supersedes() -> None:
    before = stream(TWO, range(120), hosts=("n1", "n2"))
    after = stream([*TWO, work("n3", 0.1, 0.1)], range(120, 300))

    emits = said(_one_after_the_other(before, after))

    first, second = of(Recommendation, emits)
    assert second.supersedes == first.recommendation_id
    assert second.saving_usd_per_hour == pytest.approx(2 * 3.99)
    assert [decision.verdict for decision in of(Decision, emits)] == ["superseded"]


def test_a_new_owner_goes_on_where_the_old_one_stopped() -> None:
    messages = stream([*TWO, work("n3", 0.1, 0.1)], range(150))
    expected = said(messages)

    told: list[Emit] = []
    owner = slot()
    for cut, routed in enumerate(messages):
        if cut % 131 == 130:
            owner = slot(since=Watermark.decode(owner.watermark().encode()))
            for earlier in messages[:cut]:
                if earlier.now.ns >= owner.start_ns:
                    told += owner.feed(earlier)
        told += owner.feed(routed)
    told += owner.advance(minute_end(messages))

    assert of(Recommendation, expected)
    assert told == expected


def _one_after_the_other(*streams: Sequence[Routed]) -> list[Routed]:
    messages = [routed for one in streams for routed in one]
    return [Routed(one.message, Moment(one.now.ns, n)) for n, one in enumerate(messages, start=1)]
