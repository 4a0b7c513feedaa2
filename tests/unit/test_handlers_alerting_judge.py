"""Holds, margins, what ends an alert, and what its rules' and silences' changes do to it."""

import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from handlers.alerting.book import REMOVED, RULE_KEY, SILENCE_KEY, AlertBook
from handlers.alerting.handler import AlertsHandler
from schemas.alerts import AlertRule, Silence
from schemas.analysis import Alert, Scope
from schemas.protocols import Emit
from schemas.units import instant
from tests.support.alerting import alerts_handler, alerts_of, played, transitions
from tests.support.samples import START_NS, at, engine, gpu, host

QUEUE = AlertRule(
    name="queue",
    metric="engine.requests_waiting",
    warning=10.0,
    critical=50.0,
    clear_margin=4.0,
    for_seconds=30.0,
    clear_for_seconds=20.0,
)
MEMORY = AlertRule(name="memory", metric="host.memory.utilization_ratio", warning=0.9)


def changed(book: AlertBook, second: float, rule: AlertRule | None, name: str = "") -> None:
    """The rule as `fleet-config` has it from that second on; None: removed."""
    record = REMOVED if rule is None else msgspec.json.encode(rule)
    key = RULE_KEY + (name if rule is None else rule.name)
    book.heard(key, record, book.revision + 1, at(second).ns)


def silenced(book: AlertBook, second: float, start: float, end: float, **fields: Any) -> None:
    silence = Silence(
        silence_id="s1",
        starts_at=instant(at(start).ns),
        ends_at=instant(at(end).ns),
        author="ann",
        **fields,
    )
    book.heard(SILENCE_KEY + "s1", msgspec.json.encode(silence), book.revision + 1, at(second).ns)


@pytest.mark.parametrize("seed", range(5))
def test_noise_around_the_threshold_raises_at_most_one_alert_an_hour(seed: int) -> None:
    rng = random.Random(seed)
    noisy = [
        (second, engine(waiting=max(0, round(rng.gauss(10, 3))))) for second in range(0, 3600, 5)
    ]
    risen = [
        (second, engine(waiting=max(0, round(rng.gauss(18, 3))))) for second in range(0, 3600, 5)
    ]

    of_noise = played(*noisy, handler=alerts_handler(QUEUE))
    of_load = played(*risen, handler=alerts_handler(QUEUE))

    assert transitions(of_noise) in (
        [],
        [("raised", "warning")],
        [*[("raised", "warning")], ("cleared", "warning")],
    )
    assert transitions(of_load) == [("raised", "warning")]


def test_an_end_must_have_held_too() -> None:
    handler = alerts_handler(QUEUE)
    bad, good = engine(waiting=12), engine(waiting=0)
    played(*((second, bad) for second in range(0, 35, 5)), handler=handler)

    short = played((35, good), (50, good), (54, bad), handler=handler)
    held = played((60, good), (79, good), (80, good), handler=handler)

    assert short == []
    assert transitions(held) == [("cleared", "warning")]


def test_a_hold_longer_than_the_window_outlives_a_restart() -> None:
    idle = AlertRule(
        name="idle", metric="gpu.utilization_ratio", comparison="<=", info=0.05, for_seconds=1800
    )
    before, after = alerts_handler(idle), alerts_handler(idle)
    played(*((second, gpu(utilization_ratio=0.0)) for second in range(0, 1200, 5)), handler=before)
    after.restore(before.snapshot() or b"")

    alerts = played(
        *((second, gpu(utilization_ratio=0.0)) for second in range(1200, 1900, 5)), handler=after
    )

    assert [alert.raised_at for alert in alerts] == [instant(at(1800).ns)]
    assert after.window_ns == 60 * 10**9


def test_a_file_system_that_is_unmounted_is_cleared() -> None:
    alerts = played(
        (0, host(disks={"/": 0.5, "/data": 0.99})),
        (5, host(disks=None)),  # not measured: nothing is known
        (10, host(disks={"/": 0.5})),
    )

    assert [(a.transition, a.part, a.cleared_because) for a in alerts] == [
        ("raised", "/data", None),
        ("cleared", "/data", "gone"),
    ]
    assert alerts[-1].text == "File system nearly full: /data of n1 is no longer reported"


def test_a_gpu_that_is_gone_from_a_living_node_is_cleared_after_ten_minutes() -> None:
    handler = alerts_handler()
    dead = gpu(is_reachable=False)
    raised = played((0, dead), (10, dead), handler=handler)

    alerts = played(*((second, host()) for second in range(15, 900, 5)), handler=handler)

    assert transitions(raised) == [("raised", "critical")]
    assert [(a.cleared_because, a.decided_at) for a in alerts] == [("gone", instant(at(610).ns))]


def test_nothing_is_cleared_because_a_whole_node_is_silent_but_after_a_week() -> None:
    handler = alerts_handler()
    played((0, host(disks={"/": 0.99})), handler=handler)

    silent = played(*((second, None) for second in range(5, 6 * 86400, 3600)), handler=handler)
    forgotten = played((7 * 86400, None), handler=handler)

    assert silent == []
    assert [alert.cleared_because for alert in forgotten] == ["no_news"]


@pytest.mark.parametrize(
    ("rule", "because"),
    [
        pytest.param(msgspec.structs.replace(MEMORY, warning=0.8), "rule_changed", id="changed"),
        pytest.param(msgspec.structs.replace(MEMORY, enabled=False), "rule_removed", id="off"),
        pytest.param(None, "rule_removed", id="removed"),
    ],
)
def test_a_changed_rule_ends_its_alerts_and_says_so(rule: AlertRule | None, because: str) -> None:
    book = AlertBook((MEMORY, QUEUE))
    handler = alerts_handler(book=book)
    full = host(memory=0.95)
    played((0, full), handler=handler)

    changed(book, 7, rule, "memory")
    alerts = played((5, full), (10, full), handler=handler)

    assert [(a.transition, a.cleared_because) for a in alerts if a.transition == "cleared"] == [
        ("cleared", because)
    ]
    again = [a.rule_version for a in alerts if a.transition == "raised"]
    assert again == ([1] if because == "rule_changed" else [])


def test_a_rule_that_is_written_again_as_it_was_changes_nothing() -> None:
    book = AlertBook((MEMORY,))
    handler = alerts_handler(book=book)
    played((0, host(memory=0.95)), handler=handler)

    changed(book, 1, MEMORY)

    assert played((5, host(memory=0.95)), (10, None), handler=handler) == []


def test_other_rules_alerts_stay_open() -> None:
    book = AlertBook((MEMORY,))
    handler = alerts_handler(book=book)
    played((0, host(memory=0.95)), handler=handler)

    changed(book, 1, QUEUE)

    assert played((5, host(memory=0.95)), (10, None), handler=handler) == []


def test_a_replay_judges_each_sample_by_the_rules_of_its_time() -> None:
    def run(changes_come_early: bool) -> list[Alert]:
        book = AlertBook((MEMORY,))
        handler = alerts_handler(book=book)
        alerts = []
        for second in range(0, 60, 5):
            if (changes_come_early and second == 0) or (not changes_come_early and second == 30):
                changed(book, 27, msgspec.structs.replace(MEMORY, warning=0.7))
                changed(book, 28, QUEUE)
            alerts += played((second, host(memory=0.8)), handler=handler)
        return alerts

    live, again = run(changes_come_early=False), run(changes_come_early=True)

    assert [alert.alert_id for alert in live] == [f"node.n1.memory.{at(30).ns}"]
    assert again == live


def test_an_alert_whose_rule_was_removed_while_no_handler_ran_is_cleared() -> None:
    before = alerts_handler(MEMORY)
    played((0, host(memory=0.95)), handler=before)
    after = alerts_handler(QUEUE)
    after.restore(before.snapshot() or b"")

    (alert,) = played((5, None), handler=after)

    assert (alert.transition, alert.cleared_because) == ("cleared", "rule_removed")


@pytest.mark.parametrize(
    ("fields", "is_silenced"),
    [
        pytest.param({}, True, id="all"),
        pytest.param({"rule": "mem*", "id": "n?", "scope": "node"}, True, id="patterns"),
        pytest.param({"rule": "queue"}, False, id="another rule"),
        pytest.param({"id": "m*"}, False, id="another node"),
        pytest.param({"scope": "fleet"}, False, id="another scope"),
    ],
)
def test_a_silenced_alert_is_recorded_and_says_so(
    fields: dict[str, Any], is_silenced: bool
) -> None:
    book = AlertBook((MEMORY,))
    silenced(book, 0, 0, 100, **fields)

    (alert,) = played((5, host(memory=0.95)), handler=alerts_handler(book=book))

    assert alert.silenced_by == ("s1" if is_silenced else None)


def test_a_silence_begins_and_ends_at_its_instants_and_open_alerts_say_so() -> None:
    book = AlertBook((MEMORY,))
    handler = alerts_handler(book=book)
    silenced(book, 1, 20, 40)

    alerts = []
    for second in range(0, 60, 5):
        alerts += played((second, None), (second, host(memory=0.95)), handler=handler)

    assert [(a.transition, a.silenced_by, a.decided_at) for a in alerts] == [
        ("raised", None, instant(START_NS)),
        ("updated", "s1", instant(at(20).ns)),
        ("updated", None, instant(at(40).ns)),
    ]
    assert len({alert.alert_id for alert in alerts}) == 1


def test_a_silence_taken_back_ends_at_once() -> None:
    book = AlertBook((MEMORY,))
    handler = alerts_handler(book=book)
    silenced(book, 0, 0, 1000)
    (raised,) = played((5, host(memory=0.95)), handler=handler)

    book.heard(SILENCE_KEY + "s1", None, book.revision + 1, at(7).ns)
    (updated,) = played((10, host(memory=0.95)), handler=handler)

    assert (raised.silenced_by, updated.silenced_by) == ("s1", None)
    assert updated.decided_at - raised.decided_at == timedelta(seconds=5)


@pytest.mark.parametrize(
    ("aggregate", "value"),
    [("mean", 20.0), ("min", 10.0), ("max", 30.0), ("sum", 40.0)],
)
@pytest.mark.parametrize("scope", ["pool", "fleet"])
def test_a_pool_and_the_fleet_are_judged_by_an_aggregate(
    scope: Scope, aggregate: Any, value: float
) -> None:
    def rule(threshold: float) -> AlertsHandler:
        made = AlertRule(
            name="queue",
            metric="engine.requests_waiting",
            scope=scope,
            aggregate=aggregate,
            warning=threshold,
        )
        return alerts_handler(made, scope=scope)

    steps = (
        (0, engine("a", waiting=10)),
        (0, engine("b", waiting=30)),
        (0, engine("c")),
        (5, None),
    )

    assert played(*steps, handler=rule(value + 0.1)) == []
    (alert,) = played(*steps, handler=rule(value))
    assert (alert.scope, alert.id, alert.value) == (
        scope,
        "chat" if scope == "pool" else "all",
        value,
    )
    assert alert.pool == ("chat" if scope == "pool" else None)


def test_members_that_are_silent_leave_the_aggregate_and_an_empty_pool_its_alert() -> None:
    rule = AlertRule(
        name="queue", metric="engine.requests_waiting", scope="pool", aggregate="sum", warning=15.0
    )
    handler = alerts_handler(rule, scope="pool")
    raised = played(
        (0, engine("a", waiting=10)), (0, engine("b", waiting=10)), (5, None), handler=handler
    )

    fewer = played((62, engine("a", waiting=10)), (65, None), handler=handler)
    none = played(*((second, None) for second in range(130, 900, 5)), handler=handler)

    assert transitions(raised) == [("raised", "warning")]
    assert [(a.cleared_because, a.value) for a in fewer] == [("recovered", 10.0)]
    assert none == []


def test_a_member_is_silent_after_the_gap() -> None:
    rule = AlertRule(
        name="queue", metric="engine.requests_waiting", scope="pool", aggregate="sum", warning=15.0
    )
    one, other = engine("a", waiting=10), engine("b", waiting=10)

    just = played((1, one), (5, other), (60, None), handler=alerts_handler(rule, scope="pool"))
    late = played((0, one), (5, other), (60, None), handler=alerts_handler(rule, scope="pool"))

    assert (len(just), len(late)) == (1, 0)


def test_what_was_said_of_another_metric_does_not_count_for_a_changed_rule() -> None:
    rule = AlertRule(
        name="load", metric="engine.requests_waiting", scope="pool", aggregate="sum", warning=15.0
    )
    book = AlertBook((rule,))
    handler = alerts_handler(scope="pool", book=book)
    played((0, engine(waiting=20, running=1)), handler=handler)
    changed(book, 1, msgspec.structs.replace(rule, metric="engine.requests_running"))

    alerts = played((5, None), (6, engine(waiting=20, running=1)), (10, None), handler=handler)

    assert alerts == []


def test_members_beyond_those_that_are_kept_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.alerting.aggregates.MAX_ENTRIES", 2)
    rule = AlertRule(
        name="queue", metric="engine.requests_waiting", scope="pool", aggregate="sum", warning=20.0
    )
    members = [(0, engine(name, waiting=10)) for name in "abc"]

    (alert,) = played(*members, (5, None), handler=alerts_handler(rule, scope="pool"))

    assert alert.value == 20.0


def test_of_two_silences_the_one_that_ends_last_is_named() -> None:
    book = AlertBook((MEMORY,))
    silenced(book, 0, 0, 1000)
    longer = Silence(
        silence_id="s0", starts_at=instant(at(0).ns), ends_at=instant(at(2000).ns), author="ann"
    )
    book.heard(SILENCE_KEY + "s0", msgspec.json.encode(longer), book.revision + 1, at(0).ns)

    (raised,) = played((5, host(memory=0.95)), handler=alerts_handler(book=book))

    assert raised.silenced_by == "s0"


def test_an_alert_on_a_pool_that_is_no_more_is_cleared() -> None:
    rule = AlertRule(
        name="queue", metric="engine.requests_waiting", scope="pool", aggregate="sum", warning=5.0
    )
    handler = alerts_handler(rule, scope="pool")
    played((0, engine(waiting=10)), (5, None), handler=handler)

    alerts = played(*((second, None) for second in range(10, 900, 5)), handler=handler)

    assert [alert.cleared_because for alert in alerts] == ["gone"]


def test_more_alerts_than_can_be_remembered_are_cleared_without_news() -> None:
    handler = alerts_handler()
    handler._judge._tracks._max_entries = 10  # a hundred thousand take long
    disks: dict[str, float | None] = {f"/{number}": 0.99 for number in range(12)}

    raised = played((0, host(disks=disks)), handler=handler)
    cleared = played((5, None), handler=handler)

    assert len(raised) == 12
    assert [alert.cleared_because for alert in cleared] == ["no_news", "no_news"]


def test_message_ids_of_all_transitions_differ() -> None:
    book = AlertBook((MEMORY,))
    handler = alerts_handler(book=book)
    silenced(book, 1, 20, 40)
    emits: list[Emit] = []
    for second in range(0, 100, 5):
        emits += handler.tick(at(second))
        emits += handler.handle(host(memory=0.95 if second < 80 else 0.1), at(second))

    assert len(alerts_of(emits)) == len({emit.message_id for emit in emits}) == 4
