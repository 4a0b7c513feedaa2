"""Alert rules and silences while the handlers run: set, heard by all, kept, refused."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.assembly import Place, run_handlers
from agent.bus import Bus, connect
from agent.bus.streams import STREAMS
from agent.client import ResourceAgent
from agent.identity import Identity
from agent.settings import Settings, SettingsError
from handlers.alerting.book import AlertBook
from handlers.alerting.configuration import AlertConfiguration
from handlers.settings import AlertSettings, HandlersSettings
from handlers.stream_watch import REFUSING, StreamWatch
from schemas.alerts import AlertRule, Silence
from schemas.analysis import Alert
from schemas.protocols import RequestError
from schemas.streams import StreamMetrics
from schemas.units import SECOND_NS, instant
from tests.support.samples import host
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus

RULE: dict[str, Any] = {
    "metric": "host.memory.utilization_ratio",
    "warning": 0.5,
    "clear_margin": 0.1,
}


def place(tmp_path: Path, name: str, **alerts: Any) -> Place:
    return Place(
        settings=Settings(
            state_dir=str(tmp_path / name),
            node="n1",
            handlers=HandlersSettings(slots=2, alerts=AlertSettings(**alerts)),
        ),
        identity=Identity(machine="m", folder=name, boot="b", pid=1),
        instance=name,
    )


@contextlib.asynccontextmanager
async def handlers(bus: Bus, tmp_path: Path, name: str = "h1") -> AsyncIterator[ResourceAgent]:
    """A handlers process on a connection of its own, and a client that any of them answers."""
    async with await connect(bus.url, name=name) as own, run_handlers(own, place(tmp_path, name)):
        yield ResourceAgent(bus)


async def told(bus: Bus, memory: float, node: str = "n1") -> None:
    await bus.publish(host(node, memory=memory, observed_at=instant(time.time_ns())))


async def open_rules(client: ResourceAgent) -> list[str]:
    return [alert.rule for alert in (await client.alerts()).rows]


async def until_open(client: ResourceAgent, *rules: str) -> None:
    async def are_open() -> bool:
        return await open_rules(client) == list(rules)

    await until_async(are_open)


async def test_a_rule_judges_at_once_is_kept_over_a_restart_and_removed(
    bus: Bus, tmp_path: Path
) -> None:
    async with handlers(bus, tmp_path) as client:
        await told(bus, 0.6)
        (state,) = (await client.set_alert_rule("half_full", **RULE)).rules
        await told(bus, 0.6)
        await until_open(client, "half_full")
    async with handlers(bus, tmp_path) as client:
        kept = {state.rule.name: state for state in (await client.alert_rules()).rules}
        still_open = await client.alerts(id="n1")
        await client.delete_alert_rule("half_full")
        await told(bus, 0.6)
        await until_open(client)
        history = await client.alert_history(rule="half_full")

    assert (state.state, state.version > 0) == ("in_force", True)
    assert kept["half_full"] == state
    assert [alert.rule_version for alert in still_open.rows] == [state.version]
    assert [(a.transition, a.cleared_because) for a in history.rows] == [
        ("raised", None),
        ("cleared", "rule_removed"),
    ]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"warning": "much"}, "$.warning"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"metric": "host.memory.nothing"}, "there is no 'nothing' here"),
        ({"scope": "pool"}, "needs an aggregate"),
        ({"critical": 0.1}, "must grow in this order"),
    ],
    ids=["type", "unknown", "path", "scope", "order"],
)
async def test_a_wrong_rule_is_refused_by_name_and_changes_nothing(
    bus: Bus, tmp_path: Path, fields: dict[str, Any], text: str
) -> None:
    async with handlers(bus, tmp_path) as client:
        before = await client.set_alert_rule("half_full", **RULE)
        with pytest.raises(RequestError) as refused:
            await client.set_alert_rule("half_full", **fields)
        after = await client.alert_rules()

    assert (refused.value.code, text in refused.value.text) == (400, True)
    assert before.rules[0] in after.rules


NEAR = "near it: gpu_temperature"


async def test_rules_and_silences_that_cannot_be_are_refused(bus: Bus, tmp_path: Path) -> None:
    now = instant(time.time_ns())
    last = now.replace(year=9999, month=12, day=28)
    async with handlers(bus, tmp_path) as client:
        attempts = [
            (client.delete_alert_rule("gpu_temprature"), 404, "near it: gpu_temperature"),
            (client.reset_alert_rule("half_full"), 404, "no alert rule 'half_full'"),
            (client.set_alert_rule("disk_full", expected_version=7, warning=0.5), 409, "version 7"),
            (client.set_alert_rule("Not A Name", **RULE), 400, "rule.name must be"),
            (client.set_alert_rule("disk_ful", warning=0.5), 400, "; a new one needs its metric"),
            (client.unsilence("s"), 404, "no silence 's'"),
            (client.silence(author="ann"), 400, "either ends_at or seconds"),
            (client.silence(author="", seconds=5), 400, "$.author"),
            (client.silence(author="ann", seconds=5, rule="gpu_temprature"), 404, NEAR),
            (client.silence(author="ann", seconds=5, rule="gpu_temprature*"), 404, NEAR),
            (client.silence(author="ann", seconds=5, rule="zzz"), 404, "there are: "),
            (client.silence(author="ann", ends_at=now - timedelta(days=1)), 400, "over already"),
            (client.silence(author="ann", starts_at=last, seconds=1e7), 400, "year 9999"),
            (
                client.alert_history(start=now, seconds=5),
                400,
                "seconds: give either start or seconds",
            ),
            (client.alert_history(start=now + timedelta(days=1)), 400, "start: lies in the future"),
            (client.alert_history(end=now.replace(year=1, day=1)), 400, "end: lies before 1970"),
            (client.alert_history(start=now.replace(year=1, day=1)), 400, "more than 90 days"),
            (client.alert_history(start=now - timedelta(days=91)), 400, "more than 90 days"),
        ]
        errors = []
        for attempt, code, text in attempts:
            with pytest.raises(RequestError) as refused:
                await attempt
            errors.append((refused.value.code == code, text in refused.value.text, text))

    assert errors == [(True, True, text) for _, _, text in attempts]


async def test_a_silence_is_for_rules_that_are_there_off_or_said_to_come(
    bus: Bus, tmp_path: Path
) -> None:
    async with handlers(bus, tmp_path) as client:
        await client.delete_alert_rule("disk_full")
        await client.set_alert_rule("half_full", **RULE)
        for rule in ("disk_full", "half_full", "gpu_*", "*"):
            await client.silence(author="ann", seconds=60, rule=rule)
        begun = await client.silence(author="ann", seconds=60, rule="to_come", future=True)
        listed = await client.silences()

    assert begun.silence.rule == "to_come"
    assert len(listed.rows) == 5


async def test_rules_and_silences_are_bounded(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with handlers(bus, tmp_path) as client:
        await client.set_alert_rule("half_full", **RULE)
        await client.silence(author="ann", seconds=60)
        count = len((await client.alert_rules()).rules)
        monkeypatch.setattr("handlers.alerting.configuration.MAX_RULES", count)
        monkeypatch.setattr("handlers.alerting.configuration.MAX_SILENCES", 1)

        with pytest.raises(RequestError, match=f"400 there are {count} rules: remove one first"):
            await client.set_alert_rule("quarter_full", **RULE)
        with pytest.raises(RequestError, match="400 there are 1 silences: take one back first"):
            await client.silence(author="ann", seconds=60)
        changed = await client.set_alert_rule("half_full", summary="half full")

    assert changed.rules[0].rule.summary == "half full"


async def test_a_silence_that_ended_a_day_ago_is_forgotten_with_the_next(bus: Bus) -> None:
    def until(name: str, end_ns: int) -> Silence:
        return Silence(silence_id=name, starts_at=instant(1), ends_at=instant(end_ns), author="ann")

    day_ns = 86_400 * SECOND_NS
    name = bus.names.bucket("config")
    configuration = AlertConfiguration(AlertBook(()), bus.bucket("config"), bus, name)
    async with configuration:
        for number, end_ns in enumerate((2 * day_ns, 2 * day_ns + 1000)):
            await configuration.silence(until(f"s{number}", end_ns), 0, future=False)
        await configuration.silence(until("s2", 9 * day_ns), 3 * day_ns, future=False)

    assert [one.silence_id for one in configuration.book.current.silences] == ["s1", "s2"]


async def test_a_rule_of_the_settings_is_changed_removed_and_given_back(
    bus: Bus, tmp_path: Path
) -> None:
    async with handlers(bus, tmp_path) as client:
        changed = await client.set_alert_rule("disk_full", warning=None)
        removed = await client.delete_alert_rule("disk_full")
        restored = await client.reset_alert_rule("disk_full")

    (one,), (two,), (three,) = changed.rules, removed.rules, restored.rules
    assert (one.rule.warning, one.rule.critical, one.state) == (None, 0.95, "in_force")
    assert two.state == "removed"
    assert (three.rule.warning, three.version, three.state) == (0.90, 0, "in_force")


async def test_every_process_hears_a_change(bus: Bus, tmp_path: Path) -> None:
    async with handlers(bus, tmp_path, "h1") as client, handlers(bus, tmp_path, "h2"):
        await client.set_alert_rule("half_full", **RULE)
        for number in range(8):  # nodes of both slots, so of both processes
            await told(bus, 0.6, f"n{number}")

        async def all_raised() -> bool:
            for number in range(8):
                await told(bus, 0.6, f"n{number}")
            return len((await client.alerts(rule="half_full")).rows) == 8

        await until_async(all_raised)
        await client.delete_alert_rule("half_full")
        await until_open(client)


async def test_a_silenced_alert_is_listed_apart_until_it_is_taken_back(
    bus: Bus, tmp_path: Path
) -> None:
    async with handlers(bus, tmp_path) as client:
        await client.set_alert_rule("half_full", **RULE)
        await told(bus, 0.6)
        await until_open(client, "half_full")
        begun = await client.silence(author="ann", rule="half_*", seconds=600, comment="known")
        silenced = await client.alerts()
        active = await client.silences()
        left = await client.unsilence(begun.silence.silence_id)
        back = await client.alerts()

    assert (silenced.rows, silenced.total, silenced.silenced_total) == ([], 0, 1)
    assert silenced.silenced[0].silenced_by == begun.silence.silence_id
    assert [(one.state, one.alerts, one.silence.comment) for one in active.rows] == [
        ("active", 1, "known")
    ]
    assert left.rows == []
    assert [alert.silenced_by for alert in back.rows] == [None]


async def test_a_bad_record_of_somebody_else_is_told_and_the_last_good_one_stays(
    bus: Bus, tmp_path: Path
) -> None:
    key = "handlers.alert_rule.half_full"
    async with handlers(bus, tmp_path) as client:
        await client.set_alert_rule("half_full", **RULE)
        await bus.bucket("config").put(key, b'{"name":"half_full","metric":"host.x","warning":1}')
        await until_async(lambda: has_problem(client, key))
    async with handlers(bus, tmp_path) as client:
        rules = await client.alert_rules()
        health = await client.health("detailed")

    (state,) = [state for state in rules.rules if state.rule.name == "half_full"]
    assert (state.rule.warning, state.state) == (0.5, "in_force")
    assert "no 'x' here" in rules.problems[key]
    (component,) = [
        component
        for one in health.instances
        for component in one.record.components
        if component.name == "alert_rules"
    ]
    assert (component.state, key in component.text) == ("degraded", True)


async def has_problem(client: ResourceAgent, key: str) -> bool:
    return key in (await client.alert_rules()).problems


async def test_two_who_change_a_rule_at_once_both_succeed_in_turn(bus: Bus, tmp_path: Path) -> None:
    async with handlers(bus, tmp_path, "h1") as client, handlers(bus, tmp_path, "h2"):
        await client.set_alert_rule("half_full", **RULE)
        await asyncio.gather(
            client.set_alert_rule("half_full", warning=0.2),
            client.set_alert_rule("half_full", summary="half full"),
        )

        async def both_are_there() -> bool:
            (state,) = [s for s in (await client.alert_rules()).rules if s.rule.name == "half_full"]
            return (state.rule.summary, state.rule.warning) == ("half full", 0.2)

        # Whichever of the two processes answers: it may hear of the other's change a moment later.
        await until_async(both_are_there)


async def test_alerts_of_before_the_process_are_listed_and_foreign_ones_passed_over(
    bus: Bus, tmp_path: Path
) -> None:
    await bus.publish_raw("alert.raised.warning.node.n9.r", b"{", message_id="bad")
    alert = Alert(
        transition="raised",
        severity="critical",
        scope="node",
        id="n9",
        rule="old",
        alert_id="node.n9.old.1",
        text="old",
        metric="host.x",
        value=1.0,
        threshold=1.0,
        clear_threshold=1.0,
        for_seconds=0.0,
        raised_at=instant(0),
        decided_at=instant(0),
    )
    await bus.publish(alert, message_id="old")

    async with handlers(bus, tmp_path) as client:
        listed = await client.alerts(severity="critical")
        others = await client.alerts(scope="fleet")

    assert (listed.rows, listed.by_severity) == ([alert], {"critical": 1})
    assert (others.rows, others.text) == ([], "no alert is open")


async def test_the_streams_that_refuse_what_is_new_are_watched(bus: Bus) -> None:
    heard: list[StreamMetrics] = []
    decode = msgspec.json.Decoder(StreamMetrics).decode
    await bus.subscribe("metrics.stream.*", lambda _, payload: heard.append(decode(payload)))

    async with StreamWatch(bus, bus, bus.names.stream, lambda: True, time.time_ns):
        await until(lambda: len(heard) == len(REFUSING))

    assert set(REFUSING) == {spec.name for spec in STREAMS if spec.discard_new}
    assert [one.stream for one in heard] == [bus.names.stream(name) for name in REFUSING]
    assert all(one.usage_ratio == 0.0 and one.limit_bytes for one in heard)


async def test_a_wrong_rule_of_the_settings_is_refused_at_start(bus: Bus, tmp_path: Path) -> None:
    rule = AlertRule(name="r", metric="host.nothing", warning=1.0)

    with pytest.raises(SettingsError, match=r"handlers\.alerts\.rules: alert rule r: metric"):
        async with run_handlers(bus, place(tmp_path, "h1", rules=(rule,))):
            pass
