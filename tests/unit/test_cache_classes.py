"""Statistics by class: who is counted where, and how many classes there can be."""

import time

import pytest

from cache.classes import MAX_CLASSES, Classes
from cache.entry import Entry
from schemas.protocols import RequestError


def entry(request_class: str | None = None, value: bytes = b"12345") -> Entry:
    return Entry(key="k", value=value, cost_seconds=0.5, request_class=request_class)


def test_a_hit_counts_for_the_class_of_the_request_else_of_the_entry() -> None:
    classes = Classes()

    classes.hit("asked", entry("put"))
    classes.hit(None, entry("put"))
    classes.hit(None, entry())

    stats = classes.stats()
    assert {name: one.hits_total for name, one in stats.items()} == {"asked": 1, "put": 1}
    assert stats["put"].answered_bytes_total == 5
    assert stats["put"].cost_saved_seconds_total == 0.5


def test_a_miss_counts_where_the_request_names_a_class_and_a_restored_value_saves_cost() -> None:
    classes = Classes()

    classes.miss(None)
    classes.miss("chat")
    classes.miss("chat", entry())

    chat = classes.stats()["chat"]
    assert (chat.misses_total, chat.hits_total) == (2, 0)
    assert (chat.answered_bytes_total, chat.cost_saved_seconds_total) == (5, 0.5)


def test_classes_beyond_the_32nd_are_one() -> None:
    classes = Classes()

    for number in range(MAX_CLASSES + 3):
        classes.put(entry(f"class-{number}"))
    classes.put(entry("class-0"))

    stats = classes.stats()
    assert len(stats) == MAX_CLASSES + 1
    assert stats["other"].puts_total == 3
    assert stats["class-0"].puts_total == 2


def test_a_class_called_other_takes_no_place_of_the_32() -> None:
    classes = Classes()

    classes.put(entry("other"))
    for number in range(MAX_CLASSES + 1):
        classes.put(entry(f"class-{number}"))

    assert len(classes.stats()) == MAX_CLASSES + 1
    assert classes.stats()["other"].puts_total == 2


def test_latency_is_measured_from_the_start_of_the_request() -> None:
    classes = Classes()

    classes.took("chat", time.perf_counter_ns() - 1_000_000_000)
    classes.took(None, time.perf_counter_ns())

    p50 = classes.stats()["chat"].latency_p50_seconds
    assert p50 is not None
    assert 0.8 < p50 < 60
    assert list(classes.stats()) == ["chat"]


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "é"], ids=["empty", "space", "long", "é"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="400 header Fleet-Class"):
        Classes().check({"Fleet-Class": name})
