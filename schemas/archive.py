"""What the archive announces: stored, restored, expired, failed."""

from typing import ClassVar

from schemas.message import Message
from schemas.units import Bytes, Instant, Token


class _ArchiveEvent(Message, frozen=True, kw_only=True):
    PUBLISHER: ClassVar[str] = "archive"
    STREAM: ClassVar[str | None] = "EVENTS"

    namespace: Token
    key: str
    version: str
    observed_at: Instant


class Stored(_ArchiveEvent, frozen=True, kw_only=True):
    """An evicted entry, or a tombstone, is safely in the store and in the index."""

    SUBJECT: ClassVar[str] = "archived.stored.{namespace}"

    size_bytes: Bytes
    stored_bytes: Bytes
    expires_at: Instant | None
    tombstone: bool = False


class Restored(_ArchiveEvent, frozen=True, kw_only=True):
    """An archived entry was handed back to the cache, its digest verified."""

    SUBJECT: ClassVar[str] = "archived.restored.{namespace}"

    size_bytes: Bytes


class Expired(_ArchiveEvent, frozen=True, kw_only=True):
    """An archived entry passed its expiry and was removed from the store."""

    SUBJECT: ClassVar[str] = "archived.expired.{namespace}"


class ArchiveFailed(_ArchiveEvent, frozen=True, kw_only=True):
    """An entry could not be stored or read; `error` says why, in words an operator can act on."""

    SUBJECT: ClassVar[str] = "archived.failed.{namespace}"

    error: str
