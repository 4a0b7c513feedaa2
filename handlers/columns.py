"""Samples of several numbers each, one after the other in one piece of memory. Pure.

A process keeps millions of numbers and reads each again some seconds later, out of reach of the
CPU's caches: of tuples of floats, each an object somewhere, a sum of twelve takes 5 to 10 µs, of
which adding them is half of one. And none of it is anything to the garbage collector.
"""

import math
import operator
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

Numbers: TypeAlias = "array[float]"
"""Of type `d`: samples, of as many numbers each, taken in by `frombytes`."""
Packed: TypeAlias = bytes
"""One sample for that."""
Names: TypeAlias = tuple[str, ...]

NUMBER_BYTES = 8
MAX_SHAPES = 4096


def numbers() -> Numbers:
    """Of no sample yet."""
    return array("d")


class Packer:
    """Packs samples of `width` numbers. NaN, which no message can carry: not measured."""

    def __init__(self, width: int) -> None:
        self._pack = struct.Struct(f"{width}d").pack

    def __call__(self, *values: float | None) -> Packed:
        """One sample."""
        try:
            return self._pack(*values)
        except struct.error:  # one of them was not measured
            return self._pack(*[math.nan if value is None else value for value in values])


def known(column: Numbers) -> list[float]:
    """What was measured of it."""
    total = sum(column)
    if total == total:  # noqa: PLR0124 - all of it, as nearly always
        return column.tolist()
    return [value for value in column if value == value]  # noqa: PLR0124 - NaN is not


def mean(column: Numbers) -> float | None:
    """Of what was measured, if anything, of a column with at least one sample."""
    total = sum(column)
    if total == total:  # noqa: PLR0124 - nearly always all were measured
        return total / len(column)
    found = known(column)
    return sum(found) / len(found) if found else None


class _Shape(NamedTuple):
    """Which numbers of a sample were measured."""

    of: Names
    """All that there can be."""
    names: Names
    pick: Callable[[Sequence[Any]], Sequence[Any]]
    """The measured ones."""
    pack: Callable[..., Packed]


class MeasuredPacker:
    """Packs samples without what was not measured: of a GPU's 17 gauges rarely more than six are.

    Samples that miss as many numbers nearly always miss the same ones, so that only is looked at.
    """

    def __init__(self) -> None:
        self._by_missing: dict[int, _Shape] = {}
        self._names: dict[Names, Names] = {}

    def __call__(self, names: Names, values: Sequence[float | None]) -> tuple[Names, Packed]:
        """The names of what was measured, one object for samples alike, and the sample of it."""
        missing = values.count(None)
        shape = self._by_missing.get(missing)
        if shape is not None and shape.of is names:
            try:
                # It takes no None. As many as are missing are left out: so these are all.
                return shape.names, shape.pack(*shape.pick(values))
            except struct.error:
                pass
        shape = self._by_missing[missing] = self._shape(names, values)
        return shape.names, shape.pack(*shape.pick(values))

    def _shape(self, names: Names, values: Sequence[float | None]) -> _Shape:
        places = [place for place, value in enumerate(values) if value is not None]
        found = tuple(names[place] for place in places)
        if len(self._names) >= MAX_SHAPES:
            self._names.clear()
        found = self._names.setdefault(found, found)
        pick = operator.itemgetter(*places) if len(places) > 1 else _few(places)
        return _Shape(names, found, pick, struct.Struct(f"{len(places)}d").pack)


def _few(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What `itemgetter` gives no tuple for."""
    return lambda values: [values[place] for place in places]
