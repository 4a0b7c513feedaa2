"""The load of a pool's replicas, put together without reading all of them. Pure."""

from typing import NamedTuple, TypeAlias

from schemas.engines import EngineMetrics

Replica: TypeAlias = tuple[str, str]
"""Its node, and its name there."""


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
_NOTHING = Load(in_flight=None)  # type: ignore[arg-type]
_STEP_BITS = 64
"""Scales grow by so much: most values fit the first one, up to 2^-64."""


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


class ExactSum:
    """A sum of floats without rounding, as a whole number of units that any of them is made of.

    The unit is 1, and shrinks where a value needs it: small whole numbers are quick. So it is
    what `math.fsum` gives, whatever came and went before, and in whatever order.
    """

    __slots__ = ("_bits", "_one", "_units", "measured")

    def __init__(self) -> None:
        self.measured = 0
        """How many values."""
        self._units = 0
        self._bits = 0
        self._one = 1

    def change(self, before: float | None, after: float | None) -> None:
        """Take one out, and another in; None: there is none."""
        if after is not None:
            units = self._of(after)  # first: it may shrink the unit
            self._units += units
            self.measured += 1
        if before is not None:
            units = self._of(before)
            self._units -= units
            self.measured -= 1

    def value(self) -> float:
        """The sum, rounded once."""
        return self._units / self._one

    def _of(self, value: float) -> int:
        """How many units it is; they are made small enough for it."""
        numerator, denominator = value.as_integer_ratio()
        spare = self._bits - denominator.bit_length() + 1  # a power of two
        if spare < 0:
            finer = -(spare // _STEP_BITS) * _STEP_BITS
            self._units <<= finer
            self._bits += finer
            self._one = 1 << self._bits
            spare += finer
        return numerator << spare


class ReplicaLoads:
    """The sums of the loads of replicas. A replica that comes, changes or goes costs O(1).

    The sums are what `math.fsum` of all would be, whatever came and went before: a replay that
    begins later finds the same.
    """

    def __init__(self) -> None:
        self._loads: dict[Replica, Load] = {}
        self._sums = [ExactSum() for _ in Load._fields]

    @property
    def replicas(self) -> int:
        """How many there are."""
        return len(self._loads)

    def put(self, replica: Replica, load: Load) -> None:
        """The load of a replica from now on."""
        self._change(self._loads.get(replica, _NOTHING), load)
        self._loads[replica] = load

    def discard(self, replica: Replica) -> None:
        """It is gone; one that is not there is fine."""
        self._change(self._loads.pop(replica, _NOTHING), _NOTHING)

    def _change(self, before: Load, after: Load) -> None:
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new:
                self._sums[place].change(old, new)

    def total(self, place: int) -> tuple[float, int]:
        """Of a field of `Load`, by its place: the sum, and how many replicas measured it."""
        found = self._sums[place]
        return found.value(), found.measured
