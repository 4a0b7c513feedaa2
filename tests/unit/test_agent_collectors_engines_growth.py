"""Rates and quantiles between two pages, and when there are none."""

import math
import random
from collections.abc import Mapping

import pytest

from agent.collectors.engines.growth import Growth, Key, Totals, quantile
from schemas.units import SECOND_NS
from tests.support.samples import START_NS

INF = math.inf
A: Key = ("a", None)


def ns(seconds: float) -> int:
    return START_NS + int(seconds * SECOND_NS)


@pytest.mark.parametrize(
    ("buckets", "share", "value"),
    [
        pytest.param({1: 10, 2: 30, INF: 40}, 0.5, 1.5, id="rank-20-is-half-way-in-the-second"),
        pytest.param({1: 10, 2: 30, INF: 40}, 0.25, 1.0, id="rank-10-is-the-end-of-the-first"),
        pytest.param({1: 10, 2: 30, INF: 40}, 0.1, 0.4, id="the-first-begins-at-zero"),
        pytest.param({1: 10, 2: 30, INF: 40}, 0.95, 2.0, id="without-end-gives-where-it-begins"),
        pytest.param({1: 0, 2: 0, INF: 5}, 0.5, 2.0, id="all-beyond-the-last-bound"),
        pytest.param({1: 5, 2: 5, INF: 5}, 1.0, 1.0, id="all-in-the-first"),
        pytest.param({0: 5, 1: 10, INF: 10}, 0.25, 0.0, id="a-first-bucket-up-to-zero"),
        pytest.param({-2: 5, 1: 10, INF: 10}, 0.25, -2.0, id="a-first-bucket-below-zero"),
        pytest.param({0: 5, 1: 10, INF: 10}, 0.75, 0.5, id="and-the-one-after-it"),
        pytest.param({1: 10, 2: 8, INF: 10}, 0.9, 0.9, id="torn-a-later-bucket-is-behind"),
        pytest.param({1: 0, 2: 0, INF: 0}, 0.5, None, id="nothing-observed"),
        pytest.param({1: 10, 2: 30}, 0.5, None, id="no-bucket-without-end"),
        pytest.param({INF: 30}, 0.5, None, id="only-the-bucket-without-end"),
        pytest.param({}, 0.5, None, id="no-buckets"),
    ],
)
def test_the_quantile_is_prometheus(
    buckets: dict[float, float], share: float, value: float | None
) -> None:
    assert quantile(buckets, share) == (None if value is None else pytest.approx(value))


def test_the_quantile_is_in_the_bucket_of_the_true_one() -> None:
    rng = random.Random(7)
    bounds = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0]
    for _ in range(300):
        values = sorted(rng.expovariate(3) for _ in range(rng.randint(1, 200)))
        buckets = {b: float(sum(v <= b for v in values)) for b in [*bounds, INF]}
        share = rng.choice([0.5, 0.95])

        found = quantile(buckets, share)

        true = values[math.ceil(share * len(values)) - 1]
        above = next((b for b in bounds if true <= b), INF)
        below = max((b for b in [0.0, *bounds] if b < true), default=0.0)
        assert found is not None
        assert below <= found <= above, (values, share)


def test_growth_is_what_happened_since_the_page_before() -> None:
    totals = Totals(forget_seconds=60)

    first = totals.advance(ns(0), {A: 100.0, ("h", 1.0): 1.0})
    second = totals.advance(ns(4), {A: 110.0, ("h", 1.0): 3.0, ("new", None): 5.0})

    assert first is None
    assert second == Growth(4.0, {A: 10.0, ("h", 1.0): 2.0})
    assert second.per_second("a") == 2.5
    assert second.per_second("new") is None


@pytest.mark.parametrize(
    ("after", "started"),
    [
        pytest.param({A: 99.0}, None, id="a-counter-fell"),
        pytest.param({A: 150.0, ("h", 1.0): 0.0}, None, id="a-bucket-fell"),
        pytest.param({A: 150.0}, 1_800_000_060.0, id="the-process-started-later"),
    ],
)
def test_a_restart_is_counted_and_gives_no_growth_but_the_next_page_does(
    after: Mapping[Key, float], started: float | None
) -> None:
    totals = Totals(forget_seconds=60)
    totals.advance(ns(0), {A: 100.0, ("h", 1.0): 7.0}, 1_800_000_000.0)

    at_restart = totals.advance(ns(5), after, started)
    later = totals.advance(ns(10), {A: after[A] + 5}, started)

    assert at_restart is None
    assert totals.restarts == 1
    assert later is not None
    assert later.per_second("a") == 1.0


def test_a_start_that_is_computed_a_little_different_is_no_restart() -> None:
    totals = Totals(forget_seconds=60)
    totals.advance(ns(0), {A: 1.0}, 1_800_000_000.0)

    growth = totals.advance(ns(5), {A: 1.0}, 1_800_000_000.9)

    assert growth is not None
    assert totals.restarts == 0


@pytest.mark.parametrize(
    ("seconds", "known"), [(60.0, True), (60.1, False), (0.0, False), (-5.0, False)]
)
def test_a_gap_or_a_clock_set_back_gives_no_growth(seconds: float, known: bool) -> None:
    totals = Totals(forget_seconds=60)
    totals.advance(ns(0), {A: 1.0})

    growth = totals.advance(ns(seconds), {A: 2.0})

    assert (growth is not None) is known
    assert totals.restarts == 0


@pytest.mark.parametrize(
    ("part", "whole", "ratio"),
    [(25.0, 100.0, 0.25), (0.0, 100.0, 0.0), (0.0, 0.0, None), (101.0, 100.0, 1.0)],
)
def test_a_ratio_is_of_what_happened(part: float, whole: float, ratio: float | None) -> None:
    growth = Growth(5.0, {("part", None): part, ("whole", None): whole})

    assert growth.ratio("part", "whole") == ratio
    assert growth.ratio("part", "missing") is None
    assert growth.ratio("missing", "whole") is None
