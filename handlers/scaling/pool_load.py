"""The load of a pool of engines in one minute, from what its engines said. Pure."""

import dataclasses
from collections.abc import Callable
from statistics import fmean
from typing import Literal, TypeAlias

from schemas.engines import EngineMetrics

LoadSignal: TypeAlias = Literal[
    "requests_in_flight", "prompt_tokens_per_second", "generation_tokens_per_second"
]


def _in_flight(engine: EngineMetrics) -> float | None:
    if engine.requests_running is None or engine.requests_waiting is None:
        return None
    return float(engine.requests_running + engine.requests_waiting)


_READ: dict[LoadSignal, Callable[[EngineMetrics], float | None]] = {
    "requests_in_flight": _in_flight,
    "prompt_tokens_per_second": lambda engine: engine.prompt_tokens_per_second,
    "generation_tokens_per_second": lambda engine: engine.generation_tokens_per_second,
}


@dataclasses.dataclass(slots=True)
class PoolMinute:
    """What was measured of each engine in one minute."""

    start_ns: int
    engines: dict[tuple[str, str], dict[LoadSignal, list[float]]] = dataclasses.field(
        default_factory=dict
    )
    simulated: bool = False

    def add(self, message: EngineMetrics, signals: tuple[LoadSignal, ...]) -> None:
        """Take a sample."""
        key = (message.node, message.engine)
        values = self.engines.get(key)
        if values is None:
            values = self.engines[key] = {signal: [] for signal in signals}
        self.simulated |= message.simulated
        for signal in signals:
            value = _READ[signal](message)
            if value is not None:
                values[signal].append(value)

    def load(self, signal: LoadSignal) -> float | None:
        """The sum over the engines of each one's mean; None when one of them did not tell.

        Two engines with 4 and 6, and 10 requests: 5 + 10 = 15.
        """
        if not self.engines or not all(values[signal] for values in self.engines.values()):
            return None
        return sum(fmean(values[signal]) for values in self.engines.values())
