import random
from collections.abc import Sequence
from typing import TypeAlias

import pytest

from handlers.columns import Packer
from handlers.utilization.means import (
    ENGINES,
    GPUS,
    HOSTS,
    RESOURCES_OF_ROWS,
    ROWS,
    GroupParts,
    Part,
    Rows,
    means_of,
    peak,
)
from handlers.window import MAX_SAMPLES

SPAN, LAST = 12, 20
Row: TypeAlias = tuple[int, list[float | None]]
"""An instant, and the numbers of a sample then."""
Samples: TypeAlias = dict[tuple[int, str], list[Row]]
"""Of each part, by kind and name."""


def some_samples(rng: random.Random, names_of_rows: Rows, missing: float) -> Samples:
    """Of up to three parts of each kind, with values not measured."""
    return {
        (kind, f"p{number}"): [
            (ns, [None if rng.random() < missing else rng.random() for _ in names_of_rows[kind]])
            for ns in range(rng.randrange(5), rng.randrange(6, 20))
        ]
        for kind in (HOSTS, GPUS, ENGINES)
        for number in range(rng.randrange(4))
    }


def part_of(name: str, rows: Sequence[Row]) -> Part:
    """A part that has heard these samples."""
    width = len(rows[0][1])
    part = Part(id=name, width=width)
    for ns, values in rows:
        part.add(Packer(width)(*values), ns)
    return part


def separately(
    samples: Samples, names_of_rows: Rows, oldest_ns: int, newest_ns: int
) -> dict[str, dict[str, float]]:
    """The means column by column, by `sum`."""
    means: dict[str, dict[str, float]] = {}
    for (kind, id_), rows in samples.items():
        for place, name in enumerate(names_of_rows[kind]):
            of_window = [values[place] for ns, values in rows if oldest_ns < ns <= newest_ns]
            known = [value for value in of_window if value is not None]
            if known:
                means.setdefault(name, {})[id_] = sum(known) / len(known)
    return means


@pytest.mark.parametrize("missing", [0.0, 0.02, 0.5])
@pytest.mark.parametrize(
    "names_of_rows",
    [
        pytest.param(ROWS, id="of a node"),
        pytest.param(RESOURCES_OF_ROWS, id="of a pool or the fleet"),
        pytest.param(
            (ROWS[HOSTS], ROWS[GPUS], RESOURCES_OF_ROWS[ENGINES]), id="of a pool with busy GPUs"
        ),
    ],
)
def test_the_means_are_those_column_by_column(names_of_rows: Rows, missing: float) -> None:
    rng = random.Random(1)
    for _ in range(200):
        samples = some_samples(rng, names_of_rows, missing)
        parts: GroupParts = ({}, {}, {})
        for (kind, name), rows in samples.items():
            parts[kind]["n1", name] = part_of(name, rows)
        oldest_ns = rng.randrange(SPAN)
        newest_ns = rng.choice((LAST, rng.randrange(oldest_ns, LAST)))
        expected = separately(samples, names_of_rows, oldest_ns, newest_ns)

        means = means_of(parts, names_of_rows, oldest_ns, newest_ns)

        assert means.keys() >= expected.keys()
        for name, values in means.items():
            # From Python 3.12 on `sum` rounds once, not at every sample.
            assert values == pytest.approx(expected.get(name, {}), rel=1e-14, abs=0.0)


def test_what_is_before_the_window_is_forgotten_with_parts_that_have_nothing_else() -> None:
    silent = part_of("silent", [(1, [0.5, 0.5, 0.5, 0.5])])
    heard = part_of("heard", [(ns, [ns / 10, None, None, None]) for ns in (1, 2, 3)])
    parts: GroupParts = ({("n1", "silent"): silent, ("n1", "heard"): heard}, {}, {})

    means = means_of(parts, ROWS, 2, 3)

    assert means == {"cpu": {"heard": 0.3}, "memory": {}, "disk": {}, "network": {}}
    assert list(parts[HOSTS].values()) == [heard]
    assert (list(heard.instants), list(heard.column(0)), len(heard.column(1))) == ([3], [0.3], 1)


def test_a_flood_of_samples_is_bounded() -> None:
    part = part_of("flood", [(ns, [float(ns)]) for ns in range(MAX_SAMPLES + 10)])

    assert (len(part.instants), part.instants[0]) == (MAX_SAMPLES, 10)
    assert (len(part.numbers), part.numbers[0]) == (MAX_SAMPLES, 10.0)


def test_a_part_that_is_gone_leaves_the_whole_of_which_these_are_a_share() -> None:
    silent, other = part_of("silent", [(1, [0.5] * 4)]), part_of("other", [(1, [0.5] * 4)])
    share: GroupParts = ({("n1", ""): silent}, {}, {})
    whole: GroupParts = ({("n1", ""): silent, ("n2", ""): other}, {}, {})

    means_of(share, ROWS, 1, 2, whole)

    assert (list(share[HOSTS]), list(whole[HOSTS])) == ([], [("n2", "")])


def test_the_peak_is_the_highest_sample_that_was_measured() -> None:
    parts: GroupParts = ({}, {}, {})
    for number, values in enumerate([(0.2, None, 0.1), (None, 0.7, 0.4)]):
        rows: list[Row] = [(ns, [value, 0.9]) for ns, value in enumerate(values)]
        parts[HOSTS]["n1", str(number)] = part_of(str(number), rows)

    assert peak(parts, "cpu") == 0.7
