import pytest

from handlers.admission import FORGET_NS, MAX_PARTS, Admission
from schemas.engines import EngineMetrics
from schemas.units import instant


def engine(node: str, pool: str = "", name: str = "e") -> EngineMetrics:
    return EngineMetrics(node=node, engine=name, pool=pool, model="m", observed_at=instant(0))


@pytest.mark.parametrize(
    ("message", "admitted"),
    [
        pytest.param(engine("n1", "p1"), True, id="known"),
        pytest.param(engine("n2", "p1"), True, id="room for a node"),
        pytest.param(engine("n1", "p2"), False, id="a pool too many"),
        pytest.param(engine("n2"), True, id="without a pool"),
    ],
)
def test_what_is_followed_is_bounded(message: EngineMetrics, admitted: bool) -> None:
    admission = Admission(max_nodes=2, max_pools=1)
    admission.admits(engine("n1", "p1"), 0)

    assert admission.admits(message, 1) is admitted
    assert admission.refused == (0 if admitted else 1)


def test_a_node_makes_room_once_it_was_silent_for_long() -> None:
    admission = Admission(max_nodes=1, max_pools=1)
    admission.admits(engine("n1"), 0)

    refused = admission.admits(engine("n2"), FORGET_NS - 1)
    admitted = admission.admits(engine("n2"), FORGET_NS + 5 * 10**9)

    assert (refused, admitted) == (False, True)


def test_the_parts_of_a_node_are_bounded_and_those_of_others_are_not_touched() -> None:
    admission = Admission(max_nodes=2, max_pools=1)
    made_up = [engine("n1", name=f"e{number}") for number in range(MAX_PARTS + 1)]

    admitted = [admission.admits(message, 0) for message in made_up]

    assert admitted == [True] * MAX_PARTS + [False]
    assert admission.admits(made_up[0], 1)
    assert admission.admits(engine("n2"), 1)


def test_a_part_makes_room_once_it_was_silent_for_long() -> None:
    admission = Admission(max_nodes=1, max_pools=1)
    for number in range(MAX_PARTS):
        admission.admits(engine("n1", name=f"e{number}"), 0)

    refused = admission.admits(engine("n1", name="new"), FORGET_NS - 1)
    admitted = admission.admits(engine("n1", name="new"), FORGET_NS)

    assert (refused, admitted) == (False, True)


def test_a_node_that_comes_back_has_room_for_all_its_parts() -> None:
    admission = Admission(max_nodes=1, max_pools=1)
    for number in range(MAX_PARTS):
        admission.admits(engine("n1", name=f"e{number}"), 0)

    later_ns = FORGET_NS + 5 * 10**9
    assert admission.admits(engine("n2"), later_ns)
    assert not admission.admits(engine("n1", name="new"), later_ns)
    assert admission.admits(engine("n1", name="new"), 2 * later_ns + FORGET_NS)
