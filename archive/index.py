"""What one namespace of the archive holds, in RAM."""

import heapq
import math
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

import msgspec

from archive import packed_entry
from archive.index_entry import HASH_BYTES, LEAST_SCORE, IndexEntry, Order
from archive.ledger import Ledger
from archive.lifecycle import lasts_until_ns
from archive.ranking import Ranked, Ranking

LAST_HASH = b"\xff" * HASH_BYTES
"""None is above it."""
AT_ONCE_NS = 1
"""Of a value: outdated for so long that the next sweep writes its segment anew, without it.

Two archivers that pack two versions of a key at the same time do not know of each other, so a
lifecycle rule may take away what outdates a value before the value.
"""


class _Older(NamedTuple):
    """Of values of a key that may still be stored: when the last expires, and was outdated."""

    until_ns: float
    since_ns: int


class NamespaceIndex:
    """The newest version of each key, and the newest generation seen.

    Lookups and changes are O(1), with a budget O(log n); `due`, `guards`, `in_segments`, `hashes`
    and `listing` walk all entries. They are held as bytes (`archive.packed_entry`): what is
    returned is a copy.

    What is not the newest any more may lie in its segment for long, and a value there would be
    readable again were its successor forgotten: `retire` sees to that.

    Args:
        budget_bytes: what its values may take of the store together; 0 = no limit.
        ledger: is told what of each segment is needed.
    """

    def __init__(self, budget_bytes: int = 0, ledger: Ledger | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.generation = 0
        self.tombstones = 0
        self.size_bytes = 0
        self.object_bytes = 0
        self._ledger = ledger or Ledger()
        self._tombstone_bytes = 0
        self._namespace = ""
        self._entries: dict[bytes, bytes] = {}
        self._older: dict[str, _Older] = {}
        self._ranking = Ranking(lambda value: self._entries.get(value.key) is value.record)
        self._tags: dict[str, IndexEntry] = {}

    @property
    def entries(self) -> int:
        """How many values there are, tombstones not counted."""
        return len(self._entries) + len(self._tags) - self.tombstones

    def saw_generation(self, generation: int) -> None:
        """A newer generation makes everything older unreachable."""
        self.generation = max(self.generation, generation)

    def newest(self, key: str) -> IndexEntry | None:
        """The highest version known of `key`, be it expired, cleared or a tombstone."""
        encoded = key.encode()
        record = self._entries.get(encoded)
        return None if record is None else self._entry(encoded, record)

    def find(self, key: str, now_ns: int) -> IndexEntry | None:
        """The value of `key` that may be returned now."""
        encoded = key.encode()
        record = self._entries.get(encoded)
        if record is None or not self._is_live(encoded, record, now_ns):
            return None
        return self._entry(encoded, record)

    def tombstone_of(self, tag: str) -> IndexEntry | None:
        """The newest deletion of `tag`."""
        return self._tags.get(tag)

    def is_deleted(self, tags: Iterable[str], order: Order) -> bool:
        """Whether a value of this order with these tags was deleted by one of them."""
        return any(tag in self._tags and order < self._tags[tag].order for tag in tags)

    def deleted_ns(self, entry: IndexEntry) -> int | None:
        """When a deletion of one of its tags was stored; None: there was none of this value."""
        instants = (
            self._tags[tag].stored_ns
            for tag in entry.tags
            if tag in self._tags and entry.order < self._tags[tag].order
        )
        return min(instants, default=None)

    def put(self, entry: IndexEntry) -> IndexEntry | None:
        """Add a version; returns the loser of the comparison, which is not needed any more."""
        self.saw_generation(entry.generation)
        known = self.newest(entry.key) if entry.tag is None else self._tags.get(entry.tag)
        if known is None:
            self._add(entry)
            return None
        is_covered = known.covers(entry.order, entry.expires_ns)
        if is_covered and _is_copy(entry, known):
            is_covered = _stored(known) <= _stored(entry)
        loser, winner = (entry, known) if is_covered else (known, entry)
        follows = winner.follows or winner.order != loser.order
        if loser is known or follows != winner.follows:
            self._count(known, -1)
            self._add(
                winner
                if follows == winner.follows
                else msgspec.structs.replace(winner, follows=follows)
            )
        if not loser.tombstone:
            outlives = _expiry_ns(loser) > lasts_until_ns(winner.segment, winner.stored_ns)
            self._note_older(loser, AT_ONCE_NS if outlives else winner.stored_ns)
        return loser

    def remove(self, entry: IndexEntry) -> None:
        """Forget `entry`, unless a newer version took its place."""
        if self.holds(entry):
            self._count(entry, -1)
            if entry.tag is None:
                del self._entries[entry.key.encode()]
            else:
                del self._tags[entry.tag]

    def current(self, entry: IndexEntry) -> IndexEntry | None:
        """`entry` as it is now; None: something else took its place."""
        known = self.newest(entry.key) if entry.tag is None else self._tags.get(entry.tag)
        return known if known is not None and _place(known) == _place(entry) else None

    def holds(self, entry: IndexEntry) -> bool:
        """Whether `entry` is still the newest version of its key or tag, at the same place."""
        return self.current(entry) is not None

    def older_until_ns(self, key: str) -> float:
        """When the last value expires that the newest of `key` took the place of; 0: none did."""
        older = self._older.get(key)
        return 0 if older is None else older.until_ns

    def retire(self, entry: IndexEntry, since_ns: int, now_ns: int, *, guard: bool = False) -> None:
        """Give up a value, which something stored at `since_ns` has outdated.

        With `guard`, or where an older value of its key is still stored and has not expired, it
        goes on to say that lower versions are gone.
        """
        guard = guard or self.older_until_ns(entry.key) > now_ns
        if not entry.is_expired(now_ns):
            self._note_older(entry, since_ns)
        if guard:
            self.replace(
                entry,
                msgspec.structs.replace(entry, tombstone=True, size_bytes=0, object_bytes=0),
            )
        else:
            self.remove(entry)

    def forget_older(self, before_ns: int) -> None:
        """No segment holds any more what was outdated before that instant."""
        for key in [key for key, older in self._older.items() if older.since_ns < before_ns]:
            del self._older[key]

    def replace(self, entry: IndexEntry, by: IndexEntry) -> None:
        """Have `by`, which is the same version, in the place of `entry`, unless that has left."""
        if self.holds(entry):
            self._count(entry, -1)
            self._add(by)

    def use(self, entry: IndexEntry, score: float, used_ns: int) -> None:
        """The value is worth something else from now on; the object keeps the old figures."""
        self.replace(entry, msgspec.structs.replace(entry, score=score, used_ns=used_ns))

    def hand_out(self, entry: IndexEntry) -> None:
        """The cache has the value in RAM: here it goes first, until it is evicted again."""
        self.use(entry, LEAST_SCORE, entry.used_ns)

    def excess(self, now_ns: int) -> IndexEntry | None:
        """The value to drop next; None while all values are within the budget."""
        if not self.budget_bytes or self.value_object_bytes <= self.budget_bytes:
            return None
        least = self._ranking.least(now_ns)
        return None if least is None else self._entry(least.key, least.record)

    @property
    def value_object_bytes(self) -> int:
        """What values take of the store: what the budget bounds."""
        return self.object_bytes - self._tombstone_bytes

    def due(self, now_ns: int) -> list[IndexEntry]:
        """Expired, cleared and deleted values."""
        return [
            self._entry(key, record)
            for key, record in self._entries.items()
            if not packed_entry.is_tombstone(record) and not self._is_live(key, record, now_ns)
        ]

    def in_segments(self, names: Container[str]) -> list[IndexEntry]:
        """Every entry that lies in one of these, tombstones too."""
        found = [entry for entry in self._tags.values() if entry.segment in names]
        for key, record in self._entries.items():
            if self._ledger.name(packed_entry.segment_number(record)) in names:
                found.append(self._entry(key, record))
        return found

    def guards(self, before_ns: int) -> list[IndexEntry]:
        """Tombstones that were stored before that instant."""
        found = list(self._tags.values())
        for key, record in self._entries.items():
            if packed_entry.is_tombstone(record):
                found.append(self._entry(key, record))
        return [entry for entry in found if entry.stored_ns < before_ns]

    def hashes(self, after: bytes, limit: int, now_ns: int) -> list[bytes]:
        """Hashes of the keys that can be returned, sorted, above `after`, at most `limit`."""
        if after >= LAST_HASH:  # asked so for what comes with the list: of millions 0.1 s each
            return []
        above = (
            found
            for key, record in self._entries.items()
            if (found := packed_entry.hash_of(record)) > after
            and self._is_live(key, record, now_ns)
        )
        return sorted(above)[:limit]

    def listing(self, prefix: str, after: str, limit: int, now_ns: int) -> list[IndexEntry]:
        """Entries that can be returned, by key, above `after`, at most `limit`."""
        beginning, last = prefix.encode(), after.encode()
        wanted = (
            (key, record)
            for key, record in self._entries.items()
            if key > last and key.startswith(beginning) and self._is_live(key, record, now_ns)
        )
        return [self._entry(key, record) for key, record in heapq.nsmallest(limit, wanted)]

    def _note_older(self, value: IndexEntry, since_ns: int) -> None:
        self._ledger.shadow(value, since_ns)
        until_ns = _expiry_ns(value)
        known = self._older.get(value.key, _Older(0, 0))
        self._older[value.key] = _Older(
            max(known.until_ns, until_ns), max(known.since_ns, since_ns)
        )

    def _is_live(self, key: bytes, record: bytes, now_ns: int) -> bool:
        if not packed_entry.may_be_live(record, self.generation, now_ns):
            return False
        if not packed_entry.is_unusual(record):
            return True
        entry = self._entry(key, record)
        is_deleted = bool(entry.tags) and self.is_deleted(entry.tags, entry.order)
        return entry.generation >= self.generation and not is_deleted

    def _entry(self, key: bytes, record: bytes) -> IndexEntry:
        segment = self._ledger.name(packed_entry.segment_number(record))
        return packed_entry.unpack(record, self._namespace, key.decode(), segment)

    def _add(self, entry: IndexEntry) -> None:
        self._namespace = entry.namespace
        self._count(entry, 1)
        if entry.tag is not None:
            self._tags[entry.tag] = entry
            return
        key = entry.key.encode()
        record = packed_entry.pack(entry, self._ledger.use(entry.segment).number)
        self._entries[key] = record
        if self.budget_bytes and not entry.tombstone:
            self._ranking.add(Ranked(entry.used_ns, key, record))
            self._ranking.tidy(self.entries, self._ranked())

    def _ranked(self) -> Iterator[Ranked]:
        for key, record in self._entries.items():
            if not packed_entry.is_tombstone(record):
                yield Ranked(packed_entry.used_ns(record), key, record)

    def _count(self, entry: IndexEntry, sign: int) -> None:
        self._ledger.count(entry, sign)
        self._tombstone_bytes += sign * entry.object_bytes * entry.tombstone
        self.tombstones += sign * entry.tombstone
        self.size_bytes += sign * entry.size_bytes
        self.object_bytes += sign * entry.object_bytes


def _is_copy(entry: IndexEntry, known: IndexEntry) -> bool:
    """Whether two archivers, or one that was killed, stored the same value twice."""
    is_same = entry.order == known.order and entry.expires_ns == known.expires_ns
    return is_same and not entry.tombstone


def _stored(entry: IndexEntry) -> tuple[int, str]:
    """The first copy counts, in whatever order they are heard of: so it does after `reindex`."""
    return entry.stored_ns, entry.segment


def _place(entry: IndexEntry) -> tuple[object, ...]:
    return entry.order, entry.segment, entry.first, entry.object_bytes


def _expiry_ns(entry: IndexEntry) -> float:
    return math.inf if entry.expires_ns is None else entry.expires_ns
