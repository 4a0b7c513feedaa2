"""Leaves out what is too much for one answer, evenly, each series its share."""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
U = TypeVar("U")

REPLY_BYTES = 768 * 1024
"""Of the rows of one answer: a server lets 1 MiB through unless it was told otherwise."""
_AT_ONCE = 200


def thinned(items: Sequence[T], limit: int, series_of: Callable[[T], Hashable]) -> Sequence[T]:
    """At most `limit` items, in order: of each series its share, evenly spaced."""
    if len(items) <= limit:
        return items
    series: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        series.setdefault(series_of(item), []).append(index)
    kept = shared_out(series, limit).values()
    return [items[index] for index in sorted(index for indexes in kept for index in indexes)]


def shared_out(series: Mapping[K, Sequence[T]], limit: int) -> dict[K, Sequence[T]]:
    """At most `limit` items in all: of each series its share, evenly spaced.

    The first and the last of a series stay; of a share of one, the last. Where there are more
    series than the limit, only the first ones have a share.
    """
    if sum(map(len, series.values())) <= limit:
        return dict(series)
    share, more = divmod(limit, len(series))
    return {
        key: _spaced(items, share + (number < more))
        for number, (key, items) in enumerate(series.items())
    }


def _spaced(items: Sequence[T], count: int) -> Sequence[T]:
    if len(items) <= count:
        return items
    if count <= 1:
        return items[len(items) - count :]
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


async def gently(items: Sequence[T], work: Callable[[T], U]) -> list[U]:
    """`work` done on each, with a pause for others now and then: the loop serves more than one."""
    done = []
    for number, item in enumerate(items, 1):
        done.append(work(item))
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return done


async def fitting(
    rows: Sequence[T], series_of: Callable[[T], Hashable], most_bytes: int = REPLY_BYTES
) -> Sequence[T]:
    """`rows`, thinned further where they would not fit into one answer."""
    size_bytes = sum(await gently(rows, size_of))
    while size_bytes > most_bytes and rows:
        rows = thinned(rows, len(rows) * most_bytes // (size_bytes + 1), series_of)
        size_bytes = sum(await gently(rows, size_of))
    return rows


def size_of(row: object) -> int:
    """Bytes of a row in an answer, with what parts it from the next."""
    return len(msgspec.json.encode(row)) + 1
