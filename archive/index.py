"""What one namespace of the archive holds, in RAM; rebuilt from the objects' headers at start."""

import dataclasses
import hashlib
import heapq

import msgspec

from archive.segment import ObjectHeader, expires_ns
from schemas.cache import Evicted
from schemas.units import to_ns

HASH_BYTES = 8

Order = tuple[int, str, bool]


def order(manifest: Evicted) -> Order:
    """Sorts the manifests of a key by age: generation, version, tombstone before value.

    A tombstone is about the versions below its own: the put that wrote it has the same version.
    """
    return manifest.generation, manifest.version, not manifest.tombstone


def object_name(manifest: Evicted) -> str:
    """The name of the object: a SHA-256, so no key can reach outside the store.

    Each version has its own, so that a writer that lost its lease cannot overwrite a newer one.
    """
    identity = [manifest.namespace, manifest.key, *order(manifest)]
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def key_hash(key: str) -> bytes:
    """Eight bytes that stand for `key` in the list of archived keys (BLAKE2b)."""
    return hashlib.blake2b(key.encode(), digest_size=HASH_BYTES).digest()


@dataclasses.dataclass(frozen=True, slots=True)
class IndexEntry:
    """The newest archived version of a key. Instants are Unix nanoseconds."""

    namespace: str
    key: str
    order: Order
    name: str
    size_bytes: int
    object_bytes: int
    stored_ns: int
    expires_ns: int | None
    hash: bytes

    @classmethod
    def of(cls, header: ObjectHeader, object_bytes: int) -> "IndexEntry":
        """The entry for an object with this header."""
        manifest = header.manifest
        return cls(
            namespace=manifest.namespace,
            key=manifest.key,
            order=order(manifest),
            name=object_name(manifest),
            size_bytes=manifest.size_bytes,
            object_bytes=object_bytes,
            stored_ns=to_ns(header.stored_at),
            expires_ns=expires_ns(manifest),
            hash=key_hash(manifest.key),
        )

    @property
    def generation(self) -> int:
        """The generation of the namespace it was evicted in."""
        return self.order[0]

    @property
    def version(self) -> str:
        """The entry's version."""
        return self.order[1]

    @property
    def tombstone(self) -> bool:
        """Whether it only says that lower versions are gone."""
        return not self.order[2]

    def is_expired(self, now_ns: int) -> bool:
        """Whether its time is over: exactly at its expiry it is."""
        return self.expires_ns is not None and now_ns >= self.expires_ns

    def outlives(self, until_ns: int | None) -> bool:
        """Whether it lives at least until that instant; None = for ever."""
        return self.expires_ns is None or (until_ns is not None and self.expires_ns >= until_ns)

    def covers(self, order: Order, until_ns: int | None) -> bool:
        """Whether a version of the same key with this order and expiry adds nothing to it.

        The same version comes again with a later expiry when it was restored and evicted anew.
        """
        return self.order > order or (self.order == order and self.outlives(until_ns))


class NamespaceIndex:
    """The newest version of each key, and the newest generation seen.

    Lookups and changes are O(1); `due`, `hashes` and `listing` walk all entries.
    About 500 bytes and the key for each entry.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.tombstones = 0
        self.size_bytes = 0
        self.object_bytes = 0
        self._entries: dict[str, IndexEntry] = {}

    @property
    def entries(self) -> int:
        """How many values there are, tombstones not counted."""
        return len(self._entries) - self.tombstones

    def saw_generation(self, generation: int) -> None:
        """A newer generation makes everything older unreachable."""
        self.generation = max(self.generation, generation)

    def newest(self, key: str) -> IndexEntry | None:
        """The highest version known of `key`, be it expired, cleared or a tombstone."""
        return self._entries.get(key)

    def find(self, key: str, now_ns: int) -> IndexEntry | None:
        """The value of `key` that may be returned now."""
        entry = self._entries.get(key)
        return entry if entry is not None and self._is_live(entry, now_ns) else None

    def put(self, entry: IndexEntry) -> IndexEntry | None:
        """Add a version; returns the loser of the comparison, whose object is not needed."""
        self.saw_generation(entry.generation)
        known = self._entries.get(entry.key)
        if known is not None and known.covers(entry.order, entry.expires_ns):
            return entry
        if known is not None:
            self._count(known, -1)
        self._entries[entry.key] = entry
        self._count(entry, 1)
        return known

    def remove(self, entry: IndexEntry) -> None:
        """Forget `entry`, unless a newer version took its place."""
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
            self._count(entry, -1)

    def replace_by_tombstone(self, entry: IndexEntry) -> None:
        """Keep only the memory that versions below are gone: the object is damaged."""
        generation, version, _ = entry.order
        if self._entries.get(entry.key) is entry:
            self.remove(entry)
            self.put(
                dataclasses.replace(
                    entry, order=(generation, version, False), size_bytes=0, object_bytes=0
                )
            )

    def due(self, now_ns: int, tombstones_before_ns: int) -> list[IndexEntry]:
        """Expired and cleared values, and tombstones stored before that instant."""
        return [
            entry
            for entry in self._entries.values()
            if (
                entry.stored_ns < tombstones_before_ns
                if entry.tombstone
                else not self._is_live(entry, now_ns)
            )
        ]

    def hashes(self, after: bytes, limit: int, now_ns: int) -> list[bytes]:
        """Hashes of the keys that can be returned, sorted, above `after`, at most `limit`."""
        above = (
            entry.hash
            for entry in self._entries.values()
            if entry.hash > after and self._is_live(entry, now_ns)
        )
        return sorted(above)[:limit]

    def listing(self, prefix: str, after: str, limit: int, now_ns: int) -> list[IndexEntry]:
        """Entries that can be returned, by key, above `after`, at most `limit`."""
        wanted = (
            entry
            for entry in self._entries.values()
            if entry.key > after and entry.key.startswith(prefix) and self._is_live(entry, now_ns)
        )
        return heapq.nsmallest(limit, wanted, key=lambda entry: entry.key)

    def _is_live(self, entry: IndexEntry, now_ns: int) -> bool:
        return (
            not entry.tombstone
            and entry.generation >= self.generation
            and not entry.is_expired(now_ns)
        )

    def _count(self, entry: IndexEntry, sign: int) -> None:
        self.tombstones += sign * entry.tombstone
        self.size_bytes += sign * entry.size_bytes
        self.object_bytes += sign * entry.object_bytes
