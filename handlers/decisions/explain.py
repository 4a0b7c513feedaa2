"""`api.optimize.explain`: from one recommendation back to the messages behind it."""

import contextlib
from collections.abc import Awaitable
from typing import TypeVar

import msgspec

from handlers.decisions.advice_log import AdviceLog
from handlers.decisions.gpu_sources import GpuSources
from handlers.decisions.sources import MetricSources
from handlers.queries.reading import Reading
from schemas.decisions import EngineSource, ExplainRequest, Explanation, MetricSource
from schemas.engines import EngineMetrics
from schemas.metrics import Rollup
from schemas.protocols import Call, Clock, Delivery, PublishError, RequestError
from schemas.scaling import ROLLBACK, Forecast, Recommendation
from schemas.spending import Opportunity, Waste
from schemas.units import SECOND_NS, instant, to_ns

ROLLUPS_NS = 15 * 60 * SECOND_NS
FORECASTS_NS = 5 * 60 * SECOND_NS
MONEY_NS = 15 * 60 * SECOND_NS
"""Waste is told every minute, opportunities that stay as they are every ten."""

T = TypeVar("T")
Money = TypeVar("Money", Waste, Opportunity)

_ENGINE = msgspec.json.Decoder(EngineMetrics)
_ROLLUP = msgspec.json.Decoder(Rollup)
_FORECAST = msgspec.json.Decoder(Forecast)


class Explain:
    """Reads what advice came from.

    Engines' metrics by the numbers in its evidence, those of GPUs where they count, or the pool's
    minutes where those are gone, the forecasts, and what the pool's GPUs cost, before it; where
    the evidence names subjects, the messages of those. Of advice to go back it is the advice whose
    execution failed that all this is of.
    """

    def __init__(self, log: AdviceLog, reading: Reading, clock: Clock) -> None:
        self._log = log
        self._reading = reading
        self._clock = clock
        self._sources = MetricSources(reading)
        self._gpus = GpuSources(reading)

    async def explain(self, request: ExplainRequest, _call: Call) -> Explanation:
        """The whole story of one recommendation.

        Of sources that could not be read now it goes without, and says so.

        Raises:
            RequestError: 404 no such advice; 503 what was said about it could not be read now.
        """
        life, trail = await self._log.read(request.recommendation_id)
        now_ns = self._clock()
        explanation = Explanation(
            answered_at=instant(now_ns),
            state=life.state(now_ns),
            closed=life.closed(now_ns),
            refusal=life.refusal(now_ns),
            life=life,
            trail=trail,
        )
        if not request.sources:
            return explanation
        missing: list[str] = []
        if life.advice.reason == ROLLBACK:
            origin = await self._log.origin(life)
            if origin is None:
                missing.append("the failed execution behind it is not in FLEET_RECOMMENDATIONS")
                return msgspec.structs.replace(explanation, missing=missing)
            trail = sorted([*origin[1], *trail], key=lambda entry: entry.sequence)
            explanation = msgspec.structs.replace(explanation, trail=trail)
            return await self._with_sources(explanation, origin[0].advice, missing)
        return await self._with_sources(explanation, life.advice, missing)

    async def _with_sources(
        self, explanation: Explanation, advice: Recommendation, missing: list[str]
    ) -> Explanation:
        """With what `advice` came from."""
        if any(one.subject is not None for one in advice.evidence):
            sources = await self._sources.read(advice.evidence, missing)
            return msgspec.structs.replace(explanation, sources=sources, missing=missing)
        engines = await _or_none(self._engines(advice, missing), "METRICS", missing)
        gpus: list[MetricSource] = []
        rollups: list[Rollup] = []
        if engines:
            gpus = await _or_none(self._gpus.read(advice, missing), "METRICS", missing)
        else:
            rollups = await _or_none(self._rollups(advice, missing), "ROLLUPS", missing)
        return msgspec.structs.replace(
            explanation,
            engines=engines,
            sources=gpus,
            rollups=rollups,
            read_from="metrics" if engines else "rollups" if rollups else "nothing",
            forecasts=await _or_none(self._forecasts(advice, missing), "EVENTS", missing),
            missing=missing,
            waste=await self._last_before(advice, Waste, missing),
            opportunity=await self._last_before(advice, Opportunity, missing),
        )

    async def _engines(self, advice: Recommendation, missing: list[str]) -> list[EngineSource]:
        """What each engine of the pool reported between the numbers in the evidence."""
        begins = [one.stream_from for one in advice.evidence if one.stream_from is not None]
        ends = [one.stream_to for one in advice.evidence if one.stream_to is not None]
        if not begins or not ends:
            missing.append("the evidence names no messages")
            return []
        begin, end = min(begins), max(ends)
        try:
            first, last = await self._reading.subscriber.stream_bounds("METRICS")
        except PublishError as error:
            raise RequestError(503, "the stream could not be read now") from error
        if end > last:
            missing.append(f"FLEET_METRICS ends at {last}, before {end}: it was made anew since")
            return []
        if begin < first:
            what = "all" if end < first else f"{begin} to {first - 1}"
            missing.append(
                f"of messages {begin} to {end} {what} are gone: FLEET_METRICS begins at {first}"
            )
            if end < first:
                return []
        signals = [one.signal for one in advice.evidence]
        found: dict[tuple[str, str], EngineSource] = {}
        messages = self._reading.messages(
            "METRICS", _engine, subject=EngineMetrics.pattern(), start_sequence=max(begin, first)
        )
        async with contextlib.aclosing(messages):
            async for delivery, metrics in messages:
                if delivery.sequence > end:
                    break
                if metrics.pool != advice.pool:
                    continue
                earlier = found.get((metrics.node, metrics.engine))
                found[metrics.node, metrics.engine] = EngineSource(
                    node=metrics.node,
                    engine=metrics.engine,
                    messages=1 + (earlier.messages if earlier else 0),
                    first_sequence=earlier.first_sequence if earlier else delivery.sequence,
                    last_sequence=delivery.sequence,
                    values={name: value for name in signals for value in _value(metrics, name)},
                )
        if not found and begin >= first:
            missing.append(f"messages {begin} to {end} have none of pool {advice.pool}")
        return [found[key] for key in sorted(found)]

    async def _rollups(self, advice: Recommendation, missing: list[str]) -> list[Rollup]:
        """The pool's minutes before the advice."""
        decided_ns = to_ns(advice.decided_at)
        messages = self._reading.messages(
            "ROLLUPS",
            _rollup,
            subject=f"rollup.pool.{advice.pool}",
            start_ns=decided_ns - ROLLUPS_NS,
            end_ns=decided_ns,
        )
        rollups = [rollup async for _, rollup in messages]
        if not rollups:
            missing.append("FLEET_ROLLUPS has no minute of the pool before it")
        return rollups

    async def _forecasts(self, advice: Recommendation, missing: list[str]) -> list[Forecast]:
        """The last of each signal before the advice."""
        decided_ns = to_ns(advice.decided_at)
        messages = self._reading.messages(
            "EVENTS",
            _forecast,
            subject=f"forecast.*.{advice.pool}",
            start_ns=decided_ns - FORECASTS_NS,
            end_ns=decided_ns,
        )
        last = {forecast.signal: forecast async for _, forecast in messages}
        if not last and advice.reason == "forecast":
            missing.append("FLEET_EVENTS has no forecast of the pool shortly before it")
        return [last[signal] for signal in sorted(last)]

    async def _last_before(
        self, advice: Recommendation, kind: type[Money], missing: list[str]
    ) -> Money | None:
        """What was last told of the pool's GPUs; None where nothing was, or no saving."""
        found = await _or_none(self._told_before(advice, kind), "EVENTS", missing)
        last = found[-1] if found else None
        return None if isinstance(last, Opportunity) and not last.savings else last

    async def _told_before(self, advice: Recommendation, kind: type[Money]) -> list[Money]:
        decoder = msgspec.json.Decoder(kind)
        decided_ns = to_ns(advice.decided_at)
        messages = self._reading.messages(
            "EVENTS",
            lambda delivery: decoder.decode(delivery.payload),
            subject=kind.SUBJECT.format(scope="pool", id=advice.pool),
            start_ns=decided_ns - MONEY_NS,
            end_ns=decided_ns,
        )
        return [message async for _, message in messages]


async def _or_none(found: Awaitable[list[T]], stream: str, missing: list[str]) -> list[T]:
    try:
        return await found
    except RequestError as error:
        missing.append(f"FLEET_{stream}: {error.text}")
        return []


def _value(metrics: EngineMetrics, signal: str) -> list[float | None]:
    """The signal's value in one report; none where it is not of one engine, but planned."""
    if signal == "capacity_usage_ratio":
        running, most = metrics.requests_running, metrics.requests_running_max
        return [None if running is None or not most else running / most]
    if signal in EngineMetrics.__struct_fields__:
        value = getattr(metrics, signal)
        return [None if value is None else float(value)]
    return []


def _engine(delivery: Delivery) -> EngineMetrics:
    return _ENGINE.decode(delivery.payload)


def _rollup(delivery: Delivery) -> Rollup:
    return _ROLLUP.decode(delivery.payload)


def _forecast(delivery: Delivery) -> Forecast:
    return _FORECAST.decode(delivery.payload)
