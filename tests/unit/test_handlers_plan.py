"""Scaling advice by what the load will be when a new replica serves."""

from typing import Any

import msgspec
import pytest

from handlers.scaling.handler import ScalingHandler
from handlers.scaling.plan import Plan, PlanState
from handlers.settings import ScalingSettings
from schemas.protocols import Emit
from schemas.scaling import Recommendation
from tests.support.loads import service_load
from tests.support.samples import START_NS, at, engine

DAY = 1440
LIMIT = 100
"""Requests that one replica runs at once; `service_load` needs about seven replicas."""
SETTINGS = ScalingSettings(policy="forecast", startup_lead_seconds=180.0)


class Pool:
    """A pool whose replicas share the load of each minute evenly, one sample a minute each."""

    def __init__(self, settings: ScalingSettings = SETTINGS, replicas: int = 7) -> None:
        self.handler = ScalingHandler(settings)
        self.replicas = replicas
        self.minute = 0
        self.emits: list[Emit] = []

    def play(self, loads: list[float], **changed: Any) -> "Pool":
        for load in loads:
            self.emits += self.handler.tick(at(60 * self.minute))
            share = load / self.replicas
            running = min(LIMIT, round(share))
            for number in range(self.replicas):
                sample = {
                    "running": running,
                    "waiting": round(share) - running,
                    "running_max": LIMIT,
                    "kv": 0.3,
                } | changed
                moment = at(60 * self.minute + 30 + number / 10, self.minute + 1)
                self.emits += self.handler.handle(engine(f"e{number:02}", **sample), moment)
            self.minute += 1
        return self

    @property
    def advice(self) -> list[Recommendation]:
        return [one.message for one in self.emits if isinstance(one.message, Recommendation)]


@pytest.fixture(scope="module")
def day() -> list[float]:
    return service_load(DAY + 30)


@pytest.fixture(scope="module")
def history(day: list[float]) -> bytes:
    """What a handler stores that has seen the day."""
    policy = Plan(FORECAST).state.policy
    for load in day:
        policy.step(load / LIMIT)
    end_ns = START_NS + len(day) * 60 * 10**9
    state = PlanState(policy, fed_ns=end_ns, per_replica=float(LIMIT), is_known=True)
    return msgspec.json.encode({"lasts": [], "plans": [(end_ns, "chat", state)]})


def plans(pool: Pool) -> list[dict[str, Any]]:
    stored = msgspec.json.decode(pool.handler.snapshot() or b"")
    return [plan[2] for plan in stored["plans"]]


def after_a_day(history: bytes, replicas: int) -> Pool:
    pool = Pool(FORECAST, replicas=replicas)
    pool.handler.restore(history)
    pool.minute = DAY + 30
    return pool


# Engines report once a minute here: their time to live must be longer.
SLOW = {"engine_ttl_seconds": 90.0, "up_hold_seconds": 90.0, "down_hold_seconds": 300.0}
FORECAST = msgspec.structs.replace(SETTINGS, max_replicas=64, **SLOW)
HPA = msgspec.structs.replace(FORECAST, policy="hpa")


def test_below_a_day_of_history_the_load_of_now_decides() -> None:
    loads = [*service_load(60), *[1400.0] * 20]

    forecast, hpa = Pool(FORECAST).play(loads), Pool(HPA).play(loads)

    assert forecast.emits == hpa.emits
    assert hpa.advice


def test_after_a_day_a_pool_grows_for_what_is_expected_before_it_is_full(history: bytes) -> None:
    pool = after_a_day(history, replicas=6)

    # Six replicas run 450 of 600 requests: below HPA's target of 80 %.
    pool.play([450.0, 480.0, 510.0, 540.0, 560.0], waiting=0)

    advice = pool.advice[0]
    assert (advice.action, advice.reason, advice.replicas_from) == ("scale_up", "forecast", 6)
    evidence = {one.signal: one for one in advice.evidence}
    expected = evidence["requests_in_flight_expected"]
    assert expected.threshold == advice.replicas_to * LIMIT
    assert expected.window_seconds == 180.0
    assert expected.value < advice.replicas_to * LIMIT
    assert 0.0 <= evidence["short_risk_ratio"].value < 0.5
    assert f"from 6 to {advice.replicas_to} replicas" in advice.text


def test_after_a_day_a_pool_shrinks_to_what_also_survives_the_loss_of_one(history: bytes) -> None:
    pool = after_a_day(history, replicas=20).play([1100.0] * 6)

    advice = pool.advice[-1]

    assert (advice.action, advice.reason) == ("scale_down", "forecast")
    # The load of now fills those that are left with one of them lost, and no more.
    assert 1100.0 / LIMIT + 1 <= advice.replicas_to < 20
    (projected,) = [e for e in advice.evidence if e.signal == "capacity_usage_ratio_projected"]
    assert projected.value == pytest.approx(1100.0 / LIMIT / (advice.replicas_to - 1))
    assert projected.threshold == 1.0


def test_a_plan_that_is_cut_at_the_limit_shrinks_no_pool_to_it(history: bytes) -> None:
    pool = Pool(msgspec.structs.replace(FORECAST, max_replicas=13), replicas=20)
    pool.handler.restore(history)
    pool.minute = DAY + 30

    pool.play([1300.0] * 6)

    assert plans(pool)[0]["policy"]["ordered"][-1] == 13
    assert pool.advice == []


def test_before_every_engine_was_heard_the_plan_asks_for_nothing(history: bytes) -> None:
    pool = after_a_day(history, replicas=20).play([1100.0])

    assert pool.emits == []


@pytest.mark.parametrize(
    "unknown", [{"running_max": None}, {"running": None}, {"waiting": None}], ids=str
)
def test_while_an_engine_does_not_tell_nothing_is_planned(
    history: bytes, unknown: dict[str, None]
) -> None:
    plan = Plan(FORECAST)
    plan.take_over(msgspec.convert(msgspec.json.decode(history)["plans"][0][2], PlanState))
    before = plan.planned

    for minute in (DAY + 30, DAY + 31):
        sample: dict[str, Any] = {"running": 500, "waiting": 0, "running_max": LIMIT} | unknown
        plan.add(engine(**sample), START_NS + minute * 60 * 10**9)

    assert before is not None
    assert plan.planned is None


def test_a_queue_that_was_not_foreseen_asks_for_more_than_the_plan(history: bytes) -> None:
    pool = after_a_day(history, replicas=14).play([1100.0] * 6, waiting=20)

    assert [advice.action for advice in pool.advice] == ["scale_up"]
    assert (
        pool.advice[0].replicas_to == 28
    )  # 14 replicas * 20 waiting / 5, but no more than twice as many
    assert pool.advice[0].reason == "requests_waiting"


def test_a_plan_goes_on_in_another_process(history: bytes) -> None:
    first, second = after_a_day(history, replicas=7), Pool(FORECAST)
    loads = [550.0, 600.0, 640.0, 700.0, 650.0, 600.0]
    first.play(loads[:3])
    second.minute = first.minute - 2
    second.play(loads[1:3])  # the window that is replayed

    second.handler.restore(first.handler.snapshot() or b"")
    first.emits.clear()
    second.emits.clear()
    for pool in (first, second):
        pool.play(loads[3:])

    assert plans(second) == plans(first)
    assert second.emits == first.emits


def test_plans_of_other_settings_are_not_taken_over(history: bytes) -> None:
    other = Pool(msgspec.structs.replace(FORECAST, risk_ratio=0.05))

    other.handler.restore(history)

    assert plans(other)[0]["policy"]["known_steps"] == 0


def test_a_snapshot_of_an_older_version_is_read() -> None:
    pool = Pool(HPA).play([1400.0] * 20)
    stored = msgspec.json.decode(pool.handler.snapshot() or b"")
    assert stored["lasts"]

    pool.handler.restore(msgspec.json.encode(stored["lasts"]))

    assert msgspec.json.decode(pool.handler.snapshot() or b"")["lasts"] == stored["lasts"]


def test_plans_beyond_the_bytes_of_a_snapshot_are_left_out() -> None:
    handler = ScalingHandler(msgspec.structs.replace(FORECAST, plan_snapshot_bytes=50_000))
    for number in range(10):
        sample = engine("e0", pool=f"p{number}", running=1, waiting=0, running_max=LIMIT)
        handler.handle(sample, at(number))

    kept = [plan[1] for plan in msgspec.json.decode(handler.snapshot() or b"")["plans"]]

    assert kept == [f"p{number}" for number in range(len(kept))]
    assert 1 <= len(kept) < 10
