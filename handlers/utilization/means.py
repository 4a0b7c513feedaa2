"""What was measured of the parts of a node, pool or the fleet in a window. Pure."""

from array import array
from bisect import bisect_right
from collections.abc import Mapping
from itertools import chain
from math import inf
from typing import Literal, TypeAlias, get_args

import msgspec

from handlers.columns import NUMBER_BYTES, Numbers, Packed, Packer, known, numbers
from handlers.utilization.busiest import busiest_disk, fullest_network
from handlers.utilization.gpu_state import PartKey, gpu_sample
from handlers.window import MAX_SAMPLES, OfLast
from schemas.engines import EngineMetrics
from schemas.metrics import GpuMetrics, HostMetrics

Metrics: TypeAlias = HostMetrics | GpuMetrics | EngineMetrics
Resource: TypeAlias = Literal["cpu", "memory", "gpu", "gpu_memory", "kv_cache", "disk", "network"]
# What tells the state of a GPU beside its resources; of nodes only, whose GPUs are listed.
Evidence: TypeAlias = Literal["gpu_activity", "gpu_power", "requests_running"]
Means: TypeAlias = Mapping[Resource | Evidence, Mapping[str | None, float]]
"""Of each resource, and evidence, the mean of each part that measured it."""

RESOURCES: tuple[Resource, ...] = get_args(Resource)
HOSTS, GPUS, ENGINES = range(3)
_PLACES: Mapping[Resource, tuple[int, int]] = {
    "cpu": (HOSTS, 0),
    "memory": (HOSTS, 1),
    "gpu": (GPUS, 0),
    "gpu_memory": (GPUS, 1),
    "kv_cache": (ENGINES, 0),
    "disk": (HOSTS, 2),
    "network": (HOSTS, 3),
}
"""Of a resource, which parts have it, and its place in their rows."""
Rows: TypeAlias = tuple[tuple[Resource | Evidence, ...], ...]
ROWS: Rows = (
    ("cpu", "memory", "disk", "network"),
    ("gpu", "gpu_memory", "gpu_activity", "gpu_power"),
    ("kv_cache", "requests_running"),
)
"""What the values in the rows of hosts, GPUs and engines are."""
RESOURCES_OF_ROWS = (ROWS[HOSTS], ROWS[GPUS][:2], ROWS[ENGINES][:1])
"""Without the evidence, which stands behind."""


class Part(msgspec.Struct, kw_only=True, gc=False):
    """A host, GPU or engine of a group: its id there, and its samples of the window.

    At most `MAX_SAMPLES`.
    """

    id: str | None
    width: int
    """How many numbers a sample has."""
    numbers: Numbers = msgspec.field(default_factory=numbers)
    instants: "array[int]" = msgspec.field(default_factory=lambda: array("q"))
    source: str | None = None
    """What measured the last activity of a GPU."""
    busy_source: str | None = None
    """What measured the last utilization; of GPUs whose pool is followed, no other."""
    is_divided: bool = False
    """A GPU with MIG: its instances count. As `busy_source`."""
    is_simulated: bool = False
    """As `busy_source`."""

    def add(self, packed: Packed, ns: int) -> None:
        """Add a sample; its instant grows from call to call."""
        instants = self.instants
        if len(instants) >= MAX_SAMPLES:
            self.expire(instants[0])
        self.numbers.frombytes(packed)
        instants.append(ns)

    def expire(self, oldest_ns: int) -> bool:
        """Drop samples of `oldest_ns` and before; whether any is left."""
        instants, count = self.instants, 0
        for ns in instants:
            if ns > oldest_ns:
                break
            count += 1
        del instants[:count]
        del self.numbers[: count * self.width]
        return bool(instants)

    def column(self, place: int) -> Numbers:
        """One number of each sample, NaN where not measured."""
        return self.numbers[place :: self.width]


Parts: TypeAlias = dict[PartKey, Part]
"""By node and name; of a host the name is empty."""
GroupParts: TypeAlias = tuple[Parts, Parts, Parts]
"""Hosts, GPUs and engines."""


def means_of(
    parts_of_group: GroupParts,
    names_of_rows: Rows,
    oldest_ns: int,
    newest_ns: int,
    whole: GroupParts | None = None,
) -> dict[Resource | Evidence, dict[str | None, float]]:
    """Those of what came after `oldest_ns`, up to `newest_ns`; what was before it is forgotten.

    A part without any sample is forgotten, too, also of the `whole` of which these are a share.
    """
    means: dict[Resource | Evidence, dict[str | None, float]] = {}
    for kind, (parts, names) in enumerate(zip(parts_of_group, names_of_rows, strict=True)):
        if not parts:
            continue
        found = [means.setdefault(name, {}) for name in names]
        for key, part in list(parts.items()):
            instants = part.instants
            if instants[0] <= oldest_ns and not part.expire(oldest_ns):
                del parts[key]
                if whole is not None:
                    del whole[kind][key]
                continue
            id_, count, width, of_part = part.id, len(instants), part.width, part.numbers
            if instants[-1] > newest_ns:
                count = bisect_right(instants, newest_ns)
                if not count:
                    continue
                of_part = of_part[: count * width]
            for place, of_parts in enumerate(found):
                # `part.column` and `mean`, without two calls for each of thousands each 5 s.
                column = of_part[place::width]
                total = sum(column)
                if total == total:  # noqa: PLR0124 - NaN, of what was not measured, is not
                    of_parts[id_] = total / count
                elif of_known := known(column):
                    of_parts[id_] = sum(of_known) / len(of_known)
    return means


def peak(parts: GroupParts, resource: Resource) -> float:
    """The highest sample of a resource that was measured."""
    kind, place = _PLACES[resource]
    columns = (part.column(place) for part in parts[kind].values())
    # A NaN, of what was not measured, is higher than nothing; but as the first it would stay.
    return max(chain((-inf,), chain.from_iterable(columns)))


_packed_pair, _packed_host = Packer(2), Packer(4)
_EVIDENCE_END, _RESOURCES_END = 4 * NUMBER_BYTES, 2 * NUMBER_BYTES

Sample: TypeAlias = tuple[int, PartKey, Packed, Packed, str | None]
"""`HOSTS`, `GPUS` or `ENGINES`; which part; its numbers as `ROWS` has them, and those as
`RESOURCES_OF_ROWS` has; what measured the activity of a GPU."""


def _sample_of(message: Metrics) -> Sample:
    if isinstance(message, GpuMetrics):
        of_gpu = gpu_sample(message)
        packed = of_gpu.numbers
        return GPUS, of_gpu.key, packed[:_EVIDENCE_END], packed[:_RESOURCES_END], of_gpu.source
    if isinstance(message, HostMetrics):
        cpu, memory = message.cpu, message.memory
        packed = _packed_host(
            cpu.utilization_ratio if cpu else None,
            memory.utilization_ratio if memory else None,
            busiest_disk(message),
            fullest_network(message),
        )
        return HOSTS, (message.node, ""), packed, packed, None
    packed = _packed_pair(message.kv_cache_usage_ratio, message.requests_running)
    return ENGINES, (message.node, message.engine), packed, packed[:NUMBER_BYTES], None


sample = OfLast(_sample_of)
"""What a message says; its node's, its pool's and the fleet's handler ask one after the other."""
