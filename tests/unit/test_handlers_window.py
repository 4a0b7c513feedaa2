import random

import pytest

from handlers.window import ExpiringDict, LastSeen, OfLast, RollingMax


def test_a_key_is_forgotten_exactly_when_its_time_is_over() -> None:
    entries: ExpiringDict[str, int] = ExpiringDict(ttl_ns=10)
    entries.put("a", 1, now_ns=100)

    before, after = entries.get("a", now_ns=109), entries.get("a", now_ns=110)

    assert (before, after) == (1, None)


def test_refresh_keeps_the_value_and_starts_its_life_anew() -> None:
    entries: ExpiringDict[str, list[int]] = ExpiringDict(ttl_ns=10)
    entries.put("a", [1], now_ns=0)

    refreshed = entries.refresh("a", list, now_ns=9)

    assert refreshed == [1]
    assert entries.get("a", now_ns=18) == [1]


def test_refresh_after_the_end_makes_a_new_value() -> None:
    entries: ExpiringDict[str, list[int]] = ExpiringDict(ttl_ns=10)
    entries.put("a", [1], now_ns=0)

    assert entries.refresh("a", list, now_ns=10) == []


def test_the_key_untouched_for_longest_makes_room() -> None:
    entries: ExpiringDict[str, int] = ExpiringDict(ttl_ns=1000, max_entries=2)
    for now_ns, key in enumerate(("a", "b", "a", "c")):
        entries.put(key, now_ns, now_ns)

    assert entries.items(now_ns=3) == [("a", 2), ("c", 3)]


def test_a_flood_of_keys_leaves_nothing_behind() -> None:
    entries: ExpiringDict[int, int] = ExpiringDict(ttl_ns=10)
    for now_ns in range(10_000):
        entries.put(now_ns, 0, now_ns)

    assert len(entries) == 10


def test_a_key_seen_again_lives_on_and_the_others_are_forgotten() -> None:
    seen: LastSeen[str] = LastSeen(ttl_ns=10)
    for now_ns, key in ((0, "a"), (0, "b"), (5, "a")):
        seen.see(key, now_ns)

    seen.forget(now_ns=10)

    assert list(seen) == ["a"]


def test_a_full_set_takes_no_further_key_but_keeps_those_it_has_alive() -> None:
    seen: LastSeen[str] = LastSeen(ttl_ns=10, max_entries=1)
    for now_ns, key in ((0, "a"), (1, "b"), (5, "a")):
        seen.see(key, now_ns)

    seen.forget(now_ns=12)

    assert list(seen) == ["a"]


def test_items_without_an_instant_forgets_nothing() -> None:
    entries: ExpiringDict[str, int] = ExpiringDict(ttl_ns=10)
    entries.put("a", 1, now_ns=0)

    assert entries.items() == [("a", 1)]


def test_what_was_put_while_the_clock_was_set_back_is_forgotten_in_time() -> None:
    entries: ExpiringDict[str, int] = ExpiringDict(ttl_ns=10)
    entries.put("before", 0, 100)
    entries.put("after", 0, 50)
    entries.put("before", 0, 55)

    entries.expire(60)

    assert entries.items() == [("before", 0)]


def test_what_is_made_of_the_last_key_is_made_once() -> None:
    made: list[list[int]] = []

    def make(key: list[int]) -> int:
        made.append(key)
        return len(made)

    of_last = OfLast(make)
    first: list[int] = []
    equal: list[int] = []

    found = [of_last(key) for key in (first, first, equal, first, first)]

    assert found == [1, 1, 2, 3, 3]
    assert [key is first for key in made] == [True, False, True]


def test_the_keys_untouched_since_an_instant_are_the_oldest_first() -> None:
    entries: ExpiringDict[str, int] = ExpiringDict(ttl_ns=100)
    for now_ns, key in enumerate("abca", start=1):
        entries.put(key, now_ns, now_ns)

    assert entries.untouched(since_ns=3) == [("b", 2), ("c", 3)]


@pytest.mark.parametrize("seed", range(5))
def test_rolling_max_equals_the_slow_obvious_one(seed: int) -> None:
    rng = random.Random(seed)
    rolling, samples, now_ns = RollingMax(span_ns=50), [], 0

    for _ in range(2_000):
        now_ns += rng.randrange(0, 20)
        sample = rng.randrange(0, 30)
        rolling.add(now_ns, sample)
        samples.append((now_ns, sample))
        look_ns = now_ns + rng.randrange(0, 60)
        # A later look forgets, and the next sample comes at or after it.
        now_ns = look_ns
        slow = max((v for ns, v in samples if look_ns - 50 < ns <= look_ns), default=None)
        assert rolling.value(look_ns) == slow, f"seed {seed}"


def test_a_rolling_max_goes_on_with_its_samples_elsewhere() -> None:
    first, second = RollingMax(span_ns=50), RollingMax(span_ns=50)
    for ns, value in ((0, 9.0), (10, 5.0), (20, 7.0)):
        first.add(ns, value)
    second.add(5, 100.0)

    second.restore(first.samples())

    assert [second.value(ns) for ns in (49, 50, 70)] == [9.0, 7.0, None]
