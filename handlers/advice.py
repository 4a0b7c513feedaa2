"""Writes a scaling recommendation: evidence, confidence, risk, money, and the text for people."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias

from handlers.plan import Planned
from handlers.replicas import SIGNALS, Signal
from handlers.settings import ScalingSettings
from schemas.engines import EngineMetrics
from schemas.protocols import Moment
from schemas.scaling import Evidence, Recommendation
from schemas.units import SECOND_NS, instant

Direction: TypeAlias = Literal["scale_up", "scale_down"]


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The last metrics of one engine, and when they came."""

    ns: int
    metrics: EngineMetrics


def recommend(
    settings: ScalingSettings,
    action: Direction,
    target: int,
    signals: Sequence[Signal],
    reports: Sequence[Report],
    now: Moment,
    *,
    planned: Planned | None = None,
    stream_from: int,
    supersedes: str | None,
) -> Recommendation:
    """The recommendation to bring the pool of `reports` to `target` replicas.

    `planned` is what a forecast asked for; it is the reason where it asked for this target.
    """
    pool, replicas = reports[0].metrics.pool, len(reports)
    price = settings.usd_per_replica_hour
    advice_id = f"{pool}.{action}.{now.ns}"
    is_up = action == "scale_up"
    reason = _busiest(signals).name if is_up else "spare_capacity"
    text = _text(settings, action, target, signals, pool, replicas)
    evidence = _evidence(settings, action, target, signals, reports, stream_from, now)
    if planned is not None:
        evidence += _forecast_evidence(settings, planned, reports, stream_from, now)
        if planned.replicas == target or not is_up:
            reason = "forecast"
            text = _forecast_text(settings, action, target, planned, pool, replicas)
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
        confidence_ratio=confidence(signals, reports, settings.engine_ttl_seconds, now.ns),
        risk=_risk(action, target),
        effective_after_seconds=settings.startup_lead_seconds if is_up else 0.0,
        saving_usd_per_hour=None if price is None else price * (replicas - target),
        supersedes=supersedes,
        simulated=any(report.metrics.simulated for report in reports),
    )


def confidence(
    signals: Sequence[Signal], reports: Sequence[Report], ttl_seconds: float, now_ns: int
) -> float:
    """Share of fresh replicas times share of measured values.

    Fresh: heard within half of `ttl_seconds`. Measured: of three signals for each replica. All
    fresh and measured: 1; one of four silent: 0.75; no replica tells its capacity: 2/3; both:
    0.5.
    """
    fresh = sum(2 * (now_ns - report.ns) <= ttl_seconds * SECOND_NS for report in reports)
    measured = sum(value is not None for signal in signals for value in signal.values)
    return fresh / len(reports) * measured / (SIGNALS * len(reports))


def hold_seconds(settings: ScalingSettings, action: Direction) -> float:
    """How long a condition must have held for `action`."""
    return settings.up_hold_seconds if action == "scale_up" else settings.down_hold_seconds


def _evidence(
    settings: ScalingSettings,
    action: Direction,
    target: int,
    signals: Sequence[Signal],
    reports: Sequence[Report],
    stream_from: int,
    now: Moment,
) -> list[Evidence]:
    """The mean of each signal now, and before scaling down what it will become."""
    evidence = []
    for signal in signals:
        values = {signal.name: signal.mean}
        if action == "scale_down" and signal.saturation is not None:
            values[f"{signal.name}_projected"] = signal.total(signal.saturation) / target
        engines = [
            report.metrics.engine
            for report, value in zip(reports, signal.values, strict=True)
            if value is not None
        ]
        evidence += [
            Evidence(
                signal=name,
                value=value,
                threshold=signal.target,
                window_seconds=hold_seconds(settings, action),
                engines=engines,
                stream_from=stream_from,
                stream_to=now.sequence,
            )
            for name, value in values.items()
        ]
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


def _text(
    settings: ScalingSettings,
    action: Direction,
    target: int,
    signals: Sequence[Signal],
    pool: str,
    replicas: int,
) -> str:
    figures = "; ".join(
        f"{signal.name.replace('_', ' ')} {signal.mean:.2f} per replica (target {signal.target:g})"
        for signal in signals
    )
    held = f"for {hold_seconds(settings, action):g} s. Now: {figures}."
    if action == "scale_up":
        return (
            f"Scale pool {pool} up from {replicas} to {target} replicas: too much load {held} New "
            f"replicas are expected to serve after {settings.startup_lead_seconds:g} s."
        )
    spare = (
        "One replica carries this load, without a spare."
        if target == 1
        else f"{target} replicas carry this load, also with one of them lost."
    )
    return (
        f"Scale pool {pool} down from {replicas} to {target} replicas: too little load {held} "
        f"{spare}"
    )


def _busiest(signals: Sequence[Signal]) -> Signal:
    return max(signals, key=lambda signal: signal.total(0.0) / signal.target)


def _risk(action: Direction, target: int) -> Literal["low", "medium", "high"]:
    if action == "scale_up":
        return "low"
    return "high" if target == 1 else "medium"
