"""Evicted entries and tombstones on their way to the archive, readable until they are there."""

import asyncio
import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator

from cache.entry import Entry
from schemas.cache import INLINE_LIMIT_BYTES

Target = str | tuple[str]
"""What a tombstone is about: a key, or a tag in a tuple of one."""

ITEM_OVERHEAD_BYTES = 512
MAX_MESSAGE_BYTES = 1024 * 1024


@dataclasses.dataclass(slots=True, eq=False)
class Item:
    """One message for the eviction stream: a value, or a tombstone (`entry` None).

    The tombstone of a tag has no key but `tag`.
    `message_id` is chosen once and kept for every retry. A tombstone's `settled` is set when the
    stream has acknowledged it, or when `successor`, a newer tombstone of the key, took its place;
    a value's, if it has one, when it has left the outbox. `stored`: the archive has it.
    `was_lent`: it is or was lent, and is to be sent if it is taken again.
    """

    key: str
    version: str
    message_id: str
    evicted_at_ns: int
    entry: Entry | None = None
    expires_at_ns: int | None = None
    reason: str = "capacity"
    heuristic: str | None = None
    score: float | None = None
    sending: bool = False
    acknowledged: bool = False
    stored: bool = False
    was_lent: bool = False
    settled: asyncio.Event | None = None
    successor: "Item | None" = None
    tag: str | None = None

    @property
    def target(self) -> Target:
        """The key or tag."""
        return self.key if self.tag is None else (self.tag,)

    @property
    def is_large(self) -> bool:
        """Whether it travels in parts."""
        return self.entry is not None and self.entry.value_bytes > INLINE_LIMIT_BYTES

    @property
    def size_bytes(self) -> int:
        """What it takes from the outbox's limit: a little more than its texts and value."""
        own = len(self.tag or self.key) if self.entry is None else self.entry.size_bytes
        return own + ITEM_OVERHEAD_BYTES


class Outbox:
    """A buffer of at most `max_bytes`, published tombstones first, then oldest first.

    A value stays readable until the archive has it (`confirm`) or the room is needed. Room is
    made from acknowledged values first, which loses nothing, then from the oldest that waits, or
    else the new one is not taken; both are counted in `lost`. Tombstones are never dropped for
    room. At most one value and one tombstone per key: the newest. All operations are O(1) but for
    the values in flight, and for large ones that wait, of which there are few.

    `largest_bytes` is the largest entry that may come. `on_left` hears of each value that is no
    longer kept here.
    """

    def __init__(self, max_bytes: int, on_left: Callable[[Item], None] = lambda item: None) -> None:
        self.max_bytes = max_bytes
        self._on_left = on_left
        self.largest_bytes = MAX_MESSAGE_BYTES
        self.used_bytes = 0
        self.acknowledged = 0
        self.lost = 0
        self._tombstones: dict[Target, Item] = {}
        self._waiting: dict[str, Item] = {}
        self._done: dict[str, Item] = {}
        self.pending_bytes = 0
        self._tombstone_bytes = 0
        self._ready = {large: asyncio.Event() for large in (False, True)}
        self._idle = asyncio.Event()
        self._idle.set()
        self._shrunk = asyncio.Event()

    def __len__(self) -> int:
        """Values and tombstones held."""
        return len(self._tombstones) + len(self._waiting) + len(self._done)

    @property
    def pending(self) -> int:
        """Values and tombstones that the stream has not acknowledged."""
        return len(self._tombstones) + len(self._waiting)

    @property
    def crowded(self) -> bool:
        """Whether unacknowledged tombstones fill half of the room: no more are taken.

        The other half can be made free: it only holds values, of which some are in flight, or
        lent for some seconds.
        """
        return self._tombstone_bytes > self.max_bytes // 2

    def fits(self, size_bytes: int) -> bool:
        """Whether there is room for what leaves RAM when an entry of `size_bytes` comes.

        That is less than the entry and the largest one, unless it is hundreds of tiny entries,
        whose overhead is not foreseen here.
        """
        return self.pending_bytes + size_bytes + self.largest_bytes <= self.max_bytes

    def get(self, key: str) -> Item | None:
        """The value of `key` that is on its way, if it still is here."""
        return self._waiting.get(key) or self._done.get(key)

    def add(self, item: Item) -> None:
        """Queue a value, in place of an older one of its key."""
        self.drop(item.key)
        if not self._make_room(item.size_bytes):
            self.lost += 1
            self._leave(item)
            return
        self._waiting[item.key] = item
        self._grow(item)

    def add_tombstone(self, item: Item) -> None:
        """Queue a tombstone, in place of an older one of its key; not while `crowded`."""
        item.settled = asyncio.Event()
        older = self._tombstones.pop(item.target, None)
        if older is not None:
            self._tombstone_bytes -= older.size_bytes
            self._shrink(older)
            older.successor = item
            _settle(older)
        self._make_room(item.size_bytes)
        self._tombstones[item.target] = item
        self._tombstone_bytes += item.size_bytes
        self._grow(item)

    def drop(self, key: str) -> None:
        """Forget the value of `key`: it was overwritten or deleted, or a newer one comes."""
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._shrink(waiting)
            self._leave(waiting)
        done = self._done.pop(key, None)
        if done is not None:
            self.used_bytes -= done.size_bytes
            self._leave(done)
        self._rest()

    def confirm(self, key: str, version: str) -> None:
        """The archive has this version: it need not be kept here."""
        item = self.get(key)
        if item is None or item.version != version:
            return
        if not item.acknowledged and not item.sending:
            # Its acknowledgement was lost, but not the message.
            self.acknowledged += 1
        item.stored = True
        self.drop(key)

    async def take(self, *, large: bool = False) -> Item:
        """The next to publish, marked as in flight; waits for one.

        Large values are taken apart from the others, which they would hold up.
        """
        while True:
            ready = self._ready[large]
            item = next((one for one in self._next() if one.is_large == large), None)
            if item is not None:
                item.sending = True
                return item
            ready.clear()
            await ready.wait()

    def give_back(self, item: Item) -> None:
        """It was not acknowledged: the next `take` may have it again."""
        item.sending = False
        self._ready[item.is_large].set()

    def acknowledge(self, item: Item) -> None:
        """The stream has it."""
        item.sending = False
        item.acknowledged = True
        _settle(item)
        if item.entry is None:
            if self._tombstones.get(item.target) is item:
                del self._tombstones[item.target]
                self._tombstone_bytes -= item.size_bytes
                self._shrink(item)
        else:
            self.acknowledged += 1
            if self._waiting.get(item.key) is item:
                del self._waiting[item.key]
                self.pending_bytes -= item.size_bytes
                self._done[item.key] = item
        self._rest()

    def lose(self, item: Item) -> None:
        """No stream will ever take this value; counted in `lost`."""
        item.sending = False
        if self._waiting.get(item.key) is item:
            self.drop(item.key)
            self.lost += 1

    def tagged(self, tag: str, below: str) -> list[Entry]:
        """The values that have this tag and a version below that."""
        return [
            item.entry
            for item in (*self._waiting.values(), *self._done.values())
            if item.entry is not None and tag in item.entry.tags and item.version < below
        ]

    def forget_values(self) -> None:
        """Drop every value: the namespace was cleared."""
        for key in [*self._waiting, *self._done]:
            self.drop(key)

    def forget_tombstones(self) -> None:
        """A new generation does what they were to do: they count as acknowledged."""
        for item in list(self._tombstones.values()):
            self.acknowledge(item)

    def waiting_values(self) -> Iterable[str]:
        """Keys of the values that the stream has not acknowledged."""
        return self._waiting

    def waiting_tombstones(self) -> Container[Target]:
        """Keys and tags of the tombstones that the stream has not acknowledged."""
        return self._tombstones

    async def settled(self, tombstone: Item) -> None:
        """Return once the stream has acknowledged `tombstone`, or a newer one of its key."""
        while not tombstone.acknowledged and tombstone.settled is not None:
            await tombstone.settled.wait()
            tombstone = tombstone.successor or tombstone

    async def drained(self) -> None:
        """Return once the stream has acknowledged everything."""
        while self.pending:
            await self._idle.wait()

    async def roomy(self) -> None:
        """Return once the largest entry fits without losing one that waits."""
        while not self.fits(0):
            self._shrunk.clear()
            await self._shrunk.wait()

    def _next(self) -> Iterator[Item]:
        for waiting in (self._tombstones, self._waiting):
            for item in waiting.values():
                if not item.sending:
                    yield item

    def _make_room(self, size_bytes: int) -> bool:
        while self.used_bytes + size_bytes > self.max_bytes and self._done:
            self.drop(next(iter(self._done)))
        while self.used_bytes + size_bytes > self.max_bytes:
            # One in flight may already be in the stream, or in the store.
            oldest = next((i for i in self._waiting.values() if not i.sending), None)
            if oldest is None:
                return False
            self.drop(oldest.key)
            self.lost += 1
        return True

    def _grow(self, item: Item) -> None:
        self.used_bytes += item.size_bytes
        self.pending_bytes += item.size_bytes
        self._idle.clear()
        self._ready[item.is_large].set()

    def _shrink(self, item: Item) -> None:
        self.used_bytes -= item.size_bytes
        self.pending_bytes -= item.size_bytes
        self._rest()

    def _leave(self, item: Item) -> None:
        self._on_left(item)
        _settle(item)

    def _rest(self) -> None:
        self._shrunk.set()
        if not self._tombstones and not self._waiting:
            self._idle.set()


def _settle(item: Item) -> None:
    if item.settled is not None:
        item.settled.set()
