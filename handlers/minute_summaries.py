"""The summaries of what was measured in a minute, of many sources a few at a time. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from handlers.columns import Names, Numbers
from schemas.metrics import Summary

Kind: TypeAlias = Literal["host", "gpu", "engine", "pool", "cache"]
Tables: TypeAlias = Mapping[tuple[Kind, Names], Numbers]
"""Samples by what they are of and what was measured."""


class MinuteSummaries:
    """Min, mean, max and p95 of each column of some tables, put together by name.

    `prefixed`: the names begin with what the samples are of. To sort the numbers of thousands of
    GPUs takes hundreds of milliseconds, so `find` does it in shares once the minute is over. What
    comes to the tables after that is not in it: `is_whole` tells.
    """

    def __init__(self, tables: Tables, *, prefixed: bool) -> None:
        self._tables = tables
        self._columns: dict[str, list[tuple[Numbers, int, int]]] = {}
        for (of, names), table in tables.items():
            prefix = f"{of}_" if prefixed else ""
            for place, field in enumerate(names):
                column = self._columns.setdefault(prefix + field, [])
                column.append((table, place, len(names)))
        self.left = self._size = size_of(tables)
        """So many numbers are not summarised yet."""
        self._waiting = sorted(self._columns, reverse=True)
        self._found: dict[str, Summary] = {}

    @property
    def is_whole(self) -> bool:
        """Whether no sample came since the beginning."""
        return size_of(self._tables) == self._size

    def find(self, count: int) -> None:
        """Summarise further columns, until that were so many numbers or all."""
        least = max(0, self.left - count)
        while self._waiting and self.left > least:
            field = self._waiting.pop()
            values: list[float] = []
            for table, place, width in self._columns[field]:
                values += table[place::width]
            self._found[field] = summarise(values)
            self.left -= len(values)

    def all(self) -> dict[str, Summary]:
        """Those of all columns, by name."""
        self.find(self.left)
        return self._found


def size_of(tables: Tables) -> int:
    """How many numbers there are."""
    return sum(map(len, tables.values()))


def summarise(values: Sequence[float]) -> Summary:
    """Min, mean, max and the nearest-rank 95th percentile of at least one value.

    Nearest rank: the smallest value that at least 95 % of the values do not exceed; of 1 … 20 it
    is 19, of fewer than 20 values the highest.
    """
    ranked = sorted(values)
    return Summary(
        min=ranked[0],
        mean=math.fsum(ranked) / len(ranked),
        max=ranked[-1],
        p95=ranked[math.ceil(0.95 * len(ranked)) - 1],
        count=len(ranked),
    )
