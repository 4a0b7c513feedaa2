"""One archived version of a key, as the index holds it."""

import dataclasses
import hashlib
import sys

import msgspec

from archive.segment import ObjectHeader, expires_ns
from schemas.cache import Evicted
from schemas.units import to_ns

HASH_BYTES = 8
LEAST_SCORE = 2.0**-20

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
    if manifest.tag is not None:
        identity.append(manifest.tag)
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def key_hash(key: str) -> bytes:
    """Eight bytes that stand for `key` in the list of archived keys (BLAKE2b)."""
    return hashlib.blake2b(key.encode(), digest_size=HASH_BYTES).digest()


def score_of(manifest: Evicted) -> float:
    """The manifest's score within [2^-20, 2^20]; 1 where it has none."""
    score = 1.0 if manifest.score is None else manifest.score
    return min(max(score, LEAST_SCORE), 1 / LEAST_SCORE)


def used_ns(manifest: Evicted) -> int:
    """When the value was last asked for; its eviction where that is not known."""
    return to_ns(manifest.last_accessed or manifest.evicted_at)


@dataclasses.dataclass(frozen=True, slots=True)
class IndexEntry:
    """The newest archived version of a key. Instants are Unix nanoseconds.

    `score` is above 0, `used_ns` the last access. `tag` set: the tombstone of that tag, no key's.
    """

    namespace: str
    key: str
    order: Order
    name: str
    size_bytes: int
    object_bytes: int
    stored_ns: int
    expires_ns: int | None
    hash: bytes
    score: float
    used_ns: int
    tags: tuple[str, ...] = ()
    tag: str | None = None

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
            score=score_of(manifest),
            used_ns=used_ns(manifest),
            tags=tuple(map(sys.intern, manifest.tags)),
            tag=manifest.tag,
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
