"""How many replicas the HPA rule asks for, by the load signals of a pool. Pure."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from handlers.settings import ScalingSettings
from handlers.utilization.gpu_busy import GpuBusy
from schemas.engines import EngineMetrics

WAITING, KV_CACHE, CAPACITY = "requests_waiting", "kv_cache_usage_ratio", "capacity_usage_ratio"
SIGNALS = 3
TTFT, ITL = "ttft_p95_seconds", "itl_p95_seconds"
PROMPT, GENERATION = "prompt_tokens_per_second", "generation_tokens_per_second"
GPU_BUSY = "gpu_busy_ratio"
LATENCY_MOST = 2.0
"""Latency grows faster than load: for it at most twice as many replicas, HPA's default limit."""


Load: TypeAlias = tuple[float | None, ...]
"""Of one replica: requests waiting, use of its KV cache and of what it can run at once, the
latencies TTFT and ITL, and where they count prompt and generated tokens a second."""


@dataclasses.dataclass(frozen=True)
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
    def measured(self) -> float:
        """How many replicas were measured."""
        return self._known[1]

    @property
    def mean(self) -> float:
        """The mean of the replicas that were measured."""
        known, count = self._known
        return known / count

    def total(self, missing: float) -> float:
        """The sum over all replicas, an unknown one counted as `missing`, a latency as the mean."""
        known, count = self._known
        if count == len(self.values):
            return known
        if self.is_latency:
            missing = self.mean
        return math.fsum(missing if value is None else value for value in self.values)

    @functools.cached_property
    def _known(self) -> tuple[float, int]:
        """Their sum, and how many were measured."""
        try:
            return math.fsum(self.values), len(self.values)  # type: ignore[arg-type]  # if all were
        except TypeError:
            known = [value for value in self.values if value is not None]
            return math.fsum(known), len(known)


@dataclasses.dataclass(frozen=True)
class GpuSignal(Signal):
    """How busy the GPUs of a pool are: `values` is empty, as no replica's own GPUs are known."""

    busy: GpuBusy
    replicas: int

    @property
    def measured(self) -> float:
        """As many replicas as the share of the GPUs that were measured."""
        return self.replicas * self.busy.known / self.busy.gpus

    @property
    def mean(self) -> float:
        """The mean of the GPUs that were measured."""
        return self.busy.busy / self.busy.known

    def total(self, missing: float) -> float:
        """As many replicas at 1: 8 GPUs at 0.6 of 4 replicas → 2.4."""
        unknown = self.busy.gpus - self.busy.known
        return self.replicas * (self.busy.busy + missing * unknown) / self.busy.gpus


def counts_rates(settings: ScalingSettings) -> bool:
    """Whether a token rate has a target."""
    targets = (
        settings.prompt_target_tokens_per_second,
        settings.generation_target_tokens_per_second,
    )
    return targets != (None, None)


def load_of(engine: EngineMetrics, *, with_rates: bool = False) -> Load:
    """What one replica tells of its load; the rates of tokens only where they are asked for.

    One that sleeps has no queue because it serves nothing, so it counts as not measured.
    """
    if engine.is_sleeping:
        return (None,) * 7 if with_rates else (None,) * 5
    running, most = engine.requests_running, engine.requests_running_max
    load = (
        engine.requests_waiting,
        engine.kv_cache_usage_ratio,
        None if running is None or not most else running / most,
        engine.ttft_p95_seconds,
        engine.itl_p95_seconds,
    )
    if not with_rates:  # every message of a pool reads those of all its replicas
        return load
    return (*load, engine.prompt_tokens_per_second, engine.generation_tokens_per_second)


def measure(
    loads: Iterable[Load], settings: ScalingSettings, busy: GpuBusy | None = None
) -> list[Signal]:
    """The signals that at least one replica, or GPU, measured, of those that have a target."""
    kinds: tuple[tuple[str, float | None, float | None], ...] = (
        (WAITING, settings.waiting_per_replica_target, None),
        (KV_CACHE, settings.kv_cache_target_ratio, 1.0),
        (CAPACITY, settings.capacity_target_ratio, 1.0),
        (TTFT, settings.ttft_target_seconds, None),
        (ITL, settings.itl_target_seconds, None),
        (PROMPT, settings.prompt_target_tokens_per_second, None),
        (GENERATION, settings.generation_target_tokens_per_second, None),
    )
    columns = list(zip(*loads, strict=True))
    signals = [
        Signal(name, target, saturation, values)
        for (name, target, saturation), values in zip(kinds, columns, strict=False)
        if target is not None and any(value is not None for value in values)
    ]
    if settings.gpu_busy_target_ratio is not None and busy is not None and columns:
        replicas = len(columns[0])
        signals.append(GpuSignal(GPU_BUSY, settings.gpu_busy_target_ratio, 1.0, (), busy, replicas))
    return signals


def optional_signals(settings: ScalingSettings) -> list[str]:
    """Those that must be measured where the settings have a target for them."""
    targets = {
        PROMPT: settings.prompt_target_tokens_per_second,
        GENERATION: settings.generation_target_tokens_per_second,
        GPU_BUSY: settings.gpu_busy_target_ratio,
    }
    return [name for name, target in targets.items() if target is not None]


def desired_replicas(
    signals: Sequence[Signal],
    replicas: int,
    tolerance_ratio: float,
    optional: Sequence[str] = (),
) -> int:
    """`ceil(replicas * max over signals(mean / target))`, within tolerance unchanged.

    The rule of Kubernetes' HorizontalPodAutoscaler, with its treatment of the unknown: for
    scaling up an unmeasured replica counts as 0, for scaling down as exactly on target. Fewer
    are desired only when the queue *and* a measure of fullness are known, and each of the
    `optional_signals`. With 4 replicas and a
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
    if unmeasured(signals, optional):
        return replicas
    down = max(ratio(signal, signal.target) for signal in signals)
    if down < 1 - tolerance_ratio:
        return max(1, math.ceil(round(replicas * down, 9)))
    return replicas


def lacking(signals: Sequence[Signal], tolerance_ratio: float, optional: Sequence[str] = ()) -> str:
    """What is not measured, but for which fewer would be desired; empty: nothing."""
    if any(signal.mean / signal.target >= 1 - tolerance_ratio for signal in signals):
        return ""
    return unmeasured(signals, optional)


def unmeasured(signals: Sequence[Signal], optional: Sequence[str] = ()) -> str:
    """The queue, a measure of fullness, or one of `optional` that is not measured; empty: none."""
    known = {signal.name for signal in signals}
    if WAITING not in known:
        return WAITING
    if not known & {KV_CACHE, CAPACITY}:
        return f"{KV_CACHE} or {CAPACITY}"
    return next((name for name in optional if name not in known), "")
