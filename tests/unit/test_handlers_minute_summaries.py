"""A large pool's minute is summarised in shares, and comes to what it does at once."""

import random
from typing import Any

import pytest

import handlers.rollup
from handlers.columns import MeasuredPacker, Names, Numbers, numbers
from handlers.minute_summaries import Kind, MinuteSummaries, Tables, summarise
from handlers.rollup import RollupHandler
from handlers.settings import RollupSettings
from schemas.metrics import Rollup
from schemas.protocols import Emit
from tests.support.samples import at, gpu, host

NAMES = ("a", "b", "c")
FIELDS = (
    "utilization_ratio",
    "memory_utilization_ratio",
    "memory_activity_ratio",
    "sm_activity_ratio",
    "tensor_activity_ratio",
    "dram_activity_ratio",
    "encoder_utilization_ratio",
    "decoder_utilization_ratio",
    "fan_ratio",
    "temperature_celsius",
    "power_watts",
    "clock_sm_hertz",
    "clock_memory_hertz",
)
"""More than there are steps from the end of a minute until a pool is given out."""


def tables() -> Tables:
    rng, pack = random.Random(1), MeasuredPacker()
    found: dict[tuple[Kind, Names], Numbers] = {}
    kinds: tuple[Kind, ...] = ("host", "gpu")
    for kind in kinds:
        for _ in range(100):
            values = [rng.choice((None, rng.random(), 1.0)) for _ in NAMES]
            names, packed = pack(NAMES, [0.5, *values[1:]])
            found.setdefault((kind, names), numbers()).frombytes(packed)
    return found


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("count", [1, 100, 10_000])
def test_shares_come_to_what_all_at_once_does(count: int, prefixed: bool) -> None:
    summaries = MinuteSummaries(tables(), prefixed=prefixed)
    columns: dict[str, list[float]] = {}
    for (of, names), table in tables().items():
        for place, name in enumerate(names):
            column = columns.setdefault(f"{of}_{name}" if prefixed else name, [])
            column += table[place :: len(names)]

    for _ in range(3):
        before = summaries.left
        summaries.find(count)
        most = count + max(map(len, columns.values()))
        assert min(count, before) <= before - summaries.left < most

    assert summaries.all() == {name: summarise(values) for name, values in columns.items()}
    assert list(summaries.all()) == sorted(columns)
    assert summaries.left == 0


def minute(handler: RollupHandler, *, ticks: bool, late: bool) -> list[Rollup]:
    emits: list[Emit] = []
    for second in range(0, 60, 5):
        for number in range(4):
            values: dict[str, Any] = {field: (second * number) % 7 / 10 for field in FIELDS}
            emits += handler.handle(gpu(f"g{number}", pool="chat", **values), at(second))
        emits += handler.handle(host(cpu=second / 100, pool="chat"), at(second))
    for half in range(120, 123):
        emits += handler.tick(at(half / 2)) if ticks else ()
    if late:  # the server's clock was set back
        emits += handler.handle(gpu("g0", utilization_ratio=0.9, pool="chat"), at(59))
    for half in range(123, 150):
        emits += handler.tick(at(half / 2)) if ticks or half == 149 else ()
    return [emit.message for emit in emits if isinstance(emit.message, Rollup)]


@pytest.mark.parametrize("late", [False, True])
def test_a_large_pool_has_the_minute_of_a_small_one(
    monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    expected = minute(RollupHandler(RollupSettings(), "pool"), ticks=True, late=late)
    monkeypatch.setattr(handlers.rollup, "LARGE_NUMBERS", 10)

    for ticks in (True, False):
        found = minute(RollupHandler(RollupSettings(), "pool"), ticks=ticks, late=late)
        assert found == expected
    assert expected[0].metrics["gpu_utilization_ratio"].count == 48 + late


def test_nothing_is_left_to_be_summarised_when_a_large_pool_is_given_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handlers.rollup, "LARGE_NUMBERS", 10)
    left = []
    all_of = MinuteSummaries.all

    def watched(summaries: MinuteSummaries) -> object:
        left.append(summaries.left)
        return all_of(summaries)

    monkeypatch.setattr(MinuteSummaries, "all", watched)
    minute(RollupHandler(RollupSettings(), "pool"), ticks=True, late=False)

    assert left == [0]
