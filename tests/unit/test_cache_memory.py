"""The RAM cache: what it promises about values, bytes, order, expiry and threads."""

import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.entry import Entry
from cache.memory import MB, InMemoryKVCacheManager
from cache.policies import POLICIES
from tests.support.cache_contents import check


class Clock:
    """Nanoseconds that pass only when told."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def __call__(self) -> int:
        return self.ns


def test_set_and_get_return_the_value_and_its_metadata() -> None:
    clock = Clock()
    manager = InMemoryKVCacheManager(1, clock=clock)

    manager.set("key", b"value", prefix_tokens=7)
    clock.ns = 5_000_000_000
    value = manager.get("key")

    assert value == b"value"
    assert manager.get_metadata("key") == {
        "timestamp": 5.0,
        "size_mb": 8 / MB,
        "access_count": 1,
        "prefix_tokens": 7,
    }
    assert manager.get_metadata("absent") is None


def test_statistics_count_lookups_and_start_again_after_clear() -> None:
    manager = InMemoryKVCacheManager(1)
    manager.set("key", b"12345")

    manager.get("key")
    manager.get("key")
    manager.get("absent")
    manager.get("")
    before = manager.get_stats()
    manager.clear()

    assert before == {
        "total_entries": 1,
        "memory_used_mb": 8 / MB,
        "cache_hits": 2,
        "cache_misses": 1,
        "hit_rate": 2 / 3,
        "evictions": 0,
    }
    assert manager.get_stats() == {
        "total_entries": 0,
        "memory_used_mb": 0.0,
        "cache_hits": 0,
        "cache_misses": 0,
        "hit_rate": 0.0,
        "evictions": 0,
    }


def test_evictions_are_counted_from_the_last_clear_on() -> None:
    manager = InMemoryKVCacheManager(1)
    for key in ("first", "second"):
        manager.set(key, bytes(MB - 10))
    before = manager.get_stats()["evictions"]

    manager.clear()

    assert (before, manager.get_stats()["evictions"]) == (1, 0)


def test_tokens_are_those_of_what_is_held() -> None:
    manager = InMemoryKVCacheManager(1)
    manager.set("kept", b"value", prefix_tokens=5)
    manager.set("key", b"value", prefix_tokens=7)

    manager.set("key", b"value", prefix_tokens=3)
    replaced = manager.tokens
    manager.delete("key")

    assert (replaced, manager.tokens) == (8, 5)


def test_delete_removes_and_tolerates_absence() -> None:
    manager = InMemoryKVCacheManager(1)
    manager.set("key", b"value")

    manager.delete("key")
    manager.delete("key")

    assert manager.get("key") is None
    assert manager.used_bytes == 0


@pytest.mark.parametrize(
    ("key", "value", "error", "text"),
    [
        pytest.param("", b"v", ValueError, "cannot be None or empty", id="empty key"),
        pytest.param(None, b"v", ValueError, "cannot be None or empty", id="no key"),
        pytest.param("k", None, ValueError, "cannot be None or empty", id="no value"),
        pytest.param("k", "text", TypeError, "must be bytes", id="text as value"),
        pytest.param(b"k", b"v", TypeError, "key must be str, not bytes", id="bytes as key"),
        pytest.param(5, b"v", TypeError, "key must be str, not int", id="number as key"),
        pytest.param(
            "é" * 5121, b"v", ValueError, r"exceeds maximum .*10KB", id="key of 10 KiB and 2 bytes"
        ),
        pytest.param("k", b"v" * MB, ValueError, "exceeds cache limit", id="1 byte over the cache"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(
    key: Any, value: Any, error: type[Exception], text: str
) -> None:
    manager = InMemoryKVCacheManager(1)
    manager.set("k", b"old")
    manager.set("other", b"old")

    with pytest.raises(error, match=text):
        manager.set(key, value)

    assert (manager.get("k"), manager.get("other")) == (b"old", b"old")
    assert manager.get_stats()["evictions"] == 0


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        pytest.param("7", TypeError, id="text"),
        pytest.param(2.5, TypeError, id="fraction"),
        pytest.param(-1, ValueError, id="negative"),
    ],
)
def test_prefix_tokens_that_are_none_are_refused_and_the_key_can_be_set_afterwards(
    tokens: Any, error: type[Exception]
) -> None:
    manager = InMemoryKVCacheManager(1)

    with pytest.raises(error, match="prefix_tokens must be"):
        manager.set("key", b"value", tokens)
    manager.set("key", b"value", 3)

    assert manager.tokens == 3
    check(manager)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        InMemoryKVCacheManager(limit)


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'belady'; known: fifo, lfu, lru, prefix, random"):
        InMemoryKVCacheManager(1, "belady")


@pytest.mark.parametrize("key", ["a:b|c/d\\e\tf\ng", "日本語", "k" * 10240, "é" * 5120, "\x00"])
def test_any_key_up_to_10_kib_works_with_an_empty_value(key: str) -> None:
    manager = InMemoryKVCacheManager(1)

    manager.set(key, b"")

    assert manager.get(key) == b""
    assert manager.used_bytes == len(key.encode())


def test_an_entry_of_exactly_the_limit_fits_and_the_next_byte_evicts_it() -> None:
    manager = InMemoryKVCacheManager(1)

    manager.set("k", b"v" * (MB - 1))
    full = manager.used_bytes
    manager.set("l", b"")

    assert full == MB
    assert manager.get("k") is None
    assert manager.used_bytes == 1
    assert manager.get_stats()["evictions"] == 1


def test_entries_that_fill_the_limit_to_the_byte_evict_nothing() -> None:
    manager = InMemoryKVCacheManager(1)

    for number in range(16):
        manager.set(f"{number:04d}", b"v" * (MB // 16 - 4))

    assert manager.used_bytes == MB
    assert manager.get_stats()["evictions"] == 0


def test_overwriting_frees_the_old_size_first_and_evicts_nobody_else() -> None:
    manager = InMemoryKVCacheManager(1)
    manager.set("a", b"v" * (MB // 2 - 1))
    manager.set("b", b"v" * (MB // 2 - 1))
    manager.get("a")

    manager.set("a", b"w" * (MB // 2 - 1))

    assert manager.get("b") is not None
    assert manager.get_stats()["evictions"] == 0
    metadata = manager.get_metadata("a")
    assert metadata is not None
    assert metadata["access_count"] == 0


def test_the_least_recently_used_leaves_first_and_is_given_back() -> None:
    manager = InMemoryKVCacheManager(1)
    for key in "abcd":
        manager.set(key, b"v" * (MB // 4 - 1))
    manager.get("a")

    evicted = manager.store(Entry(key="e", value=b"v" * (MB // 2 - 1)))

    assert [entry.key for entry in evicted] == ["b", "c"]
    assert manager.get("a") is not None


def test_the_order_does_not_follow_a_clock_that_steps_back() -> None:
    clock = Clock()
    manager = InMemoryKVCacheManager(1, clock=clock)
    manager.set("first", b"v" * (MB // 2 - 5))
    clock.ns = 1
    manager.set("second", b"v" * (MB // 2 - 6))

    evicted = manager.store(Entry(key="third", value=b"v"))

    assert [entry.key for entry in evicted] == ["first"]


def test_an_expired_entry_is_a_miss_from_its_instant_on_and_leaves() -> None:
    clock = Clock()
    manager = InMemoryKVCacheManager(1, clock=clock)
    manager.store(Entry(key="key", value=b"v", expires_at_ns=clock.ns + 10))

    clock.ns += 9
    before = manager.lookup("key")
    clock.ns += 1
    after = manager.lookup("key")

    assert before is not None
    assert after is None
    assert (len(manager), manager.used_bytes) == (0, 0)
    assert manager.remove("key") is None


def test_an_expired_entry_that_makes_room_is_not_given_back() -> None:
    clock = Clock()
    manager = InMemoryKVCacheManager(1, clock=clock)
    manager.store(Entry(key="old", value=b"v" * (MB // 2), expires_at_ns=clock.ns + 1))
    clock.ns += 1

    evicted = manager.store(Entry(key="new", value=b"v" * (MB // 2)))

    assert evicted == []
    assert manager.get_stats()["evictions"] == 0


def test_lookups_past_a_deadline_and_ram_held_until_it_are_counted() -> None:
    clock = Clock()
    manager = InMemoryKVCacheManager(1, clock=clock)
    start_ns = clock.ns
    for key in ("asked", "pushed out", "replaced"):
        manager.store(Entry(key=key, value=bytes(100), expires_at_ns=start_ns + 10))
    clock.ns += 4
    assert manager.lookup("asked") is not None
    clock.ns = start_ns + 25

    assert manager.lookup("asked") is None
    manager.lookup("asked")
    manager.lookup("never there")
    manager.store(Entry(key="k" * 1024, value=bytes(MB - 1024)))

    assert (manager.expired_lookups, manager.expired_late_ns) == (1, 15)
    idle = 105 * (10 - 4) + 110 * 10 + 108 * 10
    assert manager.expired_idle_byte_ns == idle


def test_taking_the_next_gives_what_lives_oldest_first_and_keeps_the_statistics() -> None:
    clock = Clock()
    manager = InMemoryKVCacheManager(1, clock=clock)
    manager.set("live", b"v")
    manager.store(Entry(key="expired", value=b"v", expires_at_ns=clock.ns))
    manager.set("other", b"v")
    manager.get("live")

    taken = [manager.take_next() for _ in range(3)]

    assert [entry and entry.key for entry in taken] == ["other", "live", None]
    assert (len(manager), manager.used_bytes) == (0, 0)
    assert manager.get_stats()["cache_hits"] == 1


def test_every_text_that_came_with_an_entry_counts_into_its_size() -> None:
    entry = Entry(key="k", value=b"v", parent="pé", tags=("ttt",), meta={"m": "é"})

    assert entry.size_bytes == 1 + 1 + 3 + 3 + 1 + 2


def test_long_parent_keys_do_not_fill_more_than_the_limit() -> None:
    manager = InMemoryKVCacheManager(1)

    for number in range(300):
        manager.store(Entry(key=f"{number}", value=b"", parent=f"{number:010240d}"))

    check(manager)
    assert len(manager) <= MB // 10240


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=20), st.integers(min_value=0, max_value=MB + 10)),
        max_size=12,
    )
)
def test_whatever_is_set_the_limit_holds_and_the_newest_is_there(
    writes: list[tuple[str, int]],
) -> None:
    manager = InMemoryKVCacheManager(1)

    for key, size in writes:
        try:
            size_with_key = len(key.encode()) + size
            manager.set(key, bytes(size))
        except ValueError:
            assert not key or size_with_key > MB
        else:
            assert manager.get(key) == bytes(size)
        check(manager)


def test_clearing_lets_others_go_on_while_the_values_are_freed() -> None:
    manager = InMemoryKVCacheManager(1)
    locked: list[bool] = []

    class Value:
        def __len__(self) -> int:
            return 1

        def __del__(self) -> None:
            locked.append(manager._lock.locked())

    for number in range(200):
        manager.store(Entry(key=f"{number}", value=cast(Any, Value())))
    manager.clear()

    assert locked == [False] * 200
    check(manager)


class LockTakenAfter:
    """A lock that is first taken when another thread has done something."""

    def __init__(self, before: Callable[[], object]) -> None:
        self._lock = threading.Lock()
        self._before = [before]

    def acquire(self) -> None:
        if self._before:
            self._before.pop()()
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("beside", [0, 1], ids=["store", "store_many"])
def test_a_put_that_the_limit_is_lowered_under_is_refused_and_evicts_nothing(
    policy: str, beside: int
) -> None:
    manager = InMemoryKVCacheManager(4, policy)
    manager.set("kept", b"value")
    large = Entry(key="large", value=bytes(2 * MB))
    put = manager.store_many if beside else manager.store
    entries: Any = [Entry(key="small", value=b"value"), large] if beside else large

    manager._lock = cast(Any, LockTakenAfter(lambda: manager.resize(1)))
    with pytest.raises(ValueError, match="exceeds cache limit"):
        put(entries)

    assert [manager.get(key) for key in ("kept", "small", "large")] == [b"value", None, None]
    check(manager)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_lookup_that_the_cache_is_cleared_under_harms_nothing(policy: str) -> None:
    manager = InMemoryKVCacheManager(1, policy)

    class Clearing(Entry):
        """An entry between whose finding and counting another thread clears the cache."""

        def expired(self, now_ns: int) -> bool:
            manager.clear()
            return super().expired(now_ns)

    manager.store(Clearing(key="key", value=b"value"))
    found = manager.lookup("key")
    for number in range(3):
        manager.set(f"{number}", bytes(MB // 2))

    assert found is not None
    assert manager.get_stats()["cache_hits"] == 0
    check(manager)


def test_a_get_that_the_cache_is_cleared_under_gives_the_value_and_harms_nothing() -> None:
    during: list[Callable[[], object]] = []
    manager = InMemoryKVCacheManager(1, clock=lambda: bool(during and during.pop()()))
    manager.set("key", b"value")

    during.append(manager.clear)
    value = manager.get("key")

    assert value == b"value"
    assert manager.get_stats()["cache_hits"] == 0
    check(manager)


def test_a_get_that_others_count_hits_under_is_counted_too() -> None:
    during: list[Callable[[], object]] = []
    manager = InMemoryKVCacheManager(1, clock=lambda: bool(during and during.pop()()))
    manager.set("key", b"value")
    manager.get("key")

    during.append(manager.get_stats)
    manager.get("key")

    assert manager.get_stats()["cache_hits"] == 2


@pytest.fixture
def rapid_switching() -> Iterator[None]:
    """Threads change so often that an unguarded sequence of steps does get interrupted."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("rapid_switching")
def test_24_threads_leave_counters_and_contents_consistent() -> None:
    manager = InMemoryKVCacheManager(1)
    threads, rounds = 24, 150
    start = threading.Barrier(threads)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        start.wait()
        try:
            for _ in range(rounds):
                # Few keys, so that threads meet on one; large values, so that most sets evict.
                key = f"key-{rng.randrange(8)}"
                manager.set(key, bytes(rng.randrange(100_000, 400_000)))
                manager.get(key)
                if rng.random() < 0.2:
                    manager.delete(key)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert failures == []
    check(manager)
    stats = manager.get_stats()
    assert stats["cache_hits"] + stats["cache_misses"] == threads * rounds


def test_others_get_their_turn_between_the_steps_of_a_resize(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = InMemoryKVCacheManager(2)
    for number in range(1000):
        manager.set(f"key-{number}", bytes(2000))
    turns = 0

    def take_a_turn(_seconds: float) -> None:
        nonlocal turns
        turns += 1
        manager.set("other", b"")  # hangs where the lock is held

    monkeypatch.setattr("cache.memory.time.sleep", take_a_turn)
    manager.resize(1)

    assert turns > 5
    assert manager.used_bytes <= MB
