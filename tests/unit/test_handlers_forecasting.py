import math
import random
from collections.abc import Iterable

import msgspec
import pytest

from handlers.forecasting import Forecaster
from handlers.forecasting.experts import PLAIN, SEASONAL
from handlers.forecasting.mixture import LAST_VALUE_PRIOR, Horizon
from handlers.forecasting.season import Season


def fed(values: Iterable[float | None], *, seasons: tuple[int, ...] = ()) -> Forecaster:
    forecaster = Forecaster.make((1, 5), seasons)
    for value in values:
        forecaster.update(value)
    return forecaster


def noise_around_100(steps: int, seed: int = 1) -> list[float]:
    dice = random.Random(seed)
    return [100.0 + dice.gauss(0.0, 10.0) for _ in range(steps)]


def random_walk(steps: int, seed: int = 2) -> list[float]:
    dice, value, values = random.Random(seed), 1000.0, []
    for _ in range(steps):
        value += dice.gauss(0.0, 5.0)
        values.append(value)
    return values


def hourly_wave(steps: int) -> list[float]:
    dice = random.Random(3)
    return [
        100.0 + 60.0 * math.sin(2.0 * math.pi * step / 60.0) + dice.gauss(0.0, 2.0)
        for step in range(steps)
    ]


def test_a_constant_series_is_forecast_exactly_and_adds_nothing_to_its_last_value() -> None:
    forecaster = fed([7.0] * 200)

    estimates = forecaster.estimates()

    assert [estimate.p50 for estimate in estimates] == [pytest.approx(7.0)] * 2
    assert all(estimate.is_withheld for estimate in estimates)


def test_noise_around_a_level_is_forecast_better_than_by_its_last_value() -> None:
    estimate = fed(noise_around_100(1000)).estimates()[0]

    assert not estimate.is_withheld
    assert estimate.p50 == pytest.approx(100.0, abs=4.0)
    assert estimate.error_ratio is not None
    assert estimate.last_value_error_ratio is not None
    # The mean misses by 0.080, the last value by 0.113 (root of two times as much).
    assert estimate.error_ratio < 0.8 * estimate.last_value_error_ratio


def test_a_random_walk_is_forecast_no_worse_than_by_its_last_value() -> None:
    for estimate in fed(random_walk(1500)).estimates():
        assert estimate.error_ratio is not None
        assert estimate.last_value_error_ratio is not None

        assert estimate.error_ratio <= estimate.last_value_error_ratio + 0.002


def test_what_does_not_beat_the_last_value_is_withheld() -> None:
    estimate = fed([float(step % 7 == 0) for step in range(5)]).estimates()[0]

    assert estimate.scored == 4
    assert estimate.is_withheld


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(noise_around_100(1200), id="noise"),
        pytest.param(random_walk(1200), id="walk"),
        pytest.param(
            [v * (1.0 if i < 700 else 5.0) for i, v in enumerate(noise_around_100(1200))],
            id="level and spread times five",
        ),
    ],
)
def test_four_values_of_five_fall_between_p10_and_p90(values: list[float]) -> None:
    for estimate in fed(values).estimates():
        assert 0.75 <= estimate.coverage_ratio <= 0.85
        assert estimate.p10 <= estimate.p50 <= estimate.p90


def test_a_season_is_found_among_those_that_may_be_there() -> None:
    forecaster = fed(hourly_wave(700), seasons=(60, 97))

    five_ahead = forecaster.estimates()[1]

    assert five_ahead.season_steps == 60
    assert five_ahead.error_ratio is not None
    assert five_ahead.last_value_error_ratio is not None
    assert five_ahead.error_ratio < 0.5 * five_ahead.last_value_error_ratio


def test_no_season_is_found_in_noise() -> None:
    forecaster = fed(noise_around_100(700), seasons=(60, 97))

    assert [estimate.season_steps for estimate in forecaster.estimates()] == [None, None]


def test_a_season_goes_on_through_a_gap() -> None:
    wave = hourly_wave(900)
    gapped: list[float | None] = [*wave[:700], *[None] * 25, *wave[725:740]]

    estimate = fed(gapped, seasons=(60,)).estimates()[1]

    assert estimate.p50 == pytest.approx(wave[744], rel=0.15)


def test_nothing_is_forecast_within_a_gap_nor_scored_for_its_steps() -> None:
    forecaster = fed([*noise_around_100(100), None, None, None])

    assert forecaster.estimates() == []
    forecaster.update(100.0)
    # Five steps ahead: 100 values mature 95, the one after three unknown steps one more.
    assert [estimate.scored for estimate in forecaster.estimates()] == [99, 96]


def test_steps_skipped_at_once_are_a_gap_of_as_many() -> None:
    one_by_one, at_once = Forecaster.make([1, 5], [24]), Forecaster.make([1, 5], [24])
    for value in range(40):
        one_by_one.update(value % 7)
        at_once.update(value % 7)

    for _ in range(90):
        one_by_one.update(None)
    at_once.skip(90)
    one_by_one.update(3.0)
    at_once.update(3.0)

    assert msgspec.json.encode(at_once) == msgspec.json.encode(one_by_one)


def test_after_a_long_gap_the_series_starts_where_it_is() -> None:
    forecaster = fed([*noise_around_100(500), *[None] * 50, 900.0])

    assert forecaster.estimates()[0].p50 == pytest.approx(900.0)


@pytest.mark.parametrize(
    "bad", [None, math.nan, math.inf, -math.inf, -1.0], ids=["none", "nan", "inf", "-inf", "-1"]
)
def test_a_value_that_cannot_be_is_a_gap(bad: float | None) -> None:
    values = noise_around_100(300)

    with_bad, with_none = fed([*values, bad, 100.0]), fed([*values, None, 100.0])

    assert with_bad.estimates() == with_none.estimates()


def test_a_series_of_zeros_has_no_relative_error() -> None:
    estimate = fed([0.0] * 200).estimates()[0]

    assert (estimate.p10, estimate.p50, estimate.p90) == (0.0, 0.0, 0.0)
    assert estimate.error_ratio is None
    assert estimate.is_withheld


def test_a_first_value_after_zeros_is_followed() -> None:
    forecaster = fed([*[0.0] * 100, *[50.0] * 30])

    assert forecaster.estimates()[0].p50 == pytest.approx(50.0, rel=0.1)


def test_before_the_first_value_there_is_no_forecast() -> None:
    assert Forecaster.make((1, 5)).estimates() == []
    assert fed([None, None]).estimates() == []


def test_a_stored_forecaster_goes_on_as_if_it_had_never_stopped() -> None:
    values = hourly_wave(400)
    kept = fed(values[:300], seasons=(60,))
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=Forecaster)

    for value in values[300:]:
        kept.update(value)
        stored.update(value)

    assert stored.estimates() == kept.estimates()


def test_the_last_value_begins_with_the_weight_of_eight_experts() -> None:
    weights = Horizon(1, PLAIN + SEASONAL).weights

    assert weights[0] == pytest.approx(LAST_VALUE_PRIOR / (LAST_VALUE_PRIOR + 13.0))
    assert sum(weights) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("ahead", "ratio"),
    [
        # The season 40 times 1, 20 times 3, seen one and a half times; now in step 89, 29 of
        # the season. Around 29 all are 1; nine steps around 39 hold four 3s: 17 / 9.
        pytest.param(10, 17 / 9, id="on the edge"),
        pytest.param(4, 1.0, id="before the edge"),
        pytest.param(20, 2.0, id="3 against 1, cut"),
        pytest.param(60, 1.0, id="a season ahead: not known"),
    ],
)
def test_a_season_gives_the_ratio_of_its_profile(ahead: int, ratio: float) -> None:
    season = Season(60)
    for step in range(90):
        season.update(1.0 if step % 60 < 40 else 3.0)

    assert season.ratio(ahead) == pytest.approx(ratio)


def test_a_season_seen_less_than_once_says_nothing() -> None:
    season = Season(60)
    for step in range(50):
        season.update(float(step))

    assert season.ratio(5) == 1.0


def test_a_season_compares_with_the_last_one_not_with_this() -> None:
    season = Season(60)
    for step in range(81):
        value = 1.0 if step % 60 < 30 else 1.5
        season.update(value if step < 60 else 10.0 * value)

    # Twenty steps into this season, ten times as high: the last one rose from 1 to 1.5.
    assert season.ratio(20) == pytest.approx(1.5)
