"""Between a cached entry and the manifest that travels with it to the archive and back."""

from typing import TypeVar

import msgspec

from cache.entry import Entry
from cache.namespace import Namespace
from cache.outbox import Item
from cache.value_file import ValueFile
from schemas.cache import (
    EVICTED_HEADER,
    MAX_COST_SECONDS,
    MAX_PREFIX_TOKENS,
    Evicted,
    decode_header,
    encode_json_header,
    part_count,
)
from schemas.digest import digest_of
from schemas.message import UNDECODABLE
from schemas.protocols import Answer
from schemas.units import SECOND_NS, instant, to_ns

_decode = msgspec.json.Decoder(Evicted).decode
N = TypeVar("N", int, float)


class ForeignAnswerError(ValueError):
    """The archive's answer is not what was asked for, or was damaged on its way."""


class WrongDigestError(ForeignAnswerError):
    """The value that came is not the one of its manifest."""

    def __init__(self) -> None:
        super().__init__("the value does not have its digest")


def message(item: Item, namespace: Namespace) -> tuple[bytes, dict[str, str]]:
    """Payload and headers for `evicted.<namespace>`, in the namespace's generation of now."""
    payload = b"" if item.entry is None else item.entry.payload()
    return payload, _headers(_manifest(item, namespace.name, namespace.generation))


def message_of_parts(item: Item, namespace: Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """Headers of the message that follows the parts of a large value: to keep, or to give it up.

    The generation is that of now: what is cleared while its parts are sent does not come back.
    """
    manifest = msgspec.structs.replace(
        _manifest(item, namespace.name, namespace.generation),
        parts=part_count(0 if item.entry is None else item.entry.value_bytes),
        eviction=eviction_token(item),
    )
    given_up = msgspec.structs.replace(
        manifest, tombstone=True, size_bytes=0, digest="", ttl_seconds=None, expires_at=None
    )
    return _headers(manifest), _headers(given_up)


def eviction_token(item: Item) -> str:
    """The item's message id as a token of the subjects of its parts; never used again."""
    return item.message_id.replace(".", "-")


def _headers(manifest: Evicted) -> dict[str, str]:
    return {EVICTED_HEADER: encode_json_header(msgspec.json.encode(manifest))}


def _manifest(item: Item, namespace: str, generation: int) -> Evicted:
    entry = item.entry
    if entry is None:
        return Evicted(
            namespace=namespace,
            key=item.key,
            version=item.version,
            generation=generation,
            evicted_at=instant(item.evicted_at_ns),
            tombstone=True,
            reason=item.reason,
            tag=item.tag,
        )
    deadline_ns = item.expires_at_ns
    ttl_ns = None if deadline_ns is None else max(0, deadline_ns - item.evicted_at_ns)
    return Evicted(
        namespace=namespace,
        key=item.key,
        version=item.version,
        generation=generation,
        evicted_at=instant(item.evicted_at_ns),
        size_bytes=entry.value_bytes,
        digest=entry.compute_digest(),
        ttl_seconds=None if ttl_ns is None else ttl_ns / SECOND_NS,
        expires_at=None if deadline_ns is None else instant(deadline_ns),
        reason=item.reason,
        request_class=entry.request_class,
        tags=list(entry.tags),
        meta=dict(entry.meta),
        prefix_tokens=entry.prefix_tokens,
        parent=entry.parent,
        cost_seconds=entry.cost_seconds,
        access_count=entry.access_count,
        inserted_at=instant(entry.inserted_at_ns),
        last_accessed=instant(entry.last_accessed_ns),
        score=item.score,
        heuristic=item.heuristic,
    )


def read_restored(answer: Answer, *, namespace: str, key: str, generation: int) -> Evicted | None:
    """The manifest in the archive's answer to a restore; None for a miss.

    Raises:
        ForeignAnswerError: no manifest, or one of another key or generation.
    """
    if answer.headers.get("Fleet-Status") == "miss":
        return None
    try:
        manifest = _decode(decode_header(answer.headers.get(EVICTED_HEADER, "")))
    except (ValueError, *UNDECODABLE) as error:
        raise ForeignAnswerError(f"header {EVICTED_HEADER}: {error}") from error
    if (manifest.namespace, manifest.key) != (namespace, key) or manifest.tombstone:
        raise ForeignAnswerError("another entry than asked for")
    if manifest.generation != generation:
        raise ForeignAnswerError(f"generation {manifest.generation}, not {generation}")
    return manifest


def check_restored(manifest: Evicted, value: bytes) -> None:
    """Compare a restored value with its manifest.

    Raises:
        ForeignAnswerError: it is another value.
    """
    if len(value) != manifest.size_bytes:
        raise ForeignAnswerError(f"value of {len(value)} bytes, not {manifest.size_bytes}")
    if digest_of(value, like=manifest.digest) != manifest.digest:
        raise WrongDigestError


def restored_entry(manifest: Evicted, value: bytes | memoryview | ValueFile, now_ns: int) -> Entry:
    """The entry with its version, its writer's deadline and its history.

    Being asked for counts as an access. A deadline by a heuristic ends: the entry gets a new one
    when it is evicted again.
    """
    return Entry(
        key=manifest.key,
        value=value,
        digest=manifest.digest,
        version=manifest.version,
        inserted_at_ns=now_ns if manifest.inserted_at is None else to_ns(manifest.inserted_at),
        last_accessed_ns=now_ns,
        access_count=manifest.access_count + 1,
        expires_at_ns=(
            None
            if manifest.expires_at is None or manifest.heuristic is not None
            else to_ns(manifest.expires_at)
        ),
        prefix_tokens=_at_most(MAX_PREFIX_TOKENS, manifest.prefix_tokens),
        parent=manifest.parent,
        cost_seconds=_at_most(MAX_COST_SECONDS, manifest.cost_seconds),
        request_class=manifest.request_class,
        tags=tuple(manifest.tags),
        meta=manifest.meta,
    )


def _at_most(bound: N, number: N | None) -> N | None:
    """`number`, or what a put may say at most: the archive also holds older evictions."""
    return None if number is None else min(bound, number)
