"""Health from records: the states of parts, instances, roles and the whole installation."""

from collections.abc import Sequence

import pytest

from agent.health import installation_health, instance_health, worst
from schemas.lifecycle import ROLES, Component, ComponentState, InstanceRecord, Role
from schemas.units import SECOND_NS, instant

NOW_NS = 1_800_000_000 * SECOND_NS
HEARTBEAT_SECONDS = 30.0


def a_record(
    role: Role = "cache",
    *states: ComponentState,
    name: str = "a",
    age_seconds: float = 1.0,
    ready: bool = True,
) -> InstanceRecord:
    beaten = instant(NOW_NS - int(age_seconds * SECOND_NS))
    return InstanceRecord(
        role=role,
        instance=name,
        node="n",
        machine="m",
        identity="i",
        boot="b",
        pid=1,
        version="0",
        started_at=beaten,
        heartbeat_at=beaten,
        heartbeat_seconds=HEARTBEAT_SECONDS,
        ready=ready,
        components=[
            Component(name=f"part-{n}", state=state, text="why", probed_at=beaten)
            for n, state in enumerate(states)
        ],
    )


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        pytest.param([], "ok", id="no-parts"),
        pytest.param(["off", "off"], "ok", id="all-off"),
        pytest.param(["ok", "off"], "ok", id="off-does-not-count"),
        pytest.param(["degraded", "ok"], "degraded", id="degraded"),
        pytest.param(["ok", "failed", "degraded"], "failed", id="failed"),
    ],
)
def test_the_worst_part_decides(states: list[ComponentState], expected: str) -> None:
    assert worst(states) == expected


@pytest.mark.parametrize(
    ("age_seconds", "state", "ready"),
    [
        pytest.param(59.9, "ok", True, id="one-missing"),
        pytest.param(60.0, "ok", True, id="edge"),
        pytest.param(60.1, "failed", False, id="two-missing"),
        pytest.param(-5.0, "ok", True, id="clock-ahead"),
    ],
)
def test_two_missing_heartbeats_are_a_failure(age_seconds: float, state: str, ready: bool) -> None:
    found = instance_health(a_record(age_seconds=age_seconds), NOW_NS)

    assert (found.state, found.ready) == (state, ready)
    assert found.age_seconds == max(0.0, age_seconds)


@pytest.mark.parametrize(
    ("records", "status", "ready", "text"),
    [
        pytest.param([a_record()], "healthy", True, "", id="one-fine"),
        pytest.param([], "critical", False, "no cache is registered", id="none"),
        pytest.param([a_record(ready=False)], "critical", False, "", id="not-ready-yet"),
        pytest.param(
            [a_record("cache", "ok", "degraded")],
            "degraded",
            True,
            "a: part-1 degraded (why)",
            id="degraded",
        ),
        pytest.param(
            [a_record("cache", "failed")], "critical", True, "a: part-0 failed (why)", id="failed"
        ),
        pytest.param(
            [a_record("cache", "failed", name="a"), a_record(name="b")],
            "degraded",
            True,
            "a: part-0 failed (why)",
            id="one-of-two-failed",
        ),
        pytest.param(
            [a_record(age_seconds=61, name="a"), a_record(name="b")],
            "degraded",
            True,
            "a is silent",
            id="one-of-two-silent",
        ),
        pytest.param(
            [a_record(age_seconds=61, name="a"), a_record(ready=False, name="b")],
            "critical",
            False,
            "a is silent",
            id="the-other-not-ready",
        ),
    ],
)
def test_a_role_is_as_good_as_its_best_instance(
    records: Sequence[InstanceRecord], status: str, ready: bool, text: str
) -> None:
    reply = installation_health(records, ["cache"], NOW_NS, "cache.x")

    assert (reply.status, reply.ready) == (status, ready)
    assert [(role.role, role.text) for role in reply.roles] == [("cache", text)]
    assert reply.roles[0].instances == len(records)


def test_every_expected_role_must_be_ready() -> None:
    everyone = [a_record(role) for role in ROLES]

    for missing in ROLES:
        there = [record for record in everyone if record.role != missing]
        reply = installation_health(there, ROLES, NOW_NS, "cache.x")
        assert (reply.ready, reply.status) == (False, "critical")
    assert installation_health(everyone, ROLES, NOW_NS, "cache.x").ready


def test_a_role_that_is_not_expected_is_shown_but_not_waited_for() -> None:
    reply = installation_health(
        [a_record("agent"), a_record("archive", ready=False)], ["agent"], NOW_NS, "agent.x"
    )

    assert reply.ready
    assert [(role.role, role.expected, role.ready) for role in reply.roles] == [
        ("agent", True, True),
        ("archive", False, False),
    ]
