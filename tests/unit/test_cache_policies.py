"""Eviction policies behind the cache: order, chains, switching, and what `prefix` learns."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.entry import Entry
from cache.memory import MB, InMemoryKVCacheManager
from cache.policies import POLICIES
from cache.policies.prefix import Prefix
from cache.policies.remembered import Remembered
from cache.policies.reuse import LAST, NEW, ReuseModel, class_after
from cache.policies.segments import SEGMENT_KEYS, SegmentQueue
from cache.policies.switching import Switching
from tests.support.cache_contents import check, contents, order

SECOND_NS = 1_000_000_000
KEY_BYTES = 6


class Clock:
    """Nanoseconds that pass only when told."""

    def __init__(self) -> None:
        self.ns = SECOND_NS

    def __call__(self) -> int:
        return self.ns


def room_for(blocks: int, policy: str) -> tuple[InMemoryKVCacheManager, Clock, bytes]:
    """A cache for so many entries with keys and parents of 6 bytes, and the value they have."""
    clock = Clock()
    return (
        InMemoryKVCacheManager(1, policy, clock=clock),
        clock,
        bytes(MB // blocks - 2 * KEY_BYTES),
    )


def chain(name: str, length: int) -> list[str]:
    return [f"{name}{depth:05d}" for depth in range(length)]


def request(manager: InMemoryKVCacheManager, keys: list[str], value: bytes) -> int:
    """What a client does: match, then put what is missing."""
    matched = manager.match_prefix(keys)
    parent = keys[matched - 1] if matched else None
    manager.set_many([(key, value) for key in keys[matched:]], parent)
    return matched


class LruModel:
    """The order in which keys leave, slowly and plainly; `uses` in the order of their keys."""

    def __init__(self) -> None:
        self.uses: dict[str, int] = {}

    def added(self, key: str) -> None:
        self.uses.pop(key, None)
        self.uses[key] = 0

    def used(self, key: str) -> None:
        self.uses[key] = self.uses.pop(key) + 1

    def order(self) -> list[str]:
        return list(self.uses)


class FifoModel(LruModel):
    def used(self, key: str) -> None:
        self.uses[key] += 1


class LfuModel(LruModel):
    def order(self) -> list[str]:
        return sorted(self.uses, key=self.uses.__getitem__)


MODELS: dict[str, Callable[[], LruModel]] = {"lru": LruModel, "fifo": FifoModel, "lfu": LfuModel}


def stored(manager: InMemoryKVCacheManager, entry: Entry, _model: LruModel) -> list[str]:
    """The keys that left for `entry`."""
    return [old.key for old in manager.store(entry)]


def put(manager: InMemoryKVCacheManager, entry: Entry, model: LruModel) -> list[str]:
    """As `stored`, by the manager's own `set`."""
    manager.set(entry.key, bytes(entry.value), prefix_tokens=len(entry.value) % 7)
    held = contents(manager)
    return [old for old in model.order() if old not in held]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_ten_thousand_random_operations_agree_with_a_reference_model(policy: str) -> None:
    seed = 20261121
    rng = random.Random(seed)
    manager, clock, _ = room_for(1, policy)
    model = MODELS.get(policy, LruModel)()
    hits = misses = evictions = 0
    keys = [f"key-{number}" for number in range(60)]

    for step in range(10_000):
        key = rng.choice(keys)
        operation = rng.choices(["set", "get", "delete", "switch"], [50, 40, 9.9, 0.1])[0]
        where = f"seed {seed}, step {step}: {operation} {key}"
        clock.ns += rng.randrange(-SECOND_NS // 2, SECOND_NS)
        if operation == "set":
            entry = Entry(key=key, value=bytes(rng.choice([0, 10, 1000, 30_000, 200_000])))
            model.uses.pop(key, None)
            evicted = rng.choice([stored, put])(manager, entry, model)
            if policy in MODELS:
                assert evicted == model.order()[: len(evicted)], where
            for old in evicted:
                del model.uses[old]
            model.added(key)
            evictions += len(evicted)
        elif operation == "get":
            assert (manager.get(key) is not None) == (key in model.uses), where
            if key in model.uses:
                model.used(key)
                hits += 1
            else:
                misses += 1
        elif operation == "delete":
            manager.delete(key)
            model.uses.pop(key, None)
        else:
            manager.set_policy(policy)
        assert len(manager) == len(model.uses), where
        if step % 50 == 0:
            check(manager)
            if policy in MODELS:
                assert order(manager) == model.order(), where
            assert {k: e.access_count for k, e in contents(manager).items()} == model.uses, where
            stats = manager.get_stats()
            counted = (stats["cache_hits"], stats["cache_misses"], stats["evictions"])
            assert counted == (hits, misses, evictions), where
    assert evictions > 100, "the sequence must evict"


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=20, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.integers(0, 3)), max_size=30
    )
)
def test_whatever_chains_are_asked_for_matches_are_true_and_the_limit_holds(
    policy: str, requests: list[tuple[str, int, int]]
) -> None:
    manager, clock, value = room_for(10, policy)

    for name, length, seconds in requests:
        clock.ns += seconds * SECOND_NS
        keys = chain(name, length)
        held = contents(manager)
        expected = next((n for n, key in enumerate(keys) if key not in held), length)
        assert manager.match_prefix(keys) == expected
        parent = keys[expected - 1] if expected else None
        manager.set_many([(key, value) for key in keys[expected:]], parent)
        check(manager)


@pytest.mark.parametrize(
    ("policy", "held"),
    [
        pytest.param("lru", [*chain("a", 4), *chain("b", 4)], id="lru"),
        pytest.param("prefix", [*chain("a", 5), *chain("b", 3)], id="prefix: last blocks first"),
    ],
)
def test_a_tail_leaves_before_its_head(policy: str, held: list[str]) -> None:
    manager, clock, value = room_for(8, policy)
    request(manager, chain("a", 6), value)
    clock.ns += SECOND_NS

    request(manager, chain("b", 4), value)

    assert set(contents(manager)) == set(held)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_is_put_alone_is_there(policy: str) -> None:
    manager, clock, value = room_for(8, policy)
    request(manager, chain("a", 8), value)

    for key in chain("b", 3):
        clock.ns += SECOND_NS
        manager.store(Entry(key=key, value=value, parent=key[:-1] + "0"))

        assert manager.get(key) == value


def test_parts_of_one_request_leave_from_the_deepest_whatever_their_classes() -> None:
    manager, clock, value = room_for(12, "prefix")
    request(manager, chain("a", 4), value)
    clock.ns += 600 * SECOND_NS
    request(manager, chain("a", 8), value)
    policy = manager._contents.policy
    assert isinstance(policy, Prefix)
    head = contents(manager)["a00000"].place
    policy._model.learn_if_due(0.0)
    policy._model.worths[head.rank] = [0.0] * len(policy._model.estimate(head.rank))

    left = [entry.key for entry in iter(manager.take_next, None)]

    assert left == chain("a", 8)[::-1]


def test_under_lru_no_entry_is_ever_held_without_its_parent() -> None:
    rng = random.Random(7)
    manager, clock, value = room_for(40, "lru")

    for step in range(600):
        clock.ns += rng.randrange(3 * SECOND_NS)
        path = "".join(rng.choices("aab", k=rng.randrange(1, 15)))
        keys = [path[: depth + 1] for depth in range(len(path))]
        if rng.random() < 0.7:
            request(manager, keys, value)
        else:
            matched = manager.match_prefix(keys)
            for depth in range(matched, len(keys)):
                parent = keys[depth - 1] if depth else None
                manager.store(Entry(key=keys[depth], value=value, parent=parent))
        held = contents(manager)
        assert [key for key in held if key[:-1] and key[:-1] not in held] == [], f"step {step}"
    check(manager)


def test_a_put_that_names_a_parent_keeps_the_whole_chain_above_it_in_use() -> None:
    manager, clock, value = room_for(6, "lru")
    manager.set_many([(key, value) for key in chain("a", 3)])
    clock.ns += 10 * SECOND_NS
    manager.set("other1", value)
    clock.ns += 10 * SECOND_NS

    manager.store(Entry(key="a-tail", value=value, parent="a00002"))
    for number in range(2):
        manager.set(f"more-{number}", value)

    assert "other1" not in contents(manager)
    assert manager.match_prefix([*chain("a", 3), "a-tail"]) == 4


def test_a_chain_larger_than_the_cache_keeps_its_head() -> None:
    manager, _, value = room_for(4, "lru")

    evicted = manager.store_many([Entry(key=key, value=value) for key in chain("a", 6)])

    assert [entry.key for entry in evicted] == ["a00005", "a00004"]
    assert manager.match_prefix(chain("a", 6)) == 4


def test_parents_that_name_each_other_do_no_harm() -> None:
    manager, clock, value = room_for(8, "prefix")
    manager.store(Entry(key="first", value=value, parent="second"))
    clock.ns += 5 * SECOND_NS
    manager.store(Entry(key="second", value=value, parent="first"))
    clock.ns += 5 * SECOND_NS

    manager.store(Entry(key="first", value=value, parent="first"))
    manager.store(Entry(key="second", value=value, parent="first"))

    check(manager)
    assert set(contents(manager)) == {"first", "second"}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_chain_that_names_a_key_twice_is_stored_and_matched(policy: str) -> None:
    manager, _, value = room_for(8, policy)

    manager.set_many([("a", value), ("b", value), ("a", b"new")])
    matched = manager.match_prefix(["a", "b", "a", "absent"])

    assert matched == 3
    assert manager.get("a") == b"new"
    check(manager)


def test_a_key_twice_in_a_chain_below_another_takes_no_more_room_than_it_has() -> None:
    manager = InMemoryKVCacheManager(1)
    manager.set("the parent", b"1")

    manager.set_many([("a", b"1"), ("b", b"2"), ("a", b"new")], parent="the parent")

    assert manager.match_prefix(["a", "b"]) == 2
    check(manager)


@pytest.mark.parametrize("policy", ["lru", "prefix"])
def test_a_put_refreshes_no_more_of_a_long_chain_than_it_has_time_for(policy: str) -> None:
    manager = InMemoryKVCacheManager(1, policy, clock=(clock := Clock()))
    keys = chain("a", 4100)
    manager.set_many([(key, b"") for key in keys])
    stored_ns = clock.ns
    clock.ns += 2 * SECOND_NS

    manager.store(Entry(key="tail", value=b"", parent=keys[-1]))

    entries = contents(manager)
    used_ns = [entries[key].last_accessed_ns for key in keys]
    assert used_ns == [stored_ns] * 4 + [clock.ns] * 4096
    check(manager)


def test_get_many_gives_what_is_here_and_counts_each() -> None:
    manager, _, _ = room_for(8, "lru")
    manager.set_many([("a", b"1"), ("b", b"2")])

    found = manager.get_many(["b", "absent", "a", ""])

    assert list(found.items()) == [("b", b"2"), ("a", b"1")]
    stats = manager.get_stats()
    assert (stats["cache_hits"], stats["cache_misses"]) == (2, 1)


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([("a", b"new"), ("", b"v")], id="a later key is empty"),
        pytest.param([("a", b"new"), ("b", bytes(MB))], id="a later value is too large"),
    ],
)
def test_a_chain_with_one_bad_entry_changes_nothing(items: list[tuple[str, bytes]]) -> None:
    manager = InMemoryKVCacheManager(1)
    manager.set("a", b"old")

    with pytest.raises(ValueError, match=r"empty|exceeds cache limit"):
        manager.set_many(items)

    assert manager.get("a") == b"old"
    assert len(manager) == 1


@pytest.mark.parametrize("to", sorted(POLICIES))
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_policy_is_switched_without_losing_an_entry(policy: str, to: str) -> None:
    manager, clock, value = room_for(300, policy)
    for number in range(20):
        clock.ns += SECOND_NS
        request(manager, chain(f"{number:02d}"[-1], 5 + number % 7), value)
        manager.set(f"plain{number % 10}", value)
        manager.get("plain1")
    order_before = order(manager)
    before = {key: entry.access_count for key, entry in contents(manager).items()}

    manager.set_policy(to)

    check(manager)
    after = {key: entry.access_count for key, entry in contents(manager).items()}
    assert after == before
    assert manager.policy_name == to
    if policy in {"lru", "fifo"} and to in {"lru", "fifo"}:
        assert order(manager) == order_before
    for number in range(400):
        manager.set(f"new{number:03d}", value)
    check(manager)


@pytest.fixture
def slow_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few entries are passed on at once, so that small caches switch in many steps, too."""
    monkeypatch.setattr("cache.contents._AT_ONCE", 3)
    monkeypatch.setattr("cache.contents._BATCH", 3)


def test_a_switch_passes_on_few_entries_with_each_store() -> None:
    manager, _, _ = room_for(1, "lru")
    for number in range(3000):
        manager.set(f"{number:06d}", b"")

    manager.set_policy("lfu")
    switching = manager._contents.policy
    assert isinstance(switching, Switching)
    before = list(switching._counts)
    manager.set("next", b"")

    assert before == [3000 - 1024, 1024]
    assert switching._counts == [3001 - 1024 - 64, 1024 + 64]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.usefixtures("slow_switch")
def test_nothing_is_lost_by_switching_again_and_again_while_the_cache_serves(seed: int) -> None:
    rng = random.Random(seed)
    manager, clock, value = room_for(200, "lru")
    names = sorted(POLICIES)

    for step in range(600):
        clock.ns += rng.randrange(3 * SECOND_NS)
        if step % 20 == 0:
            manager.set_policy(rng.choice(names))
        where = f"seed {seed}, step {step}, {manager.policy_name}"
        key = f"k{rng.randrange(300):05d}"
        match rng.randrange(6):
            case 0:
                request(manager, chain(rng.choice("abcdefgh"), rng.randrange(1, 12)), value)
            case 1:
                parent = rng.choice(sorted(contents(manager)) or [key])
                manager.store(Entry(key=key, value=value, parent=parent))
            case 2:
                manager.delete(key)
            case 3:
                manager.set(key, value)
                assert manager.get(key) == value, where
            case _:
                assert (manager.get(key) is None) == (key not in contents(manager)), where
        if step % 10 == 0:
            check(manager)
    check(manager)


def test_what_the_older_policy_still_holds_leaves_last_and_in_its_order() -> None:
    manager, _, _ = room_for(1, "lru")
    for number in range(3000):
        manager.set(f"{number:06d}", b"")
    manager.set_policy("fifo")

    manager.get("000000")
    manager.get("002000")
    manager.set("newest", b"")
    left = [entry.key for entry in iter(manager.take_next, None)]

    kept = [f"{number:06d}" for number in range(3000) if number != 2000]
    assert left == [*kept, "002000", "newest"]


@pytest.mark.usefixtures("slow_switch")
def test_a_switch_ends_though_all_that_is_set_is_here_already() -> None:
    manager, _, value = room_for(50, "lru")
    for key in chain("a", 20):
        manager.set(key, value)
    manager.set_policy("fifo")

    for key in chain("a", 20):
        manager.set(key, value)

    check(manager)
    assert type(manager._contents.policy) is POLICIES["fifo"]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_key_of_a_chain_that_is_set_alone_is_no_longer_of_it(policy: str) -> None:
    manager, _, value = room_for(8, policy)
    request(manager, chain("a", 3), value)

    manager.set("a00001", value)

    assert contents(manager)["a00001"].parent is None
    check(manager)


def test_clearing_ends_a_switch() -> None:
    manager, _, _ = room_for(1, "lru")
    for number in range(3000):
        manager.set(f"{number:06d}", b"")
    manager.set_policy("fifo")

    manager.clear()
    manager.set("newest", b"")

    check(manager)
    assert type(manager._contents.policy) is POLICIES["fifo"]


@pytest.mark.parametrize("to", sorted(POLICIES))
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_switch_of_many_entries_ends(policy: str, to: str) -> None:
    manager, _, _ = room_for(1, policy)
    for number in range(1500):
        manager.set(f"{number:06d}", b"")

    manager.set_policy(to)
    for number in range(10):
        manager.set(f"new{number:03d}", b"")

    assert type(manager._contents.policy) is POLICIES[to]
    assert len(manager) == 1510
    check(manager)


def test_an_unknown_policy_changes_nothing() -> None:
    manager = InMemoryKVCacheManager(1, "fifo")

    with pytest.raises(ValueError, match="known: fifo, lfu, lru, prefix, random"):
        manager.set_policy("belady")

    assert manager.policy_name == "fifo"


def test_a_smaller_limit_evicts_and_gives_back() -> None:
    clock = Clock()
    manager = InMemoryKVCacheManager(3, clock=clock)
    for key in "abc":
        manager.set(key, bytes(MB - 1))

    evicted = manager.resize(1)
    with pytest.raises(ValueError, match="must be positive"):
        manager.resize(0)

    assert [entry.key for entry in evicted] == ["a", "b"]
    assert (manager.limit_bytes, manager.used_bytes) == (MB, MB)
    assert manager.get_stats()["evictions"] == 2


def test_a_smaller_limit_is_reached_in_steps_of_few_entries() -> None:
    held: list[int] = []

    def clock() -> int:
        held.append(len(manager))
        return 1

    manager = InMemoryKVCacheManager(2, clock=clock)
    for number in range(1000):
        manager.set(f"{number:06d}", bytes(2 * MB // 1000 - 6))
    held.clear()

    evicted = manager.resize(1)

    assert len(evicted) == 1000 - len(manager)
    assert held == [*range(1000, len(manager), -64)]


def test_an_entry_read_while_it_leaves_is_a_hit_that_harms_nobody() -> None:
    manager, _, value = room_for(4, "lru")
    manager.set("a", value)

    manager.get("a")
    removed = manager.remove("a")
    manager._reads.append(removed)  # type: ignore[arg-type]  # as a thread that came too late
    stats = manager.get_stats()

    check(manager)
    assert stats["cache_hits"] == 2


def test_prefix_keeps_what_is_used_again_and_lru_does_not() -> None:
    """Three conversations go on between prompts that come once: 60 blocks for 36 and these."""
    found = {}
    for policy in ("lru", "prefix"):
        manager, clock, value = room_for(60, policy)
        found[policy] = 0
        for turn in range(400):
            clock.ns += SECOND_NS
            found[policy] += request(manager, chain("abc"[turn % 3], 12), value)
            for number in range(4):
                request(manager, [f"{turn:03d}{number}{depth:02d}" for depth in range(6)], value)

    assert found["lru"] == 0
    assert found["prefix"] > 0.9 * 400 * 12


def slow_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every search is done anew, and no part of a chain is moved as a whole."""
    monkeypatch.setattr(Prefix, "_next_least", lambda _self: None)
    monkeypatch.setattr(Prefix, "_is_all", lambda _self, _entries, _segment: False)


@pytest.mark.parametrize("seed", range(4))
def test_the_short_ways_of_prefix_change_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replayed() -> tuple[list[int], list[str]]:
        rng = random.Random(seed)
        manager, clock, value = room_for(60, "prefix")
        matches = []
        for _ in range(3000):
            clock.ns += rng.randrange(2 * SECOND_NS)
            path = "".join(rng.choices("aaaab", k=rng.randrange(1, 12)))
            keys = [path[: depth + 1] for depth in range(len(path))] + [f"{path}{rng.random():.1f}"]
            matches.append(request(manager, keys, value))
            if rng.random() < 0.1:
                manager.delete(rng.choice(keys))
            for _ in range(rng.choice([0, 0, 0, 40])):
                clock.ns += rng.randrange(2 * SECOND_NS)
                manager.set(f"single{rng.randrange(500)}", value)
                manager.get(f"single{rng.randrange(500)}")
        check(manager)
        return matches, [entry.key for entry in iter(manager.take_next, None)]

    quick = replayed()
    slow_prefix(monkeypatch)

    assert replayed() == quick


def test_prefix_follows_traffic_that_changes() -> None:
    manager, clock, value = room_for(60, "prefix")
    found = 0

    for turn in range(800):
        clock.ns += SECOND_NS
        names = "abc" if turn < 400 else "def"
        matched = request(manager, chain(names[turn % 3], 12), value)
        found += matched if turn >= 450 else 0
        for number in range(4):
            request(manager, [f"{turn:03d}{number}{depth:02d}" for depth in range(6)], value)

    assert found > 0.9 * 350 * 12


def test_match_and_put_of_one_request_count_as_one_use() -> None:
    manager, clock, value = room_for(20, "prefix")
    request(manager, chain("a", 4), value)
    clock.ns += SECOND_NS

    manager.match_prefix(chain("a", 6))
    manager.set_many([(key, value) for key in chain("a", 6)])

    policy = manager._contents.policy
    assert isinstance(policy, Prefix)
    assert sum(map(sum, policy._model._gaps)) == 4
    classes = [contents(manager)[key].place.rank for key in chain("a", 6)]
    assert classes == [class_after(NEW, 1.0)] * 4 + [NEW, LAST]


@pytest.mark.parametrize(
    ("policy", "matches"),
    [
        pytest.param("lru", {"a": 1, "b": 3}, id="lru"),
        pytest.param("prefix", {"a": 2, "b": 2}, id="prefix: last blocks first"),
    ],
)
def test_a_clock_that_steps_back_an_hour_does_not_disturb_the_order(
    policy: str, matches: dict[str, int]
) -> None:
    manager, clock, value = room_for(8, policy)
    clock.ns = 10_000 * SECOND_NS
    request(manager, chain("a", 3), value)
    clock.ns -= 3600 * SECOND_NS
    request(manager, chain("b", 3), value)
    clock.ns += 5 * SECOND_NS

    request(manager, chain("c", 4), value)

    assert {name: manager.match_prefix(chain(name, 3)) for name in "ab"} == matches


class Everything(Remembered):
    """Forgets nothing: which keys share a slot depends on the process's hashes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, tuple[int, int]] = {}

    def put(self, keys: Iterable[str], rank: int, used_at_ns: int) -> None:
        self.notes |= dict.fromkeys(keys, (rank, used_at_ns))

    def take(self, entries: Sequence[Entry], now_ns: int) -> list[tuple[int, float] | None]:
        notes = [self.notes.pop(entry.key, None) for entry in entries]
        return [note and (note[0], (now_ns - note[1]) / SECOND_NS) for note in notes]


def test_what_left_comes_back_as_used_again_even_where_keys_of_it_are_forgotten() -> None:
    manager, clock, value = room_for(20, "prefix")
    policy = manager._contents.policy
    assert isinstance(policy, Prefix)
    policy._remembered = Everything()
    request(manager, chain("a", 5), value)
    clock.ns += SECOND_NS
    request(manager, chain("b", 20), value)
    policy._take([Entry(key="a00001", value=b"")], clock.ns)
    clock.ns += 9 * SECOND_NS

    request(manager, chain("a", 5), value)

    again = class_after(NEW, 10.0)
    classes = [contents(manager)[key].place.rank for key in chain("a", 5)]
    assert classes == [again] * 5


@pytest.mark.parametrize(
    ("rank", "gap_seconds", "after"),
    [(NEW, 1.9, 2), (NEW, 2, 3), (LAST, 8, 4), (4, 31.9, 9), (4, 32, 10), (11, 128, 11)],
)
def test_the_class_follows_from_count_and_gap(rank: int, gap_seconds: float, after: int) -> None:
    assert class_after(rank, gap_seconds) == after
    assert ReuseModel().use(rank, gap_seconds, 1) == after


def test_the_model_learns_which_class_returns_and_forgets_it_again() -> None:
    model = ReuseModel()

    def teach(rank: int, other: int) -> None:
        for _ in range(40):
            model.place(rank, 5000)
            model.place(other, 5000)
            model.use(rank, 10.0, 4500)
            model.note_if_due(100.0)
        model.learn_if_due(100.0)

    before = model.worth(2, 5.0) / model.worth(NEW, 5.0)
    teach(NEW, 2)
    taught = model.worth(2, 5.0) / model.worth(NEW, 5.0)
    teach(2, NEW)
    again = model.worth(2, 5.0) / model.worth(NEW, 5.0)

    assert before > 1
    assert taught < 0.5
    assert again > 2
    assert sum(model._placed) < 3 * (1 << 17)


def test_worth_falls_with_age() -> None:
    model = ReuseModel()

    worths = [model.worth(NEW, age_seconds) for age_seconds in (0, 30, 300, 3000, 10**7)]

    assert worths == sorted(worths, reverse=True)


def test_remembered_gives_each_key_once_with_its_class_and_gap() -> None:
    remembered = Remembered()
    a, b, stranger = (Entry(key=key, value=b"") for key in ("a", "b", "stranger"))
    remembered.put(["a", "b"], 11, 5 * SECOND_NS)

    first = remembered.take([a, stranger], 8 * SECOND_NS)
    second = remembered.take([a, b], 8 * SECOND_NS)

    assert (first, second) == ([(11, 3.0), None], [None, (11, 3.0)])


def test_a_forked_process_remembers_by_itself() -> None:
    code = """if True:
        import os
        from cache.entry import Entry
        from cache.policies.remembered import Remembered

        remembered = Remembered()
        remembered.put(["a"], 11, 0)
        child = os.fork()
        taken = remembered.take([Entry(key="a", value=b"")], 10**9) if not child else None
        if not child:
            os._exit(taken != [(11, 1.0)])
        assert os.waitpid(child, 0)[1] == 0
        assert remembered.take([Entry(key="a", value=b"")], 10**9) == [(11, 1.0)]
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_segment_that_lost_most_of_its_keys_gives_back_their_memory() -> None:
    queue = SegmentQueue()
    entries = [Entry(key=str(number), value=b"") for number in range(SEGMENT_KEYS)]
    for entry in entries:
        queue.append(entry, 0)
    queue.append(Entry(key="next", value=b""), 0)
    segment = entries[0].place
    full_bytes = segment.keys.__sizeof__()

    for entry in entries[4:]:
        queue.discard(entry)

    assert list(segment.keys) == ["0", "1", "2", "3"]
    assert segment.keys.__sizeof__() < 0.6 * full_bytes
