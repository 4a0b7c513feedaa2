from collections.abc import Iterable, Sequence

import pytest

from handlers.forecasting.handler import ForecastHandler
from handlers.scaling.pool_load import PoolMinute
from handlers.settings import ForecastSettings
from schemas.protocols import Emit
from schemas.scaling import Forecast
from schemas.units import to_ns
from tests.support.loads import service_load
from tests.support.samples import START_NS, at, engine

SETTINGS = ForecastSettings(horizons_seconds=(60.0, 300.0), seasons_seconds=(3600.0,))


def told(emits: Iterable[Emit]) -> list[Forecast]:
    return [emit.message for emit in emits if isinstance(emit.message, Forecast)]


def play(handler: ForecastHandler, loads: Sequence[float | None], *, first: int = 0) -> list[Emit]:
    """Two engines, each with half of the load of a minute; None: silent."""
    emits: list[Emit] = []
    for minute, load in enumerate(loads, first):
        for number, name in enumerate(("e0", "e1")):
            if load is not None:
                sample = engine(name, running=round(load / 2), waiting=0)
                emits += handler.handle(sample, at(60 * minute + 20 + number))
        emits += handler.tick(at(60 * minute + 60))
    return emits


def test_a_minute_sums_the_means_of_its_engines() -> None:
    minute = PoolMinute(0)
    for name, running, waiting in (("a", 3, 1), ("a", 6, 0), ("b", 8, 2)):
        minute.add(engine(name, running=running, waiting=waiting), ("requests_in_flight",))

    assert minute.load("requests_in_flight") == 15.0


def test_a_minute_in_which_an_engine_did_not_tell_is_unknown() -> None:
    minute = PoolMinute(0)
    minute.add(engine("a", running=3, waiting=1), ("requests_in_flight",))
    minute.add(engine("b", running=3, waiting=None), ("requests_in_flight",))

    assert minute.load("requests_in_flight") is None


def test_nothing_is_told_before_sixty_forecasts_have_come_true() -> None:
    emits = play(ForecastHandler(SETTINGS), service_load(60))

    assert emits == []


def test_a_forecast_is_told_once_a_minute_with_its_error() -> None:
    emits = play(ForecastHandler(SETTINGS), service_load(200))

    last = told(emits)[-1]
    assert len({emit.message_id for emit in emits}) == len(emits)
    assert emits[-1].message_id == f"forecast.requests_in_flight.chat.{START_NS + 199 * 60 * 10**9}"
    assert last.subject() == "forecast.requests_in_flight.chat"
    assert to_ns(last.minute_at) == START_NS + 199 * 60 * 10**9
    for horizon in last.horizons:
        assert horizon.p10 <= horizon.p50 <= horizon.p90
        assert horizon.error_ratio is not None
        assert horizon.last_value_error_ratio is not None
        assert horizon.error_ratio < horizon.last_value_error_ratio


def test_a_constant_load_has_nothing_to_tell() -> None:
    assert play(ForecastHandler(SETTINGS), [40.0] * 200) == []


def test_what_is_expected_is_the_highest_p90_of_calibrated_horizons() -> None:
    handler = ForecastHandler(SETTINGS)
    emits = play(handler, service_load(200))

    expected = handler.expected("chat", at(60 * 200).ns)

    last = told(emits)[-1]
    assert expected is not None
    assert expected.p90 >= max(horizon.p90 for horizon in last.horizons)
    assert expected.ahead_seconds in (60.0, 300.0)


def test_what_does_not_beat_the_last_value_is_still_expected() -> None:
    handler = ForecastHandler(SETTINGS)
    emits = play(handler, [40.0] * 200)

    expected = handler.expected("chat", at(60 * 200).ns)

    assert emits == []
    assert expected is not None
    assert expected.p90 == pytest.approx(40.0, abs=0.5)


def test_what_is_expected_follows_the_load() -> None:
    handler = ForecastHandler(SETTINGS)
    play(handler, [40.0] * 100)
    before = handler.expected("chat", at(60 * 100).ns)
    play(handler, [80.0] * 30, first=100)

    after = handler.expected("chat", at(60 * 130).ns)

    assert before is not None
    assert after is not None
    assert after.p90 >= 75.0
    assert before.p90 <= 45.0


@pytest.mark.parametrize(
    ("loads", "second"),
    [
        pytest.param([40.0] * 60, 3600, id="not calibrated"),
        pytest.param([*[40.0] * 200, None, None], 60 * 202, id="silent"),
        pytest.param([40.0] * 200, 60 * 201, id="the last minute is not known"),
        pytest.param([], 0, id="no such pool"),
        pytest.param([*[0.0] * 200, 1e9, 0.0], 60 * 202, id="all rests on a lone value"),
        pytest.param([*[40.0] * 200, 1e9], 60 * 201, id="the last value cannot be"),
    ],
)
def test_nothing_is_expected_where_it_is_not_known(
    loads: list[float | None], second: float
) -> None:
    handler = ForecastHandler(SETTINGS)
    play(handler, loads)

    assert handler.expected("chat", at(second).ns) is None


def test_what_is_expected_outlives_a_restart() -> None:
    first, second = ForecastHandler(SETTINGS), ForecastHandler(SETTINGS)
    play(first, service_load(200))
    play(second, service_load(200)[198:], first=198)

    second.restore(first.snapshot() or b"")

    expected = [handler.expected("chat", at(60 * 200).ns) for handler in (first, second)]
    assert expected[0] is not None
    assert expected[1] == expected[0]


def test_a_silent_pool_is_not_forecast_and_goes_on_after_the_gap() -> None:
    handler = ForecastHandler(SETTINGS)
    loads = service_load(200)
    play(handler, loads[:150])

    silent = play(handler, [None] * 10, first=150)
    after = told(play(handler, loads[160:200], first=160))

    assert silent == []
    assert after
    assert max(horizon.scored for horizon in after[-1].horizons) <= 188


def test_a_message_after_the_minute_closes_it_as_a_tick_would() -> None:
    loads = service_load(120)
    ticked, told_by_message = ForecastHandler(SETTINGS), ForecastHandler(SETTINGS)
    expected = play(ticked, loads)

    emits: list[Emit] = []
    for minute, load in enumerate(loads):
        for number, name in enumerate(("e0", "e1")):
            sample = engine(name, running=round(load / 2), waiting=0)
            emits += told_by_message.handle(sample, at(60 * minute + 20 + number))
    emits += told_by_message.tick(at(60 * 120))

    assert emits == expected


def test_a_pool_forgotten_after_a_day_begins_anew() -> None:
    handler = ForecastHandler(SETTINGS)
    play(handler, service_load(100))
    handler.tick(at(60 * 1600))

    assert play(handler, service_load(60), first=1600) == []


@pytest.mark.parametrize("cut", [100.0, 100.4], ids=["between minutes", "within a minute"])
def test_another_process_goes_on_with_the_same_forecasts(cut: float) -> None:
    loads = service_load(160)
    samples = [
        (engine(name, running=round(load / 2), waiting=0), at(60 * minute + 20 + number))
        for minute, load in enumerate(loads)
        for number, name in enumerate(("e0", "e1"))
    ]
    first, second = ForecastHandler(SETTINGS), ForecastHandler(SETTINGS)
    end_ns = START_NS + round(cut * 60 * 10**9)
    for sample, moment in samples:
        if moment.ns < end_ns:
            first.handle(sample, moment)
            if moment.ns >= end_ns - second.window_ns:
                second.handle(sample, moment)
    snapshot = first.snapshot()
    assert snapshot is not None
    second.restore(snapshot)

    rest = [(sample, moment) for sample, moment in samples if moment.ns >= end_ns]
    emits = [[e for pair in rest for e in handler.handle(*pair)] for handler in (first, second)]

    assert emits[0]
    assert emits[1] == emits[0]


def test_another_process_knows_how_long_a_pool_was_silent() -> None:
    loads = service_load(160)
    first, second = ForecastHandler(SETTINGS), ForecastHandler(SETTINGS)
    play(first, loads[:100])
    second.restore(first.snapshot() or b"")

    emits = [play(handler, loads[107:], first=107) for handler in (first, second)]

    assert emits[0]
    assert emits[1] == emits[0]


def test_a_snapshot_of_other_horizons_is_not_taken_over() -> None:
    handler = ForecastHandler(SETTINGS)
    play(handler, service_load(100))
    other = ForecastHandler(ForecastSettings(horizons_seconds=(120.0,)))

    other.restore(handler.snapshot() or b"")

    assert play(other, service_load(60), first=100) == []


def test_the_snapshot_stays_within_its_bytes() -> None:
    handler = ForecastHandler(ForecastSettings(snapshot_bytes=40_000))
    for pool in range(20):
        handler.handle(engine("e0", pool=f"p{pool}", running=1, waiting=0), at(pool))
    handler.tick(at(120))

    snapshot = handler.snapshot()

    assert snapshot is not None
    assert 4_000 < len(snapshot) <= 40_010
