"""The load of a pool's replicas, put together without reading all of them. Pure."""

import math
from typing import NamedTuple, TypeAlias

from schemas.engines import EngineMetrics

Replica: TypeAlias = tuple[str, str]
"""Its node, and its name there."""
_Terms: TypeAlias = tuple[int | None, ...]
"""The fields of a `Load`, exactly."""


class Load(NamedTuple):
    """What one replica tells; None: not measured."""

    waiting: float | None = None
    kv_cache_ratio: float | None = None
    capacity_ratio: float | None = None
    """Of what it can run at once."""
    ttft_seconds: float | None = None
    itl_seconds: float | None = None
    prompt_tokens_per_second: float | None = None
    generation_tokens_per_second: float | None = None
    in_flight: float = 0
    """Requests running and waiting, as far as it tells."""
    running_max: float | None = None
    """Requests that it can run at once, 1 or more."""


IN_FLIGHT, RUNNING_MAX = Load._fields.index("in_flight"), Load._fields.index("running_max")
_MANTISSA, _BITS = 53, 1200
_ONE = 1 << _BITS
"""Every float is a whole multiple of its inverse: sums of those have no rounding and no order."""
_NOTHING = (None,) * len(Load._fields)


def load_of(engine: EngineMetrics, *, with_rates: bool = False) -> Load:
    """What one replica tells of its load; the rates of tokens only where they are asked for.

    One that sleeps has no queue because it serves nothing, so it counts as not measured.
    """
    waiting, running = engine.requests_waiting, engine.requests_running
    most = engine.requests_running_max or None
    in_flight = (running or 0) + (waiting or 0)
    if engine.is_sleeping:
        return Load(in_flight=in_flight, running_max=most)
    return Load(
        waiting,
        engine.kv_cache_usage_ratio,
        None if running is None or most is None else running / most,
        engine.ttft_p95_seconds,
        engine.itl_p95_seconds,
        engine.prompt_tokens_per_second if with_rates else None,
        engine.generation_tokens_per_second if with_rates else None,
        in_flight,
        most,
    )


class ReplicaLoads:
    """The sums of the loads of replicas. A replica that comes, changes or goes costs O(1).

    The sums are what `math.fsum` of all would be, whatever came and went before: a replay that
    begins later finds the same.
    """

    def __init__(self) -> None:
        self._terms: dict[Replica, _Terms] = {}
        self._sums = [0] * len(Load._fields)
        self._measured = [0] * len(Load._fields)

    @property
    def replicas(self) -> int:
        """How many there are."""
        return len(self._terms)

    def put(self, replica: Replica, load: Load) -> None:
        """The load of a replica from now on."""
        terms = tuple([None if value is None else _term(value) for value in load])
        self._change(self._terms.get(replica, _NOTHING), terms)
        self._terms[replica] = terms

    def discard(self, replica: Replica) -> None:
        """It is gone; one that is not there is fine."""
        self._change(self._terms.pop(replica, _NOTHING), _NOTHING)

    def _change(self, before: _Terms, after: _Terms) -> None:
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            if old == new:
                continue
            self._sums[place] += (new or 0) - (old or 0)
            self._measured[place] += (new is not None) - (old is not None)

    def total(self, place: int) -> tuple[float, int]:
        """Of a field of `Load`, by its place: the sum, and how many replicas measured it."""
        return self._sums[place] / _ONE, self._measured[place]


def _term(value: float) -> int:
    """How often 1 / `_ONE` it is, exactly."""
    mantissa, exponent = math.frexp(value)
    return int(mantissa * (1 << _MANTISSA)) << (exponent - _MANTISSA + _BITS)
