"""What runs on the nodes of a pool, by ten minutes, as far as it is known well enough. Pure."""

import array
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from handlers.prices import PriceList
from handlers.rightsizing.peaks import LEAST_KNOWN, STEPS, UNKNOWN, History, Part, packed
from schemas.labels import frozen

IDLE = "idle"
_EXACT = 1 + 1e-9
"""So that a sum on the limit is not above it by a float's last bit."""


class Curve:
    """A value for each ten minutes, the oldest first: `steps` of `unit` each."""

    __slots__ = ("least", "peak", "peak_at", "steps", "unit")

    def __init__(self, steps: bytes | Iterable[float], unit: float = 1.0) -> None:
        self.steps = steps if isinstance(steps, bytes) else array.array("d", steps)
        self.unit = unit
        peak = max(self.steps)
        self.peak = peak * unit
        self.peak_at = self.steps.index(peak)  # type: ignore[arg-type]  # it is of its own items
        self.least = min(self.steps) * unit

    def plus(self, other: "Curve") -> "Curve":
        """Both together."""
        return Curve(self._sums(other))

    def fits_beside(self, other: "Curve", limit: float) -> bool:
        """Whether both together are within `limit` all the time."""
        limit *= _EXACT
        if self.peak + other.peak <= limit:
            return True
        if self.steps[other.peak_at] * self.unit + other.peak > limit:
            return False
        return all(value <= limit for value in self._sums(other))

    def _sums(self, other: "Curve") -> Iterator[float]:
        mine, theirs = self.unit, other.unit
        return (a * mine + b * theirs for a, b in zip(self.steps, other.steps, strict=True))


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """One GPU, or host, and the history of its signals."""

    part: Part
    history: Callable[[str], History]
    is_silent: bool = False
    """Not heard of in the last ten minutes: still there, perhaps, and nobody knows what it does."""


@dataclasses.dataclass(frozen=True, slots=True)
class GpuLoad:
    """A GPU, with the memory that is held there in bytes, and how busy it is."""

    gpu: str
    name: str
    size_bytes: float
    has_work: bool
    memory: Curve
    busy: Curve
    usd_per_hour: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class NodeLoad:
    """A node on which something runs."""

    node: str
    gpus: tuple[GpuLoad, ...]
    host_bytes: float
    host: Curve

    @property
    def works(self) -> list[GpuLoad]:
        """The GPUs with work, that which holds most memory first."""
        found = [gpu for gpu in self.gpus if gpu.has_work]
        return sorted(found, key=lambda gpu: (-gpu.memory.peak, gpu.gpu))

    @property
    def usd_per_hour(self) -> float | None:
        """Of all its GPUs; None: one has no price."""
        known = [gpu.usd_per_hour for gpu in self.gpus if gpu.usd_per_hour is not None]
        return sum(known) if len(known) == len(self.gpus) else None


def node_loads(
    parts: Iterable[Measured],
    pool: str,
    prices: PriceList,
    *,
    active_ratio: float,
    held_ratio: float,
) -> tuple[list[NodeLoad], Counter[str]]:
    """The nodes whose load is known, by name; and how many are left out, by the reason.

    A GPU has work in ten minutes in which it was as active as `active_ratio`, or held
    `held_ratio` of its memory. One with work in some of them alone has none that can be judged,
    and a node that is idle is none to be emptied.
    """
    nodes: dict[str, dict[str, Measured]] = {}
    for one in parts:
        nodes.setdefault(one.part.node, {})[one.part.gpu] = one
    found, left_out = [], Counter[str]()
    for node, of_node in sorted(nodes.items()):
        host = of_node.pop("", None)
        if not of_node:
            continue
        loads: list[GpuLoad] = []
        reason = ""
        for _, gpu in sorted(of_node.items()):
            load = _gpu_load(gpu, pool, prices, active_ratio, held_ratio)
            if isinstance(load, str):
                reason = reason or load
            else:
                loads.append(load)
        is_known = host is not None and not host.is_silent and host.part.memory_bytes
        memory = host.history("memory") if host is not None and is_known else None
        if memory is None or memory.known_ratio < LEAST_KNOWN:
            reason = reason or "host memory not measured for long enough"
        elif not any(load.has_work for load in loads):
            reason = reason or IDLE
        if reason:
            left_out[reason] += 1
        elif host is not None and memory is not None:
            size = float(host.part.memory_bytes or 0)
            curve = _curve(memory, size)
            found.append(NodeLoad(node, tuple(loads), size, curve))
    return found, left_out


def _gpu_load(
    gpu: Measured, pool: str, prices: PriceList, active_ratio: float, held_ratio: float
) -> GpuLoad | str:
    """Or why it is not known."""
    part = gpu.part
    memory, busy = gpu.history("memory"), gpu.history("busy")
    if gpu.is_silent:
        return "a GPU that fell silent"
    if not part.is_whole:
        return "a GPU with MIG"
    if part.name is None or not part.memory_bytes:
        return "a GPU without name or size"
    if min(memory.known_ratio, busy.known_ratio) < LEAST_KNOWN:
        return "a GPU not measured for long enough"
    working = _working(memory, busy, active_ratio, held_ratio)
    if 0 < working < LEAST_KNOWN:
        return "work that comes and goes, or is new"
    rule = prices.find(part.name, part.node, pool, frozen(part.labels))
    return GpuLoad(
        gpu=part.gpu,
        name=part.name,
        size_bytes=float(part.memory_bytes),
        has_work=working > 0,
        memory=_curve(memory, float(part.memory_bytes)),
        busy=_curve(busy, 1.0),
        usd_per_hour=None if rule is None else rule.usd_per_gpu_hour,
    )


def _working(memory: History, busy: History, active_ratio: float, held_ratio: float) -> float:
    """The share of the ten minutes with work in them, of those in which both were measured."""
    held, active = _flags(memory, held_ratio), _flags(busy, active_ratio)
    known = _flags(memory, 0.0) & _flags(busy, 0.0)
    return ((held | active) & known).bit_count() / known.bit_count()


def _flags(history: History, least_ratio: float) -> int:
    """A bit for each of the ten minutes, set where the share was at least that."""
    return int.from_bytes(history.values.translate(_AT_LEAST[packed(least_ratio)]), "big")


_AT_LEAST = [
    bytes(int(least <= value <= STEPS) for value in range(256)) for least in range(STEPS + 1)
]
"""For each number of steps: 1 for all that are as many or more, 0 for fewer and for unknown."""


def _curve(history: History, size: float) -> Curve:
    """In units of `size`; where it was not measured, the peak."""
    peak = bytes([round(history.peak * STEPS)])
    return Curve(history.values.replace(bytes([UNKNOWN]), peak), size / STEPS)
