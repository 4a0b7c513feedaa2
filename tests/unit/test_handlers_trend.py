import random

import pytest

from handlers.spending.trend import LEAST_HOURS, theil_sen, trend_line


def test_the_slope_is_the_median_of_all_pairs() -> None:
    slope = theil_sen([(0, 0), (1, 1), (2, 2), (3, 9)])

    # 1 1 3 1 4 7: least squares would say 2.8. Six slopes are too few for an interval inside.
    assert slope == (2.0, 1.0, 7.0)


def test_the_interval_is_sens() -> None:
    # n = 10: N = 45, spread 1.96 * sqrt(10 * 9 * 25 / 18) = 21.9; slopes 12 - 1 and 33 of 0 to 44.
    values = [1, 3, 2, 5, 4, 8, 6, 9, 7, 12]
    slopes = sorted(
        (b - a) / (j - i) for i, a in enumerate(values) for j, b in enumerate(values) if j > i
    )

    slope = theil_sen(list(enumerate(map(float, values))))

    assert (slope.low, slope.high) == (slopes[11], slopes[33])


def test_one_wild_hour_does_not_turn_a_trend() -> None:
    hours = [(hour, 10.0 + 0.1 * hour) for hour in range(48)]
    hours[40] = (40, 1e6)

    line = trend_line("usd_per_hour", hours)

    assert line.slope_per_day == pytest.approx(2.4, rel=0.02)
    assert line.direction == "rising"


@pytest.mark.parametrize("sign", [1, -1], ids=["upwards", "downwards"])
def test_noise_alone_is_steady(sign: int) -> None:
    rng = random.Random(3)

    line = trend_line("tokens_per_second", [(h, 100 + sign * rng.gauss(0, 9)) for h in range(72)])

    assert line.slope_per_day != 0
    assert line.direction == "steady"


@pytest.mark.parametrize(
    ("known", "direction"),
    [
        pytest.param(LEAST_HOURS - 1, "unknown", id="short"),
        pytest.param(LEAST_HOURS, "falling", id="enough"),
    ],
)
def test_too_short_a_history_says_so(known: int, direction: str) -> None:
    hours: list[tuple[int, float | None]] = [(hour, 100.0 - hour) for hour in range(known)]
    gaps: list[tuple[int, float | None]] = [(hour, None) for hour in range(known, 40)]

    line = trend_line("usd_per_hour", hours + gaps)

    assert (line.points, line.direction, line.last) == (known, direction, None)
    assert (line.slope_per_day is None) == (direction == "unknown")
    assert ("a slope needs 24" in line.text) == (direction == "unknown")


@pytest.mark.parametrize(
    ("hours", "change"),
    [
        pytest.param(
            [(hour, 100.0 if hour < 24 else 110.0) for hour in range(48)], 0.1, id="+10 %"
        ),
        pytest.param([(hour, 100.0) for hour in range(24)], None, id="one day alone"),
        pytest.param(
            [(hour, 100.0) for hour in range(13, 48)], None, id="half a day and an hour less"
        ),
        pytest.param([(hour, 100.0) for hour in range(12, 48)], 0.0, id="half a day before"),
        pytest.param(
            [(hour, 0.0 if hour < 24 else 5.0) for hour in range(48)], None, id="from nothing"
        ),
    ],
)
def test_the_change_compares_a_day_with_the_day_before(
    hours: list[tuple[int, float | None]], change: float | None
) -> None:
    line = trend_line("usd_per_hour", hours)

    assert line.change_ratio == (None if change is None else pytest.approx(change))


def test_a_period_can_be_compared_with_another() -> None:
    line = trend_line(
        "usd_per_hour",
        [(hour, 90.0) for hour in range(100, 110)],
        period_hours=10,
        before=[100.0] * 5 + [None] * 5,
    )

    assert line.change_ratio == pytest.approx(-0.1)
    assert line.text.endswith("-10.0% against the 10 hours before")


def test_a_long_history_is_averaged_and_keeps_its_slope() -> None:
    line = trend_line("usd_per_hour", [(hour, 5.0 + hour / 24) for hour in range(24 * 90)])

    assert line.slope_per_day == pytest.approx(1.0)


def test_nothing_known_has_no_trend() -> None:
    assert trend_line("usd_per_hour", []).direction == "unknown"
