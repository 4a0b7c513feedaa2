"""Fewer nodes for the same work: where it goes, what that saves, and the proof by replay."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from handlers.prices import PriceList, PriceRule, PriceSettings
from handlers.rightsizing.consolidation import pack, with_figures_of
from handlers.rightsizing.consolidation_advice import saving_of
from handlers.rightsizing.consolidation_replay import replay
from handlers.rightsizing.node_loads import Curve, GpuLoad, Measured, NodeLoad, node_loads
from handlers.rightsizing.peaks import History, Part, packed
from handlers.settings import ConsolidateSettings
from schemas.changes import Move
from tests.support.fleets import H100

GB = 1e9
WINDOWS = 6


def curve(value: float | Sequence[float]) -> Curve:
    values = [value] * WINDOWS if isinstance(value, int | float) else list(value)
    return Curve(values)


def load(
    gpu: str,
    memory: float | Sequence[float] = 0.0,
    busy: float | Sequence[float] = 0.0,
    *,
    name: str = H100,
    usd: float | None = 4.0,
) -> GpuLoad:
    """A GPU of 80 GB; `memory` in GB, 0: nothing runs there."""
    held = curve(memory)
    return GpuLoad(
        gpu=gpu,
        name=name,
        size_bytes=80 * GB,
        has_work=held.peak > 0,
        memory=Curve(held.steps, GB),
        busy=curve(busy),
        usd_per_hour=usd,
    )


def node(name: str, *gpus: GpuLoad, host: float | Sequence[float] = 100.0) -> NodeLoad:
    """With 512 GB of RAM, of which `host` are used."""
    used = Curve(curve(host).steps, GB)
    return NodeLoad(name, gpus, 512 * GB, used)


def packed_onto(*nodes: NodeLoad, **fields: Any) -> list[Move]:
    settings = ConsolidateSettings(**{"least_nodes": 1, **fields})
    moves = pack(nodes, settings)
    proof = replay(nodes, moves, settings)
    assert proof is not None
    assert proof.fits
    return moves


def told(moves: Sequence[Move]) -> list[str]:
    return [f"{move.node}/{move.gpu}>{move.to_node}/{move.to_gpu}" for move in moves]


def test_the_node_that_is_cheapest_to_empty_goes_to_the_fullest_that_has_room() -> None:
    moves = packed_onto(
        node("full", load("a", 70, 0.6), load("b", 70, 0.6)),
        node("half", load("a", 70, 0.6), load("b")),
        node("one", load("a", 60, 0.5), load("b")),
    )

    # `half` and `one` take one move each; by name `half` is tried first, and fits beside `one`.
    assert told(moves) == ["half/a>one/b"]
    (move,) = moves
    assert (move.memory_bytes, move.busy_ratio, move.saving_usd_per_hour) == (70 * GB, 0.6, 8.0)


def test_every_move_has_its_saving_which_comes_with_the_one_that_empties_the_node() -> None:
    moves = packed_onto(
        node("n1", load("a", 10), load("b", 10), load("c")),
        node("n2", load("a", 10), load("b"), load("c")),
        node("n3", load("a", 50), load("b", 50), load("c", 50)),
    )

    assert told(moves) == ["n2/a>n3/a", "n1/a>n3/a", "n1/b>n3/b"]
    assert [move.saving_usd_per_hour for move in moves] == [12.0, 0.0, 12.0]
    assert saving_of(moves) == 24.0


def test_what_took_work_is_not_emptied_any_more() -> None:
    moves = packed_onto(
        node("n1", load("a", 40), load("b")),
        node("n2", load("a", 20), load("b")),
        node("n3", load("a", 45)),
        fixed_nodes=("n3",),
    )

    assert told(moves) == ["n1/a>n2/b"]  # though the work of n2 itself would fit on n3


def test_work_of_several_gpus_stays_together_each_on_a_gpu_of_its_own() -> None:
    apart = packed_onto(
        node("n1", load("a", 10), load("b", 10)),
        node("n2", load("a", 10), load("b", 60)),
        node("n3", load("a", 75)),
    )

    assert told(apart) == ["n1/a>n2/b", "n1/b>n2/a"]
    assert (
        packed_onto(
            node("n1", load("a", 30), load("b", 30)), node("n2", load("a", 10), load("b", 60))
        )
        == []
    )


@pytest.mark.parametrize(
    ("other", "fields"),
    [
        pytest.param(load("a", 43, 0.1), {}, id="memory: 73 of 72 GB"),
        pytest.param(load("a", 10, 0.51), {}, id="activity: 0.81 of 0.8"),
        pytest.param(load("a", 10, 0.1, name="NVIDIA L40S"), {}, id="another model"),
        pytest.param(load("a", 10), {"fixed_nodes": ("n*",)}, id="fixed"),
        pytest.param(load("a", 10), {"node_groups": ("n1",)}, id="another group"),
        pytest.param(load("a", 10), {"least_nodes": 2}, id="the last two"),
        pytest.param(load("a", 10), {"host_memory_max_ratio": 0.39}, id="host memory: 200 of 199"),
    ],
)
def test_what_keeps_work_where_it_is(other: GpuLoad, fields: dict[str, Any]) -> None:
    first, second = node("n1", load("a", 30, 0.3)), node("n2", other, load("b", 75))

    assert packed_onto(first, second, **fields) == []
    assert len(packed_onto(first, node("n2", load("a", 10), load("b", 75)))) == 1


def test_a_node_with_more_work_than_moves_are_left_stays() -> None:
    nodes = [
        node("n1", load("a", 10), load("b", 10)),
        node("n2", load("a", 10), load("b", 70)),
        node("n3", load("a", 70), load("b"), load("c"), load("d"), load("e")),
    ]

    assert [len(packed_onto(*nodes, moves_max=most)) for most in (1, 2, 3, 4)] == [0, 2, 2, 4]


def test_a_gpu_is_shared_by_as_many_as_fit_together() -> None:
    moves = packed_onto(*(node(f"n{number}", load("a", 10, 0.3)) for number in range(4)))

    assert len(moves) == 2  # two on each of two nodes: 0.6; three would be 0.9


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(load("a", 42, 0.1), id="memory: 72 of 72 GB"),
        pytest.param(load("a", 10, 0.5), id="activity: 0.8 of 0.8"),
    ],
)
def test_exactly_at_the_limit_it_fits(other: GpuLoad) -> None:
    moves = packed_onto(
        node("n1", load("a", 30, 0.3)), node("n2", other, load("b", 75)), fixed_nodes=("n2",)
    )

    assert told(moves) == ["n1/a>n2/a"]


def test_work_that_is_busy_at_other_times_fits_where_the_sum_of_the_peaks_would_not() -> None:
    day, night = [0.7, 0.7, 0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7, 0.7, 0.7]

    assert packed_onto(node("n1", load("a", 10, day)), node("n2", load("a", 10, day))) == []
    assert len(packed_onto(node("n1", load("a", 10, day)), node("n2", load("a", 10, night)))) == 1


def test_what_has_no_price_is_emptied_last_and_its_saving_is_not_known() -> None:
    free = node("n1", load("a", 10, usd=None))
    priced = node("n2", load("a", 10))
    target = node("n3", load("a", 70), load("b"))

    moves = packed_onto(free, priced, target, fixed_nodes=("n3",))

    assert [(move.node, move.saving_usd_per_hour) for move in moves] == [("n2", 4.0), ("n1", None)]
    assert saving_of(moves) is None
    assert saving_of([]) is None


def test_the_replay_tells_the_highest_of_each_resource_and_when() -> None:
    nodes = [
        node("n1", load("a", [10, 10, 40, 10, 10, 10], 0.2), host=[50, 50, 50, 50, 90, 50]),
        node("n2", load("a", [20, 20, 20, 25, 20, 20], 0.3), load("b", 5, 0.79), host=200),
    ]
    move = Move(
        node="n1", gpu="a", to_node="n2", to_gpu="a",
        memory_bytes=40 * GB, busy_ratio=0.2, saving_usd_per_hour=4.0,
    )  # fmt: skip

    proof = replay(nodes, [move], ConsolidateSettings(least_nodes=1))

    assert proof is not None
    assert proof.fits
    assert proof.emptied == ("n1",)
    memory, busy, host = proof.peaks
    assert (memory.ratio, memory.window, memory.gpu) == (60 / 80, 2, "a")
    assert memory.sources == (("n2", "a"), ("n1", "a"))
    assert (busy.ratio, busy.gpu) == (0.5, "a")  # nothing came to `b`
    assert (host.ratio, host.window) == (290 / 512, 4)


@pytest.mark.parametrize(
    ("fields", "nodes"),
    [
        pytest.param({"gpu": "x"}, 2, id="a GPU that is gone"),
        pytest.param({"node": "x"}, 2, id="a node that is gone"),
        pytest.param({"to_gpu": "x"}, 2, id="a target that is gone"),
        pytest.param({"to_node": "n1", "to_gpu": "b"}, 2, id="to the same node"),
        pytest.param({"gpu": "b"}, 2, id="a GPU without work"),
        pytest.param({}, 3, id="too few nodes left"),
    ],
)
def test_the_replay_refuses_moves_that_cannot_be_made(fields: dict[str, Any], nodes: int) -> None:
    values = {"node": "n1", "gpu": "a", "to_node": "n2", "to_gpu": "a"} | fields
    move = Move(**values, memory_bytes=1.0, busy_ratio=0.1, saving_usd_per_hour=4.0)
    pool = [node("n1", load("a", 10), load("b")), node("n2", load("a", 10))]

    assert replay(pool, [move], ConsolidateSettings(least_nodes=nodes - 1)) is None


@pytest.mark.parametrize(
    ("fields", "works"),
    [
        pytest.param({}, 2, id="a part of the node's work"),
        pytest.param({"fixed_nodes": ("n1",)}, 1, id="a fixed node"),
        pytest.param({"node_groups": ("n1",)}, 1, id="to another group"),
    ],
)
def test_the_replay_refuses_what_must_not_move(fields: dict[str, Any], works: int) -> None:
    move = Move(
        node="n1", gpu="a", to_node="n2", to_gpu="a",
        memory_bytes=1.0, busy_ratio=0.1, saving_usd_per_hour=4.0,
    )  # fmt: skip
    first = node("n1", *(load(name, 10) for name in "ab"[:works]))
    pool = [first, node("n2", load("a", 10))]

    assert replay(pool, [move], ConsolidateSettings(least_nodes=1, **fields)) is None


def test_what_fills_a_gpu_alone_may_fill_a_free_one_of_the_same_model() -> None:
    moves = packed_onto(node("n1", load("a", 76, 0.95)), node("n2", load("a", 76, 0.9), load("b")))

    assert told(moves) == ["n1/a>n2/b"]


def test_the_replay_finds_what_does_not_fit() -> None:
    move = Move(
        node="n1", gpu="a", to_node="n2", to_gpu="a",
        memory_bytes=1.0, busy_ratio=0.1, saving_usd_per_hour=4.0,
    )  # fmt: skip
    pool = [node("n1", load("a", 40)), node("n2", load("a", 40))]

    proof = replay(pool, [move], ConsolidateSettings(least_nodes=1))

    assert proof is not None
    assert not proof.fits


def test_the_replay_holds_what_is_shared_to_its_limit_beside_what_fills_a_gpu_alone() -> None:
    nodes = [
        node("n1", load("a", 76)),
        node("n2", load("a", 34)),
        node("n3", load("a"), load("b", 40)),
    ]
    moves = [
        Move(
            node=name, gpu="a", to_node="n3", to_gpu=to,
            memory_bytes=1.0, busy_ratio=0.1, saving_usd_per_hour=4.0,
        )
        for name, to in (("n1", "a"), ("n2", "b"))
    ]  # fmt: skip

    proof = replay(nodes, moves, ConsolidateSettings(least_nodes=1))

    assert proof is not None
    assert not proof.fits  # 74 of 72 GB on `b`, though 76 of 80 on `a` are more, and fine


def test_moves_that_still_hold_have_the_figures_of_now() -> None:
    before = [node("n1", load("a", 10), load("b", 10)), node("n2", load("a", 20), load("b", 20))]
    now = [
        node("n1", load("a", 12, 0.1, usd=1.0), load("b", 14, 0.2, usd=1.0)),
        node("n2", load("a", 20), load("b", 20)),
    ]
    moves = packed_onto(*before)

    fresh = with_figures_of(now, moves)

    assert told(fresh) == told(moves)
    assert [(one.memory_bytes, one.busy_ratio) for one in fresh] == [(12 * GB, 0.1), (14 * GB, 0.2)]
    assert [one.saving_usd_per_hour for one in fresh] == [0.0, 2.0]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_packed_the_replay_proves_and_no_node_is_both_emptied_and_filled(
    seed: int,
) -> None:
    rng = random.Random(seed)

    def some(most: float) -> list[float]:
        return [round(rng.random() * most, 2) for _ in range(WINDOWS)]

    nodes = [
        node(
            f"n{number}",
            *(
                load(f"g{gpu}", some(60), some(0.6)) if rng.random() < 0.4 else load(f"g{gpu}")
                for gpu in range(4)
            ),
            host=some(200),
        )
        for number in range(12)
    ]
    nodes = [one for one in nodes if one.works]

    moves = packed_onto(*nodes, moves_max=100)

    assert moves
    assert not {move.node for move in moves} & {move.to_node for move in moves}
    assert sorted((move.node, move.gpu) for move in moves) == sorted(
        (one.node, gpu.gpu)
        for one in nodes
        for gpu in one.works
        if one.node in {move.node for move in moves}
    )


# What is known of a node.


def part(
    node_name: str,
    gpu: str,
    memory: Sequence[float | None],
    busy: float = 0.5,
    *,
    is_silent: bool = False,
    **fields: Any,
) -> Measured:
    signals = {
        "memory": History(bytes(packed(ratio) for ratio in memory)),
        "busy": History(bytes([packed(busy)] * len(memory))),
    }
    values = {"name": H100 if gpu else None, "memory_bytes": 80 * 10**9, **fields}
    return Measured(Part(node_name, gpu, **values), lambda signal: signals[signal], is_silent)


def test_a_node_costs_what_its_labels_say() -> None:
    rule = PriceRule(labels={"capacity": "spot"}, usd_per_gpu_hour=1.5)
    parts = [part("n", "g", HALF, labels={"capacity": "spot"}), part("n", "", HALF)]

    nodes, _ = node_loads(
        parts, "chat", PriceList(PriceSettings(rules=(rule,))), active_ratio=0.05, held_ratio=0.05
    )

    assert [one.usd_per_hour for one in nodes] == [1.5]


def judged(*parts: Measured) -> tuple[list[str], dict[str, int]]:
    nodes, left_out = node_loads(
        parts, "chat", PriceList(PriceSettings()), active_ratio=0.05, held_ratio=0.05
    )
    return [one.node for one in nodes], dict(left_out)


HALF = [0.5] * 20


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        pytest.param([part("n", "g", HALF)], "host memory not measured", id="no host"),
        pytest.param(
            [part("n", "g", HALF), part("n", "", [None] * 20)], "host memory not measured", id="gap"
        ),
        pytest.param(
            [part("n", "g", HALF), part("n", "", HALF, is_silent=True)],
            "host memory not measured",
            id="silent host",
        ),
        pytest.param(
            [part("n", "g", HALF), part("n", "", HALF, memory_bytes=None)],
            "host memory not measured",
            id="host without size",
        ),
        pytest.param(
            [part("n", "g", HALF, is_silent=True), part("n", "", HALF)],
            "a GPU that fell silent",
            id="silent GPU",
        ),
        pytest.param(
            [part("n", "g", [*[None] * 3, *HALF[3:]])], "a GPU not measured", id="short history"
        ),
        pytest.param([part("n", "g", HALF, is_whole=False)], "a GPU with MIG", id="MIG"),
        pytest.param([part("n", "g", HALF, name=None)], "a GPU without name", id="no name"),
        pytest.param([part("n", "g", HALF, memory_bytes=None)], "a GPU without", id="no size"),
        pytest.param(
            [part("n", "g", [0.0] * 10 + HALF[10:], 0.0)], "work that comes and goes", id="new"
        ),
        pytest.param([part("n", "g", [0.0] * 20, 0.0), part("n", "", HALF)], "idle", id="idle"),
    ],
)
def test_a_node_that_is_not_known_is_left_out_with_the_reason(
    parts: list[Measured], reason: str
) -> None:
    good = [part("a", "g", HALF), part("a", "", HALF)]

    nodes, left_out = judged(*good, *parts)

    assert nodes == ["a"]
    ((why, count),) = left_out.items()
    assert why.startswith(reason)
    assert count == 1


def test_a_gap_counts_as_the_peak_and_hosts_without_gpus_do_not_count() -> None:
    parts = [
        part("n", "g", [0.5, 0.7, None, *HALF[3:]]),
        part("n", "", HALF),
        part("cpu", "", HALF),
    ]

    nodes, left_out = node_loads(
        parts, "chat", PriceList(PriceSettings()), active_ratio=0.05, held_ratio=0.05
    )

    (one,) = nodes
    memory = one.gpus[0].memory
    assert [step * memory.unit / GB for step in memory.steps[:4]] == pytest.approx([40, 56, 56, 40])
    assert one.usd_per_hour == 3.99
    assert not left_out
