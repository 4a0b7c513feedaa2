"""What goes with the KV caches of replicas that are removed."""

import random
from statistics import fmean
from typing import Any

import pytest

from handlers.scaling.cache_loss import (
    HALF_DAY_NS,
    CacheLoss,
    Caches,
    HitRatios,
    Pace,
    UsedCaches,
)
from schemas.engines import EngineMetrics
from tests.support.samples import engine

FULL = engine(kv=0.5, kv_cache_capacity_tokens=200_000)
EMPTY = engine("e1", kv=0.0)
UNKNOWN = engine("e2")


def computing(rate: float | None, hits: float | None) -> EngineMetrics:
    return engine(prompt_tokens_per_second=rate, prefix_cache_hit_ratio=hits)


@pytest.mark.parametrize(
    ("engines", "removed", "tokens"),
    [
        pytest.param([FULL], 1, 60_000.0, id="0.5 * 200,000 * 0.6"),
        pytest.param([FULL, EMPTY], 1, 30_000.0, id="whichever goes: the mean"),
        pytest.param([FULL, FULL, EMPTY], 2, 80_000.0, id="of two"),
        pytest.param([EMPTY], 3, 0.0, id="nothing in use"),
    ],
)
def test_what_is_found_again_has_to_be_computed_anew(
    engines: list[EngineMetrics], removed: int, tokens: float
) -> None:
    loss = Caches(engines, 0.6, 8_000.0).loss(removed)

    assert loss.unknown == ""
    assert loss.tokens == pytest.approx(tokens)
    assert loss.replica_hours == pytest.approx(tokens / 8_000 / 3600)


@pytest.mark.parametrize(
    ("engines", "hits", "pace", "loss"),
    [
        pytest.param(
            [FULL, UNKNOWN],
            0.6,
            8e3,
            CacheLoss(unknown="kv_cache_usage_ratio"),
            id="one does not tell",
        ),
        pytest.param(
            [engine(kv=0.5)],
            0.6,
            8e3,
            CacheLoss(unknown="kv_cache_capacity_tokens"),
            id="a share of nobody knows what",
        ),
        pytest.param([FULL], None, 8e3, CacheLoss(unknown="prefix_cache_hit_ratio"), id="hits"),
        pytest.param(
            [FULL], 0.6, None, CacheLoss(60_000.0, unknown="prompt_tokens_per_second"), id="pace"
        ),
        pytest.param([FULL], 0.0, None, CacheLoss(0.0, 0.0), id="nothing is ever found again"),
        pytest.param([EMPTY], None, None, CacheLoss(0.0, 0.0), id="nothing is in use"),
    ],
)
def test_what_is_not_measured_is_not_known(
    engines: list[EngineMetrics], hits: float | None, pace: float | None, loss: CacheLoss
) -> None:
    assert Caches(engines, hits, pace).loss(1) == loss


@pytest.mark.parametrize(
    ("samples", "pace"),
    [
        pytest.param([(0, 1000.0, 0.2)], 800.0, id="what was found was not computed"),
        pytest.param([(0, 1000.0, 0.5), (1, 400.0, 0.0)], 500.0, id="the most"),
        pytest.param([(0, 900.0, 0.0), (HALF_DAY_NS, 100.0, 0.0)], 900.0, id="half a day ago"),
        pytest.param([(0, 900.0, 0.0), (2 * HALF_DAY_NS, 100.0, 0.0)], 100.0, id="long ago"),
        pytest.param([(2 * HALF_DAY_NS, 900.0, 0.0), (0, 100.0, 0.0)], 100.0, id="clock set back"),
        pytest.param([(0, None, 0.0), (1, 900.0, None)], None, id="not measured"),
        pytest.param([(0, 900.0, 1.0)], None, id="all was found"),
    ],
)
def test_the_pace_is_the_most_that_was_computed_of_late(
    samples: list[tuple[int, float | None, float | None]], pace: float | None
) -> None:
    seen = Pace()
    for ns, rate, hits in samples:
        seen.see(computing(rate, hits), ns)

    assert seen.tokens_per_second == pace


def test_a_larger_cache_costs_more_and_a_quicker_replica_less() -> None:
    def hours(pace: float, **fields: Any) -> float | None:
        return Caches([engine(**fields)], 0.6, pace).loss(1).replica_hours

    base = hours(8e3, kv=0.5, kv_cache_capacity_tokens=10**5)
    larger = hours(8e3, kv=0.5, kv_cache_capacity_tokens=2 * 10**5)
    quicker = hours(16e3, kv=0.5, kv_cache_capacity_tokens=10**5)

    assert base is not None
    assert larger == pytest.approx(2 * base)
    assert quicker == pytest.approx(base / 2)


@pytest.mark.parametrize("seed", range(8))
def test_what_came_and_went_is_what_a_look_at_each_cache_finds(seed: int) -> None:
    rng = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {"kv": 0.3, "kv_cache_capacity_tokens": 1_000_003},
        {"kv": 0.1, "kv_cache_capacity_tokens": 7},
        {"kv": 0.0},
    ]
    if seed % 2:
        kinds += [{"kv": 0.5}, {"kv": None}]
    engines: dict[int, EngineMetrics] = {}
    used = UsedCaches()
    for _ in range(300):
        number, is_gone = rng.randrange(5), rng.random() < 0.3
        before = engines.pop(number, None)
        if not is_gone:
            engines[number] = engine(f"e{number}", **rng.choice(kinds))
        used.change(before, engines.get(number))

        loss = Caches(list(engines.values()), 0.6, 8_000.0).loss(2)
        assert Caches(used, 0.6, 8_000.0).loss(2) == loss


def test_hit_ratios_are_those_of_late() -> None:
    hits = HitRatios(100)
    assert hits.mean(0) is None

    for ns, name, ratio in ((1, "a", 0.1), (2, "b", 0.2), (3, "c", 0.7), (50, "a", 0.3)):
        hits.put(("n", name), ratio, ns)

    assert hits.mean(51) == fmean([0.3, 0.2, 0.7])
    assert hits.mean(102) == fmean([0.3, 0.7])
    assert hits.mean(149) == 0.3
    assert hits.mean(150) is None
