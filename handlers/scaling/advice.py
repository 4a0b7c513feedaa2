"""Writes a scaling recommendation: evidence, confidence, risk, money, and the text for people."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from handlers.scaling.cache_loss import CacheLoss
from handlers.scaling.demand import Demand
from handlers.scaling.plan import Planned
from handlers.scaling.replica_loads import load_of
from handlers.scaling.replica_price import DerivedPrice
from handlers.scaling.replicas import SIGNALS, GpuSignal, Signal
from handlers.scaling.scale_down import (
    Direction,
    expectation,
    loss_text,
    one_off_usd,
    payback_hours,
)
from handlers.settings import ScalingSettings
from schemas.engines import EngineMetrics
from schemas.money import usd
from schemas.protocols import Moment
from schemas.scaling import Evidence, Recommendation
from schemas.units import SECOND_NS, instant


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The last metrics of one engine, and when they came."""

    ns: int
    metrics: EngineMetrics


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What a pool is to be brought to, and the demand that was found.

    `planned` is what a forecast asked for; it is the reason where it asked for this target.
    `loss` is what goes with the KV caches of the replicas that do. `is_panic`: the load is so high
    that it was not waited for the whole hold. `is_minimum`: not by the load, which fewer than
    `min_replicas` carry. `asked`: upwards, what would be the target but for
    `max_replicas` and what is advised at once.
    """

    action: Direction
    target: int
    demand: Demand
    planned: Planned | None = None
    loss: CacheLoss | None = None
    is_panic: bool = False
    is_minimum: bool = False
    asked: int = 0


def recommend(
    settings: ScalingSettings,
    change: Change,
    reports: Sequence[Report],
    now: Moment,
    *,
    stream_from: int,
    supersedes: str | None,
    price: DerivedPrice | None = None,
) -> Recommendation:
    """The recommendation of a change to the pool of `reports`.

    `price`: where the price of a replica in `settings` was derived, from what.
    """
    action, target, planned = change.action, change.target, change.planned
    signals = change.demand.signals
    pool, replicas = reports[0].metrics.pool, len(reports)
    hourly = settings.usd_per_replica_hour
    advice_id = f"{pool}.{action}.{now.ns}"
    is_up = action == "scale_up"
    reason = _busiest(signals).name if is_up else "spare_capacity"
    if change.is_minimum:
        reason = "min_replicas"
    text = _text(settings, change, pool, replicas)
    evidence = _evidence(settings, change, reports, stream_from, now)
    if planned is not None:
        evidence += _forecast_evidence(settings, planned, reports, stream_from, now)
        if planned.replicas == target or not is_up:
            reason = "forecast"
            text = _forecast_text(settings, action, target, planned, pool, replicas)
    one_off = payback = None
    if change.loss is not None:
        removed = replicas - target
        text += f" {_spare(settings, change)} {loss_text(settings, change.loss, removed)}"
        one_off = one_off_usd(settings, change.loss)
        payback = payback_hours(change.loss, removed)
    if price is not None:
        text += f" {_price_text(price)}"
        evidence.append(
            Evidence(signal="usd_per_replica_hour", value=price.usd_per_hour, sources=price.sources)
        )
    return Recommendation(
        action=action,
        pool=pool,
        recommendation_id=advice_id,
        idempotency_key=advice_id,
        decided_at=instant(now.ns),
        expires_at=instant(now.ns + int(settings.expires_after_seconds * SECOND_NS)),
        replicas_from=replicas,
        replicas_to=target,
        reason=reason,
        text=text,
        evidence=evidence,
        confidence_ratio=confidence(
            signals,
            reports,
            settings.engine_ttl_seconds,
            now.ns,
            optional=len(change.demand.optional),
        ),
        risk=_risk(action, target),
        effective_after_seconds=settings.startup_lead_seconds if is_up else 0.0,
        saving_usd_per_hour=None if hourly is None else hourly * (replicas - target),
        one_off_cost_usd=one_off,
        payback_hours=payback,
        supersedes=supersedes,
        simulated=any(report.metrics.simulated for report in reports)
        or any(isinstance(one, GpuSignal) and one.busy.simulated for one in signals),
    )


def confidence(
    signals: Sequence[Signal],
    reports: Sequence[Report],
    ttl_seconds: float,
    now_ns: int,
    *,
    optional: int = 0,
) -> float:
    """Share of fresh replicas times share of measured values.

    Fresh: heard within half of `ttl_seconds`. Measured: of three signals for each replica, and
    `optional` ones that have a target; a latency is null where there was no request, which is no
    gap. All fresh and measured: 1; one of four silent: 0.75; no replica tells its capacity: 2/3;
    both: 0.5.
    """
    fresh = sum(2 * (now_ns - report.ns) <= ttl_seconds * SECOND_NS for report in reports)
    measured = sum(signal.measured for signal in signals if not signal.is_latency)
    return fresh / len(reports) * measured / ((SIGNALS + optional) * len(reports))


def hold_seconds(settings: ScalingSettings, change: Change) -> float:
    """How long a condition must have held for `change`."""
    if change.is_panic:
        return settings.panic_hold_seconds
    return settings.up_hold_seconds if change.action == "scale_up" else settings.down_hold_seconds


def _evidence(
    settings: ScalingSettings,
    change: Change,
    reports: Sequence[Report],
    stream_from: int,
    now: Moment,
) -> list[Evidence]:
    """The mean of each signal now, and before scaling down what a failure would make of it."""
    demand, evidence = change.demand, []
    loads = [
        (report.metrics.engine, load_of(report.metrics, with_rates=True)) for report in reports
    ]
    survivors = max(1, change.target - settings.failures_survived)
    for signal in demand.signals:
        values = {signal.name: (signal.mean, signal.target)}
        if change.action == "scale_down" and not signal.is_latency:
            projected = demand.total(signal) / survivors
            values[f"{signal.name}_projected"] = (projected, demand.limit(signal))
        engines = [engine for engine, load in loads if signal.is_measured(load)]
        evidence += [
            Evidence(
                signal=name,
                value=value,
                threshold=threshold,
                window_seconds=hold_seconds(settings, change),
                engines=engines,
                stream_from=stream_from,
                stream_to=now.sequence,
                sources=list(signal.busy.sources) if isinstance(signal, GpuSignal) else [],
            )
            for name, (value, threshold) in values.items()
        ]
    if change.loss is not None and demand.expected is not None:
        evidence.append(
            Evidence(
                signal="requests_in_flight_p90",
                value=demand.expected.p90,
                window_seconds=demand.expected.ahead_seconds,
            )
        )
    if change.loss is not None and change.loss.tokens is not None:
        evidence.append(Evidence(signal="kv_cache_tokens_lost", value=change.loss.tokens))
    return evidence


def _forecast_evidence(
    settings: ScalingSettings,
    planned: Planned,
    reports: Sequence[Report],
    stream_from: int,
    now: Moment,
) -> list[Evidence]:
    """What is expected when an order of now serves, and the risk of the replicas planned for it."""
    engines = [report.metrics.engine for report in reports]
    carried = planned.replicas * planned.in_flight_per_replica
    return [
        Evidence(
            signal=signal,
            value=value,
            threshold=threshold,
            window_seconds=settings.startup_lead_seconds,
            engines=engines,
            stream_from=stream_from,
            stream_to=now.sequence,
        )
        for signal, value, threshold in (
            ("requests_in_flight_expected", planned.expected_in_flight, carried),
            ("short_risk_ratio", planned.risk_ratio, settings.risk_ratio),
        )
    ]


def _forecast_text(
    settings: ScalingSettings,
    action: Direction,
    target: int,
    planned: Planned,
    pool: str,
    replicas: int,
) -> str:
    direction = "up" if action == "scale_up" else "down"
    return (
        f"Scale pool {pool} {direction} from {replicas} to {target} replicas: about "
        f"{planned.expected_in_flight:.0f} requests in flight are expected in "
        f"{settings.startup_lead_seconds:g} s, when a new replica would serve; one runs "
        f"{planned.in_flight_per_replica:g} at once. With {planned.replicas} the risk of more "
        f"than they can run is {planned.risk_ratio:.2%}."
    )


def _text(settings: ScalingSettings, change: Change, pool: str, replicas: int) -> str:
    signals = list(change.demand.signals)
    if change.action == "scale_up":  # the reason first; the others keep their order
        busiest = _busiest(signals)
        signals.sort(key=lambda one: one is not busiest)
    figures = "; ".join(map(_figure, signals))
    held = f"for {hold_seconds(settings, change):g} s. Now: {figures}."
    if change.action == "scale_up":
        minimum = f"below min_replicas ({settings.min_replicas})"
        why = minimum if change.is_minimum else "too much load"
        text = (
            f"Scale pool {pool} up from {replicas} to {change.target} replicas: {why} {held} "
            f"New replicas are expected to serve after {settings.startup_lead_seconds:g} s."
        )
        if change.asked > change.target:
            limit = "no more are advised at once"
            if change.target == settings.max_replicas:
                limit = f"max_replicas is {change.target}"
            text += f" The load asks for {change.asked}, but {limit}."
        return text
    return (
        f"Scale pool {pool} down from {replicas} to {change.target} replicas: too little load "
        f"{held}"
    )


def _figure(signal: Signal) -> str:
    name, target = signal.name.replace("_", " "), f"(target {signal.target:g})"
    if isinstance(signal, GpuSignal):
        busy = signal.busy
        gpus = f"{busy.known} of {signal.gpus} GPUs, by {' and '.join(busy.sources)}"
        return f"{name} {signal.mean:.2f} {target} of {gpus}"
    return f"{name} {signal.mean:.2f} per replica {target}"


def _price_text(price: DerivedPrice) -> str:
    """From what the price of a replica was derived."""
    how = "by the settings" if price.is_given else "by the pool's GPUs and replicas"
    return (
        f"A replica is priced at {usd(price.usd_per_hour)} an hour: {price.gpus} "
        f"GPU{'s' if price.gpus > 1 else ''} ({how}) at {usd(price.usd_per_gpu_hour)}, the mean "
        f"of {'; '.join(price.sources)}."
    )


def _spare(settings: ScalingSettings, change: Change) -> str:
    """What is left, and what that survives."""
    lost = min(settings.failures_survived, change.target - 1)
    what = f"{change.target} replica{'s carry' if change.target > 1 else ' carries'}"
    spare = f"also with {lost} of them lost" if lost else "without a spare"
    return f"{what} {expectation(change.demand)}, {spare}."


def _busiest(signals: Sequence[Signal]) -> Signal:
    """That asks for the most, of those that ask."""
    asking = [signal for signal in signals if signal.asks_up] or signals
    return max(asking, key=lambda signal: signal.total(0.0) / signal.target)


def _risk(action: Direction, target: int) -> Literal["low", "medium", "high"]:
    if action == "scale_up":
        return "low"
    return "high" if target == 1 else "medium"
