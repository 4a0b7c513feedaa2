"""What is learned from evictions that come back: indexes, memory, forgetting, cost."""

import math
import random
from typing import Any

import pytest

from cache.entry import Entry
from cache.reuse import FORGET_ABOVE, PRIOR, SEEN_AT_ONCE, ReuseLearner, group
from schemas.units import SECOND_NS

START_NS = 1_800_000_000 * SECOND_NS


def at(seconds: float) -> int:
    return START_NS + int(seconds * SECOND_NS)


def entry(key: str, **known: Any) -> Entry:
    return Entry(key=key, value=b"", last_accessed_ns=START_NS, **known)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        pytest.param({}, 1, id="no chain"),
        pytest.param({"parent": "p"}, 0, id="last of its chain"),
        pytest.param({"parent": "p", "extended": True}, 1, id="inside its chain"),
        pytest.param({"parent": "p", "access_count": 1}, 2, id="last of its chain, read again"),
        pytest.param({"earlier_uses": 2, "access_count": 1}, 4, id="known from before"),
        pytest.param({"access_count": 5}, 6, id="most"),
        pytest.param({"access_count": 500}, 6, id="more than most"),
    ],
)
def test_entries_are_grouped_by_use_and_place(known: dict[str, Any], expected: int) -> None:
    assert group(entry("key", **known)) == expected


def test_before_any_eviction_the_priors_hold() -> None:
    learner = ReuseLearner(1000)

    assert [learner.relative_index(of) for of in range(len(PRIOR))] == pytest.approx(PRIOR)


def test_the_worked_example_comes_out() -> None:
    learner = ReuseLearner(10_000)
    for number in range(1000):
        learner.evicted(entry(str(number)), at(95))

    for number in range(1000):
        if number < 100:
            learner.asked(str(number), at(195))
        learner.kept(str(number), at(195))

    watched = 1000 * math.log(2)
    mean = 200 / (watched + 100)
    assert learner.returns == 100
    assert learner.relative_index(1) == pytest.approx(
        (100 + 50 * mean) / (watched + 100) / mean, rel=1e-6
    )


def test_the_true_indexes_are_found_though_most_never_return() -> None:
    learner = ReuseLearner(100_000)
    chance = random.Random(1)
    true = {1: 0.2, 3: 0.8}
    returns: list[tuple[float, str]] = []
    for number in range(20_000):
        uses = (1, 3)[number % 2]
        learner.evicted(entry(str(number), access_count=uses - 1), at(95))
        idle = 100 * chance.random() ** (-1 / true[uses]) - 5
        if idle < 1000:
            returns.append((idle, str(number)))

    for idle, key in sorted(returns):
        learner.asked(key, at(idle))
    for number in range(100):  # what is due is seen in steps
        learner.evicted(entry(f"last-{number}"), at(1000))

    ratio = learner.relative_index(3) / learner.relative_index(1)
    assert ratio == pytest.approx(4, rel=0.1)  # three standard errors of 2,000 returns


def test_what_stays_away_counts_for_as_long_as_it_was_seen_to_be_away() -> None:
    learner = ReuseLearner(1000)
    learner.evicted(entry("away"), at(95))

    before = learner.relative_index(1)
    indexes = []
    for second in (400, 1600, 6400):
        learner.evicted(entry(str(second), access_count=3), at(second))
        indexes.append(learner.relative_index(1))

    assert before > indexes[0] > indexes[1] > indexes[2]


def test_a_key_returns_once_however_often_it_is_asked_for() -> None:
    learner = ReuseLearner(1000)
    learner.evicted(entry("key", access_count=2), at(1))

    for second in (2, 3, 4):
        learner.asked("key", at(second))

    assert learner.returns == 1
    assert learner.kept("key", at(5)) == 3
    assert learner.kept("key", at(6)) == 0
    assert len(learner) == 0


def test_only_the_newest_evictions_are_watched() -> None:
    learner = ReuseLearner(1000)
    for number in range(5000):
        learner.evicted(entry(str(number)), at(number))

    learner.asked("3999", at(5000))
    learner.asked("4000", at(5000))

    assert len(learner) == 1000
    assert learner.returns == 1
    assert len(learner._due) < 10_000


def test_evictions_that_are_no_longer_watched_take_no_memory() -> None:
    learner = ReuseLearner(watched_max=100)
    idle_seconds = 3600  # looked at again after half an hour

    for number in range(5000):
        learner.evicted(entry(f"{number}"), at(idle_seconds + number / 1000))
    queued = len(learner._due)

    assert len(learner) == 100
    assert queued <= 200


def test_what_is_due_after_a_pause_is_seen_in_steps() -> None:
    learner = ReuseLearner(watched_max=1000)
    for number in range(1000):
        learner.evicted(entry(f"{number}"), at(10))
    before = [one.seen_until_ns for one in learner._watched.values()]

    learner.evicted(entry("later"), at(3600))
    seen = sum(one.seen_until_ns == at(3600) for one in learner._watched.values())
    for number in range(40):
        learner.evicted(entry(f"later-{number}"), at(3600))
    all_seen = min(one.seen_until_ns for one in learner._watched.values())

    assert before == [at(10)] * 1000
    assert 0 < seen <= SEEN_AT_ONCE + 1
    assert all_seen == at(3600)


def test_older_traffic_fades() -> None:
    learner = ReuseLearner(1000)
    second = 0.0

    def play(uses: int, evictions: int) -> None:
        nonlocal second
        for _ in range(evictions):
            second += 1000
            returning = Entry(key="key", value=b"", last_accessed_ns=at(second))
            returning.access_count = uses - 1
            learner.evicted(returning, at(second))
            learner.asked("key", at(second + 100))
            learner.kept("key", at(second + 100))

    play(2, 30_000)
    before = learner.relative_index(2) / learner.relative_index(3)
    for _ in range(4):
        play(3, int(FORGET_ABOVE / 3))

    after = learner.relative_index(2) / learner.relative_index(3)
    assert sum(learner._exposure) <= FORGET_ABOVE
    assert learner._returns[2] < 30_000 / 4
    assert before == pytest.approx(2 / 3, rel=0.4)
    assert after == pytest.approx(1, rel=0.2)


def test_dear_bytes_score_higher_and_within_limits() -> None:
    learner = ReuseLearner(1000)
    ordinary = entry("k" * 100, cost_seconds=1.0)
    learner.evicted(ordinary, at(1))

    assert learner.cost_ratio(entry("k" * 100)) == 1
    assert learner.cost_ratio(ordinary) == 1
    assert learner.cost_ratio(entry("k" * 50, cost_seconds=2.0)) == 4
    assert learner.cost_ratio(entry("k" * 100, cost_seconds=1e9)) == 64
    assert learner.cost_ratio(entry("k" * 100, cost_seconds=0.0)) == 1 / 64


def test_a_clock_that_jumps_back_breaks_nothing() -> None:
    learner = ReuseLearner(1000)
    learner.evicted(entry("a"), at(100))

    learner.asked("a", at(-1000))
    learner.kept("a", at(-2000))
    learner.evicted(entry("b"), at(-3000))

    assert learner.relative_index(1) > 0
    assert math.isfinite(learner.relative_index(1))
