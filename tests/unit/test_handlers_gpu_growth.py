"""Pools whose replicas share GPUs: what busy GPUs ask for, played through the handler."""

from collections.abc import Callable

import pytest

from handlers.scaling.gpu_facts import GpuFacts
from handlers.scaling.gpu_growth import STEADY_NS, GpuGrowth
from handlers.scaling.handler import ScalingHandler
from handlers.settings import ScalingSettings
from handlers.utilization.gpu_busy import GpuBusy
from schemas.protocols import Emit
from schemas.scaling import HeldAdvice, Recommendation
from tests.support.samples import at, engine

WORK = 3.8
"""As many GPUs as the load of the pool keeps busy."""
LEAD_SECONDS = 60.0


class Fleet:
    """A pool with little in its queues, that follows each advice a minute later.

    `gpus_of` tells how many GPUs so many replicas have; the pool's work is spread over these.
    """

    def __init__(
        self,
        replicas: int,
        gpus_of: Callable[[int], int],
        *,
        waiting: int = 1,
        work: float = WORK,
        **settings: float,
    ) -> None:
        self.replicas = replicas
        self.sizes = [replicas]
        self.emits: list[Emit] = []
        self._waiting = waiting
        self._work = work
        self._gpus_of = gpus_of
        fields = {"gpu_busy_target_ratio": 0.7, "startup_lead_seconds": LEAD_SECONDS} | settings
        self.handler = ScalingHandler(
            ScalingSettings(**fields),  # type: ignore[arg-type]
            gpus=GpuFacts(busy=self._busy),
        )
        self.sequence = 0

    def _busy(self, _pool: str) -> GpuBusy:
        gpus = self._gpus_of(self.replicas)
        return GpuBusy(gpus, gpus, min(float(gpus), self._work), ("gpm_sm_activity",))

    def live(self, start: int, end: int) -> "Fleet":
        due: tuple[float, int] | None = None
        for second in range(start, end, 5):
            if due is not None and second >= due[0]:
                self.replicas, due = due[1], None
                self.sizes.append(self.replicas)
            self.emits += self.handler.tick(at(second, self.sequence))
            for number in range(self.replicas):
                self.sequence += 1
                now = at(second + number / 100, self.sequence)
                sample = engine(
                    f"e{number}", waiting=self._waiting, kv=0.5, running=30, running_max=64
                )
                for emit in self.handler.handle(sample, now):
                    self.emits.append(emit)
                    if isinstance(emit.message, Recommendation):
                        due = (second + LEAD_SECONDS, emit.message.replicas_to)
        return self

    @property
    def advice(self) -> list[Recommendation]:
        return [one.message for one in self.emits if isinstance(one.message, Recommendation)]

    @property
    def held(self) -> list[HeldAdvice]:
        return [one.message for one in self.emits if isinstance(one.message, HeldAdvice)]


@pytest.mark.parametrize(
    ("replicas", "gpus_of", "sizes"),
    [
        pytest.param(8, lambda _: 4, [8], id="eight replicas on four GPUs"),
        pytest.param(3, lambda _: 1, [3], id="three replicas on one GPU"),
        pytest.param(4, lambda _: 4, [4, 6], id="new ones come to the GPUs of others"),
        pytest.param(2, lambda _: 4, [2, 3], id="each of two GPUs, and new ones on the same"),
        pytest.param(4, lambda n: n, [4, 6], id="each brings its own: 3.8 / 0.7 = 5.4"),
        pytest.param(2, lambda n: 2 * n, [2, 3], id="each brings two: 3.8 / 0.7 / 2 = 2.7"),
    ],
)
def test_busy_gpus_ask_for_no_more_than_helps(
    replicas: int, gpus_of: Callable[[int], int], sizes: list[int]
) -> None:
    fleet = Fleet(replicas, gpus_of, max_replicas=64).live(0, 3600)

    assert fleet.sizes == sizes
    assert {one.reason for one in fleet.advice} <= {"gpu_busy_ratio"}


def test_why_shared_gpus_ask_for_nothing_is_told() -> None:
    fleet = Fleet(8, lambda _: 4).live(0, 300)

    (held,) = fleet.held
    assert (held.action, held.reason) == ("scale_up", "unknown")
    assert held.text == (
        "its GPUs are busy to 0.95 (target 0.7), but its 8 replicas share 4: that more replicas "
        "would help is not known (gpus_per_replica says what one brings)"
    )


def test_what_came_to_the_gpus_of_others_is_told() -> None:
    fleet = Fleet(4, lambda _: 6, work=5.7).live(0, 900)

    assert fleet.sizes == [4, 6]
    assert "the replicas that came last brought none to its 6" in fleet.held[-1].text


def test_a_queue_asks_for_more_replicas_also_where_gpus_are_shared() -> None:
    advice = Fleet(8, lambda _: 4, waiting=6, max_replicas=64).live(0, 90).advice[-1]

    assert (advice.reason, advice.replicas_to) == ("requests_waiting", 10)  # 8 * 6 / 5 = 9.6


@pytest.mark.parametrize(
    ("per_replica", "sizes"),
    [
        pytest.param(1, [8], id="eight GPUs of which four tell nothing: 3.8 / 0.7 are at least 6"),
        pytest.param(2, [8], id="sixteen"),
    ],
)
def test_what_a_replica_brings_may_be_given(per_replica: int, sizes: list[int]) -> None:
    fleet = Fleet(8, lambda _: 4, max_replicas=64, gpus_per_replica=per_replica).live(0, 900)

    assert fleet.sizes == sizes


def test_given_gpus_that_are_measured_ask_for_replicas() -> None:
    fleet = Fleet(2, lambda n: 2 * n, gpus_per_replica=2).live(0, 900)

    assert fleet.sizes == [2, 3]  # 3.8 / 0.7 / 2 = 2.7


def test_a_pool_whose_gpus_are_shared_shrinks_by_them() -> None:
    busy = Fleet(8, lambda _: 4, waiting=0).live(0, 900)
    calm = Fleet(8, lambda _: 4, waiting=0, work=1.2).live(0, 500)

    assert busy.sizes == [8]
    assert calm.sizes[:2] == [8, 6]  # by the requests running: 8 * (30 / 64) / 0.8 = 4.7, one spare


def test_who_takes_over_knows_that_gpus_are_shared() -> None:
    before = Fleet(4, lambda _: 6, work=5.7).live(0, 1200)
    snapshot = before.handler.snapshot()
    assert snapshot is not None
    after = Fleet(before.replicas, lambda _: 6, work=5.7)

    after.handler.restore(snapshot)
    after.live(1200, 1500)

    assert after.sizes == [6]


@pytest.mark.parametrize(
    ("seen", "shares"),
    [
        pytest.param([(4, 4)], False, id="as many"),
        pytest.param([(4, 2)], True, id="fewer GPUs"),
        pytest.param([(4, 4), (6, 6)], False, id="each brought one"),
        pytest.param([(4, 8), (6, 12)], False, id="each brought two"),
        pytest.param([(4, 8), (6, 8)], True, id="none came"),
        pytest.param([(4, 8), (6, 9)], True, id="fewer came than replicas"),
        pytest.param([(4, 8), (6, 6)], False, id="put on other GPUs, one each"),
        pytest.param([(4, 4), (3, 4), (4, 4)], False, id="one was silent"),
        pytest.param([(4, 4), (3, 3), (4, 4)], False, id="one crashed and came back"),
        pytest.param([(4, 8), (6, 8), (4, 8)], True, id="still known with fewer"),
        pytest.param([(4, 8), (6, 8), (4, 4)], True, id="and with fewer of both"),
        pytest.param([(4, 8), (6, 8), (6, 12)], False, id="put on more GPUs"),
        pytest.param([(4, 8), (6, 8), (6, 6)], False, id="put on GPUs of their own"),
    ],
)
def test_growth_tells_whether_gpus_are_shared(seen: list[tuple[int, int]], shares: bool) -> None:
    growth = GpuGrowth()
    for number, (replicas, gpus) in enumerate(seen):
        for ns in (0, STEADY_NS + 5):
            growth.see(replicas, gpus, number * 10 * STEADY_NS + ns, 5)

    assert growth.shares == shares


def test_growth_waits_until_both_numbers_stand_still() -> None:
    growth = GpuGrowth()
    for ns in (0, STEADY_NS + 5):
        growth.see(4, 4, ns, 5)
    growth.see(6, 4, 10 * STEADY_NS, 5)
    growth.see(6, 4, 11 * STEADY_NS + 4, 5)
    early = growth.shares
    may_share = growth.is_shared(6, 4), growth.is_shared(6, 6), growth.is_shared(4, 3)
    growth.see(6, 4, 11 * STEADY_NS + 5, 5)

    assert (early, growth.shares) == (False, True)
    assert may_share == (True, False, False)
