"""What a replay measures: hits and latencies by class, and the cache's own counters beside."""

from array import array
from collections import Counter
from collections.abc import Sequence

import msgspec

ALL = "all"
OPERATIONS = ("match", "get", "put")


class Latency(msgspec.Struct, frozen=True):
    """Quantiles of one operation in seconds; null before the first."""

    count: int
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """Of what was measured, in any order."""
        ordered = sorted(seconds)

        def quantile(share: float) -> float | None:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

        return cls(len(ordered), quantile(0.50), quantile(0.95), quantile(0.99))


class ClassFigures(msgspec.Struct):
    """Requests and blocks of one class; a block is hit when all of the chain before it is."""

    requests: int = 0
    requests_hit: int = 0
    requests_whole: int = 0
    blocks: int = 0
    blocks_hit: int = 0

    @property
    def block_hit_ratio(self) -> float | None:
        """Blocks found by blocks asked for."""
        return self.blocks_hit / self.blocks if self.blocks else None

    @property
    def request_hit_ratio(self) -> float | None:
        """Requests of which at least the first block was found."""
        return self.requests_hit / self.requests if self.requests else None

    def add(self, blocks: int, hit: int) -> None:
        """Count one request."""
        self.requests += 1
        self.requests_hit += hit > 0
        self.requests_whole += hit == blocks
        self.blocks += blocks
        self.blocks_hit += hit


class CacheCounters(msgspec.Struct, frozen=True):
    """What the cache and its archive did since the replay began; null: nobody said.

    `archived`: how many entries more the archive holds; deletions that it is told of are none.
    """

    entries: int | None = None
    used_bytes: int | None = None
    evictions: int | None = None
    archived: int | None = None
    lost: int | None = None
    restores: int | None = None


class Sample(msgspec.Struct, frozen=True):
    """The state of a replay at one moment of it; latencies are of the time since the last one."""

    elapsed_seconds: float
    classes: dict[str, ClassFigures]
    p95_seconds: dict[str, float | None]
    cache: CacheCounters


class Figures:
    """Everything measured so far."""

    def __init__(self) -> None:
        self.classes: dict[str, ClassFigures] = {ALL: ClassFigures()}
        self.latencies: dict[str, dict[str, array[float]]] = {ALL: _empty()}
        self.errors: Counter[str] = Counter()
        self.not_kept = 0
        self.wrong_values = 0
        self.late_seconds = 0.0
        self.samples: list[Sample] = []
        self._recent: dict[str, list[float]] = {}

    def add(self, request_class: str, blocks: int, hit: int, seconds: dict[str, float]) -> None:
        """Count one request with how long each operation took."""
        for name in (ALL, request_class):
            self.classes.setdefault(name, ClassFigures()).add(blocks, hit)
            known = self.latencies.setdefault(name, _empty())
            for operation, taken in seconds.items():
                known[operation].append(taken)
        self._recent.setdefault(request_class, []).append(sum(seconds.values()))

    def sample(self, elapsed_seconds: float, cache: CacheCounters) -> None:
        """Keep the state of now for the charts."""
        recent, self._recent = self._recent, {}
        everything = [taken for one in recent.values() for taken in one]
        self.samples.append(
            Sample(
                elapsed_seconds,
                {name: msgspec.structs.replace(one) for name, one in self.classes.items()},
                {
                    name: Latency.of(
                        everything if name == ALL else recent.get(name, ())
                    ).p95_seconds
                    for name in self.classes
                },
                cache,
            )
        )

    def latency(self, operation: str, request_class: str = ALL) -> Latency:
        """Of `match`, `get` or `put`, over the whole replay."""
        return Latency.of(self.latencies[request_class][operation])


def _empty() -> dict[str, "array[float]"]:
    return {operation: array("d") for operation in OPERATIONS}
