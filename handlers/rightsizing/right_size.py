"""Finds a cheaper model of GPU that still fits what a pool's GPUs needed. Pure."""

import dataclasses
from collections.abc import Sequence
from itertools import groupby

from handlers.prices import PriceList
from handlers.rightsizing.gpu_models import GpuModel, GpuModels
from handlers.rightsizing.node_loads import Measured
from handlers.rightsizing.peaks import LEAST_KNOWN, History, Part
from handlers.settings import RightSizeSettings
from schemas.changes import GpuChange
from schemas.labels import FrozenLabels, frozen

SIGNALS = ("memory", "bandwidth", "tensor")


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """What one signal needs, of the GPU that needs most, in bytes or a second."""

    signal: str
    p99: float
    needed: float
    """With headroom; of memory at least the highest sample, as it would fail there."""
    part: Part
    history: History
    threshold: float = 0.0
    """The p99 from which on the new model would be too small."""


@dataclasses.dataclass(frozen=True, slots=True)
class RightSize:
    """A change of model, and what it rests on."""

    change: GpuChange
    needs: tuple[Need, ...]
    known_ratio: float
    is_older: bool

    @property
    def saving_usd_per_hour(self) -> float:
        """Of all GPUs."""
        return self.change.usd_per_hour_from - self.change.usd_per_hour_to


def right_sizes(
    gpus: Sequence[Measured],
    pool: str,
    models: GpuModels,
    prices: PriceList,
    settings: RightSizeSettings,
    *,
    active_ratio: float,
) -> list[RightSize]:
    """For each model in the pool the cheapest one that fits, where it saves enough.

    GPUs that never were as active as `active_ratio` do not count: what is idle is to be released,
    not replaced. None for a model of which one of the others has a gap of more than a tenth in
    memory, bandwidth or tensor activity, no price, MIG, or figures that are not known, or is
    silent.
    """
    found = []
    ordered = sorted(gpus, key=lambda one: one.part.name or "")
    for _, same in groupby(ordered, key=lambda one: one.part.name or ""):
        working = [gpu for gpu in same if not _is_idle(gpu, active_ratio)]
        best = _best(working, pool, models, prices, settings) if working else None
        if best is not None:
            found.append(best)
    return found


def _best(
    gpus: Sequence[Measured],
    pool: str,
    models: GpuModels,
    prices: PriceList,
    settings: RightSizeSettings,
) -> RightSize | None:
    name = gpus[0].part.name
    places = [(one.part.node, frozen(one.part.labels)) for one in gpus]
    now, usd = models.find(name), _usd_per_hour(name, places, pool, prices)
    if name is None or now is None or now.tensor_flops is None or usd is None:
        return None
    if not all(one.part.is_whole and one.part.memory_bytes for one in gpus):
        return None
    if any(one.is_silent for one in gpus):
        return None
    histories = [{signal: gpu.history(signal) for signal in SIGNALS} for gpu in gpus]
    known = min(one.known_ratio for history in histories for one in history.values())
    if known < LEAST_KNOWN:
        return None
    more = 1 + settings.headroom_ratio
    needs = tuple(_need(signal, gpus, histories, now, more) for signal in SIGNALS)
    found = []
    for model in models:
        if not _fits(model, needs):
            continue
        cost = _usd_per_hour(model.name, places, pool, prices)
        if cost is None:
            continue
        saving = usd - cost
        if saving > 0 and (
            saving >= settings.least_saving_usd_per_hour
            and saving >= settings.least_saving_ratio * usd
        ):
            found.append((cost, model.name, model))
    if not found:
        return None
    cost, _, model = min(found, key=lambda one: one[:2])
    rates = _rates(model)
    first = gpus[0].part
    price = prices.find(model.name, first.node, pool, frozen(first.labels))
    return RightSize(
        change=GpuChange(
            gpu_from=name,
            gpu_to=model.name,
            gpus=len(gpus),
            memory_needed_bytes=needs[0].needed,
            memory_bytes=rates[0],
            memory_needed_bytes_per_second=needs[1].needed,
            memory_bytes_per_second=rates[1],
            tensor_needed_flops=needs[2].needed,
            tensor_flops=rates[2],
            usd_per_hour_from=usd,
            usd_per_hour_to=cost,
            source=f"{model.source}, {model.as_of or 'not dated'}; price: "
            + (f"{price.source}, {price.as_of or 'not dated'}" if price else "not known"),
        ),
        needs=tuple(
            dataclasses.replace(need, threshold=rate / more)
            for need, rate in zip(needs, rates, strict=True)
        ),
        known_ratio=known,
        is_older=model.compute_capability < now.compute_capability,
    )


def _is_idle(gpu: Measured, active_ratio: float) -> bool:
    busy = gpu.history("busy")
    return busy.known_ratio >= LEAST_KNOWN and busy.peak < active_ratio


def _usd_per_hour(
    name: str | None, places: Sequence[tuple[str, FrozenLabels]], pool: str, prices: PriceList
) -> float | None:
    """Of as many GPUs of model `name`, each on its node; None: one has no price."""
    rules = {place: prices.find(name, place[0], pool, place[1]) for place in set(places)}
    known = [rule.usd_per_gpu_hour for place in places if (rule := rules[place]) is not None]
    return sum(known) if len(known) == len(places) else None


def _need(
    signal: str,
    gpus: Sequence[Measured],
    histories: Sequence[dict[str, History]],
    now: GpuModel,
    more: float,
) -> Need:
    """By the driver's own size of the memory, and the data sheet's rates of the present model."""
    whole = {"bandwidth": now.memory_bytes_per_second, "tensor": now.tensor_flops or 0.0}
    most: tuple[float, float, int] | None = None
    for place, (gpu, history) in enumerate(zip(gpus, histories, strict=True)):
        size = whole.get(signal, float(gpu.part.memory_bytes or 0))
        one = history[signal]
        highest = one.peak * size if signal == "memory" else 0.0
        p99 = one.p99 * size
        needed = max(p99 * more, highest)
        if most is None or needed > most[0]:
            most = needed, p99, place
    assert most is not None  # noqa: S101 - there is at least one
    needed, p99, place = most
    return Need(signal, p99, needed, gpus[place].part, histories[place][signal])


def _rates(model: GpuModel) -> tuple[float, float, float]:
    return model.memory_bytes, model.memory_bytes_per_second, model.tensor_flops or 0.0


def _fits(model: GpuModel, needs: Sequence[Need]) -> bool:
    """Never a model whose rate is not known."""
    return model.tensor_flops is not None and all(
        need.needed <= rate for need, rate in zip(needs, _rates(model), strict=True)
    )
