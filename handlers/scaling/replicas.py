"""How many replicas the HPA rule asks for, by the load signals of a pool. Pure."""

import math
import operator
from collections.abc import Sequence
from typing import Self

import msgspec

from handlers.scaling.replica_loads import Load, ReplicaLoads
from handlers.settings import ScalingSettings
from handlers.utilization.gpu_busy import GpuBusy

WAITING, KV_CACHE, CAPACITY = "requests_waiting", "kv_cache_usage_ratio", "capacity_usage_ratio"
SIGNALS = 3
TTFT, ITL = "ttft_p95_seconds", "itl_p95_seconds"
PROMPT, GENERATION = "prompt_tokens_per_second", "generation_tokens_per_second"
GPU_BUSY = "gpu_busy_ratio"
LATENCY_MOST = 2.0
"""Latency grows faster than load: for it at most twice as many replicas, HPA's default limit."""
_PLACES = {WAITING: 0, KV_CACHE: 1, CAPACITY: 2, TTFT: 3, ITL: 4, PROMPT: 5, GENERATION: 6}
"""In a `Load`."""
_SATURATION = {KV_CACHE: 1.0, CAPACITY: 1.0}
_SIGNALS = tuple((name, place, _SATURATION.get(name)) for name, place in _PLACES.items())
_targets = operator.attrgetter(
    "waiting_per_replica_target",
    "kv_cache_target_ratio",
    "capacity_target_ratio",
    "ttft_target_seconds",
    "itl_target_seconds",
    "prompt_target_tokens_per_second",
    "generation_target_tokens_per_second",
)
"""Of the settings, in the order of `_SIGNALS`; None: the signal does not count."""


class Signal(msgspec.Struct, frozen=True, gc=False):
    """One load signal: the sum of the replicas that were measured, at least one of them.

    `saturation` is the value at which a replica can take no more; None where there is no limit.
    A latency is none that replicas share: one without requests has none, and tells nothing.
    """

    name: str
    target: float
    saturation: float | None
    known: float
    measured: float
    """How many replicas."""
    replicas: int

    @property
    def is_latency(self) -> bool:
        """Whether it is how long requests take."""
        return self.name in (TTFT, ITL)

    @property
    def asks_up(self) -> bool:
        """Whether more replicas lower it."""
        return True

    @property
    def mean(self) -> float:
        """The mean of the replicas that were measured."""
        return self.known / self.measured

    def total(self, missing: float) -> float:
        """The sum over all replicas, an unknown one counted as `missing`, a latency as the mean."""
        unknown = self.replicas - self.measured
        if not unknown:
            return self.known
        return self.known + unknown * (self.mean if self.is_latency else missing)

    def is_measured(self, load: Load) -> bool:
        """Whether a replica with this load is one of those."""
        return load[_PLACES[self.name]] is not None


class GpuSignal(Signal, frozen=True, gc=False):
    """How busy the GPUs of a pool are: which replicas' they are is not known.

    `measured` is as many replicas as the share of the GPUs that were measured, and `known` what
    those come to; `of_gpus` tells both. `gpus` are those that carry the replicas.
    """

    busy: GpuBusy
    gpus: int
    is_shared: bool = False
    """New replicas may be on the GPUs that there are: it is not known that more would help."""

    @classmethod
    def of_gpus(
        cls,
        target: float,
        busy: GpuBusy,
        replicas: int,
        per_replica: int | None = None,
        *,
        is_shared: bool = False,
    ) -> Self:
        """The signal of a pool of `replicas` whose GPUs are as `busy`.

        `per_replica`: as many GPUs one brings, where that is given. GPUs that should be there by
        it and that nobody tells of count as not measured. Where it is not given, more replicas
        than GPUs share them; `is_shared`: that was found otherwise.
        """
        gpus = max(busy.gpus, replicas * (per_replica or 0))
        known, measured = (replicas * of / gpus for of in (busy.busy, busy.known))
        is_shared = per_replica is None and (is_shared or gpus < replicas)
        return cls(GPU_BUSY, target, 1.0, known, measured, replicas, busy, gpus, is_shared)

    @property
    def asks_up(self) -> bool:
        """Not where new replicas may not bring GPUs: they would be asked for again and again."""
        return not self.is_shared

    @property
    def mean(self) -> float:
        """The mean of the GPUs that were measured."""
        return self.busy.busy / self.busy.known

    def total(self, missing: float) -> float:
        """As many replicas at 1: 8 GPUs at 0.6 of 4 replicas → 2.4."""
        unknown = self.gpus - self.busy.known
        return self.replicas * (self.busy.busy + missing * unknown) / self.gpus

    def is_measured(self, load: Load) -> bool:
        """Of no replica is it known."""
        return False


def counts_rates(settings: ScalingSettings) -> bool:
    """Whether a token rate has a target."""
    targets = (
        settings.prompt_target_tokens_per_second,
        settings.generation_target_tokens_per_second,
    )
    return targets != (None, None)


def measure(
    loads: ReplicaLoads,
    settings: ScalingSettings,
    busy: GpuBusy | None = None,
    *,
    shares_gpus: bool = False,
) -> list[Signal]:
    """The signals that at least one replica, or GPU, measured, of those that have a target.

    `shares_gpus`: new replicas were found on the GPUs of others.
    """
    signals = []
    replicas = loads.replicas
    for (name, place, saturation), target in zip(_SIGNALS, _targets(settings), strict=True):
        if target is not None:
            known, measured = loads.total(place)
            if measured:
                signals.append(Signal(name, target, saturation, known, measured, replicas))
    gpu_target = settings.gpu_busy_target_ratio
    if gpu_target is not None and busy is not None and replicas:
        signals.append(
            GpuSignal.of_gpus(
                gpu_target, busy, replicas, settings.gpus_per_replica, is_shared=shares_gpus
            )
        )
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
    unmeasured beside three with 10 (ratio 30 / 4 / 5 = 1.5) → 6. GPUs that replicas share ask
    for no more, as more would share them too.
    """
    asking = [signal for signal in signals if signal.asks_up]
    up = _highest(asking, replicas, missing_on_target=False)
    if up > 1 + tolerance_ratio:
        return math.ceil(round(replicas * up, 9))
    if up >= 1 - tolerance_ratio or unmeasured(signals, optional):
        return replicas  # what is missing, on target, makes it no less
    down = _highest(signals, replicas, missing_on_target=True)
    if down < 1 - tolerance_ratio:
        return max(1, math.ceil(round(replicas * down, 9)))
    return replicas


def shared_gpus(signals: Sequence[Signal], tolerance_ratio: float) -> str:
    """Why busy GPUs ask for no replica, for people; empty: they are not that busy, or they ask."""
    for signal in signals:
        if not isinstance(signal, GpuSignal) or signal.asks_up:
            continue
        if signal.total(0.0) / signal.replicas / signal.target > 1 + tolerance_ratio:
            how = f"its {signal.replicas} replicas share {signal.gpus}"
            if signal.gpus >= signal.replicas:
                how = f"the replicas that came last brought none to its {signal.gpus}"
            return (
                f"its GPUs are busy to {signal.mean:.2f} (target {signal.target:g}), but {how}: "
                "that more replicas would help is not known (gpus_per_replica says what one brings)"
            )
    return ""


def _highest(signals: Sequence[Signal], replicas: int, *, missing_on_target: bool) -> float:
    """The highest of the signals' means by their targets."""
    highest = 0.0
    for signal in signals:
        found = signal.total(signal.target if missing_on_target else 0.0)
        found = found / replicas / signal.target
        if found > highest:
            highest = max(highest, min(found, LATENCY_MOST)) if signal.is_latency else found
    # Rounded, so that a value exactly on an edge is not past it by a float's last bit: once, as
    # rounding changes no order and takes longer than all else here.
    return round(highest, 9)


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
