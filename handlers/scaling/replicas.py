"""How many replicas the HPA rule asks for, by the load signals of a pool. Pure."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from handlers.settings import ScalingSettings
from schemas.engines import EngineMetrics

WAITING, KV_CACHE, CAPACITY = "requests_waiting", "kv_cache_usage_ratio", "capacity_usage_ratio"
SIGNALS = 3
TTFT, ITL = "ttft_p95_seconds", "itl_p95_seconds"
LATENCY_MOST = 2.0
"""Latency grows faster than load: for it at most twice as many replicas, HPA's default limit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Signal:
    """One load signal: a value per replica (None = not measured), at least one of them known.

    `saturation` is the value at which a replica can take no more; None where there is no limit.
    A latency is none that replicas share: one without requests has none, and tells nothing.
    """

    name: str
    target: float
    saturation: float | None
    values: tuple[float | None, ...]

    @property
    def is_latency(self) -> bool:
        """Whether it is how long requests take."""
        return self.name in (TTFT, ITL)

    @property
    def mean(self) -> float:
        """The mean of the replicas that were measured."""
        known = [value for value in self.values if value is not None]
        return math.fsum(known) / len(known)

    def total(self, missing: float) -> float:
        """The sum over all replicas, an unknown one counted as `missing`, a latency as the mean."""
        if self.is_latency:
            missing = self.mean
        return math.fsum(missing if value is None else value for value in self.values)


def measure(engines: Sequence[EngineMetrics], settings: ScalingSettings) -> list[Signal]:
    """The signals that at least one replica measured.

    One that sleeps has no queue because it serves nothing, so it counts as not measured.
    """
    candidates: tuple[
        tuple[str, float | None, float | None, Callable[[EngineMetrics], float | None]], ...
    ] = (
        (WAITING, settings.waiting_per_replica_target, None, lambda e: e.requests_waiting),
        (
            KV_CACHE,
            settings.kv_cache_target_ratio,
            1.0,
            lambda e: e.kv_cache_usage_ratio,
        ),
        (CAPACITY, settings.capacity_target_ratio, 1.0, _capacity_usage),
        (TTFT, settings.ttft_target_seconds, None, lambda e: e.ttft_p95_seconds),
        (ITL, settings.itl_target_seconds, None, lambda e: e.itl_p95_seconds),
    )
    signals = [
        Signal(
            name,
            target,
            saturation,
            tuple(None if engine.is_sleeping else read(engine) for engine in engines),
        )
        for name, target, saturation, read in candidates
        if target is not None
    ]
    return [signal for signal in signals if any(value is not None for value in signal.values)]


def _capacity_usage(engine: EngineMetrics) -> float | None:
    """Requests running against the most that can run at once."""
    if engine.requests_running is None or not engine.requests_running_max:
        return None
    return engine.requests_running / engine.requests_running_max


def desired_replicas(signals: Sequence[Signal], replicas: int, tolerance_ratio: float) -> int:
    """`ceil(replicas * max over signals(mean / target))`, within tolerance unchanged.

    The rule of Kubernetes' HorizontalPodAutoscaler, with its treatment of the unknown: for
    scaling up an unmeasured replica counts as 0, for scaling down as exactly on target. Fewer
    are desired only when the queue *and* a measure of fullness are known. With 4 replicas and a
    target of 5: 10 waiting each → 8; 5.5 each (ratio 1.10, the edge of the tolerance) → 4; one
    unmeasured beside three with 10 (ratio 30 / 4 / 5 = 1.5) → 6.
    """

    def ratio(signal: Signal, missing: float) -> float:
        # Rounded, so that a value exactly on an edge is not past it by a float's last bit.
        found = round(signal.total(missing) / replicas / signal.target, 9)
        return min(found, LATENCY_MOST) if signal.is_latency else found

    up = max(ratio(signal, 0.0) for signal in signals)
    if up > 1 + tolerance_ratio:
        return math.ceil(round(replicas * up, 9))
    if _missing(signals):
        return replicas
    down = max(ratio(signal, signal.target) for signal in signals)
    if down < 1 - tolerance_ratio:
        return max(1, math.ceil(round(replicas * down, 9)))
    return replicas


def lacking(signals: Sequence[Signal], tolerance_ratio: float) -> str:
    """What is not measured, but for which fewer would be desired; empty: nothing."""
    if any(signal.mean / signal.target >= 1 - tolerance_ratio for signal in signals):
        return ""
    return _missing(signals)


def _missing(signals: Sequence[Signal]) -> str:
    """The queue, or a measure of fullness, where it is not measured; empty: both are."""
    known = {signal.name for signal in signals}
    if WAITING not in known:
        return WAITING
    return "" if known & {KV_CACHE, CAPACITY} else f"{KV_CACHE} or {CAPACITY}"
