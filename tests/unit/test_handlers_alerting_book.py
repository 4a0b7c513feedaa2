"""Records of `fleet-config` become policies; what is wrong is refused and changes nothing."""

import msgspec
import pytest

from handlers import alert_book
from handlers.alerting.book import POLICIES_KEPT, REMOVED, RULE_KEY, SILENCE_KEY, AlertBook
from handlers.alerting.defaults import DEFAULT_RULES
from handlers.alerting.rule import Rule
from handlers.settings import HandlersSettings
from schemas.alerts import AlertRule

MEMORY = AlertRule(name="memory", metric="host.memory.utilization_ratio", warning=0.9)


def test_the_settings_rules_are_there_from_the_start() -> None:
    book = alert_book(HandlersSettings())

    names = {rule.name for rule in DEFAULT_RULES}
    assert set(book.current.rules) == names | {"node_stale"}
    assert {rule.version for rule in book.current.rules.values()} == {0}


def test_a_rule_is_added_changed_removed_and_given_back() -> None:
    book = AlertBook((MEMORY,))
    key = f"{RULE_KEY}memory"
    stricter = msgspec.structs.replace(MEMORY, warning=0.5)

    book.heard(key, msgspec.json.encode(stricter), 3, 30)
    book.heard(key, REMOVED, 4, 40)
    book.heard(key, None, 5, 50)

    found = [book.at(ns).rules.get("memory") for ns in (0, 29, 30, 39, 40, 49, 50, 10**9)]
    limits = [rule and (rule.mildest, rule.version) for rule in found]
    assert limits == [
        (0.9, 0), (0.9, 0), (0.5, 3), (0.5, 3), None, None, (0.9, 0), (0.9, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "record", "text"),
    [
        (f"{RULE_KEY}memory", b"{", "truncated"),
        (f"{RULE_KEY}memory", b'{"name":"memory","metric":"host.nothing","warning":1}', "nothing"),
        (f"{RULE_KEY}memory", b'{"name":"memory","metric":"host.uptime_seconds"}', "give info"),
        (f"{RULE_KEY}memory", b'{"name":"memory","colour":1}', "colour"),
        (f"{RULE_KEY}other", msgspec.json.encode(MEMORY), "is of rule memory"),
        (f"{SILENCE_KEY}s", b'{"silence_id":"s"}', "starts_at"),
        (f"{SILENCE_KEY}s", b"\xff", "malformed"),
    ],
)
def test_a_wrong_record_changes_nothing_and_says_why(key: str, record: bytes, text: str) -> None:
    book = AlertBook((MEMORY,))

    book.heard(key, record, 1, 10)

    assert book.current.rules["memory"].settings == MEMORY
    assert book.current is book.first
    assert text in book.problems[key]
    book.heard(key, None, 2, 20)
    assert book.problems == {}


def test_what_is_heard_twice_counts_once() -> None:
    book = AlertBook((MEMORY,))
    book.heard(f"{RULE_KEY}memory", REMOVED, 2, 10)

    book.heard(f"{RULE_KEY}memory", msgspec.json.encode(MEMORY), 1, 5)

    assert "memory" not in book.current.rules


def test_old_policies_are_forgotten() -> None:
    book = AlertBook((MEMORY,))
    for revision in range(1, 200):
        changed = msgspec.structs.replace(MEMORY, warning=revision / 1000)
        book.heard(f"{RULE_KEY}memory", msgspec.json.encode(changed), revision, revision)

    policy, known = book.first, 1
    while policy.next is not None:
        policy, known = policy.next, known + 1

    assert known == POLICIES_KEPT
    assert policy is book.current


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"scope": "pool"}, "scope pool needs an aggregate"),
        ({"scope": "fleet"}, "scope fleet needs an aggregate"),
        ({"metric": "stream.usage_ratio"}, "scope of caches and streams is fleet"),
        ({"metric": "host.age_seconds"}, "host.age_seconds belongs to the rule node_stale"),
        ({"name": "node_stale"}, "host.age_seconds belongs to the rule node_stale"),
        (
            {"name": "node_stale", "metric": "host.age_seconds", "for_seconds": 5},
            "give it one threshold",
        ),
        ({"relative_to": "host.boot_at"}, "'boot_at' is not a number"),
        ({"metric": "host.memory.utilization_ratio", "warning": 95}, "never beyond 1"),
        ({"metric": "gpu.throttle_reasons[a]", "warning": 2}, "never beyond 1"),
        ({"metric": "gpu.is_reachable", "warning": -1, "comparison": "<="}, "never beyond 0"),
        ({"metric": "gpu.xid.recent[xid].severity", "warning": 4}, "never beyond 3"),
        ({"clear_margin": 5}, "clear_margin is 5, so warning would never end"),
        (
            {
                **{"metric": "gpu.utilization_ratio", "comparison": "<="},
                **{"warning": 0.9, "clear_margin": 0.1},
            },
            "gpu.utilization_ratio is never beyond 1",
        ),
    ],
)
def test_a_rule_that_asks_for_what_cannot_be_is_refused(
    fields: dict[str, object], text: str
) -> None:
    rule = {"name": "r", "metric": "host.uptime_seconds", "warning": 5, **fields}

    with pytest.raises(ValueError, match="alert rule") as refused:
        Rule(msgspec.convert(rule, AlertRule))

    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"warning": 2, "critical": 1}, "must grow in this order"),
        ({"warning": 1, "critical": 2, "comparison": "<="}, "must fall in this order"),
        ({"warning": float("nan")}, "must be a finite number"),
        ({"warning": 1, "aggregate": "mean"}, "aggregate is for the scopes pool and fleet"),
        ({"warning": 1, "for_seconds": -1}, "$.for_seconds"),
        ({"warning": 1, "name": "Not a name"}, "$.name"),
        ({"warning": 1, "scope": "rack"}, "$.scope"),
        ({"warning": "much"}, "$.warning"),
        ({"warning": 1, "threshold": 2}, "threshold"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], text: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert({"name": "r", "metric": "host.uptime_seconds", **fields}, AlertRule)

    assert text in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"warning": 0.0}, id="always bad is what somebody may want"),
        pytest.param({"warning": 1.0, "clear_margin": 0.9}, id="only just reached, and left"),
        pytest.param({"warning": 7.5, "scope": "pool", "aggregate": "sum"}, id="a sum"),
        pytest.param(
            {
                **{"metric": "host.network[interface].sent_bytes_per_second", "warning": 2e15},
                **{"relative_to": "host.network[interface].speed_bits_per_second"},
            },
            id="relative",
        ),
    ],
)
def test_a_rule_that_can_be_reached_is_taken(fields: dict[str, object]) -> None:
    rule = {"name": "r", "metric": "gpu.utilization_ratio", **fields}

    assert Rule(msgspec.convert(rule, AlertRule)).name == "r"


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        AlertBook((MEMORY, MEMORY))
