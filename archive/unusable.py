"""Evictions that can neither be archived nor be put aside, as FLEET_DEAD is full."""

import time

from schemas.protocols import Delivery, WorkQueue

AGAIN_SECONDS = 60.0
"""Beyond ten times the pause after which it comes again: what was not met for so long is gone."""
LOOKS = 16
"""Messages looked at for one question; the server sends each of them whole."""


class Unusable:
    """What this archiver could not put aside, and what else waits between that.

    They stay in the eviction stream, and in nobody's way: nothing will ever come of them, but for
    a letter that is sent back later, as one from FLEET_DEAD is. A message is known by its sequence
    and its time: a stream that was made anew counts from 1 again.
    """

    def __init__(self, queue: WorkQueue, stream: str, retry_seconds: float) -> None:
        self._queue = queue
        self._stream = stream
        self._keep_seconds = AGAIN_SECONDS + 10 * retry_seconds
        self._met: dict[tuple[int, int], float] = {}

    @property
    def count(self) -> int:
        """How many were met lately."""
        self._forget_old()
        return len(self._met)

    def met(self, delivery: Delivery) -> None:
        """It can neither be archived nor be put aside now."""
        self._met[_name(delivery)] = time.monotonic()

    def gone(self, delivery: Delivery) -> None:
        """It is settled after all."""
        self._met.pop(_name(delivery), None)

    async def reached(self, namespace: str, first: int, until: int) -> int:
        """How far the namespace's evictions from `first` up to `until` are worked off.

        The last sequence to which none waits but what is unusable; `first - 1`: not even that
        one, or not known. It may be behind, and is to be asked again from there.

        Raises:
            PublishError: the server does not answer, or this user may not.
        """
        self._forget_old()
        for _ in range(LOOKS if self._met else 0):
            found = await self._queue.first_from(self._stream, f"evicted.{namespace}", first)
            if found is None or found[0] > until:
                return until
            if found not in self._met:
                return found[0] - 1
            first = found[0] + 1
        return first - 1

    def _forget_old(self) -> None:
        before = time.monotonic() - self._keep_seconds
        for name in [name for name, met_at in self._met.items() if met_at < before]:
            del self._met[name]


def _name(delivery: Delivery) -> tuple[int, int]:
    return delivery.sequence, delivery.stored_ns
