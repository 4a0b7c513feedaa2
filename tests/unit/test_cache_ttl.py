"""TTL heuristics against their published values."""

import math

import pytest

from cache.settings import TtlSettings
from cache.ttl import adaptive_ttl_seconds, archive_ttl_seconds


@pytest.mark.parametrize(
    ("access_count", "seconds"),
    [
        (0, 3600),
        (1, 4500),
        (2, 5400),
        (4, 7200),
        (8, 10800),
        (10, 12600),
        (100, 93600),
        (667, 603_900),  # 3600 * (1 + 0.25 * 667), the last one below the clamp
        (668, 604_800),  # 3600 * 168 = 7 d, exactly at it
        (669, 604_800),
        (10**9, 604_800),
    ],
)
def test_adaptive_ttl_has_its_golden_values(access_count: int, seconds: float) -> None:
    assert adaptive_ttl_seconds(access_count) == seconds
    assert archive_ttl_seconds(TtlSettings(), access_count) == seconds


def test_adaptive_ttl_does_not_go_below_its_minimum() -> None:
    assert adaptive_ttl_seconds(0, base_seconds=10) == 30
    assert adaptive_ttl_seconds(8, base_seconds=10) == 30  # 10 * (1 + 0.25 * 8) = 30: at the edge
    assert adaptive_ttl_seconds(9, base_seconds=10) == 32.5


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param({"access_count": -1}, id="negative accesses"),
        pytest.param({"access_count": math.nan}, id="accesses not a number"),
        pytest.param({"base_seconds": -0.1}, id="negative base"),
        pytest.param({"base_seconds": math.nan}, id="base not a number"),
        pytest.param({"alpha": math.inf}, id="infinite alpha"),
        pytest.param({"min_seconds": math.nan}, id="minimum not a number"),
        pytest.param({"max_seconds": -1}, id="negative maximum"),
        pytest.param({"min_seconds": 10, "max_seconds": 9}, id="minimum above maximum"),
    ],
)
def test_adaptive_ttl_refuses_senseless_input(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"finite number|is above"):
        adaptive_ttl_seconds(**{"access_count": 0, **bad})  # type: ignore[arg-type]


@pytest.mark.parametrize("base_seconds", [0.0, 60.0])
def test_static_ttl_ignores_accesses_and_clamps(base_seconds: float) -> None:
    settings = TtlSettings(heuristic="static", base_seconds=base_seconds)

    assert archive_ttl_seconds(settings, 0) == base_seconds
    assert archive_ttl_seconds(settings, 1000) == base_seconds
