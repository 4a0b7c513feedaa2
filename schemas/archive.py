"""What the archive announces: stored, restored, expired, failed."""

from typing import Annotated, ClassVar

from msgspec import Meta

from schemas.message import Message
from schemas.units import Bytes, Instant, Token


class _ArchiveEvent(Message, frozen=True, kw_only=True):
    PUBLISHER: ClassVar[str] = "archive"
    STREAM: ClassVar[str | None] = "EVENTS"

    namespace: Annotated[Token, Meta(description="that of the cache")]
    key: Annotated[str, Meta(description="the entry's")]
    version: Annotated[str, Meta(description="the entry's, of the cache")]
    observed_at: Annotated[Instant, Meta(description="when it was said, by the archive's clock")]


class Stored(_ArchiveEvent, frozen=True, kw_only=True):
    """An evicted entry, or a tombstone, is safely in the store and in the index.

    The tombstone of a tag has no key but `tag`.
    """

    SUBJECT: ClassVar[str] = "archived.stored.{namespace}"

    size_bytes: Annotated[Bytes, Meta(description="of the value; of a tombstone 0")]
    stored_bytes: Annotated[
        Bytes, Meta(description="of the object in the store: header and compressed value")
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
