"""What a request to the cache says: keys, and the headers of a put."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from cache.entry import Entry, utf8_bytes
from cache.settings import TEN_YEARS_SECONDS
from cache.value_file import ValueFile
from schemas import digest
from schemas.cache import (
    INLINE_LIMIT_BYTES,
    MAX_COST_SECONDS,
    MAX_KEY_BYTES,
    MAX_PREFIX_TOKENS,
    decode_header,
)
from schemas.message import UNDECODABLE
from schemas.protocols import RequestError
from schemas.units import SECOND_NS

MAX_LABEL_BYTES = 16 * 1024
"""Tags and meta together: with key and parent they must fit beside the value in one message."""

_NUMBER = re.compile(r"\d{1,18}(\.\d{1,18})?([eE][+-]?\d{1,2})?", re.ASCII)
_COUNT = re.compile(r"\d{1,15}", re.ASCII)
CLASS = re.compile(r"[A-Za-z0-9_-]{1,128}")
_DIGEST = re.compile(digest.PATTERN)
_VERSION = re.compile(r"[0-9a-f]{12}-[0-9a-f]{10}")
_decode_meta = msgspec.json.Decoder(dict[str, str]).decode
T = TypeVar("T")


class PutRequest:
    """What the headers of a put say; `digest` is empty while it has not come."""

    def __init__(self, headers: Mapping[str, str], kept_key: Callable[[str], str] = str) -> None:
        """Read the headers; `kept_key` gives the key under which the cache keeps a key.

        Raises:
            RequestError: 400 a header is missing or malformed, named.
        """
        self._fields = _read_fields(headers, kept_key)
        self.key: str = self._fields["key"]
        self.expected_version = read_version(headers)
        self.size_bytes = _read(headers, "Fleet-Size", _count) or 0
        self.digest = ""
        self.read_digest(headers)

    def read_digest(self, headers: Mapping[str, str]) -> None:
        """Take `Fleet-Digest` over, where it is there.

        Raises:
            RequestError: 400, it is malformed.
        """
        given = _read(headers, "Fleet-Digest", lambda text: _matching(_DIGEST, text))
        self.digest = given or self.digest

    def entry(self, value: bytes | memoryview | ValueFile, now_ns: int) -> Entry:
        """The entry with this value, put at `now_ns`: from then on its time to live counts."""
        ttl_seconds = self._fields["ttl_seconds"]
        return Entry(
            **self._fields,
            value=value,
            digest=self.digest,
            inserted_at_ns=now_ns,
            expires_at_ns=deadline_ns(ttl_seconds, now_ns),
        )


def read_put(
    headers: Mapping[str, str],
    payload: bytes,
    now_ns: int,
    kept_key: Callable[[str], str] = str,
) -> tuple[Entry, str | None]:
    """The entry to keep, and the version it expects to replace; `kept_key` as in PutRequest.

    Raises:
        RequestError: 413 the value is too large; 400 a header is missing or malformed, named.
    """
    if len(payload) > INLINE_LIMIT_BYTES:
        raise RequestError(
            413,
            f"value of {len(payload)} bytes is above the limit of {INLINE_LIMIT_BYTES} bytes of "
            "one message: put it with Fleet-Size and without payload, then send its parts",
        )
    if "Fleet-Digest" in headers:
        raise RequestError(400, "header Fleet-Size is missing: Fleet-Digest is of values in parts")
    request = PutRequest(headers, kept_key)
    return request.entry(payload, now_ns), request.expected_version


def read_upload(
    headers: Mapping[str, str], payload: bytes, kept_key: Callable[[str], str] = str
) -> PutRequest:
    """What is said of a large value (`Fleet-Size`) that will come in parts.

    Raises:
        RequestError: 400 a header is missing or malformed, named.
    """
    if payload:
        raise RequestError(
            400, "header Fleet-Size: announces a value in parts: send it without payload"
        )
    request = PutRequest(headers, kept_key)
    if request.size_bytes <= INLINE_LIMIT_BYTES:
        raise RequestError(
            400,
            f"header Fleet-Size: must be above {INLINE_LIMIT_BYTES}; smaller values are the "
            "payload of put",
        )
    return request


def read_file_put(
    headers: Mapping[str, str], payload: bytes, kept_key: Callable[[str], str] = str
) -> PutRequest:
    """What is said of a value (`Fleet-Size`) that lies in a file.

    Raises:
        RequestError: 400 a header is missing or malformed, named.
    """
    if payload:
        raise RequestError(400, "header Fleet-File: the value is a file: send no payload")
    request = PutRequest(headers, kept_key)
    if not request.size_bytes:
        raise RequestError(400, "header Fleet-Size is missing")
    return request


def read_version(headers: Mapping[str, str]) -> str | None:
    """`Fleet-Version`, where it is there.

    Raises:
        RequestError: 400, it is malformed.
    """
    return _read(headers, "Fleet-Version", checked_version)


def _read_fields(headers: Mapping[str, str], kept_key: Callable[[str], str]) -> dict[str, Any]:
    key = _read(headers, "Fleet-Key", lambda text: checked_key(decode_header(text)))
    if key is None:
        raise RequestError(400, "header Fleet-Key is missing")
    parent = _read(headers, "Fleet-Parent", lambda text: checked_key(decode_header(text)))
    ttl_seconds = _read(headers, "Fleet-Ttl-Seconds", lambda text: checked_ttl(_number(text)))
    tags = _read(headers, "Fleet-Tags", _tags) or ()
    meta = _read(headers, "Fleet-Meta", lambda text: _decode_meta(decode_header(text))) or {}
    labels = sum(len(text.encode()) for text in (*tags, *meta, *meta.values()))
    if labels > MAX_LABEL_BYTES:
        raise RequestError(
            400,
            f"Fleet-Tags and Fleet-Meta have {labels} bytes, more than {MAX_LABEL_BYTES} together",
        )
    return {
        "key": kept_key(key),
        "ttl_seconds": ttl_seconds,
        "prefix_tokens": _read(headers, "Fleet-Prefix-Tokens", _tokens),
        "parent": None if parent is None else kept_key(parent),
        "cost_seconds": _read(headers, "Fleet-Cost-Seconds", _cost),
        "request_class": _read(headers, "Fleet-Class", lambda text: _matching(CLASS, text)),
        "tags": tags,
        "meta": meta,
    }


def deadline_ns(ttl_seconds: float | None, now_ns: int) -> int | None:
    """When an entry put now expires in RAM; None where its writer asked for no such time."""
    return now_ns + int(ttl_seconds * SECOND_NS) if ttl_seconds else None


def checked_key(key: str) -> str:
    """`key`, if it may be one.

    Raises:
        ValueError: it is empty or too long.
    """
    size = utf8_bytes(key)
    if not 0 < size <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {size}")
    return key


def checked_version(text: str) -> str:
    """`text`, if it may be a version.

    Raises:
        ValueError: it may not.
    """
    return _matching(_VERSION, text)


def _read(headers: Mapping[str, str], name: str, parse: Callable[[str], T]) -> T | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        return parse(text)
    except (ValueError, *UNDECODABLE) as error:
        raise RequestError(400, f"header {name}: {error}") from None


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"must match {pattern.pattern}")
    return text


def _count(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError("must be a whole number of at most 15 digits")
    return int(text)


def _number(text: str) -> float:
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    if not math.isfinite(number):
        raise ValueError("must be a decimal number of at least 0")
    return number


def _tokens(text: str) -> int:
    if (tokens := _count(text)) > MAX_PREFIX_TOKENS:
        raise ValueError(f"must be at most {MAX_PREFIX_TOKENS}")
    return tokens


def _cost(text: str) -> float:
    if (seconds := _number(text)) > MAX_COST_SECONDS:
        raise ValueError(f"must be at most {MAX_COST_SECONDS}")
    return seconds


def checked_ttl(seconds: float) -> float:
    """`seconds`, if an entry may live so long.

    Raises:
        ValueError: it may not.
    """
    if seconds > TEN_YEARS_SECONDS:
        raise ValueError(f"must be at most {TEN_YEARS_SECONDS} (ten years)")
    return seconds


def _tags(text: str) -> tuple[str, ...]:
    tags = tuple(decode_header(tag.strip()) for tag in text.split(","))
    if not all(tags):
        raise ValueError("a tag is empty")
    return tags
