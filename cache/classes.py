"""Statistics by `Fleet-Class`: what each class of requests asks for, gets and saves."""

import dataclasses
import time
from collections.abc import Mapping

from cache.entry import Entry
from cache.latency import Histogram
from cache.requests import CLASS
from schemas.cache import ClassStats
from schemas.protocols import RequestError

MAX_CLASSES = 32
OTHER = "other"


@dataclasses.dataclass(slots=True)
class _Class:
    hits: int = 0
    misses: int = 0
    puts: int = 0
    answered_bytes: int = 0
    cost_saved_seconds: float = 0.0
    latency: Histogram = dataclasses.field(default_factory=Histogram)


class Classes:
    """The first 32 classes that are named, and the others together as `other`."""

    def __init__(self) -> None:
        self._classes: dict[str, _Class] = {}

    def check(self, headers: Mapping[str, str]) -> str | None:
        """The class that a request names, if any.

        Raises:
            RequestError: 400, that is no name of a class.
        """
        name = headers.get("Fleet-Class")
        if name is not None and name not in self._classes and not CLASS.fullmatch(name):
            raise RequestError(400, f"header Fleet-Class: must match {CLASS.pattern}")
        return name

    def hit(self, name: str | None, entry: Entry, times: int = 1) -> None:
        """`entry` was answered from RAM or outbox; without `name` it counts for its own class."""
        name = name or entry.request_class
        if name is not None:
            one = self._of(name)
            one.hits += times
            _give_out(one, entry, times)

    def miss(self, name: str | None, restored: Entry | None = None) -> None:
        """RAM had nothing; what the archive then gave."""
        if name is not None:
            one = self._of(name)
            one.misses += 1
            if restored is not None:
                _give_out(one, restored)

    def put(self, entry: Entry) -> None:
        """`entry` was kept."""
        if entry.request_class is not None:
            self._of(entry.request_class).puts += 1

    def took(self, name: str | None, started_ns: int) -> None:
        """A get is done that began at `started_ns` of the performance counter."""
        if name is not None:
            self.spent(name, time.perf_counter_ns() - started_ns)

    def spent(self, name: str, duration_ns: int, times: int = 1) -> None:
        """So many look-ups of the class took so long each."""
        if times:
            self._of(name).latency.add(duration_ns, times)

    def stats(self) -> dict[str, ClassStats]:
        """All classes as they are now."""
        return {
            name: ClassStats(
                hits_total=one.hits,
                misses_total=one.misses,
                puts_total=one.puts,
                answered_bytes_total=one.answered_bytes,
                cost_saved_seconds_total=one.cost_saved_seconds,
                latency_p50_seconds=one.latency.quantile_seconds(0.5),
                latency_p95_seconds=one.latency.quantile_seconds(0.95),
            )
            for name, one in self._classes.items()
        }

    def _of(self, name: str) -> _Class:
        found = self._classes.get(name)
        if found is None:
            known = len(self._classes) - (OTHER in self._classes)
            name = name if known < MAX_CLASSES else OTHER
            found = self._classes.setdefault(name, _Class())
        return found


def _give_out(one: _Class, entry: Entry, times: int = 1) -> None:
    one.answered_bytes += times * entry.value_bytes
    one.cost_saved_seconds += times * (entry.cost_seconds or 0.0)
