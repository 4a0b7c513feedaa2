"""The cache on the bus: what it announces, and the manifest of an eviction."""

from typing import ClassVar, Literal
from urllib.parse import quote, unquote_to_bytes

import msgspec

from schemas.message import Message
from schemas.protocols import RequestError
from schemas.units import Bytes, Count, Instant, Number, Seconds, Token

INLINE_LIMIT_BYTES = 512 * 1024
MAX_KEY_BYTES = 10 * 1024
EVICTED_HEADER = "Fleet-Evicted"


class CacheEvent(Message, frozen=True, kw_only=True):
    """A namespace was cleared, or its configuration changed."""

    SUBJECT: ClassVar[str] = "cache_event.{kind}.{namespace}"
    PUBLISHER: ClassVar[str] = "cache"

    kind: Literal["invalidated", "cleared", "config"]
    namespace: Token
    instance: Token
    observed_at: Instant
    generation: Count
    entries: Count = 0


class Evicted(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of an eviction, in the header `Fleet-Evicted` of `evicted.<namespace>`.

    The payload of that message is the value. A tombstone has no payload, and says that versions
    of `key` below `version` are gone. `version` orders all versions of a namespace as text.
    `ttl_seconds` counts from `evicted_at`; `expires_at` is the exact instant and decides.
    `digest` is the SHA-256 of the value in hexadecimal. `score`: see `schemas.worth`.
    `heuristic` set the deadline; null: the writer did, and the deadline holds in RAM too.
    """

    namespace: Token
    key: str
    version: str
    generation: Count
    evicted_at: Instant
    tombstone: bool = False
    size_bytes: Bytes = 0
    digest: str = ""
    ttl_seconds: Seconds | None = None
    expires_at: Instant | None = None
    reason: str = "capacity"
    request_class: str | None = None
    tags: list[str] = []
    meta: dict[str, str] = {}
    prefix_tokens: Count | None = None
    parent: str | None = None
    cost_seconds: Number | None = None
    access_count: Count = 0
    inserted_at: Instant | None = None
    last_accessed: Instant | None = None
    score: float | None = None
    heuristic: str | None = None


def encode_header(text: str) -> str:
    """`text` for a NATS header: every byte outside `A-Za-z0-9-._~` percent-encoded.

    The server trims and folds header values silently, so anything else would not come back.
    """
    return quote(text, safe="")


def decode_header(value: str) -> str:
    """The text behind a percent-encoded header value.

    Raises:
        ValueError: a `%` is not followed by two hexadecimal digits, or the bytes are not UTF-8.
    """
    for position, character in enumerate(value):
        if character == "%":
            digits = value[position + 1 : position + 3]
            if len(digits) != 2 or not all(d in "0123456789abcdefABCDEF" for d in digits):
                raise ValueError(f"bad percent escape at character {position}")
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError as error:
        raise ValueError("percent-encoded bytes are not UTF-8") from error


def read_key(payload: bytes) -> str:
    """The key that is the whole payload of get, delete, exists, meta and restore.

    Raises:
        RequestError: 400, it is empty, too long or not UTF-8.
    """
    if not 0 < len(payload) <= MAX_KEY_BYTES:
        raise RequestError(
            400, f"the payload is the key, of 1 to {MAX_KEY_BYTES} bytes, not {len(payload)}"
        )
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise RequestError(400, "the payload is the key, in UTF-8") from None
