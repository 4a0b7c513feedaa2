"""Types with their unit and range, said once, and the two clocks' conversions."""

import functools
import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from msgspec import Meta

Token = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9_-]{1,128}$(?!\n)", description="one NATS subject token"),
]
Ratio = Annotated[float, Meta(ge=0, le=1, description="share, 0 to 1")]
# The upper bounds keep sums, means and nanoseconds of what a peer sends finite.
_MOST = 1e15
_MOST_INT = 2**63 - 1
Count = Annotated[int, Meta(ge=0, le=_MOST_INT, description="a count, never negative")]
Seconds = Annotated[float, Meta(ge=0, le=_MOST, description="seconds")]
Bytes = Annotated[int, Meta(ge=0, le=_MOST_INT, description="bytes")]
Number = Annotated[
    float, Meta(ge=0, le=_MOST, description="a non-negative number; the name carries the unit")
]
Instant = Annotated[datetime, Meta(tz=True, description="RFC 3339 instant in UTC")]

# When a reading of a driver or the kernel is null: most of the fields of hosts and GPUs say it.
UNREAD = "null: not offered here, or failed (then in `errors`)"

SECOND_NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_TOKEN = re.compile(r"[^A-Za-z0-9_-]")
_MAX_TOKEN_LENGTH = 64
_MAX_PAIR_LENGTH = 128
"""As many characters as a `Token` has at most."""
_PAIR_DIGITS = 10
_LIKE_PAIR_DIGITS = re.compile(r"[0-9a-f]{10}")


def instant(ns: int) -> datetime:
    """The UTC instant `ns` nanoseconds after the Unix epoch, cut to whole microseconds."""
    return _EPOCH + timedelta(microseconds=ns // 1000)


def to_ns(moment: datetime) -> int:
    """Nanoseconds between the Unix epoch and `moment`, exact for whole microseconds."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * SECOND_NS + since.microseconds * 1000


@functools.lru_cache(maxsize=1 << 16)
def token(name: str) -> str:
    """`name` as one subject token, at most 64 characters.

    A name that already is a token of that length comes back unchanged. Any other keeps its legal
    characters and gets six hexadecimal digits of its SHA-256, so that two names stay apart:
    `gpu-0` → `gpu-0`, `rack 1/node.a` → `rack-1-node-a-` plus its digest.
    """
    clean = _NOT_TOKEN.sub("-", name)
    if clean == name and 0 < len(name) <= _MAX_TOKEN_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{clean[: _MAX_TOKEN_LENGTH - 7]}-{digest}"


def token_or_none(name: str | None) -> str | None:
    """The token of a name; None: no name is given, or an empty one."""
    return token(name) if name else None


def paired(first: str, second: str) -> str:
    """Two tokens as one, `<first>-<second>`, at most 128 characters, another for every pair.

    The last dash tells the two apart where the second has none: `node-1` and `g0` → `node-1-g0`.
    Where it has one, where it could be taken for the digits that follow, or where both are too
    long, ten hexadecimal digits of the SHA-256 of both come behind, so that `a`, `b-c` and
    `a-b`, `c` stay apart.
    """
    name = f"{first}-{second}"
    is_plain = "-" not in second and _LIKE_PAIR_DIGITS.fullmatch(second) is None
    if is_plain and len(name) <= _MAX_PAIR_LENGTH:
        return name
    # A space is in no token: it tells where the first ends.
    digest = hashlib.sha256(f"{first} {second}".encode()).hexdigest()[:_PAIR_DIGITS]
    return f"{name[: _MAX_PAIR_LENGTH - _PAIR_DIGITS - 1]}-{digest}"
