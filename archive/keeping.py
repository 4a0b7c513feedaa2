"""What is decided about an eviction: by the one archiver that keeps the index, for all of them."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

from archive import frame
from archive.index_entry import IndexEntry, Order, score_of, used_ns
from archive.packer import INLINE_BYTES, Packer, Value
from schemas.cache import Evicted

Outcome = Literal["stored", "repeated", "superseded", "expired"]
Kept = tuple[Outcome, IndexEntry | None]
"""What became of an eviction, and its entry where there is one."""
Count = Callable[[str, Kept], None]
"""Takes a namespace, and what became of an eviction of it."""
Eviction = tuple[Evicted, Value]


class Candidate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What must be known of a manifest to decide about it."""

    namespace: str
    key: str
    tag: str | None
    generation: int
    version: str
    tombstone: bool
    expires_ns: int | None
    tags: list[str]
    score: float
    used_ns: int

    @classmethod
    def of(cls, manifest: Evicted) -> "Candidate":
        """That of a manifest."""
        return cls(
            manifest.namespace,
            manifest.key,
            manifest.tag,
            manifest.generation,
            manifest.version,
            manifest.tombstone,
            frame.expires_ns(manifest),
            manifest.tags,
            score_of(manifest),
            used_ns(manifest),
        )

    @property
    def order(self) -> Order:
        """Sorts the versions of a key, see `archive.index_entry.order`."""
        return self.generation, self.version, not self.tombstone


class Verdict(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`outcome` "stored": it is to be packed, into a segment of `ttl_class`.

    `as_tombstone`: its value has expired, but it outdates one that has not. `known`: the entry
    that is there already, of one that is repeated.
    """

    outcome: Outcome
    ttl_class: str = ""
    follows: bool = False
    as_tombstone: bool = False
    known: IndexEntry | None = None


class Keeping(Protocol):
    """Where evictions go: into the index of this process, or of another one."""

    packer: Packer

    async def ready(self) -> None:
        """Return where evictions can be taken now; raises PublishError where not."""

    async def pack_all(self, evictions: Sequence[Eviction]) -> list[Kept]:
        """Decide about them, and pack those that are to be stored: none is durable yet.

        Raises:
            ValueError: the one value that came in parts is not what its manifest says.
            PublishError: a server, or the archiver that keeps the index, does not answer.
        """

    async def settle_all(self, kept: Sequence[Kept]) -> None:
        """Return once they are durable, and in the index.

        Raises:
            PublishError: they are not; they have to be packed again.
        """


async def pack(packer: Packer, eviction: Eviction, verdict: Verdict, stored_ns: int) -> IndexEntry:
    """Put an eviction that is to be stored into a segment, as it was decided."""
    manifest, value = _decided(eviction, verdict)
    return await packer.add(
        manifest,
        value,
        stored_ns=stored_ns,
        ttl_class=verdict.ttl_class,
        follows=verdict.follows,
    )


def is_small(value: Value) -> bool:
    """Whether `pack_small` takes it."""
    return isinstance(value, bytes) and len(value) <= INLINE_BYTES


def pack_small(packer: Packer, eviction: Eviction, verdict: Verdict, stored_ns: int) -> IndexEntry:
    """As `pack`, at once."""
    manifest, value = _decided(eviction, verdict)
    assert isinstance(value, bytes)  # noqa: S101 - small ones are
    return packer.add_small(
        manifest,
        value,
        stored_ns=stored_ns,
        ttl_class=verdict.ttl_class,
        follows=verdict.follows,
    )


def _decided(eviction: Eviction, verdict: Verdict) -> Eviction:
    if not verdict.as_tombstone:
        return eviction
    manifest = msgspec.structs.replace(
        eviction[0], tombstone=True, size_bytes=0, digest="", ttl_seconds=None, expires_at=None
    )
    return manifest, b""
