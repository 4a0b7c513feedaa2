"""TTL heuristics against their published values."""

import math
from typing import Any

import msgspec
import pytest

from cache.entry import Entry
from cache.reuse import ReuseLearner
from cache.settings import TtlSettings
from cache.ttl import (
    Decision,
    adaptive_ttl_seconds,
    decide,
    reuse_ttl_seconds,
    size_aware_ttl_seconds,
)
from schemas.units import SECOND_NS

NOW_NS = 1_800_000_000 * SECOND_NS


def decision(ttl: dict[str, Any], **known: Any) -> Decision:
    known = {"last_accessed_ns": NOW_NS - 60 * SECOND_NS, **known}
    entry = Entry(key="key", value=bytes(known.pop("size", 100)), **known)
    return decide(msgspec.convert(ttl, TtlSettings), entry, ReuseLearner(1000), NOW_NS)


def seconds(made: Decision) -> float:
    return 0.0 if made.deadline_ns is None else (made.deadline_ns - NOW_NS) / SECOND_NS


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


@pytest.mark.parametrize(
    ("size_bytes", "seconds"),
    [(65_536, 3600), (16_384, 7200), (262_144, 1800), (16 * 1024**2, 225), (0, 604_800)],
)
def test_size_aware_ttl_has_its_golden_values(size_bytes: int, seconds: float) -> None:
    assert size_aware_ttl_seconds(size_bytes) == seconds


@pytest.mark.parametrize(
    ("score", "idle_seconds", "seconds"),
    [
        pytest.param(1, 60, 3540, id="ordinary"),
        pytest.param(0.125, 60, 836.25, id="an eighth of the worth: a quarter of the time"),
        pytest.param(8, 60, 14_355, id="eight times the worth"),
        pytest.param(0.1, 60, 3605 * 0.1 ** (2 / 3) - 65, id="exactly the least score"),
        pytest.param(0.0999, 60, 0, id="below the least score"),
        pytest.param(1, 3570, 30, id="exactly the shortest life left"),
        pytest.param(1, 3571, 0, id="less than the shortest life left"),
        pytest.param(1e6, 0, 604_800, id="longest life"),
        pytest.param(0, 0, 0, id="no score"),
    ],
)
def test_reuse_ttl_has_its_golden_values(score: float, idle_seconds: float, seconds: float) -> None:
    assert reuse_ttl_seconds(score, idle_seconds) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_senseless_input_is_refused_by_every_formula(bad: float) -> None:
    with pytest.raises(ValueError, match="size_bytes must be"):
        size_aware_ttl_seconds(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="score must be"):
        reuse_ttl_seconds(bad, 0)
    with pytest.raises(ValueError, match="idle_seconds must be"):
        reuse_ttl_seconds(1, bad)


@pytest.mark.parametrize(
    ("ttl", "known", "outcome", "life_seconds", "reason"),
    [
        pytest.param({}, {"access_count": 4}, "adaptive.archived", 7200, "read 4 times: 7200 s"),
        pytest.param(
            {"heuristic": "static", "base_seconds": 0.0},
            {},
            "static.refused",
            0,
            "the same for every entry: not archived",
            id="static 0",
        ),
        pytest.param(
            {"heuristic": "static", "base_seconds": 7.0},
            {"access_count": 9},
            "static.archived",
            7,
            "the same for every entry: 7 s",
        ),
        pytest.param(
            {"heuristic": "size_aware"},
            {"size": 65_536 * 4 - 3},
            "size_aware.archived",
            1800,
            "262144 bytes: 1800 s",
        ),
        pytest.param(
            {"heuristic": "reuse"},
            {"access_count": 1},
            "reuse.archived",
            3540,
            "used 2 times, idle 60 s, score 1 (cost x 1): 3540 s",
        ),
        pytest.param(
            {"heuristic": "reuse", "min_score": 0.2},
            {"parent": "p"},
            "reuse.refused",
            0,
            "last of its chain, used once, idle 60 s, score 0.1 (cost x 1): not archived",
        ),
        pytest.param(
            {"heuristic": "reuse"},
            {"last_accessed_ns": NOW_NS + 9 * SECOND_NS, "access_count": 1},
            "reuse.archived",
            3600,
            "used 2 times, idle 0 s, score 1 (cost x 1): 3600 s",
            id="the clock was set back",
        ),
        pytest.param(
            {"heuristic": "reuse"},
            {"ttl_seconds": 0.0},
            "writer.refused",
            0,
            "put with a TTL of 0: not archived",
        ),
        pytest.param(
            {"heuristic": "reuse"},
            {"ttl_seconds": 9.0, "expires_at_ns": NOW_NS + 5 * SECOND_NS},
            "writer.archived",
            5,
            "has a deadline of its own",
        ),
    ],
)
def test_a_decision_says_what_and_why(
    ttl: dict[str, Any],
    known: dict[str, Any],
    outcome: str,
    life_seconds: float,
    reason: str,
) -> None:
    made = decision(ttl, **known)

    assert (made.outcome, made.reason) == (outcome, reason)
    assert seconds(made) == pytest.approx(life_seconds)
