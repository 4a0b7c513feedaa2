"""The entries with the most hits, against counting them all."""

import random

from cache.entry import Entry
from cache.hot import HotEntries


class Ram:
    """Entries as the cache would keep them."""

    def __init__(self, kept: int) -> None:
        self.entries: dict[str, Entry] = {}
        self.hot = HotEntries(self.entries.get, kept)
        self._now_ns = 0

    def hit(self, key: str) -> None:
        entry = self.entries.setdefault(key, Entry(key=key, value=b""))
        self._now_ns += 1
        entry.access_count += 1
        entry.last_accessed_ns = self._now_ns
        self.hot.note(key, entry.access_count)

    def most_hits(self, count: int) -> list[int]:
        return sorted((e.access_count for e in self.entries.values()), reverse=True)[:count]


def test_the_most_read_are_found_among_many() -> None:
    ram, draw = Ram(kept=50), random.Random(2)
    for _ in range(50_000):
        ram.hit(f"key-{int(draw.paretovariate(0.8)) % 2_000}")

    top = ram.hot.top(10)

    assert [entry.access_count for entry in top] == ram.most_hits(10)


def test_of_equals_the_one_read_last_comes_first() -> None:
    ram = Ram(kept=5)
    for key in "abc":
        ram.hit(key)

    assert [entry.key for entry in ram.hot.top(2)] == ["c", "b"]


def test_what_left_ram_is_not_listed_and_makes_room_for_what_is_read_next() -> None:
    ram = Ram(kept=3)
    for key in "abcdefgh":
        for _ in range(5):
            ram.hit(key)
    ram.hot.top(3)
    for key in "abcdefgh":
        del ram.entries[key]
    gone = ram.hot.top(3)
    ram.hit("new")

    assert gone == []
    assert [entry.key for entry in ram.hot.top(3)] == ["new"]


def test_no_value_is_kept_alive_and_no_list_grows() -> None:
    ram = Ram(kept=10)
    for number in range(10_000):
        ram.hit(f"key-{number}")
        ram.hit(f"key-{number}")

    assert len(ram.hot._candidates) <= 20
    assert all(isinstance(one, str) for one in ram.hot._candidates)
