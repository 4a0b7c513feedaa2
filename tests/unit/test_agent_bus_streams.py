"""Stream sizes for the room there is."""

import pytest

from agent.bus import BusError
from agent.bus.streams import MIB, MIN_STREAM_BYTES, STREAMS, scaled

TOTAL = sum(spec.max_bytes for spec in STREAMS)


def sizes(budget_bytes: int | None) -> dict[str, int]:
    return {spec.name: spec.max_bytes for spec in scaled(STREAMS, budget_bytes)}


@pytest.mark.parametrize("budget", [None, TOTAL], ids=["no-budget", "just-enough"])
def test_with_enough_room_sizes_stay(budget: int | None) -> None:
    assert sizes(budget) == {spec.name: spec.max_bytes for spec in STREAMS}


@pytest.mark.parametrize("budget", [TOTAL - 1, 1024 * MIB, 163 * MIB, 64 * MIB])
def test_with_less_they_fit_and_none_is_too_small(budget: int) -> None:
    found = sizes(budget)

    assert sum(found.values()) <= budget
    assert min(found.values()) >= MIN_STREAM_BYTES


def test_large_streams_stay_larger() -> None:
    found = sizes(1024 * MIB)

    assert found["METRICS"] == found["EVICTION_PARTS"] > found["EVICTIONS"] > found["DEAD"]


def test_too_little_is_refused_with_the_remedy() -> None:
    with pytest.raises(BusError, match=r"need at least 64 MiB.*streams\.budget_bytes"):
        sizes(64 * MIB - 1)
