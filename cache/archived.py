"""What the archive may hold of one namespace, and from which version on it may be believed."""

import dataclasses
import hashlib
from collections.abc import Callable, Container, Iterable

from cache.outbox import Target

HASH_BYTES = 8
LAST_KEY = "f" * 16
"""In the archive's list no key comes after it."""
GROWTH = 100_000


def key_hash(key: str) -> int:
    """The key as the archive lists it: BLAKE2b of 8 bytes, here as an integer."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=HASH_BYTES).digest(), "big")


@dataclasses.dataclass(slots=True)
class _Floor:
    version: str
    evicted_since: bool = False


class ArchivedKeys:
    """Keys that may be archived, and the tombstones the archive has not confirmed.

    After a start it is unknown what the archive holds: any key may be there, until a sync has
    brought the archive's own list. A key counts as archived from the moment its eviction is
    queued, so it is never taken for absent while it is on its way.

    Until the archive confirms a tombstone, `allows` refuses older versions of that key; after that
    `on_settled` is told of it: what the archive was asked before may still be such a version.

    A sync is `begin_sync`, then waiting until the archive has worked off what was in the eviction
    stream at that moment, then `finish_sync` with the archive's list. It is repeated when the
    keys have doubled, because the archive forgets expired ones without telling.

    Memory: about 60 bytes for each archived key, and 300 for each tombstone on its way, of which
    there are no more than the eviction stream and the outbox hold.
    """

    def __init__(self, *, known: bool = False) -> None:
        self.on_settled: Callable[[Target, str], None] = lambda _target, _version: None
        self.known = known
        self.caught_up = known
        self._hashes: set[int] = set()
        self._floors: dict[Target, _Floor] = {}
        self._synced_size = 0
        self._since_sync: set[int] = set()
        self._settled: dict[Target, str] = {}

    @property
    def unconfirmed(self) -> int:
        """Tombstones that the archive has not confirmed."""
        return len(self._floors)

    @property
    def needs_sync(self) -> bool:
        """Whether the archive's list is missing, or much more is noted here than it had."""
        size = len(self._hashes) + len(self._floors)
        return not self.known or size > 2 * self._synced_size + GROWTH

    def may_hold(self, key: str) -> bool:
        """False only if the archive certainly has nothing of `key`."""
        return not self.known or key_hash(key) in self._hashes

    def note_eviction(self, key: str) -> None:
        """A value of `key` is on its way to the archive."""
        digest = key_hash(key)
        self._hashes.add(digest)
        self._since_sync.add(digest)
        if key in self._floors:
            self._floors[key].evicted_since = True

    def note_tombstone(self, target: Target, version: str) -> None:
        """Versions of that key or tag below `version` are gone, and the archive is being told."""
        self._floors[target] = _Floor(version)

    def confirm(self, target: Target, version: str, *, tombstone: bool) -> None:
        """The archive has this version of that key or tag in its index."""
        floor = self._floors.get(target)
        if floor is None or version < floor.version:
            return
        self._settle(target)
        if isinstance(target, tuple):
            return  # which keys had it is not known: those stay noted until the next sync
        if tombstone and version == floor.version and not floor.evicted_since:
            self._hashes.discard(key_hash(target))

    def _settle(self, target: Target) -> None:
        self.on_settled(target, self._floors.pop(target).version)

    def allows(self, key: str, version: str, tags: Iterable[str] = ()) -> bool:
        """Whether this `version` is not older than the newest tombstone of its key and tags."""
        return self._is_above(key, version) and all(self._is_above((t,), version) for t in tags)

    def _is_above(self, target: Target, version: str) -> bool:
        floor = self._floors.get(target)
        return floor is None or version >= floor.version

    def begin_sync(self, waiting: Iterable[str], waiting_tombstones: Container[Target]) -> None:
        """Note what is not in the stream yet: the keys of values and tombstones that wait here."""
        self._since_sync = {key_hash(key) for key in waiting}
        self._settled = {
            target: floor.version
            for target, floor in self._floors.items()
            if target not in waiting_tombstones
        }

    def finish_sync(self, listed: Iterable[int]) -> None:
        """The archive worked off all that `begin_sync` saw in the stream; this is its list."""
        for target, version in self._settled.items():
            floor = self._floors.get(target)
            if floor is not None and floor.version == version:
                self._settle(target)
        self._settled = {}
        self._hashes = {*listed, *self._since_sync}
        self._synced_size = len(self._hashes)
        self._since_sync = set()
        self.known = True

    def forget(self) -> None:
        """A new generation began: nothing that was archived before can be reached."""
        self._hashes.clear()
        self._floors.clear()
        self._since_sync.clear()
        self._settled.clear()
        self._synced_size = 0
        self.known = self.caught_up = True
