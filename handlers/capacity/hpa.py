"""What Kubernetes' HPA would order: load by target, with tolerance, stabilised. Pure."""

import math

import msgspec

TOLERANCE = 0.1
STABILISATION_STEPS = 5


class Hpa(msgspec.Struct):
    """A reactive autoscaler: `ceil(load / target_ratio)` replicas, down only after five steps.

    With `mean_steps` 2 it is KEDA's rule on a two-minute rate. With a target of 0.7 and 7
    replicas: a load of 4.9 is on target; of 5.3 (ratio 1.08) within the tolerance of 0.1; of 6
    asks for 9.
    """

    target_ratio: float = 0.7
    mean_steps: int = 1
    order: int = 0
    loads: list[float] = []
    wanted: list[int] = []

    def step(self, load: float | None) -> int:
        """The order after a step of `load`, in replicas; None: not known, the last one holds."""
        if load is None:
            return self.order
        self.loads = [*self.loads, load][-self.mean_steps :]
        # Rounded, so that a load exactly on target is not above it by a float's last bit.
        wanted = round(math.fsum(self.loads) / len(self.loads) / self.target_ratio, 9)
        if self.order and abs(wanted / self.order - 1.0) <= TOLERANCE:
            wanted = self.order
        self.wanted = [*self.wanted, max(1, math.ceil(wanted))][-STABILISATION_STEPS:]
        self.order = max(self.wanted[-1], min(self.order, max(self.wanted)))
        return self.order
