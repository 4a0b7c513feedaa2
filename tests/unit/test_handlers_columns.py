import math
import random

import pytest

from handlers.columns import MeasuredPacker, Packer, known, mean, numbers

ALL = ("a", "b", "c", "d")


def test_what_was_not_measured_is_told_apart_from_every_number() -> None:
    table = numbers()
    for values in ((0.0, 1), (None, -0.5), (2.0, None)):
        table.frombytes(Packer(2)(*values))

    assert [known(table[place::2]) for place in (0, 1)] == [[0.0, 2.0], [1.0, -0.5]]
    assert [mean(table[place::2]) for place in (0, 1)] == [1.0, 0.25]
    assert math.isnan(table[2])


def test_nothing_measured_has_no_mean() -> None:
    table = numbers()
    table.frombytes(Packer(1)(None))

    assert mean(table) is None


@pytest.mark.parametrize("missing", [0.0, 0.1, 0.5, 1.0])
def test_a_packed_sample_has_what_was_measured_whatever_came_before(missing: float) -> None:
    rng = random.Random(1)
    pack = MeasuredPacker()
    for _ in range(500):
        all_names = rng.choice([ALL, ALL[:2]])
        values = [None if rng.random() < missing else rng.random() for _ in all_names]
        measured = {n: v for n, v in zip(all_names, values, strict=True) if v is not None}

        names, packed = pack(all_names, tuple(values))

        table = numbers()
        table.frombytes(packed)
        assert dict(zip(names, table, strict=True)) == measured
        assert list(names) == list(measured)


def test_samples_that_measure_alike_have_the_same_names_object() -> None:
    pack = MeasuredPacker()
    first, _ = pack(ALL, (1.0, None, 3.0, None))
    other, _ = pack(ALL, (None, 2.0, 3.0, None))
    again, _ = pack(ALL, (5.0, None, 7.0, None))

    assert (first, other) == (("a", "c"), ("b", "c"))
    assert again is first
