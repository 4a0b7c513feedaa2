"""What a pool must carry, now and as forecast, and how many replicas that takes. Pure."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from handlers.scaling.replica_loads import IN_FLIGHT, RUNNING_MAX, ReplicaLoads
from handlers.scaling.replicas import CAPACITY, Signal


@dataclasses.dataclass(frozen=True, slots=True)
class Expected:
    """Requests in flight of a pool that only one time of ten there will be more of."""

    p90: float
    ahead_seconds: float


Expect: TypeAlias = Callable[[str, int], Expected | None]
"""What is expected of a pool at an instant, in ns; None: no forecast of it is calibrated."""


class Demand:
    """The load of a pool's signals now, and what is expected; None: then that of now counts.

    `is_planned`: a plan orders by a risk that it may run replicas to the full, so no headroom is
    asked for beside it. `optional`: signals that have a target and so must be measured.
    """

    def __init__(
        self,
        loads: ReplicaLoads,
        signals: Sequence[Signal],
        expected: Expected | None,
        *,
        is_planned: bool = False,
        optional: Sequence[str] = (),
    ) -> None:
        self.signals = signals
        self.is_planned = is_planned
        self.replicas = loads.replicas
        self.expected = expected if expected is not None and expected.p90 >= 1.0 else None
        self.optional = optional
        self._loads = loads

    @functools.cached_property
    def in_flight(self) -> float:
        """Requests running and waiting now, of the replicas that tell."""
        return self._loads.total(IN_FLIGHT)[0]

    @functools.cached_property
    def running_max(self) -> float | None:
        """Requests that one replica runs at once, by those that tell; None: none does."""
        limits, replicas = self._loads.total(RUNNING_MAX)
        return limits / replicas if replicas else None

    @property
    def unknown(self) -> str:
        """Why it is not known what must be carried, for people; empty: it is.

        A signal with a target of its own is not measured; or load is expected of a pool at rest
        of which no replica tells what it can run.
        """
        known = {signal.name for signal in self.signals}
        missing = next((name for name in self.optional if name not in known), "")
        if missing:
            return f"{missing} has a target, but is not measured"
        if self.expected is None or self.in_flight >= 1.0 or self.running_max is not None:
            return ""
        return "requests are expected, but nothing runs now and no replica tells how many it can"

    def total(self, signal: Signal) -> float:
        """What all replicas together must carry of a signal.

        As much more than now as more requests are expected, and never less: a KV cache used to
        1.2 replicas by 30 requests, 40 expected → 1.6. A replica that was not measured counts as
        saturated, in the queue and the rates of tokens as on target.
        """
        total = signal.total(signal.target if signal.saturation is None else signal.saturation)
        if self.expected is None:
            return total
        total *= max(1.0, self.expected.p90 / max(1.0, self.in_flight))
        if signal.name == CAPACITY and self.running_max is not None:
            total = max(total, self.expected.p90 / self.running_max)
        return total

    def limit(self, signal: Signal) -> float:
        """What one replica may carry of a signal: its target; with a plan, all that it can."""
        if self.is_planned and signal.saturation is not None:
            return signal.saturation
        return signal.target

    @property
    def needed(self) -> int:
        """The fewest replicas that carry it with every signal at or below its limit; 0: none is.

        A KV cache used to 1.6 replicas, target 0.85 → 2; 1.7 → 2; 1.71 → 3; with a plan 2. By
        what can be shared out: how latency would be with fewer is not known.
        """
        loads = [one for one in self.signals if not one.is_latency]
        most = max([self.total(one) / self.limit(one) for one in loads], default=0.0)
        # Rounded, so that a total exactly on the limit is not above it by a float's last bit.
        return math.ceil(round(most, 9))
