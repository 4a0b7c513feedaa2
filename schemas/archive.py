"""What the archive announces: stored, restored, expired, failed."""

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from schemas.message import Message
from schemas.units import Bytes, Instant, Token

Namespace = Annotated[Token, Meta(description="that of the cache")]
Key = Annotated[str, Meta(description="the entry's")]
Version = Annotated[str, Meta(description="the entry's, of the cache")]
ObservedAt = Annotated[Instant, Meta(description="when it was said, by the archive's clock")]


class StoredEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One of a `Stored`: an evicted entry, or a tombstone.

    The tombstone of a tag has no key but `tag`.
    """

    key: Key
    version: Version
    size_bytes: Annotated[Bytes, Meta(description="of the value; of a tombstone 0")]
    stored_bytes: Annotated[
        Bytes, Meta(description="of its part of an object in the store: header, compressed value")
    ]
    expires_at: Annotated[
        Instant | None,
        Meta(description="from then on it is not given back; null: never, as a tombstone"),
    ]
    tombstone: Annotated[
        bool, Meta(description="true: it only says that older versions are gone")
    ] = False
    tag: Annotated[
        str | None, Meta(description="whose tombstone it is; null: a value's, or a key's")
    ] = None


class Stored(Message, frozen=True, kw_only=True):
    """Evicted entries and tombstones that are safely in the store and in the index.

    Many together, as they were stored, where a message for each would double what streams take.
    16 KiB of them at most, but for one that is longer alone.
    """

    SUBJECT: ClassVar[str] = "archived.stored.{namespace}"
    PUBLISHER: ClassVar[str] = "archive"
    STREAM: ClassVar[str | None] = "EVENTS"

    namespace: Namespace
    observed_at: ObservedAt
    entries: Annotated[
        list[StoredEntry], Meta(description="one or more; after a crash they may be said again")
    ]


class _ArchiveEvent(Message, frozen=True, kw_only=True):
    PUBLISHER: ClassVar[str] = "archive"
    STREAM: ClassVar[str | None] = "EVENTS"

    namespace: Namespace
    key: Key
    version: Version
    observed_at: ObservedAt


class Restored(_ArchiveEvent, frozen=True, kw_only=True):
    """An archived entry was handed back; whoever asked for it verifies a large one's digest."""

    SUBJECT: ClassVar[str] = "archived.restored.{namespace}"

    size_bytes: Annotated[Bytes, Meta(description="of the value")]


class Expired(_ArchiveEvent, frozen=True, kw_only=True):
    """An archived entry passed its expiry and was removed from the store."""

    SUBJECT: ClassVar[str] = "archived.expired.{namespace}"


class ArchiveFailed(_ArchiveEvent, frozen=True, kw_only=True):
    """An entry could not be stored or read; `error` says why, in words an operator can act on."""

    SUBJECT: ClassVar[str] = "archived.failed.{namespace}"

    error: Annotated[str, Meta(description="why, for people")]
