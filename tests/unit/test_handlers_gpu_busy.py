"""How busy the GPUs of a pool are: which of them count, and what is not known."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pytest

from handlers.settings import UtilizationSettings
from handlers.utilization.gpu_busy import BusyGpu, GpuBusy, gpu_busy
from handlers.utilization.gpu_state import GpuEvidence
from handlers.utilization.handler import UtilizationHandler
from tests.support.samples import at, gpu

NVML = "nvml_utilization"


def one(
    ratio: float | None, memory: float | None = 0.9, source: str | None = NVML, **more: Any
) -> BusyGpu:
    evidence = GpuEvidence(
        activity_ratio=ratio, activity_source=source, memory_ratio=memory, power_ratio=None
    )
    return BusyGpu(ratio, source, evidence, **more)


@pytest.mark.parametrize(
    ("gpus", "found"),
    [
        pytest.param([one(0.5), one(0.7)], GpuBusy(2, 2, 1.2, (NVML,)), id="all measured"),
        pytest.param([one(0.5), one(None)], GpuBusy(2, 1, 0.5, (NVML,)), id="one is not"),
        pytest.param([one(None), one(None)], None, id="none is"),
        pytest.param([], None, id="there is none"),
        pytest.param([one(0.6), one(0.0)], GpuBusy(2, 2, 0.6, (NVML,)), id="at rest, memory held"),
        pytest.param(
            [one(0.6), one(0.0, memory=0.0)], GpuBusy(1, 1, 0.6, (NVML,)), id="carries nothing"
        ),
        pytest.param([one(0.0, memory=0.0)], None, id="nothing carries anything"),
        pytest.param(
            [one(0.6), one(0.0, memory=None)],
            GpuBusy(2, 1, 0.6, (NVML,)),
            id="at rest, nobody knows whether it carries anything",
        ),
        pytest.param(
            [one(0.6), one(0.4, memory=None)], GpuBusy(2, 2, 1.0, (NVML,)), id="at work it does"
        ),
        pytest.param(
            [one(0.5), one(0.9, source="gpm_sm_activity")],
            GpuBusy(2, 2, 1.4, ("gpm_sm_activity", NVML)),
            id="two measures are both named",
        ),
        pytest.param(
            [one(0.5), one(0.9, source="simulated", simulated=True)],
            GpuBusy(1, 1, 0.5, (NVML,)),
            id="of real ones alone",
        ),
        pytest.param(
            [one(0.9, source="simulated", simulated=True)],
            GpuBusy(1, 1, 0.9, ("simulated",), simulated=True),
            id="simulated alone",
        ),
    ],
)
def test_gpus_that_carry_a_replica_count(gpus: Sequence[BusyGpu], found: GpuBusy | None) -> None:
    assert gpu_busy(UtilizationSettings(), gpus) == found


class Pool:
    """Plays GPUs of the pool `chat` into the handler of pools, ticks between."""

    def __init__(self, *, follows_busy: bool = True) -> None:
        self.handler = UtilizationHandler(UtilizationSettings(), "pool", follows_busy=follows_busy)

    def hear(self, second: float, gpu_id: str = "g0", **fields: Any) -> "Pool":
        defaults: dict[str, Any] = {
            "pool": "chat",
            "memory_utilization_ratio": 0.9,
            "utilization_source": NVML,
        }
        self.handler.handle(gpu(gpu_id, **(defaults | fields)), at(second))
        return self

    def busy(self, second: float) -> GpuBusy | None:
        """After the ticks of the 5 s before: every pool had its turn."""
        for step in range(11):
            self.handler.tick(at(second - 5 + step / 2))
        return self.handler.busy("chat")

    def mean(self, second: float) -> float | None:
        found = self.busy(second)
        return None if found is None else found.busy / found.known


def test_the_mean_of_the_window_counts() -> None:
    pool = Pool()
    for second, ratio in ((0, 0.2), (20, 0.6), (40, 1.0)):
        pool.hear(second, utilization_ratio=ratio)

    assert pool.mean(45) == pytest.approx(0.6)
    assert pool.mean(65) == pytest.approx(0.8)  # the first one is old


def test_silent_gpus_are_not_known_after_the_window() -> None:
    pool = Pool().hear(0, utilization_ratio=0.9)

    assert pool.busy(55) is not None
    assert pool.busy(60) is None
    assert pool.handler.busy("other") is None


def test_a_pool_in_which_nothing_changes_is_looked_at_every_5_s_all_the_same() -> None:
    pool, published = Pool(), 0
    for second in range(0, 170, 5):
        pool.hear(second, utilization_ratio=second / 1000)
        pool.hear(second, "g1", utilization_ratio=second / 1000)
        for step in range(1, 10):
            published += len(pool.handler.tick(at(second + step / 2)))
        of_window = [one / 1000 for one in range(max(0, second - 55), second + 1, 5)]

        found = pool.handler.busy("chat")
        assert found is not None
        assert found.busy == pytest.approx(2 * fmean(of_window))

    assert published < 6


def test_nothing_is_followed_that_nobody_asks_for() -> None:
    assert Pool(follows_busy=False).hear(0, utilization_ratio=0.9).busy(5) is None


def test_mig_instances_are_gpus_and_the_one_they_are_of_is_none() -> None:
    pool = Pool()
    pool.hear(0, "g0", is_mig_enabled=True)
    pool.hear(0, "m0", parent="g0", utilization_ratio=0.4, utilization_source="gpm_sm_activity")
    pool.hear(0, "m1", parent="g0", utilization_ratio=0.8, utilization_source="gpm_sm_activity")

    found = pool.busy(5)
    assert found is not None
    assert (found.gpus, found.known, found.sources) == (2, 2, ("gpm_sm_activity",))
    assert found.busy == pytest.approx(1.2)


def test_a_gpu_that_power_tells_to_work_is_not_measured() -> None:
    pool = Pool().hear(0, "g0", utilization_ratio=0.5)
    pool.hear(0, "g1", power_watts=600.0, power_limit_watts=700.0)

    assert pool.busy(5) == GpuBusy(2, 1, 0.5, (NVML,))
