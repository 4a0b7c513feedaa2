"""Replays what was measured on a pool's nodes as if the moves of a plan had been made. Pure."""

import dataclasses
from collections.abc import Sequence

from handlers.rightsizing.consolidation import group_of, is_fixed
from handlers.rightsizing.node_loads import Curve, NodeLoad
from handlers.settings import ConsolidateSettings
from schemas.changes import Move


@dataclasses.dataclass(frozen=True, slots=True)
class Peak:
    """The highest share of one resource after the moves, where, when, and what came there."""

    signal: str
    ratio: float
    limit: float
    node: str
    gpu: str
    window: int
    """Of the history, 0 the oldest."""
    sources: tuple[tuple[str, str], ...]
    """Node and GPU whose work is there then, itself first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Replay:
    """What the recorded ten minutes come to after the moves."""

    emptied: tuple[str, ...]
    peaks: tuple[Peak, ...]
    """Of memory and activity of the GPUs, and memory of the hosts, that took work."""
    fits: bool = True
    """Nothing is above its limit, which is not the same for all."""


def replay(
    nodes: Sequence[NodeLoad], moves: Sequence[Move], settings: ConsolidateSettings
) -> Replay | None:
    """Do the moves one after the other on what was measured; None: they cannot be made here.

    A proof of its own: it knows nothing of how the moves were found. The limits are checked of
    where everything is in the end, and no node that takes work is emptied, so it was never more.
    """
    by_name = {node.node: node for node in nodes}
    gpus = {(node.node, gpu.gpu): gpu for node in nodes for gpu in node.gpus}
    places = {
        key: [key] if gpu.has_work else [] for key, gpu in gpus.items()
    }  # whose work is where
    hosts = {node.node: [node.node] for node in nodes}
    for move in moves:
        source, target = (move.node, move.gpu), (move.to_node, move.to_gpu)
        if source not in gpus or target not in gpus or source not in places[source]:
            return None
        if gpus[source].name != gpus[target].name or not _may(move, settings):
            return None
        places[source].remove(source)
        places[target].append(source)
        if move.node not in hosts[move.to_node]:
            hosts[move.to_node].append(move.node)
    left = {node for (node, _), there in places.items() if there}
    emptied = tuple(sorted({move.node for move in moves} - left))
    if set(emptied) != {move.node for move in moves}:
        return None
    if moves and len(nodes) - len(emptied) < settings.least_nodes:
        return None
    targets = {move.to_node for move in moves}
    candidates: list[Peak] = []
    for key, there in places.items():
        if there not in ([], [key]):
            is_shared = len(there) > 1
            size = gpus[key].size_bytes
            memory = [gpus[one].memory for one in there]
            busy = [gpus[one].busy for one in there]
            for signal, limit, unit, series in (
                ("memory", settings.gpu_memory_max_ratio, size, memory),
                ("busy", settings.gpu_busy_max_ratio, 1.0, busy),
            ):
                value, window = _highest_at(series)
                most = limit if is_shared else 1.0  # alone it may use all, as before
                candidates.append(Peak(signal, value / unit, most, *key, window, tuple(there)))
    for name in targets:
        value, window = _highest_at([by_name[one].host for one in hosts[name]])
        ratio = value / by_name[name].host_bytes
        sources = tuple((one, "") for one in hosts[name])
        limit = settings.host_memory_max_ratio
        candidates.append(Peak("host", ratio, limit, name, "", window, sources))
    return Replay(
        emptied,
        tuple(
            max(
                (peak for peak in candidates if peak.signal == signal),
                key=lambda peak: (peak.ratio, peak.node, peak.gpu),
            )
            for signal in ("memory", "busy", "host")
        )
        if moves
        else (),
        fits=all(round(peak.ratio, 9) <= peak.limit for peak in candidates),
    )


def _may(move: Move, settings: ConsolidateSettings) -> bool:
    groups = {group_of(node, settings) for node in (move.node, move.to_node)}
    return move.node != move.to_node and len(groups) == 1 and not is_fixed(move.node, settings)


def _highest_at(curves: Sequence[Curve]) -> tuple[float, int]:
    scaled = ([step * one.unit for step in one.steps] for one in curves)
    sums = [sum(values) for values in zip(*scaled, strict=True)]
    value = max(sums)
    return value, sums.index(value)
