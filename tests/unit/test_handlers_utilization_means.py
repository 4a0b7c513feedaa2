import random

import pytest

from handlers.utilization.means import (
    ENGINES,
    GPUS,
    HOSTS,
    RESOURCES_OF_ROWS,
    ROWS,
    GroupParts,
    Part,
    Row,
    Rows,
    means_of,
    peak,
)

SPAN = 12


def row(rng: random.Random, kind: int, ns: int, missing: float) -> Row:
    """A sample as that kind of part has it, with values not measured."""
    width = {HOSTS: 2, GPUS: 7, ENGINES: 2}[kind]
    values = [None if rng.random() < missing else rng.random() for _ in range(width)]
    return (*values, ns)


def parts_of(rng: random.Random, missing: float) -> GroupParts:
    found: GroupParts = ({}, {}, {})
    for kind in (HOSTS, GPUS, ENGINES):
        for number in range(rng.randrange(4)):
            part = found[kind]["n1", f"p{number}"] = Part(id=f"p{number}")
            for ns in range(rng.randrange(5), rng.randrange(6, 20)):
                part.add(row(rng, kind, ns, missing))
    return found


def separately(
    parts: GroupParts, names_of_rows: Rows, oldest_ns: int
) -> dict[str, dict[str, float]]:
    """The means column by column, by `sum`."""
    means: dict[str, dict[str, float]] = {}
    for of_kind, names in zip(parts, names_of_rows, strict=True):
        for place, name in enumerate(names):
            for part in of_kind.values():
                samples = [one[place] for one in part.rows if one[-1] > oldest_ns]
                known = [value for value in samples if value is not None]
                if known:
                    means.setdefault(name, {})[str(part.id)] = sum(known) / len(known)
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
        parts = parts_of(rng, missing)
        oldest_ns = rng.randrange(SPAN)
        expected = separately(parts, names_of_rows, oldest_ns)

        means = means_of(parts, names_of_rows, oldest_ns)

        assert means.keys() >= expected.keys()
        for name, values in means.items():
            # From Python 3.12 on `sum` rounds once, not at every sample.
            assert values == pytest.approx(expected.get(name, {}), rel=1e-14, abs=0.0)


def test_what_is_before_the_window_is_forgotten_with_parts_that_have_nothing_else() -> None:
    silent, heard = Part(id="silent"), Part(id="heard")
    silent.add((0.5, 0.5, 1))
    for ns in (1, 2, 3):
        heard.add((ns / 10, None, ns))
    parts: GroupParts = ({("n1", "silent"): silent, ("n1", "heard"): heard}, {}, {})

    means = means_of(parts, ROWS, 2)

    assert means == {"cpu": {"heard": 0.3}, "memory": {}}
    assert [part.rows for part in parts[HOSTS].values()] == [[(0.3, None, 3)]]


def test_the_peak_is_the_highest_sample_that_was_measured() -> None:
    parts: GroupParts = ({}, {}, {})
    for number, values in enumerate([(0.2, None, 0.1), (None, 0.7, 0.4)]):
        part = parts[HOSTS]["n1", str(number)] = Part(id=str(number))
        for ns, value in enumerate(values):
            part.add((value, 0.9, ns))

    assert peak(parts, "cpu") == 0.7
