"""Where objects lie: the ObjectStore protocol, and what names an object may have."""

import dataclasses
import re
from collections.abc import AsyncIterable, Callable
from typing import Protocol

from archive.billing import Requests
from archive.lifecycle import LifecycleReport

LEFTOVER_SECONDS = 86400.0
"""What an interrupted write left behind is that old before it is removed: no write takes a day."""
_NAME = re.compile(r"[0-9a-f]{64}|[0-9a-z]{1,8}-[0-9a-f]{32}")


def check_name(name: str) -> str:
    """`name`, which can reach nothing but an object.

    Raises:
        ValueError: it is neither 64 hexadecimal digits nor a short word, `-` and 32 of them.
    """
    if not is_name(name):
        raise ValueError(f"{name!r} is not an object name")
    return name


def is_name(text: str) -> bool:
    """Whether `text` can be an object's name."""
    return _NAME.fullmatch(text) is not None


class StoreError(Exception):
    """The store refused or failed; the text names it and says what an operator can do."""


class ObjectRefusedError(StoreError):
    """One object cannot be read or removed, while the store works otherwise.

    `reason` says why, without paths.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"archived object {name}: {reason}")
        self.name = name
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that is there, and how long it is."""

    name: str
    object_bytes: int


class ObjectStore(Protocol):
    """Keeps whole objects under the names that `check_name` allows.

    An object is either absent or complete, also after a crash in the middle of a write, and
    durable once the write is answered. Every call may raise StoreError; what reads or removes one
    object raises ObjectRefusedError where only that one is at fault.
    """

    description: str
    requests: Requests
    """Made so far, by how they are billed: write, list, read, delete; none where nothing is."""

    async def open(self) -> None:
        """Make the place usable, or say why it is not."""

    async def close(self) -> None:
        """Let go of threads and connections."""

    async def put(self, name: str, content: bytes) -> None:
        """Store durably; an object of that name is replaced."""

    async def put_stream(self, name: str, pieces: AsyncIterable[bytes]) -> None:
        """Store the concatenation of `pieces`, of any sizes, with only a few MiB in memory.

        As `put`, also when `pieces` raises or the caller gives up: then nothing is stored.
        """

    async def get(self, name: str) -> bytes | None:
        """The whole object, or None."""

    async def get_range(self, name: str, first: int, end: int) -> bytes | None:
        """Its bytes from `first` up to, not with, `end`; shorter where it ends; None: absent."""

    async def get_range_to(
        self, name: str, first: int, end: int, take: Callable[[bytes], None]
    ) -> bool:
        """As `get_range`, given to `take` in order as they come; False: absent."""

    async def stat(self, name: str) -> StoredObject | None:
        """The object without its content, or None."""

    async def delete(self, name: str) -> None:
        """Remove; absent is fine."""

    async def quarantine(self, name: str) -> None:
        """Put a damaged object aside, where no other call finds it; absent is fine."""

    async def list_objects(self) -> list[StoredObject]:
        """All objects, in no order."""

    async def remove_leftovers(self, older_than_seconds: float = LEFTOVER_SECONDS) -> int:
        """Remove what interrupted writes left behind that long ago; returns how many there were."""

    async def read_mark(self) -> bytes | None:
        """What says whose the store is, or None; it is no object.

        ObjectRefusedError: only it cannot be read.
        """

    async def write_mark(self, content: bytes, *, replace: bool) -> None:
        """Write that; without `replace` one that is there stays, where the place can see to it.

        Where it can not, the last of two at once stays: read what is there then.
        """

    async def install_lifecycle(self) -> LifecycleReport | None:
        """Have the place itself remove what is long expired; None: it knows nothing of that."""

    async def probe(self) -> str:
        """Write, sync and delete a trial object; returns a line about the state, such as room."""
