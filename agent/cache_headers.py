"""What keys and headers say in requests to the cache, checked before anything is sent."""

import math
from collections.abc import Mapping, Sequence

import msgspec

from schemas.cache import MAX_KEY_BYTES, encode_header


def get_headers(*, restore: bool, request_class: str | None) -> dict[str, str]:
    """Those of a get, and of an mget."""
    headers = {} if restore else {"Fleet-No-Restore": "1"}
    if request_class:
        headers["Fleet-Class"] = request_class
    return headers


def told(optional: Mapping[str, object]) -> dict[str, str]:
    """Those that are not None, as text."""
    return {name: str(value) for name, value in optional.items() if value is not None}


def put_headers(
    ttl_seconds: float | None,
    request_class: str | None,
    tags: Sequence[str],
    meta: Mapping[str, str] | None,
) -> dict[str, str]:
    """What may be said of one entry as of many."""
    if isinstance(tags, str):
        raise TypeError(f"tags are a sequence of str, not one str: {tags!r:.40}")
    if ttl_seconds is not None and not 0 <= ttl_seconds < math.inf:
        raise ValueError(f"a time to live of {ttl_seconds:g} s: it must be finite, 0 or more")
    optional = {
        "Fleet-Ttl-Seconds": None if ttl_seconds is None else str(ttl_seconds),
        "Fleet-Class": encode_header(request_class) if request_class else None,
        "Fleet-Tags": ",".join(map(encode_header, tags)) or None,
        "Fleet-Meta": encode_header(msgspec.json.encode(dict(meta)).decode()) if meta else None,
    }
    return told(optional)


def key_bytes(key: str) -> bytes:
    """The key as it travels.

    Raises:
        ValueError: it is empty or too long.
    """
    encoded = key.encode()
    if not encoded:
        raise ValueError("the key is empty")
    if len(encoded) > MAX_KEY_BYTES:
        raise ValueError(f"key of {len(encoded)} bytes exceeds the limit of {MAX_KEY_BYTES} bytes")
    return encoded
