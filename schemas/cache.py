"""The cache on the bus: what it announces, and the manifest of an eviction."""

import binascii
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

from schemas.message import Message
from schemas.protocols import RequestError
from schemas.units import Bytes, Count, Instant, Number, Seconds, Token

INLINE_LIMIT_BYTES = 512 * 1024
MAX_KEY_BYTES = 10 * 1024
MAX_TAG_BYTES = 16 * 1024
MAX_BATCH_KEYS = 1000
"""Of one mget or mput."""
MAX_CHAIN_KEYS = 10_000
"""Of one match: a chain of 160,000 tokens in blocks of 16."""
BATCH_ANSWER_BYTES = 1_000_000
"""Of one answer to mget: it fits into the 1 MiB that a nats-server lets through by default."""
MAX_PREFIX_TOKENS = 1_000_000_000
MAX_COST_SECONDS = 1_000_000
"""Eleven days. Both are of one put, far above any that is true: sums of them stay numbers."""
EVICTED_HEADER = "Fleet-Evicted"
PART_BYTES = INLINE_LIMIT_BYTES
"""A value above the inline limit travels in parts of this size; the last one may be smaller."""
PARTS_IN_FLIGHT = 4
"""Parts under way at once: with fewer the bus waits, with more only its buffers fill."""
FILE_HEADER = "Fleet-File"
"""Path of a file of a cache on the same host, to read a value from or write one to:
percent-encoded. With an eviction: it is lent."""
LENDER_HEADER = "Fleet-Lender"
"""Instance of the cache that lends an eviction: it gives the parts until the archive has it."""
WRITTEN_WITHIN_SECONDS = 0.25
"""So long the archive writes a value into a cache's file before it says anything of it."""

_ESCAPED = [quote(bytes([byte]), safe="") for byte in range(256)]
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_RANGE = re.compile(r"(\d{1,15})-(\d{1,15})", re.ASCII)


class CacheEvent(Message, frozen=True, kw_only=True):
    """Entries of a namespace are outdated (`invalidated`), all of them (`cleared`), or `config`.

    Who keeps copies drops those of `keys` that have a lower version than the one named there, with
    `tag` set all of that tag below `below_version`, and on `cleared` all. Versions compare as text.
    Sent at most once: who was disconnected, or sees `sequence` of an instance skip a number, drops
    all.
    """

    SUBJECT: ClassVar[str] = "cache_event.{kind}.{namespace}"
    PUBLISHER: ClassVar[str] = "cache"

    kind: Annotated[
        Literal["invalidated", "cleared", "config"],
        Meta(description="what happened"),
    ]
    namespace: Annotated[Token, Meta(description="the one it happened to")]
    instance: Annotated[Token, Meta(description="cache that owns the namespace")]
    observed_at: Annotated[Instant, Meta(description="when, by the cache's clock")]
    generation: Annotated[
        Count, Meta(description="from now on; what was archived before is never given back")
    ]
    entries: Annotated[Count, Meta(description="how many left RAM")] = 0
    version: Annotated[
        Count | None, Meta(description="of the configuration, with `config`; null: something else")
    ] = None
    keys: Annotated[
        dict[str, str], Meta(description="what was put or deleted, with the version of that")
    ] = {}
    tag: Annotated[str | None, Meta(description="what was deleted; null: no tag was")] = None
    below_version: Annotated[
        str | None, Meta(description="lower ones of `tag` are outdated; null without `tag`")
    ] = None
    sequence: Annotated[
        Count | None,
        Meta(description="counts the `invalidated` of the instance; null: another kind"),
    ] = None


class Warming(Message, frozen=True, kw_only=True):
    """How far the keys are that `warm` or a `match` asked for; counts since the last was done.

    Once a second while there is something to do, and when the last key is done (`waiting` 0).
    """

    SUBJECT: ClassVar[str] = "cache_event.warming.{namespace}"
    PUBLISHER: ClassVar[str] = "cache"

    namespace: Annotated[Token, Meta(description="the one that is warmed")]
    instance: Annotated[Token, Meta(description="cache that owns the namespace")]
    observed_at: Annotated[Instant, Meta(description="when, by the cache's clock")]
    waiting: Annotated[Count, Meta(description="keys still to do")]
    restored: Annotated[Count, Meta(description="brought back into RAM")]
    here: Annotated[Count, Meta(description="were in RAM, or on their way to the archive")]
    absent: Annotated[Count, Meta(description="the archive has nothing of them to give")]
    failed: Annotated[Count, Meta(description="the archive did not answer in time")]
    left_out: Annotated[
        Count, Meta(description="too much would have had to leave RAM, or cancelled")
    ]


class ClassStats(msgspec.Struct, frozen=True, kw_only=True):
    """One `Fleet-Class` since the instance took the namespace.

    A get or mget counts for the class its header names, a hit without one for the class that the
    entry was put with; so misses are only seen of requests that name their class.
    """

    hits_total: Annotated[Count, Meta(description="keys that RAM or the outbox had")]
    misses_total: Annotated[Count, Meta(description="the others, answered by the archive or not")]
    puts_total: Annotated[Count, Meta(description="entries put with the class")]
    answered_bytes_total: Annotated[Bytes, Meta(description="values given out, restored ones too")]
    cost_saved_seconds_total: Annotated[
        Number, Meta(description="sum of `Fleet-Cost-Seconds` of the values given out")
    ]
    latency_p50_seconds: Annotated[
        Seconds | None,
        Meta(
            description="of look-ups in the service, an mget's time divided by its keys; up to an "
            "eighth high; null: none yet"
        ),
    ]
    latency_p95_seconds: Annotated[
        Seconds | None,
        Meta(
            description="of look-ups in the service, an mget's time divided by its keys; up to an "
            "eighth high; null: none yet"
        ),
    ]


class Evicted(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of an eviction, in the header `Fleet-Evicted` of `evicted.<namespace>`.

    The payload of that message is the value; with `parts` it is empty, and the value lies in that
    many messages `evicted_part.<namespace>.<eviction>.<0 …>`, all acknowledged before this one; or
    it is lent, and stays in the outbox: in the cache's file that the header `Fleet-File` names, or
    from the cache `Fleet-Lender`, which gives its parts.
    A tombstone has no payload, and says that versions of `key` below `version` are gone; with `tag`
    set (and no key) those of every key of that tag. One with `parts` gives up an eviction: what it
    has sent may be removed. `version` orders all versions of a namespace as text. `ttl_seconds`
    counts from `evicted_at`; `expires_at` is the exact instant and decides. `digest`: see
    `schemas.digest`. `score`: see `schemas.worth`. `heuristic` set the deadline; null:
    the writer did, and the deadline holds in RAM too.
    """

    namespace: Annotated[Token, Meta(description="the entry's")]
    key: Annotated[str, Meta(description="the entry's")]
    version: Annotated[
        str,
        Meta(
            description="the entry's, `<epoch>-<count>` in hexadecimal; of a tombstone that of "
            "the write or deletion"
        ),
    ]
    generation: Annotated[Count, Meta(description="of the namespace, raised by each clear")]
    evicted_at: Annotated[Instant, Meta(description="when it left RAM, by the cache's clock")]
    tombstone: Annotated[
        bool, Meta(description="true: no value, only that older versions are gone")
    ] = False
    size_bytes: Annotated[Bytes, Meta(description="of the value; of a tombstone 0")] = 0
    digest: Annotated[str, Meta(description="of the value; of a tombstone empty")] = ""
    ttl_seconds: Annotated[
        Seconds | None,
        Meta(description="from `evicted_at` to `expires_at`; null: for ever, or a tombstone"),
    ] = None
    expires_at: Annotated[
        Instant | None,
        Meta(
            description="the entry's own expiry, else by `heuristic`; null: never, or a tombstone"
        ),
    ] = None
    reason: Annotated[
        str,
        Meta(
            description="`capacity`, `stop` (the cache was stopped) or `superseded` (a tombstone)"
        ),
    ] = "capacity"
    request_class: Annotated[
        str | None, Meta(description="`Fleet-Class` of its put; null: not given")
    ] = None
    tags: Annotated[list[str], Meta(description="`Fleet-Tags` of its put")] = []
    meta: Annotated[dict[str, str], Meta(description="`Fleet-Meta` of its put")] = {}
    prefix_tokens: Annotated[
        Count | None, Meta(description="`Fleet-Prefix-Tokens` of its put; null: not given")
    ] = None
    parent: Annotated[
        str | None, Meta(description="key, `Fleet-Parent` of its put; null: not given")
    ] = None
    cost_seconds: Annotated[
        Number | None,
        Meta(description="to compute it anew, `Fleet-Cost-Seconds` of its put; null: not given"),
    ] = None
    access_count: Annotated[Count, Meta(description="hits since it was put")] = 0
    inserted_at: Annotated[
        Instant | None, Meta(description="when it was put, by the cache's clock; null: a tombstone")
    ] = None
    last_accessed: Annotated[
        Instant | None, Meta(description="its last hit, else its put; null: a tombstone")
    ] = None
    score: Annotated[
        float | None, Meta(description="1: ordinary, see `schemas.worth`; null: a tombstone")
    ] = None
    heuristic: Annotated[
        str | None,
        Meta(
            description="of `cache.ttl.heuristic`, which set the deadline; null: the writer "
            "did, or a tombstone"
        ),
    ] = None
    parts: Annotated[
        Count, Meta(description="messages that hold the value; 0: it is the payload")
    ] = 0
    eviction: Annotated[
        Token | None, Meta(description="token in the subjects of its parts; null: it has none")
    ] = None
    tag: Annotated[
        str | None, Meta(description="whose tombstone it is; null: a value's, or a key's")
    ] = None


def encode_header(text: str) -> str:
    """`text` for a NATS header: every byte outside `A-Za-z0-9-._~` percent-encoded.

    The server trims and folds header values silently, so anything else would not come back.
    """
    return "".join([_ESCAPED[byte] for byte in text.encode()])


def encode_json_header(json: bytes) -> str:
    """JSON for a NATS header, to be read by `decode_header`: escaped only where it must be.

    What it is made of is kept as it is by any server; this takes a tenth of `encode_header`, and a
    manifest is a third shorter.
    """
    text = json.decode()
    if text.isascii() and text.isprintable():
        return text.replace("%", "%25").replace(" ", "%20")
    return encode_header(text)


def decode_header(value: str) -> str:
    """The text behind a percent-encoded header value.

    Raises:
        ValueError: a `%` is not followed by two hexadecimal digits, or the bytes are not UTF-8.
    """
    bad = _BAD_ESCAPE.search(value)
    if bad is not None:
        raise ValueError(f"bad percent escape at character {bad.start()}")
    try:
        # Quoted-printable is the same with another sign, and decoded in C: five times as fast.
        quoted = value.replace("=", "%3D").replace("%", "=")
        return binascii.a2b_qp(quoted.encode()).decode()
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


def part_count(size_bytes: int) -> int:
    """How many parts a value of this size has."""
    return -(-size_bytes // PART_BYTES)


def part_range(part: int, size_bytes: int) -> tuple[int, int]:
    """The bytes of part 0, 1, …: from the first number up to, not with, the second."""
    return part * PART_BYTES, min((part + 1) * PART_BYTES, size_bytes)


def read_range(headers: Mapping[str, str], size_bytes: int) -> tuple[int, int]:
    """What `Fleet-Range: first-last` (both included) asks of a value, as a half-open range.

    Raises:
        RequestError: 400, it is missing, malformed, too long or outside the value.
    """
    found = _RANGE.fullmatch(headers.get("Fleet-Range", ""))
    if found is None:
        raise RequestError(400, "header Fleet-Range: must be `first-last`, bytes from 0, inclusive")
    first, last = int(found[1]), int(found[2])
    if not first <= last < size_bytes:
        raise RequestError(
            400, f"header Fleet-Range: first <= last < {size_bytes}, the size, not {first}-{last}"
        )
    if last - first >= PART_BYTES:
        raise RequestError(
            400, f"header Fleet-Range: at most {PART_BYTES} bytes, not {last - first + 1}"
        )
    return first, last + 1
