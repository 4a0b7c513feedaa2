"""One value that cannot be does not spoil a forecast for hours; a change of the series is taken."""

import random

import msgspec
import pytest

from handlers.forecasting import Forecaster
from handlers.forecasting.forecaster import LEAST_MATURED
from handlers.forecasting.outliers import FORGOTTEN_AFTER, Scale


def fed(values: list[float]) -> Forecaster:
    forecaster = Forecaster.make((1, 5), (60,))
    for value in values:
        forecaster.update(value)
    return forecaster


def noise(steps: int) -> list[float]:
    dice = random.Random(1)
    return [5.0 + dice.gauss(0.0, 1.0) for _ in range(steps)]


ZEROS = [0.0] * 200
WILD = 1e15


@pytest.mark.parametrize(
    ("values", "least", "most"),
    [
        pytest.param([*noise(200), WILD, *ZEROS], 0.0, 1e-3, id="between a load and zeros"),
        pytest.param([*ZEROS, WILD, *ZEROS], 0.0, 0.0, id="among zeros"),
        pytest.param([WILD, *ZEROS], 0.0, 0.0, id="first, zeros after it"),
        pytest.param([WILD, *noise(200)], 3.0, 8.0, id="first, a load after it"),
        pytest.param([*noise(200), WILD, *noise(10)], 3.0, 8.0, id="in a load, minutes ago"),
        pytest.param([*noise(200), WILD, WILD, *noise(10)], 3.0, 8.0, id="twice"),
        pytest.param([*noise(200), *[WILD] * 3, *noise(10)], 3.0, 8.0, id="three times"),
        pytest.param([5.0, WILD, *noise(10)], 3.0, 8.0, id="the second value"),
    ],
)
def test_a_value_that_cannot_be_is_soon_in_no_forecast(
    values: list[float], least: float, most: float
) -> None:
    for estimate in fed(values).estimates():
        assert least <= estimate.p10 <= estimate.p50 <= estimate.p90
        assert estimate.p50 <= most


def test_an_outlier_is_as_no_value() -> None:
    with_outlier, with_gap = (
        [one for one in fed([*noise(300), bad, *noise(5)]).estimates()]
        for bad in (WILD, float("nan"))
    )

    assert with_outlier == with_gap


def test_a_series_that_is_a_thousand_times_larger_from_now_on_is_followed_in_three_steps() -> None:
    grown = [1e5 * value for value in noise(20)]

    assert fed([*noise(200), *grown[:2]]).estimates() == []
    assert fed([*noise(200), *grown[:3]]).estimates()[0].p50 > 1e4
    assert fed([*noise(200), *grown]).estimates()[0].p50 == pytest.approx(5e5, rel=0.3)


def test_a_load_begins_grows_and_comes_now_and_then_without_a_gap() -> None:
    scale = Scale()
    begins = [0.0, 0.0, 0.001, 0.9, 40.0, 2000.0, 1500.0, 0.0, 0.0, 3.0, 0.0, 1e5]

    believed = [scale.believes(value) and not scale.anew() for value in begins]

    assert believed == [True] * len(begins)
    assert not scale.is_doubtful


def test_a_lone_value_is_doubtful_until_another_is_like_it_or_it_is_forgotten() -> None:
    forecaster = fed([*[0.0] * 100, 10.0])
    alone, begun = forecaster.is_doubtful, []
    for _ in range(FORGOTTEN_AFTER):
        forecaster.update(0.0)
        begun.append(forecaster.is_doubtful)

    assert not alone
    assert begun == [True] * (FORGOTTEN_AFTER - 1) + [False]
    assert [one.p50 for one in forecaster.estimates()] == [0.0, 0.0]
    assert not fed([*[0.0] * 100, 10.0, 0.0, 0.0, 11.0, 0.0]).is_doubtful


def test_what_is_doubtful_is_withheld() -> None:
    doubtful = fed([*ZEROS, WILD, 0.0, 0.0]).estimates()[0]

    assert doubtful.scored >= LEAST_MATURED
    assert (doubtful.error_ratio or 0.0) < (doubtful.last_value_error_ratio or 0.0)
    assert doubtful.is_withheld


@pytest.mark.parametrize("cut", [200, 201, 202, 203, 210])
def test_a_stored_forecaster_knows_what_it_did_not_believe(cut: int) -> None:
    values = [*noise(200), WILD, WILD, WILD, *noise(20)]
    kept = fed(values)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(fed(values[:cut])), type=Forecaster)

    for value in values[cut:]:
        stored.update(value)

    assert stored.estimates() == kept.estimates() != []
