import msgspec
import pytest

from handlers import alert_book
from handlers.alerting.book import REMOVED, RULE_KEY, SILENCE_KEY, AlertBook, Policy
from handlers.alerting.stale import StaleNodesHandler
from handlers.settings import AlertSettings, HandlersSettings
from schemas.alerts import AlertRule, Silence
from schemas.analysis import Alert
from schemas.protocols import Emit
from schemas.units import instant
from tests.support.alerting import alerts_of
from tests.support.samples import START_NS, at, host


def stale() -> StaleNodesHandler:
    return StaleNodesHandler(AlertSettings(), alert_book(HandlersSettings()))


def transitions(emits: list[Emit]) -> list[tuple[str, str]]:
    return [(e.message.transition, e.message.id) for e in emits if isinstance(e.message, Alert)]


@pytest.mark.parametrize(
    ("interval_seconds", "second", "raised"),
    [
        pytest.param(5.0, 29.9, False, id="just in time"),
        pytest.param(5.0, 30.0, True, id="at the limit"),
        pytest.param(20.0, 59.9, False, id="a slow node gets three intervals"),
        pytest.param(20.0, 60.0, True, id="a slow node is late too"),
    ],
)
def test_a_node_is_stale_after_its_limit(
    interval_seconds: float, second: float, raised: bool
) -> None:
    handler = stale()
    handler.handle(host(interval_seconds=interval_seconds), at(0))

    assert bool(handler.tick(at(second))) == raised


def test_raised_once_and_cleared_once() -> None:
    handler = stale()
    emits: list[Emit] = []
    handler.handle(host("n1"), at(0))
    for second in range(0, 300, 5):
        emits += handler.tick(at(second))
        emits += handler.handle(host("alive"), at(second))
    emits += handler.handle(host("n1"), at(300))
    emits += handler.handle(host("n1"), at(305))

    assert transitions(emits) == [("raised", "n1"), ("cleared", "n1")]
    assert "300 s" in emits[1].message.text  # type: ignore[attr-defined]  # an Alert
    assert emits[0].message.subject() == "alert.raised.critical.node.n1.node_stale"


def test_the_id_does_not_depend_on_the_tick_that_saw_it() -> None:
    ids = set()
    for second in (30, 33, 400):
        handler = stale()
        handler.handle(host(), at(0))
        ids |= {emit.message_id for emit in handler.tick(at(second))}

    assert ids == {f"node.n1.node_stale.{START_NS + 30 * 10**9}.raised.critical"}


def test_a_node_that_died_while_no_handler_ran_is_found() -> None:
    before, after = stale(), stale()
    before.handle(host("dead"), at(0))
    before.handle(host("back"), at(0))
    after.handle(host("back"), at(10))
    after.restore(before.snapshot() or b"")

    assert transitions(list(after.tick(at(35)))) == [("raised", "dead")]


def test_an_open_alert_outlives_the_process() -> None:
    before, after = stale(), stale()
    before.handle(host(), at(0))
    before.tick(at(30))
    after.restore(before.snapshot() or b"")

    assert after.tick(at(60)) == []
    assert transitions(list(after.handle(host(), at(65)))) == [("cleared", "n1")]


def test_a_node_gone_for_a_week_is_no_longer_waited_for() -> None:
    handler = stale()
    handler.handle(host(), at(0))
    handler.tick(at(30))
    week = 7 * 86400

    (cleared,) = alerts_of(handler.tick(at(week)))

    assert (cleared.transition, cleared.cleared_because) == ("cleared", "no_news")
    assert handler.handle(host(), at(week + 5)) == ()
    assert handler.tick(at(week + 10)) == []


def test_a_node_that_said_goodbye_is_not_stale() -> None:
    handler = stale()
    handler.handle(host(), at(0))
    handler.handle(host(leaving=True), at(5))

    assert handler.tick(at(3600)) == []


def test_a_goodbye_outlives_the_process_and_ends_with_the_next_sample() -> None:
    before, after = stale(), stale()
    before.handle(host(leaving=True), at(0))
    after.restore(before.snapshot() or b"")
    assert after.tick(at(60)) == []

    after.handle(host(), at(65))

    assert transitions(list(after.tick(at(95)))) == [("raised", "n1")]


def test_a_goodbye_clears_what_was_open() -> None:
    handler = stale()
    handler.handle(host(), at(0))
    handler.tick(at(30))

    assert transitions(list(handler.handle(host(leaving=True), at(40)))) == [("cleared", "n1")]


def test_an_absurd_interval_neither_raises_nor_spoils_the_snapshot() -> None:
    handler = stale()

    handler.handle(host(interval_seconds=1e15), at(0))

    assert handler.tick(at(3600)) == []
    stale().restore(handler.snapshot() or b"")


SAID_OTHERWISE = AlertRule(
    name="node_stale", metric="host.age_seconds", critical=30.0, summary="silent"
)


def changed_rule(book: AlertBook, second: float, record: bytes | None) -> None:
    book.heard(f"{RULE_KEY}node_stale", record, book.revision + 1, at(second).ns)


def test_another_threshold_counts_from_now_on() -> None:
    book = alert_book(HandlersSettings())
    handler = StaleNodesHandler(AlertSettings(), book)
    handler.handle(host(), at(0))
    raised = handler.tick(at(30))
    rule = AlertRule(name="node_stale", metric="host.age_seconds", warning=60.0)

    changed_rule(book, 31, msgspec.json.encode(rule))
    ended, again = alerts_of(handler.tick(at(35))), alerts_of(handler.tick(at(60)))

    assert transitions(list(raised)) == [("raised", "n1")]
    assert [(a.transition, a.cleared_because) for a in ended] == [("cleared", "rule_changed")]
    assert [(a.transition, a.severity, a.rule_version) for a in again] == [("raised", "warning", 1)]


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([msgspec.json.encode(SAID_OTHERWISE)], id="changed but for its limit"),
        pytest.param([REMOVED, None], id="removed and given back"),
        pytest.param([msgspec.json.encode(SAID_OTHERWISE), None], id="changed and given back"),
    ],
)
def test_what_is_raised_again_under_a_new_rule_is_no_repeat(records: list[bytes | None]) -> None:
    book = alert_book(HandlersSettings())
    handler = StaleNodesHandler(AlertSettings(), book)
    handler.handle(host(), at(0))
    emits = list(handler.tick(at(30)))

    for number, record in enumerate(records):
        changed_rule(book, 41 + 5 * number, record)
        emits += handler.tick(at(45 + 5 * number))

    assert transitions(emits)[-1] == ("raised", "n1")
    assert len({emit.message_id for emit in emits}) == len(emits)


def test_a_rule_that_is_off_raises_nothing_and_ends_what_is_open() -> None:
    book = alert_book(HandlersSettings())
    handler = StaleNodesHandler(AlertSettings(), book)
    handler.handle(host(), at(0))
    handler.tick(at(30))

    changed_rule(book, 31, REMOVED)

    assert [a.cleared_because for a in alerts_of(handler.tick(at(35)))] == ["rule_removed"]
    assert handler.tick(at(100)) == []


def test_a_silence_on_an_open_alert_is_told_at_both_ends() -> None:
    book = alert_book(HandlersSettings())
    handler = StaleNodesHandler(AlertSettings(), book)
    handler.handle(host(), at(0))
    silence = Silence(
        silence_id="s1",
        rule="node_stale",
        starts_at=instant(at(40).ns),
        ends_at=instant(at(50).ns),
        author="ann",
    )
    book.heard(f"{SILENCE_KEY}s1", msgspec.json.encode(silence), 1, at(1).ns)

    alerts = [a for second in range(0, 70, 5) for a in alerts_of(handler.tick(at(second)))]

    assert [(a.transition, a.silenced_by) for a in alerts] == [
        ("raised", None),
        ("updated", "s1"),
        ("updated", None),
    ]


def test_silences_are_looked_at_when_one_may_have_begun_or_ended_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []
    silence_of = Policy.silence_of

    def counted(policy: Policy, alert: Alert, ns: int) -> str | None:
        asked.append((ns - START_NS) / 1e9)
        return silence_of(policy, alert, ns)

    monkeypatch.setattr(Policy, "silence_of", counted)
    book = alert_book(HandlersSettings())
    handler = StaleNodesHandler(AlertSettings(), book)
    silence = Silence(
        silence_id="s1",
        id="n9",
        starts_at=instant(at(50).ns),
        ends_at=instant(at(70).ns),
        author="a",
    )
    book.heard(f"{SILENCE_KEY}s1", msgspec.json.encode(silence), 1, at(1).ns)
    handler.handle(host(), at(0))
    for second in range(30, 100, 5):
        handler.tick(at(second))

    assert asked == [30.0, 50.0, 70.0]
