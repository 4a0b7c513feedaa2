"""One archived version of a key, as the index holds it."""

import hashlib
import sys

import msgspec

from archive.frame import LAST_NS, FrameHeader, expires_ns
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
    return min(to_ns(manifest.last_accessed or manifest.evicted_at), LAST_NS)


class IndexEntry(msgspec.Struct, frozen=True, gc=False):
    """The newest archived version of a key. Instants are Unix nanoseconds.

    It lies in the object `segment`, `object_bytes` from `first` on; 0 of them: its value was
    given up, and it only says that lower versions are gone. `score` is above 0, `used_ns` the
    last access. `tag` set: the tombstone of that tag, no key's. `follows`: older versions of its
    key were here before, or may have been. `cost_seconds`: what computing the value anew would
    take; None where nobody said.

    A record of a segment's footer holds the fields from `namespace` to `cost_seconds`, in order;
    new fields come behind them, with a default for footers that lack them.
    """

    segment: str
    namespace: str
    key: str
    generation: int
    version: str
    tombstone: bool
    size_bytes: int
    first: int
    object_bytes: int
    stored_ns: int
    expires_ns: int | None
    score: float
    used_ns: int
    tags: tuple[str, ...]
    tag: str | None
    follows: bool
    cost_seconds: float | None
    hash: bytes

    @classmethod
    def of(
        cls,
        header: FrameHeader,
        object_bytes: int,
        *,
        segment: str = "",
        first: int = 0,
        follows: bool = True,
    ) -> "IndexEntry":
        """The entry for a frame with this header; without `segment`, an object of its own."""
        manifest = header.manifest
        return cls(
            segment=segment or object_name(manifest),
            namespace=sys.intern(manifest.namespace),
            key=manifest.key,
            generation=manifest.generation,
            version=manifest.version,
            tombstone=manifest.tombstone,
            size_bytes=manifest.size_bytes,
            first=first,
            object_bytes=object_bytes,
            stored_ns=to_ns(header.stored_at),
            expires_ns=expires_ns(manifest),
            score=score_of(manifest),
            used_ns=used_ns(manifest),
            tags=tuple(map(sys.intern, manifest.tags)),
            tag=manifest.tag,
            follows=follows,
            cost_seconds=manifest.cost_seconds,
            hash=key_hash(manifest.key),
        )

    @property
    def order(self) -> Order:
        """Sorts the versions of a key, see `order`."""
        return self.generation, self.version, not self.tombstone

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


_Record = msgspec.defstruct(
    "_Record",
    [
        *((field.name, field.type) for field in msgspec.structs.fields(IndexEntry)[1:-2]),
        ("cost_seconds", float | None, None),
    ],
    array_like=True,
)
_encode_record = msgspec.msgpack.Encoder().encode
_decode_records = msgspec.msgpack.Decoder(list[_Record]).decode  # type: ignore[valid-type]


def record_of(entry: IndexEntry) -> msgspec.Raw:
    """What a footer says of `entry`."""
    return msgspec.Raw(_encode_record(msgspec.structs.astuple(entry)[1:-1]))


def read_records(segment: str, records: bytes) -> list[IndexEntry]:
    """The entries of a segment's footer.

    Raises:
        msgspec.MsgspecError: it is no list of records.
    """
    entries = []
    for record in map(msgspec.structs.astuple, _decode_records(records)):
        fields = [segment, *record, key_hash(record[1])]
        entry = IndexEntry(*fields)
        # One copy in memory of what thousands have in common.
        msgspec.structs.force_setattr(entry, "namespace", sys.intern(entry.namespace))
        msgspec.structs.force_setattr(entry, "tags", tuple(map(sys.intern, entry.tags)))
        entries.append(entry)
    return entries
