"""Between a cached entry and the manifest that travels with it to the archive and back."""

import hashlib

import msgspec

from cache.entry import Entry
from cache.namespace import Namespace
from cache.outbox import Item
from schemas.cache import EVICTED_HEADER, INLINE_LIMIT_BYTES, Evicted, decode_header, encode_header
from schemas.message import UNDECODABLE
from schemas.protocols import Answer
from schemas.units import SECOND_NS, instant, to_ns

_decode = msgspec.json.Decoder(Evicted).decode


class ForeignAnswerError(ValueError):
    """The archive's answer is not what was asked for, or was damaged on its way."""


def message(item: Item, namespace: Namespace) -> tuple[bytes, dict[str, str]]:
    """Payload and headers for `evicted.<namespace>`, in the namespace's generation of now."""
    manifest = _manifest(item, namespace.name, namespace.generation)
    payload = b"" if item.entry is None else item.entry.value
    return payload, {EVICTED_HEADER: encode_header(msgspec.json.encode(manifest).decode())}


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
        )
    deadline_ns = item.expires_at_ns
    ttl_ns = None if deadline_ns is None else max(0, deadline_ns - item.evicted_at_ns)
    return Evicted(
        namespace=namespace,
        key=item.key,
        version=item.version,
        generation=generation,
        evicted_at=instant(item.evicted_at_ns),
        size_bytes=len(entry.value),
        digest=hashlib.sha256(entry.value).hexdigest(),
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


def restored_entry(
    answer: Answer, *, namespace: str, key: str, generation: int, now_ns: int
) -> Entry | None:
    """The entry in the archive's answer to a restore; None for a miss.

    It keeps its version, its writer's deadline and its history; being asked for counts as an
    access. A deadline by a heuristic ends: it gets a new one when it is evicted again.

    Raises:
        ForeignAnswerError: no manifest, or one of another key, generation or value.
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
    if len(answer.payload) > INLINE_LIMIT_BYTES:
        raise ForeignAnswerError(f"value of {len(answer.payload)} bytes")
    if hashlib.sha256(answer.payload).hexdigest() != manifest.digest:
        raise ForeignAnswerError("the value does not have its digest")
    return Entry(
        key=key,
        value=answer.payload,
        version=manifest.version,
        inserted_at_ns=now_ns if manifest.inserted_at is None else to_ns(manifest.inserted_at),
        last_accessed_ns=now_ns,
        access_count=manifest.access_count + 1,
        expires_at_ns=(
            None
            if manifest.expires_at is None or manifest.heuristic is not None
            else to_ns(manifest.expires_at)
        ),
        prefix_tokens=manifest.prefix_tokens,
        parent=manifest.parent,
        cost_seconds=manifest.cost_seconds,
        request_class=manifest.request_class,
        tags=tuple(manifest.tags),
        meta=manifest.meta,
    )
