"""Rules for the bucket: which class, which rules, and whose."""

import pytest

from archive.lifecycle import (
    CLASS_DAYS,
    DAY_SECONDS,
    FOREVER,
    Rule,
    dangerous,
    merged,
    ttl_class,
    wanted_rules,
)
from archive.store import is_name

OBJECTS = "one/objects/"
OURS = wanted_rules(OBJECTS)


def theirs(**fields: object) -> Rule:
    return {"ID": "x", "Status": "Enabled", "Expiration": {"Days": 1}, **fields}


@pytest.mark.parametrize(
    ("life_seconds", "expected"),
    [
        pytest.param(0, "1d", id="over already"),
        pytest.param(DAY_SECONDS, "1d", id="exactly a day"),
        pytest.param(DAY_SECONDS + 1, "3d", id="a second more"),
        pytest.param(90 * DAY_SECONDS, "90d", id="the longest"),
        pytest.param(90 * DAY_SECONDS + 1, FOREVER, id="longer than any"),
        pytest.param(None, FOREVER, id="never expires"),
    ],
)
def test_the_class_is_the_smallest_that_is_long_enough(
    life_seconds: float | None, expected: str
) -> None:
    assert ttl_class(life_seconds) == expected


def test_each_class_can_begin_an_objects_name_and_no_hash_begins_like_one() -> None:
    names = [f"{name}-{'0' * 32}" for name in (*CLASS_DAYS, FOREVER)]

    assert all(map(is_name, names))
    assert not any(is_name(f"{name}-".ljust(64, "0")) for name in CLASS_DAYS)


def test_a_rule_waits_a_day_longer_than_the_longest_life_of_its_class() -> None:
    days = {rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in OURS[:-1]}

    assert days == {
        "one/objects/1d-": 2,
        "one/objects/3d-": 4,
        "one/objects/7d-": 8,
        "one/objects/30d-": 31,
        "one/objects/90d-": 91,
    }
    assert "Expiration" not in OURS[-1]


def test_rules_of_others_stay_as_they_are_and_in_their_order() -> None:
    first = theirs(ID="a", Filter={"Prefix": "logs/"})
    last = theirs(ID="resource-agent two/objects/ 1d", Filter={"Prefix": "two/objects/1d-"})

    assert merged([first, last], OBJECTS) == [first, last, *OURS]


@pytest.mark.parametrize(
    "existing",
    [
        pytest.param(OURS[:-1], id="one is missing"),
        pytest.param([*OURS, {**OURS[0], "ID": OURS[0]["ID"] + "x"}], id="one too many"),
        pytest.param([{**OURS[0], "Status": "Disabled"}, *OURS[1:]], id="switched off"),
        pytest.param([{**OURS[0], "Expiration": {"Days": 1}}, *OURS[1:]], id="earlier"),
        pytest.param([{**OURS[0], "Filter": {"Prefix": ""}}, *OURS[1:]], id="everything's"),
    ],
)
def test_ours_are_put_right(existing: list[Rule]) -> None:
    assert merged(existing, OBJECTS) == OURS


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(lambda rule: rule, id="as sent"),
        pytest.param(
            lambda rule: {
                **{k: v for k, v in rule.items() if k != "Filter"},
                "Prefix": rule["Filter"]["Prefix"],
            },
            id="in the old form",
        ),
        pytest.param(
            lambda rule: {**rule, "Filter": {"And": rule["Filter"]}, "Transitions": []},
            id="with an And",
        ),
    ],
)
def test_nothing_is_written_where_ours_are_as_they_should_be(shape: object) -> None:
    assert callable(shape)
    existing = [theirs(Filter={"Prefix": "logs/"}), *map(shape, reversed(OURS))]

    assert merged(existing, OBJECTS) is None


@pytest.mark.parametrize(
    ("rule", "is_dangerous"),
    [
        pytest.param(theirs(Filter={"Prefix": ""}), True, id="whole bucket"),
        pytest.param(theirs(), True, id="without a filter"),
        pytest.param(theirs(Prefix="one/"), True, id="above, in the old form"),
        pytest.param(theirs(Filter={"Prefix": "one/objects/7d-ab"}), True, id="below"),
        pytest.param(
            {"ID": "x", "Status": "Enabled", "Transitions": [{"Days": 1}]}, True, id="moves away"
        ),
        pytest.param(theirs(Filter={"Prefix": "two/"}), False, id="elsewhere"),
        pytest.param(theirs(Status="Disabled"), False, id="switched off"),
        pytest.param(theirs(Filter={"Tag": {"Key": "a", "Value": "b"}}), False, id="by tag"),
        pytest.param(
            theirs(Filter={"And": {"Prefix": "", "Tags": [{"Key": "a", "Value": "b"}]}}),
            False,
            id="by prefix and tag",
        ),
        pytest.param(OURS[0], False, id="ours"),
    ],
)
def test_a_strangers_rule_that_takes_our_objects_is_told(rule: Rule, is_dangerous: bool) -> None:
    assert dangerous([rule], OBJECTS) == (["x"] if is_dangerous else [])
