"""Large restored values, held ready until their asker has read them in ranges."""

import asyncio
import dataclasses

HOLD_SECONDS = 10.0
"""Without a read for so long, the asker is gone."""

Name = tuple[str, str, str]
"""Namespace, key, version."""


@dataclasses.dataclass(slots=True, eq=False)
class _Held:
    value: bytes
    unread_bytes: int
    timer: asyncio.TimerHandle


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
        """The value was fetched, and is held or not."""
        self.used_bytes -= size_bytes

    def hold(self, name: Name, value: bytes) -> None:
        """Have a value ready, for which room was just released."""
        self._drop(name)
        self.used_bytes += len(value)
        timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._drop, name)
        self._held[name] = _Held(value, len(value), timer)

    def size(self, name: Name) -> int | None:
        """How long the value is; None: it is not held."""
        held = self._held.get(name)
        return None if held is None else len(held.value)

    def read(self, name: Name, first: int, end: int) -> bytes:
        """A slice of a value that is held; it is let go once so much was read as it has."""
        held = self._held[name]
        held.timer.cancel()
        held.timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._drop, name)
        held.unread_bytes -= end - first
        if held.unread_bytes <= 0:
            self._drop(name)
        return held.value[first:end]

    def close(self) -> None:
        """Let go of all."""
        for name in list(self._held):
            self._drop(name)

    def _drop(self, name: Name) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            held.timer.cancel()
            self.used_bytes -= len(held.value)
