"""Histograms of durations: exact means, quantiles to an eighth."""

import random

import pytest

from cache.latency import Histogram


def test_nothing_measured_is_none() -> None:
    histogram = Histogram()

    assert histogram.mean_seconds() is None
    assert histogram.quantile_seconds(0.5) is None


def test_the_mean_is_exact_and_spans_several_histograms() -> None:
    one, two = Histogram(), Histogram()
    for duration_ns in (1_000, 3_000):
        one.add(duration_ns)
    two.add(8_000)

    assert one.mean_seconds() == 2e-6
    assert one.mean_seconds(two) == 4e-6


@pytest.mark.parametrize("duration_ns", [0, 1, 7, 8, 15, 16, 17, 1_000, 123_456_789, 2**62])
def test_a_quantile_is_at_most_an_eighth_above_the_duration(duration_ns: int) -> None:
    histogram = Histogram()
    histogram.add(duration_ns)

    found_ns = (histogram.quantile_seconds(0.5) or 0.0) * 1e9

    assert duration_ns < found_ns * (1 + 1e-9)
    assert found_ns <= (duration_ns * 9 / 8 + 1) * (1 + 1e-9)


def test_quantiles_of_many_lie_where_the_sorted_ones_do() -> None:
    draw = random.Random(1)
    durations = sorted(int(draw.expovariate(1e-6)) for _ in range(10_000))
    histogram = Histogram()
    for duration_ns in durations:
        histogram.add(duration_ns)

    for share in (0.5, 0.95, 0.99):
        exact = durations[int(share * len(durations))] / 1e9
        found = histogram.quantile_seconds(share)
        assert found == pytest.approx(exact, rel=0.15)  # an eighth, and the draw's own steps
