"""Forecasts the load of each pool, a minute at a time, and tells those that are any good."""

import dataclasses
from collections.abc import Sequence

import msgspec

from handlers.forecasting import Forecaster
from handlers.forecasting.forecaster import LEAST_MATURED
from handlers.scaling.demand import Expected
from handlers.scaling.pool_load import LoadSignal, PoolMinute
from handlers.settings import ForecastSettings
from handlers.window import ExpiringDict
from schemas.analysis import Scope
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.protocols import Emit, Moment
from schemas.scaling import Forecast, ForecastHorizon
from schemas.units import SECOND_NS, instant

STEP_SECONDS = 60
MINUTE_NS = STEP_SECONDS * SECOND_NS
FORGET_NS = 24 * 60 * MINUTE_NS
EXPECTED: LoadSignal = "requests_in_flight"


class _Stored(msgspec.Struct):
    """The forecasters of a pool, fed up to an instant."""

    pool: str
    touched_ns: int
    fed_ns: int
    forecasters: dict[LoadSignal, Forecaster]


@dataclasses.dataclass(slots=True)
class _Pool:
    """A pool's open minute, and its forecasters, fed with all minutes before `fed_ns`."""

    forecasters: dict[LoadSignal, Forecaster]
    fed_ns: int = 0
    minute: PoolMinute | None = None
    expected: tuple[int, Expected | None] = (0, None)
    """As of the forecaster's step."""


class ForecastHandler:
    """Publishes a Forecast for each pool and signal after each minute, horizons withheld left out.

    A minute in which nothing was heard of a pool, or one of its engines did not tell, is a gap.
    A pool silent for a day is forgotten. After a restart a pool goes on where it was, as far as
    all pools' state fits into `snapshot_bytes`; the others begin anew.
    """

    name = "forecast"
    scope: Scope = "pool"
    consumes: tuple[type[Message], ...] = (EngineMetrics,)
    window_ns = 2 * MINUTE_NS

    def __init__(self, settings: ForecastSettings) -> None:
        self._settings = settings
        self._horizons = _steps(settings.horizons_seconds)
        self._seasons = _steps(settings.seasons_seconds)
        self._pools: ExpiringDict[str, _Pool] = ExpiringDict(FORGET_NS)
        self._snapshot: bytes | None = None

    def handle(self, message: EngineMetrics, now: Moment) -> Sequence[Emit]:
        """Add the sample to its minute, after the one before was closed."""
        pool = self._pools.refresh(message.pool, self._new_pool, now.ns)
        emits = self._close(message.pool, pool, now)
        if pool.minute is None:
            pool.minute = PoolMinute(now.ns // MINUTE_NS * MINUTE_NS)
        pool.minute.add(message, self._settings.signals)
        return emits

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Close the minutes that are over."""
        pools = sorted(self._pools.items(now.ns), key=lambda item: item[0])
        return [emit for name, pool in pools for emit in self._close(name, pool, now)]

    def expected(self, name: str, now_ns: int) -> Expected | None:
        """The highest p90 of a pool's requests in flight, of all horizons.

        Of those that are calibrated: also of one that does not beat the last value, and is not
        published. None: of no horizon, the last minute is not known, or it rests on one value that
        nothing has been like since.
        """
        pool = self._pools.get(name, now_ns)
        forecaster = None if pool is None else pool.forecasters.get(EXPECTED)
        if pool is None or forecaster is None or forecaster.is_doubtful:
            return None
        if now_ns >= pool.fed_ns + MINUTE_NS:
            return None
        if pool.expected[0] != forecaster.now:
            found = [
                Expected(one.p90, float(one.steps_ahead * STEP_SECONDS))
                for one in forecaster.estimates()
                if one.scored >= LEAST_MATURED
            ]
            highest = max(found, key=lambda one: one.p90, default=None)
            pool.expected = (forecaster.now, highest)
        return pool.expected[1]

    def snapshot(self) -> bytes | None:
        """The forecasters of the pools, by name, as far as they fit."""
        if self._snapshot is None:
            packed, size = [], 0
            for touched_ns, name, pool in sorted(self._pools.touched(), key=lambda one: one[1]):
                stored = _Stored(name, touched_ns, pool.fed_ns, pool.forecasters)
                one = msgspec.Raw(msgspec.msgpack.encode(stored))
                size += len(one)
                if size > self._settings.snapshot_bytes:
                    break
                packed.append(one)
            self._snapshot = msgspec.msgpack.encode(packed)
        return self._snapshot

    def restore(self, snapshot: bytes) -> None:
        """Take over the forecasters; open minutes stay. Other settings begin anew."""
        restored = msgspec.msgpack.decode(snapshot, type=list[_Stored])
        pools = {name: (ns, pool) for ns, name, pool in self._pools.touched()}
        for stored in restored:
            ns, pool = pools.setdefault(stored.pool, (stored.touched_ns, self._new_pool()))
            for signal in self._settings.signals:
                forecaster = stored.forecasters.get(signal)
                if forecaster is not None and self._fits(forecaster):
                    pool.forecasters[signal] = forecaster
            pool.fed_ns = stored.fed_ns
        self._pools = ExpiringDict(FORGET_NS)
        for name, (ns, pool) in sorted(pools.items(), key=lambda item: item[1][0]):
            self._pools.put(name, pool, ns)
        self._snapshot = None

    def _new_pool(self) -> _Pool:
        return _Pool(
            {
                signal: Forecaster.make(self._horizons, self._seasons)
                for signal in self._settings.signals
            }
        )

    def _fits(self, forecaster: Forecaster) -> bool:
        """Whether it was made by these settings."""
        horizons = tuple(horizon.steps_ahead for horizon in forecaster.horizons)
        seasons = tuple(season.steps for season in forecaster.experts.seasons)
        return (horizons, seasons) == (self._horizons, self._seasons)

    def _close(self, name: str, pool: _Pool, now: Moment) -> list[Emit]:
        """Feed the open minute, when it is over, and those before it in which nothing came."""
        minute = pool.minute
        if minute is None or now.ns < minute.start_ns + MINUTE_NS:
            return []
        self._snapshot = None
        missed = (minute.start_ns - pool.fed_ns) // MINUTE_NS if pool.fed_ns else 0
        pool.fed_ns = minute.start_ns + MINUTE_NS
        pool.minute = None
        emits = []
        for signal, forecaster in pool.forecasters.items():
            forecaster.skip(max(0, missed))
            forecaster.update(minute.load(signal))
            message = _forecast(name, signal, forecaster, minute)
            if message is not None:
                emits.append(Emit(message, f"forecast.{signal}.{name}.{minute.start_ns}"))
        return emits


def _forecast(
    pool: str, signal: LoadSignal, forecaster: Forecaster, minute: PoolMinute
) -> Forecast | None:
    """The horizons that are given out, or None when none is."""
    horizons = [
        ForecastHorizon(
            ahead_seconds=float(one.steps_ahead * STEP_SECONDS),
            p10=one.p10,
            p50=one.p50,
            p90=one.p90,
            error_ratio=one.error_ratio,
            last_value_error_ratio=one.last_value_error_ratio,
            coverage_ratio=one.coverage_ratio,
            scored=one.scored,
            season_seconds=None
            if one.season_steps is None
            else float(one.season_steps * STEP_SECONDS),
        )
        for one in forecaster.estimates()
        if not one.is_withheld
    ]
    last = minute.load(signal)
    if not horizons or last is None:
        return None
    return Forecast(
        pool=pool,
        signal=signal,
        minute_at=instant(minute.start_ns),
        last=last,
        horizons=horizons,
        simulated=minute.simulated,
    )


def _steps(seconds: Sequence[float]) -> tuple[int, ...]:
    """Whole minutes, at least one each, in rising order."""
    return tuple(sorted({max(1, round(one / STEP_SECONDS)) for one in seconds}))
