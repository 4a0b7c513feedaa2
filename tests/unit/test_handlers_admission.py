import pytest

from handlers.admission import FORGET_NS, Admission
from schemas.engines import EngineMetrics
from schemas.units import instant


def engine(node: str, pool: str = "") -> EngineMetrics:
    return EngineMetrics(node=node, engine="e", pool=pool, model="m", observed_at=instant(0))


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
