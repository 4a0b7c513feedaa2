"""RAM for values that are being received, shared by all who receive them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence

from schemas.protocols import busy


class Room:
    """At most `max_bytes`; who takes some gives it back."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._freed = asyncio.Event()

    def take(self, size_bytes: int) -> bool:
        """Whether there was so much left; it now is taken."""
        if self.used_bytes + size_bytes > self.max_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Others may have it."""
        self.used_bytes -= size_bytes
        self._freed.set()

    @contextlib.asynccontextmanager
    async def hold(self, size_bytes: int, timeout_seconds: float) -> AsyncIterator[None]:
        """Have so much inside; more than there ever is waits for all of it.

        Raises:
            RequestError: 429, there was not so much in time.
        """
        size_bytes = min(size_bytes, self.max_bytes)
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self.take(size_bytes):
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise busy("too many values are being received; try later") from None
        try:
            yield
        finally:
            self.give_back(size_bytes)


async def run_together(work: Sequence[Coroutine[None, None, None]]) -> None:
    """Run all of `work`; the first error ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except* Exception as failures:
        error = failures.exceptions[0]
    else:
        return
    raise error
