import random

import pytest

from handlers.window import MAX_SAMPLES, ExpiringDict, LastSeen, RollingMax, RollingWindow


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


@pytest.mark.parametrize(
    ("now_ns", "summary"),
    [
        pytest.param(20, (2.0, 3.0), id="both samples"),
        pytest.param(109, (2.0, 3.0), id="the older one in its last instant"),
        pytest.param(110, (1.0, 1.0), id="the older one is out"),
        pytest.param(120, None, id="none left"),
    ],
)
def test_a_window_holds_the_last_span(now_ns: int, summary: tuple[float, float] | None) -> None:
    window = RollingWindow(span_ns=100)
    window.add(10, 3.0)
    window.add(20, 1.0)

    assert window.mean_and_peak(now_ns) == summary


def test_a_flood_of_samples_is_bounded() -> None:
    window = RollingWindow(span_ns=10**9)
    for ns in range(MAX_SAMPLES + 10):
        window.add(ns, float(-ns))

    summary = window.mean_and_peak(MAX_SAMPLES + 10)
    assert summary is not None
    assert summary[1] == -10.0, "the first ten are gone"


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
