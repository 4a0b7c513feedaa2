"""What a fetch will take, from what fetches took."""

import random

import pytest

from archive.fetch_time import LEAST_OBSERVED, STALE_SECONDS, FetchTime

MB = 1_000_000


def observed(*pairs: tuple[int, float]) -> FetchTime:
    times = FetchTime()
    for size_bytes, seconds in pairs:
        times.observe(size_bytes, seconds, 0.0)
    return times


@pytest.mark.parametrize(("size_bytes", "expected"), [(0, 0.05), (MB, 0.06), (64 * MB, 0.69)])
def test_base_and_rate_are_learned(size_bytes: int, expected: float) -> None:
    # 50 ms and 100 MB/s, each observation up to a tenth off
    noise = random.Random(3)
    sizes = [noise.randrange(64 * MB) for _ in range(200)]
    times = observed(*((n, (0.05 + n / 1e8) * noise.uniform(0.9, 1.1)) for n in sizes))

    assert times.estimate(size_bytes, 0.0) == pytest.approx(expected, rel=0.1, abs=0.03)


def test_nothing_is_said_before_enough_was_seen() -> None:
    times = FetchTime()
    for _ in range(LEAST_OBSERVED - 1):
        times.observe(MB, 0.1, 0.0)
    before = times.estimate(MB, 0.0)
    times.observe(MB, 0.1, 0.0)

    assert before is None
    assert times.estimate(MB, 0.0) == pytest.approx(0.1)


@pytest.mark.parametrize(("later_seconds", "is_known"), [(STALE_SECONDS, True), (30.1, False)])
def test_what_was_seen_long_ago_says_nothing(later_seconds: float, is_known: bool) -> None:
    times = observed(*[(MB, 0.1)] * 10)

    assert (times.estimate(MB, later_seconds) is not None) == is_known


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        pytest.param(MB // 2, 0.1, id="half: no less than what was seen"),
        pytest.param(2 * MB, 0.2, id="double"),
    ],
)
def test_one_size_speaks_for_larger_ones_in_proportion(size_bytes: int, expected: float) -> None:
    assert observed(*[(MB, 0.1)] * 10).estimate(size_bytes, 0.0) == pytest.approx(expected)


def test_a_store_that_became_slow_is_soon_known() -> None:
    times = observed(*[(MB, 0.01), (2 * MB, 0.02)] * 100, *[(MB, 1.0), (2 * MB, 2.0)] * 25)

    estimate = times.estimate(MB, 0.0)

    assert estimate is not None
    assert estimate > 0.7


def test_more_bytes_never_take_less() -> None:
    times = observed(*[(MB, 1.0), (10 * MB, 0.1)] * 10)

    small, large = times.estimate(MB, 0.0), times.estimate(100 * MB, 0.0)

    assert small is not None
    assert large == pytest.approx(small)
