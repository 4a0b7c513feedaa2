"""What a request about many entries says: lists of keys, and the entries of an mput."""

from collections.abc import Callable, Mapping

import msgspec

from cache.entry import Entry
from cache.requests import checked_key, checked_ttl, checked_version, deadline_ns, read_put
from schemas.api import BatchEntry
from schemas.cache import INLINE_LIMIT_BYTES, MAX_BATCH_KEYS, encode_header
from schemas.message import UNDECODABLE
from schemas.protocols import RequestError

_decode_keys = msgspec.json.Decoder(list[str]).decode
_decode_entries = msgspec.json.Decoder(list[BatchEntry]).decode
_ONE_FOR_ALL = ("Fleet-Key", "Fleet-Version", "Fleet-Size", "Fleet-Digest")


def read_keys(payload: bytes, limit: int) -> list[str]:
    """The JSON list of different keys that is the payload of match and mget.

    Raises:
        RequestError: 400 no such list, with the place of the wrong key; 413 too many keys.
    """
    try:
        keys = _decode_keys(payload)
    except UNDECODABLE as error:
        raise RequestError(400, f"the payload is a JSON list of keys: {error}") from None
    check_keys(keys, limit)
    return keys


def check_keys(keys: list[str], limit: int) -> None:
    """Whether these may be the keys of one request.

    Raises:
        RequestError: 400 with the place of a key that is none, or there twice; 413 too many.
    """
    if len(keys) > limit:
        raise RequestError(413, f"{len(keys)} keys are more than {limit} in one message")
    for place, key in enumerate(keys):
        try:
            checked_key(key)
        except ValueError as error:
            raise RequestError(400, f"key {place}: {error}") from None
    if len(set(keys)) < len(keys):
        first: dict[str, int] = {}
        for place, key in enumerate(keys):
            if first.setdefault(key, place) != place:
                raise RequestError(400, f"keys {first[key]} and {place} are the same")


def read_mput(
    headers: Mapping[str, str],
    payload: bytes,
    now_ns: int,
    kept_key: Callable[[str], str] = str,
) -> list[tuple[Entry, str | None]]:
    """The entries to keep, each with the version it expects to replace.

    `kept_key` gives the name under which a key is kept for its client.
    With `Fleet-Chain: 1` each one's parent is the one before, the first one's `Fleet-Parent`.

    Raises:
        RequestError: 400 malformed, with the place of the entry; 413 too many, or one too large.
    """
    line, found, values = payload.partition(b"\n")
    try:
        described = _decode_entries(line)
    except UNDECODABLE as error:
        raise RequestError(400, f"the payload begins with a JSON list: {error}") from None
    if not found and described:
        raise RequestError(400, "the JSON list ends with a line feed; the values follow")
    if len(described) > MAX_BATCH_KEYS:
        raise RequestError(
            413, f"{len(described)} entries are more than {MAX_BATCH_KEYS} in one message"
        )
    sizes = sum(one.size for one in described)
    if sizes != len(values):
        raise RequestError(
            400, f"the sizes add up to {sizes} bytes, but {len(values)} bytes of values follow"
        )
    check_keys([one.key for one in described], MAX_BATCH_KEYS)
    for name in _ONE_FOR_ALL:
        if name in headers:
            raise RequestError(400, f"header {name} is not for many entries")
    chain = headers.get("Fleet-Chain") == "1"
    entries: list[tuple[Entry, str | None]] = []
    start = 0
    if not described:
        return entries
    of_one = {**headers, "Fleet-Key": encode_header(described[0].key)}
    common, _ = read_put(of_one, b"", now_ns, kept_key)
    parent = common.parent
    for place, one in enumerate(described):
        value = values[start : start + one.size]
        start += one.size
        try:
            entry, version = _entry(one, value, common, now_ns, kept_key)
            if chain and (one.parent is not None or version is not None):
                raise ValueError("no parent and no version of its own in a chain")
        except ValueError as error:
            raise RequestError(400, f"entry {place}: {error}") from None
        if one.size > INLINE_LIMIT_BYTES:
            raise RequestError(
                413,
                f"entry {place}: value of {one.size} bytes is above the limit of "
                f"{INLINE_LIMIT_BYTES} bytes; put it alone",
            )
        if chain:
            entry.parent, parent = parent, entry.key
        entries.append((entry, version))
    return entries


def _entry(
    one: BatchEntry, value: bytes, common: Entry, now_ns: int, kept_key: Callable[[str], str]
) -> tuple[Entry, str | None]:
    """What `one` says of itself, and for the rest what the headers say of all."""
    ttl_seconds = common.ttl_seconds if one.ttl_seconds is None else checked_ttl(one.ttl_seconds)
    entry = Entry(
        key=kept_key(one.key),
        value=value,
        inserted_at_ns=now_ns,
        ttl_seconds=ttl_seconds,
        expires_at_ns=deadline_ns(ttl_seconds, now_ns),
        prefix_tokens=common.prefix_tokens if one.prefix_tokens is None else one.prefix_tokens,
        parent=common.parent if one.parent is None else kept_key(checked_key(one.parent)),
        cost_seconds=common.cost_seconds if one.cost_seconds is None else one.cost_seconds,
        request_class=common.request_class,
        tags=common.tags,
        meta=common.meta,
    )
    return entry, None if one.version is None else checked_version(one.version)
