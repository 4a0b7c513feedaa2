"""Packs the work of a pool onto fewer nodes. Pure."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import msgspec

from handlers.rightsizing.node_loads import Curve, GpuLoad, NodeLoad
from handlers.settings import ConsolidateSettings
from schemas.changes import Move

DONORS_MAX = 32
TARGETS_MAX = 64
"""So many nodes are tried to be emptied, each onto so many that may have room: at most 0.2 s."""


@dataclasses.dataclass(slots=True, eq=False)
class _Slot:
    """A GPU and all that is to run on it; None: nothing."""

    load: GpuLoad
    memory: Curve | None
    busy: Curve | None

    def fits(self, work: GpuLoad, settings: ConsolidateSettings) -> bool:
        """Whether there is room for `work` beside what is here, in each of the ten minutes."""
        if self.load.name != work.name:
            return False
        if self.memory is None or self.busy is None:
            return work.memory.peak <= self.load.size_bytes  # as it did where it runs
        limit_bytes = settings.gpu_memory_max_ratio * self.load.size_bytes
        return self.memory.fits_beside(work.memory, limit_bytes) and self.busy.fits_beside(
            work.busy, settings.gpu_busy_max_ratio
        )

    def take(self, work: GpuLoad) -> None:
        """Have `work` here, too."""
        self.memory = work.memory if self.memory is None else self.memory.plus(work.memory)
        self.busy = work.busy if self.busy is None else self.busy.plus(work.busy)

    @property
    def left_bytes(self) -> float:
        """At its peak."""
        return self.load.size_bytes - (self.memory.peak if self.memory else 0.0)


class _Bin:
    """A node that may take work."""

    def __init__(self, node: NodeLoad) -> None:
        self.node = node
        self.slots = [
            _Slot(gpu, gpu.memory if gpu.has_work else None, gpu.busy if gpu.has_work else None)
            for gpu in node.gpus
        ]
        self.host = node.host
        self.is_target = False
        self._look()

    def _look(self) -> None:
        self.most_left_bytes = max(
            slot.load.size_bytes - (slot.memory.least if slot.memory else 0.0)
            for slot in self.slots
        )

    def may_take(self, works: Sequence[GpuLoad], host: Curve, limits: ConsolidateSettings) -> bool:
        """Whether it is worth trying; O(1) as a rule."""
        return (
            works[0].memory.peak <= self.most_left_bytes
            and len(works) <= len(self.slots)
            and self.host.fits_beside(host, limits.host_memory_max_ratio * self.node.host_bytes)
        )

    def place(
        self, works: Sequence[GpuLoad], settings: ConsolidateSettings
    ) -> list[tuple[GpuLoad, _Slot]]:
        """Where each of `works` goes, no two to one GPU; empty: there is no room for all of it."""
        placed: list[tuple[GpuLoad, _Slot]] = []
        left = sorted(
            self.slots, key=lambda one: (one.memory is not None, one.left_bytes, one.load.gpu)
        )
        for work in works:
            slot = next((one for one in left if one.fits(work, settings)), None)
            if slot is None:
                return []
            left.remove(slot)
            placed.append((work, slot))
        return placed

    def take(self, placed: Iterable[tuple[GpuLoad, _Slot]], host: Curve) -> None:
        """Have them here."""
        for work, slot in placed:
            slot.take(work)
        self.host = self.host.plus(host)
        self.is_target = True
        self._look()


def pack(nodes: Sequence[NodeLoad], settings: ConsolidateSettings) -> list[Move]:
    """Moves that empty nodes, in order; those that save most for each GPU moved come first.

    First fit, decreasing: the nodes that are cheapest to empty are tried in turn; all that runs
    on one goes to one other node that has room, the dearest to empty first, each GPU's work to a
    GPU of its own and of the same model, as an engine over several GPUs needs it. What takes work
    stays; what is emptied takes none. Every ten minutes must fit, not the sum of the peaks.
    """
    order = sorted(nodes, key=lambda node: (is_fixed(node.node, settings), *_effort(node)))
    groups = {node.node: group_of(node.node, settings) for node in nodes}
    bins = {node.node: _Bin(node) for node in reversed(order)}
    moves: list[Move] = []
    for donor in order[:DONORS_MAX]:
        if is_fixed(donor.node, settings) or len(bins) <= settings.least_nodes:
            break
        works = donor.works
        if bins[donor.node].is_target or len(moves) + len(works) > settings.moves_max:
            continue
        group = groups[donor.node]
        targets = (
            target
            for name, target in bins.items()
            if name != donor.node
            and groups[name] == group
            and target.may_take(works, donor.host, settings)
        )
        for target in itertools.islice(targets, TARGETS_MAX):
            placed = target.place(works, settings)
            if placed:
                target.take(placed, donor.host)
                del bins[donor.node]
                moves += _moves(donor, target, placed)
                break
    return moves


def _effort(node: NodeLoad) -> tuple[float, int, str]:
    """GPUs to move for each dollar saved; without a price after all others."""
    works, usd = len(node.works), node.usd_per_hour
    return (works / usd if usd else float("inf"), works, node.node)


def _moves(
    donor: NodeLoad, target: _Bin, placed: Sequence[tuple[GpuLoad, _Slot]]
) -> Iterator[Move]:
    """The last one empties the node."""
    for number, (work, slot) in enumerate(placed, start=1):
        yield Move(
            node=donor.node,
            gpu=work.gpu,
            to_node=target.node.node,
            to_gpu=slot.load.gpu,
            memory_bytes=work.memory.peak,
            busy_ratio=work.busy.peak,
            saving_usd_per_hour=donor.usd_per_hour if number == len(placed) else 0.0,
        )


def with_figures_of(nodes: Sequence[NodeLoad], moves: Sequence[Move]) -> list[Move]:
    """The same moves, all of which can still be made, with what their GPUs hold and cost now."""
    gpus = {(node.node, gpu.gpu): gpu for node in nodes for gpu in node.gpus}
    usd = {node.node: node.usd_per_hour for node in nodes}
    last = {move.node: number for number, move in enumerate(moves)}
    return [
        msgspec.structs.replace(
            move,
            memory_bytes=gpus[move.node, move.gpu].memory.peak,
            busy_ratio=gpus[move.node, move.gpu].busy.peak,
            saving_usd_per_hour=usd[move.node] if number == last[move.node] else 0.0,
        )
        for number, move in enumerate(moves)
    ]


def is_fixed(node: str, settings: ConsolidateSettings) -> bool:
    """Whether its work must not move."""
    return any(fnmatchcase(node, pattern) for pattern in settings.fixed_nodes)


def group_of(node: str, settings: ConsolidateSettings) -> int:
    """The first group of the settings that the node is in; after the last: in none."""
    for number, pattern in enumerate(settings.node_groups):
        if fnmatchcase(node, pattern):
            return number
    return len(settings.node_groups)
