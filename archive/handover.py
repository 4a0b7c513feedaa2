"""Large restored values, held until their asker has read them in ranges."""

import asyncio
import dataclasses

from archive.incoming import Incoming

HOLD_SECONDS = 10.0
"""Without a read for so long, the asker is gone."""

Name = tuple[str, str, str]
"""Namespace, key, version."""


@dataclasses.dataclass(slots=True, eq=False)
class _Held:
    value: Incoming
    size_bytes: int
    unread_bytes: int
    fetching: asyncio.Task[None]
    timer: asyncio.TimerHandle | None = None
    readers: int = 0


class Handover:
    """Values that are being handed back: at most `max_bytes` are fetched and held at once."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._held: dict[Name, _Held] = {}

    def reserve(self, size_bytes: int) -> bool:
        """Whether there is room for a value, from now on taken; `release` must follow."""
        if self.used_bytes + size_bytes > self.max_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """The value is held, or is not there."""
        self.used_bytes -= size_bytes

    def hold(
        self, name: Name, value: Incoming, size_bytes: int, fetching: asyncio.Task[None]
    ) -> None:
        """Have a value ready for which there is room; `fetching` ends when it is let go."""
        self._drop(name)
        self.used_bytes += size_bytes
        self._held[name] = _Held(value, size_bytes, size_bytes, fetching)
        self._let_go_later(name)

    def size(self, name: Name) -> int | None:
        """How long the value is; None: it is not held."""
        held = self._held.get(name)
        return None if held is None else held.size_bytes

    async def read(self, name: Name, first: int, end: int) -> memoryview:
        """A slice of a value that is held.

        It is let go once so much was read as it has, or when it cannot be fetched.
        """
        held = self._held[name]
        held.readers += 1
        self._keep(held)
        try:
            content = await held.value.read(first, end)
            held.unread_bytes -= end - first
            return content
        except Exception:
            held.unread_bytes = 0
            raise
        finally:
            held.readers -= 1
            if self._held.get(name) is held:
                if held.unread_bytes <= 0:
                    self._drop(name)
                elif not held.readers:
                    self._let_go_later(name)

    async def close(self) -> None:
        """Let go of all."""
        fetching = [held.fetching for held in self._held.values()]
        for name in list(self._held):
            self._drop(name)
        await asyncio.gather(*fetching, return_exceptions=True)

    def _let_go_later(self, name: Name) -> None:
        loop = asyncio.get_running_loop()
        self._held[name].timer = loop.call_later(HOLD_SECONDS, self._drop, name)

    def _keep(self, held: _Held) -> None:
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None

    def _drop(self, name: Name) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            self._keep(held)
            held.fetching.cancel()
            self.used_bytes -= held.size_bytes
