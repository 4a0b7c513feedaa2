"""Plans the replicas of a pool over their start-up lead, minute by minute."""

import dataclasses
import math
from statistics import fmean

import msgspec

from handlers.capacity import CapacityPolicy
from handlers.scaling.pool_load import LoadSignal, PoolMinute
from handlers.settings import ScalingSettings
from schemas.engines import EngineMetrics
from schemas.units import SECOND_NS

STEP_SECONDS = 60
MINUTE_NS = STEP_SECONDS * SECOND_NS
SIGNAL: LoadSignal = "requests_in_flight"
HISTORY_NS = 24 * 60 * MINUTE_NS


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """What the policy orders, and what it expects when the order serves."""

    replicas: int
    expected_in_flight: float
    in_flight_per_replica: float
    risk_ratio: float
    """The probability that more will be in flight than the replicas can run."""


class PlanState(msgspec.Struct):
    """What outlives a restart."""

    policy: CapacityPolicy
    fed_ns: int = 0
    per_replica: float = 0.0
    is_known: bool = False  # the load of the last minute


class Plan:
    """Feeds a pool's minutes to `CapacityPolicy`: load is requests in flight by what one runs.

    Needs `requests_running`, `requests_waiting` and `requests_running_max` of every engine; a
    minute in which one did not tell is a gap, in which nothing is planned.
    """

    def __init__(self, settings: ScalingSettings) -> None:
        self.state = PlanState(
            CapacityPolicy(
                capacity=1.0,
                lead_steps=math.ceil(settings.startup_lead_seconds / STEP_SECONDS),
                risk_ratio=settings.risk_ratio,
                min_replicas=settings.min_replicas,
                max_replicas=settings.max_replicas,
            )
        )
        self._minute: PoolMinute | None = None
        self._running_max: dict[tuple[str, str], int | None] = {}
        self._planned: Planned | None = None
        self._planned_by: tuple[PlanState, int] | None = None
        """The state, and its step, of which that is."""

    def add(self, message: EngineMetrics, now_ns: int) -> None:
        """Take a sample, after the minute before was closed."""
        start_ns = now_ns // MINUTE_NS * MINUTE_NS
        if self._minute is not None and start_ns > self._minute.start_ns:
            self._close(self._minute)
        if self._minute is None or start_ns > self._minute.start_ns:
            self._minute, self._running_max = PoolMinute(start_ns), {}
        self._minute.add(message, (SIGNAL,))
        self._running_max[message.node, message.engine] = message.requests_running_max

    def take_over(self, state: PlanState) -> None:
        """Go on with a stored state, unless other settings made it."""
        ours, theirs = self.state.policy, state.policy
        if (ours.lead_steps, ours.risk_ratio) == (theirs.lead_steps, theirs.risk_ratio):
            theirs.min_replicas, theirs.max_replicas = ours.min_replicas, ours.max_replicas
            self.state = state

    @property
    def planned(self) -> Planned | None:
        """None below a day of history, and while the load is not known."""
        state, steps = self._planned_by or (None, 0)
        if state is not self.state or steps != state.policy.steps:
            # Once a step: each message of an engine asks.
            self._planned = self._plan()
            self._planned_by = self.state, self.state.policy.steps
        return self._planned

    def _plan(self) -> Planned | None:
        policy = self.state.policy
        if not (self.state.is_known and policy.has_history):
            return None
        return Planned(
            replicas=policy.ordered[-1],
            expected_in_flight=policy.expected_load * self.state.per_replica,
            in_flight_per_replica=self.state.per_replica,
            risk_ratio=policy.risk(policy.ordered[-1]),
        )

    def _close(self, minute: PoolMinute) -> None:
        state = self.state
        missed = (minute.start_ns - state.fed_ns) // MINUTE_NS if state.fed_ns else 0
        state.fed_ns = minute.start_ns + MINUTE_NS
        for _ in range(min(missed, HISTORY_NS // MINUTE_NS)):
            state.policy.step(None)
        load, limits = minute.load(SIGNAL), list(self._running_max.values())
        known = [limit for limit in limits if limit]
        state.is_known = load is not None and len(known) == len(limits)
        if load is None or not state.is_known:
            state.policy.step(None)
            return
        state.per_replica = fmean(known)
        state.policy.step(load / state.per_replica, ready=len(limits))
