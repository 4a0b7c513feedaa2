"""What the endpoints of a namespace ask before and after: is it ours, is it durable."""

import asyncio
from collections.abc import Sequence

from cache.outbox import Item, Outbox
from schemas.protocols import Lease, RequestError


def check_owned(lease: Lease, namespace: str) -> None:
    """Go on only while the lease is held.

    Raises:
        RequestError: 503.
    """
    if not lease.held:
        raise RequestError(503, f"this instance does not own namespace {namespace}; ask again")


async def acknowledged(
    outbox: Outbox, tombstones: Sequence[Item | None], timeout_seconds: float
) -> list[bool]:
    """Which of the tombstones the eviction stream has within that time; None = none was needed."""
    try:
        async with asyncio.timeout(timeout_seconds):
            for tombstone in tombstones:
                if tombstone is not None:
                    await outbox.settled(tombstone)
    except TimeoutError:
        return [tombstone is None or tombstone.acknowledged for tombstone in tombstones]
    return [True] * len(tombstones)
