"""What scaling asks others about the GPUs of a pool, which it does not follow itself."""

import dataclasses
from collections.abc import Callable

from handlers.spending.gpu_prices import PricedGpus
from handlers.utilization.gpu_busy import GpuBusy


@dataclasses.dataclass(frozen=True, slots=True)
class GpuFacts:
    """By default nothing is known."""

    busy: Callable[[str], GpuBusy | None] = lambda pool: None
    """How busy the GPUs of a pool were in the last `busy_window_ns`; None: not measured."""
    priced: Callable[[str, bool], PricedGpus | None] = lambda pool, simulated: None
    """Its real, or its simulated, GPUs of the last minute; None: there were none."""
    busy_window_ns: int = 0
