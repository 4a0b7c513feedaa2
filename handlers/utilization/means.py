"""What was measured of the parts of a node, pool or the fleet in a window. Pure."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from handlers.utilization.gpu_state import PartKey, gpu_sample
from handlers.window import OfLast, RowWindow
from schemas.engines import EngineMetrics
from schemas.metrics import GpuMetrics, HostMetrics

Metrics: TypeAlias = HostMetrics | GpuMetrics | EngineMetrics
Resource: TypeAlias = Literal["cpu", "memory", "gpu", "gpu_memory", "kv_cache"]
# What tells the state of a GPU beside its resources; of nodes only, whose GPUs are listed.
Evidence: TypeAlias = Literal["gpu_activity", "gpu_power", "requests_running"]
Means: TypeAlias = Mapping[Resource | Evidence, Mapping[str | None, float]]
"""Of each resource, and evidence, the mean of each part that measured it."""

RESOURCES: tuple[Resource, ...] = ("cpu", "memory", "gpu", "gpu_memory", "kv_cache")
HOSTS, GPUS, ENGINES = range(3)
_PLACES: Mapping[Resource, tuple[int, int]] = {
    "cpu": (HOSTS, 0),
    "memory": (HOSTS, 1),
    "gpu": (GPUS, 0),
    "gpu_memory": (GPUS, 1),
    "kv_cache": (ENGINES, 0),
}
"""Of a resource, which parts have it, and its place in their rows."""
Rows: TypeAlias = tuple[tuple[Resource | Evidence, ...], ...]
ROWS: Rows = (
    ("cpu", "memory"),
    ("gpu", "gpu_memory", "gpu_activity", "gpu_power"),
    ("kv_cache", "requests_running"),
)
"""What the values in the rows of hosts, GPUs and engines are."""
RESOURCES_OF_ROWS = (ROWS[HOSTS], ROWS[GPUS][:2], ROWS[ENGINES][:1])
"""Without the evidence, which stands behind."""


class Part(RowWindow, kw_only=True, gc=False):
    """A host, GPU or engine of a group: its id there, and its samples."""

    id: str | None
    busy_source: str | None = None
    """What measured the last utilization; of GPUs whose pool is followed, no other."""
    is_divided: bool = False
    """A GPU with MIG: its instances count. As `busy_source`."""
    is_simulated: bool = False
    """As `busy_source`."""


Parts: TypeAlias = dict[PartKey, Part]
"""By node and name; of a host the name is empty."""
GroupParts: TypeAlias = tuple[Parts, Parts, Parts]
"""Hosts, GPUs and engines."""


Row: TypeAlias = tuple[Any, ...]


def _of_one(rows: Sequence[Row]) -> tuple[float]:
    return (sum(map(_FIRST, rows)),)


def _of_two(rows: Sequence[Row]) -> tuple[float, float]:
    a = b = 0.0
    for row in rows:
        a += row[0]
        b += row[1]
    return a, b


def _of_four(rows: Sequence[Row]) -> tuple[float, float, float, float]:
    a = b = c = d = 0.0
    for row in rows:
        a += row[0]
        b += row[1]
        c += row[2]
        d += row[3]
    return a, b, c, d


_FIRST = operator.itemgetter(0)
_TOTALS: Mapping[int, Callable[[Sequence[Row]], tuple[float, ...]]] = {
    1: _of_one,
    2: _of_two,
    4: _of_four,
}
"""The sums of so many first columns: a third quicker than column by column, of a dozen rows."""


def means_of(parts_of_group: GroupParts, names_of_rows: Rows, oldest_ns: int) -> Means:
    """Those of what came after `oldest_ns`; what was before it is forgotten."""
    means: dict[Resource | Evidence, dict[str | None, float]] = {}
    for parts, names in zip(parts_of_group, names_of_rows, strict=True):
        if not parts:
            continue
        found = [means.setdefault(name, {}) for name in names]
        totals = _TOTALS[len(names)]
        for key, part in list(parts.items()):
            id_, rows = part.id, part.rows
            if rows[0][-1] <= oldest_ns and not part.expire(oldest_ns):
                del parts[key]
                continue
            count = len(rows)
            # Every number of every part each 5 s: as little as can be for each.
            try:
                for of_parts, total in zip(found, totals(rows)):  # noqa: B905 - as many
                    of_parts[id_] = total / count
            except TypeError:  # one of them was not measured
                for place, of_parts in enumerate(found):
                    known = [row[place] for row in rows if row[place] is not None]
                    if known:
                        of_parts[id_] = sum(known) / len(known)
    return means


def peak(parts: GroupParts, resource: Resource) -> float:
    """The highest sample of a resource that was measured."""
    kind, place = _PLACES[resource]
    rows = [part.rows for part in parts[kind].values()]
    return float(max([row[place] for of in rows for row in of if row[place] is not None]))


def _sample_of(message: Metrics, ns: int) -> tuple[int, PartKey, tuple[Any, ...]]:
    """The kind of its part, which one, and the row: as `ROWS` has it.

    Of a GPU it is more than that; last is the instant.
    """
    if isinstance(message, HostMetrics):
        cpu, memory = message.cpu, message.memory
        row = (
            cpu.utilization_ratio if cpu else None,
            memory.utilization_ratio if memory else None,
            ns,
        )
        return HOSTS, (message.node, ""), row
    if isinstance(message, GpuMetrics):
        sample = gpu_sample(message, ns)
        return GPUS, sample.key, sample.row
    row = (message.kv_cache_usage_ratio, message.requests_running, ns)
    return ENGINES, (message.node, message.engine), row


sample = OfLast(_sample_of)
"""What a message says; its node's, its pool's and the fleet's handler ask one after the other."""
