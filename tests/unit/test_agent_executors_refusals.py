"""Each reason for which an executor refuses."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from agent.executors.command import CommandTarget
from agent.executors.refusals import refusal
from agent.executors.settings import CommandSettings, ExecutorSettings
from schemas.life import AboutAdvice, Life
from schemas.scaling import Recommendation
from schemas.units import to_ns
from tests.support.advice import advice, decision, step

SETTINGS = ExecutorSettings(
    kind="command", dry_run=False, command=CommandSettings(scale=("true",), pools=("chat",))
)
ONE = advice()


def refused(
    one: Recommendation = ONE,
    *told: AboutAdvice,
    others: Sequence[Life] = (),
    settings: ExecutorSettings = SETTINGS,
    is_authenticated: bool = True,
    late: bool = False,
    **request: Any,
) -> str:
    life = Life(advice=one)
    for message in told or (decision(one),):
        life.add(message)
    return refusal(
        life,
        step(one, **request),
        [life, *others],
        settings,
        CommandTarget(settings.command, {}),
        is_authenticated=is_authenticated,
        now_ns=to_ns(one.expires_at if late else one.decided_at),
    )


def test_accepted_advice_is_carried_out() -> None:
    assert refused() == ""


def accepted(one: Recommendation, *more: AboutAdvice) -> Life:
    life = Life(advice=one)
    for message in (decision(one), *more):
        life.add(message)
    return life


SIMULATED = advice(simulated=True)
OTHER_POOL = advice(pool="code")
TUNE = advice(action="tune_cache")
DOWN = advice(2, action="scale_down", replicas_to=1)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        pytest.param(
            {"is_authenticated": False}, "this executor is connected without auth", id="nobody"
        ),
        pytest.param({"one": SIMULATED}, "its evidence is simulated", id="simulated"),
        pytest.param({"simulated": True}, "its evidence is simulated", id="simulated-request"),
        pytest.param({"one": TUNE}, "an executor cannot tune_cache", id="action"),
        pytest.param({"late": True}, "it expired at", id="expired"),
        pytest.param({"one": OTHER_POOL}, "pool code is not in executor.command.pools", id="pool"),
        pytest.param(
            {"settings": msgspec.structs.replace(SETTINGS, dry_run=True)},
            "executor.dry_run is on",
            id="only-dry-runs",
        ),
        pytest.param(
            {"settings": msgspec.structs.replace(SETTINGS, deciders=("orchestrator",))},
            "operator:ann accepted it, a role that is not in executor.deciders",
            id="role",
        ),
        pytest.param(
            {"others": [accepted(DOWN)], "one": advice(3, action="scale_down")},
            "it contradicts chat.scale_down.2, accepted too, which goes first by time",
            id="contradicted",
        ),
    ],
)
def test_refuses_with_its_own_reason(arguments: dict[str, Any], why: str) -> None:
    if "others" in arguments:  # decided first, and so it goes last
        early = msgspec.structs.replace(arguments["one"], decided_at=ONE.decided_at)
        arguments = {**arguments, "one": early}

    assert refused(**arguments).startswith(why)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        pytest.param([advice(2, supersedes=ONE.recommendation_id)], "superseded by", id="replaced"),
        pytest.param([decision(ONE, "rejected")], "operator:ann rejected it", id="rejected"),
        pytest.param([decision(ONE, simulated=True)], "its decision is simulated", id="simulated"),
        pytest.param(
            [decision(ONE), step(ONE, "succeeded", idempotency_key="k")],
            "it was carried out already",
            id="done-under-another-key",
        ),
        pytest.param([step(ONE)], "nobody has accepted it", id="not-accepted"),
    ],
)
def test_refuses_by_what_was_said_before(told: list[AboutAdvice], why: str) -> None:
    assert refused(ONE, *told).startswith(why)


@pytest.mark.parametrize("verdict", ["rejected", "superseded", "expired"])
def test_contradicting_advice_that_is_closed_does_not_stop_it(verdict: str) -> None:
    rival = Life(advice=advice(2))
    rival.add(decision(rival.advice))
    one = advice(3, action="scale_down")

    assert refused(one, others=[rival]).startswith("it contradicts chat.scale_up.2")
    closed = Life(advice=rival.advice)
    closed.add(decision(rival.advice, verdict))
    assert refused(one, others=[closed]) == ""


def test_contradicting_advice_that_nobody_has_accepted_does_not_stop_it() -> None:
    one = advice(3, action="scale_down")

    assert refused(one, others=[Life(advice=advice(2))]) == ""


def test_a_dry_run_needs_no_approval_but_all_the_rest() -> None:
    dry: dict[str, Any] = {"dry_run": True}
    off = msgspec.structs.replace(SETTINGS, dry_run=True)

    assert refused(ONE, step(ONE), **dry) == ""
    assert refused(settings=off, **dry) == ""
    assert refused(ONE, decision(ONE, "rejected"), **dry).startswith("operator:ann rejected it")
    assert refused(is_authenticated=False, **dry).startswith("this executor is connected without")
    assert refused(SIMULATED, **dry) == "its evidence is simulated"
