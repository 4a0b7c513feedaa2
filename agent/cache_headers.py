"""What keys and headers say in requests to the cache, checked before anything is sent."""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from schemas.cache import MAX_KEY_BYTES, encode_header

LEAST_COST_SECONDS = 1e-18
"""Less is nothing; a header has no more digits."""


def get_headers(*, restore: bool, request_class: str | None) -> dict[str, str]:
    """Those of a get, and of an mget.

    Raises:
        TypeError: the class is no str.
    """
    headers = {} if restore else {"Fleet-No-Restore": "1"}
    if request_class:
        headers["Fleet-Class"] = checked_text("request_class", request_class)
    return headers


def told(optional: Mapping[str, object]) -> dict[str, str]:
    """Those that are not None, as text."""
    return {name: str(value) for name, value in optional.items() if value is not None}


def put_headers(
    request_class: str | None, tags: Sequence[str], meta: Mapping[str, str] | None
) -> dict[str, str]:
    """What can only be said of all entries of a message.

    Raises:
        TypeError: something is no str.
        ValueError: a tag is empty, or something is no UTF-8 text.
    """
    if isinstance(tags, str):
        raise TypeError(f"tags are a sequence of str, not one str: {tags!r:.40}")
    headers = {}
    if request_class:
        headers["Fleet-Class"] = encode_header(checked_text("request_class", request_class))
    if tags:
        headers["Fleet-Tags"] = ",".join(encode_header(checked_tag(tag)) for tag in tags)
    if meta:
        for name, text in meta.items():
            checked_text(f"the value of {name!r:.40} in meta", text)
            checked_text("a name in meta", name)
        headers["Fleet-Meta"] = encode_header(msgspec.json.encode(dict(meta)).decode())
    return headers


def checked_text(what: str, value: object) -> str:
    """`value`, if it is text that can travel.

    Raises:
        TypeError: it is no str.
        ValueError: it is no UTF-8 text (a file name or argument that was none, say).
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}: {value!r:.40}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} is not UTF-8 text at character {error.start}: {value!r:.40}"
        ) from None
    return value


def checked_tag(tag: object) -> str:
    """`tag`, if it may be one.

    Raises:
        TypeError: it is no str.
        ValueError: it is empty or no UTF-8 text.
    """
    if not checked_text("a tag", tag):
        raise ValueError("a tag is empty")
    return str(tag)


def checked_ttl(ttl_seconds: float | None) -> float | None:
    """The time to live of an entry, None = no own.

    Raises:
        ValueError: it is negative, infinite or no number.
    """
    if ttl_seconds is not None and not 0 <= ttl_seconds < math.inf:
        raise ValueError(f"ttl_seconds is {ttl_seconds:g}: it must be finite, 0 or more")
    return ttl_seconds


def checked_cost(cost_seconds: float | None) -> float | None:
    """What an entry cost to compute, None = unknown; of what is no number, its text will tell.

    Raises:
        ValueError: it is infinite, or no number at all.
    """
    if not isinstance(cost_seconds, float | int):
        return cost_seconds
    try:
        is_finite = math.isfinite(cost_seconds)
    except OverflowError:
        is_finite = False
    if not is_finite:
        raise ValueError(f"cost_seconds is {cost_seconds!r:.40}: it must be finite, 0 or more")
    return 0.0 if abs(cost_seconds) < LEAST_COST_SECONDS else cost_seconds


def key_bytes(key: str) -> bytes:
    """The key as it travels.

    Raises:
        TypeError: it is no str.
        ValueError: it is empty, too long, or no UTF-8 text.
    """
    try:
        encoded = key.encode()
    except (AttributeError, UnicodeEncodeError):
        encoded = checked_text("the key", key).encode()
    if not encoded:
        raise ValueError("the key is empty")
    if len(encoded) > MAX_KEY_BYTES:
        raise ValueError(f"key of {len(encoded)} bytes exceeds the limit of {MAX_KEY_BYTES} bytes")
    return encoded


def checked_keys(keys: Iterable[str]) -> list[str]:
    """The keys, if each may be one; an error names the first that may not.

    Raises:
        TypeError: one is no str.
        ValueError: one is empty, too long, or no UTF-8 text.
    """
    wanted = list(keys)
    for key in wanted:
        key_bytes(key)
    return wanted
