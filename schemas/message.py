"""The base of every event: a frozen Struct that knows its subject."""

import functools
import re
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

Simulated = Annotated[bool, Meta(description="true: from a simulator, at least in part")]
CorrelationId = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._:-]{1,100}$(?!\n)",
        description="the same in everything that is said because of one whole run",
    ),
]

_FIELD = re.compile(r"\{(\w+)\}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")


UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a stranger's bytes raises: of another shape, not UTF-8, nested too deeply."""


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event on the bus, sent as JSON.

    `SUBJECT` stands below the root (`fleet.v1` by default; the bus adds it) and names fields in
    braces, so publisher and consumer cannot disagree. `STREAM` is the stream that keeps it, named
    below the stream prefix (`METRICS` → `FLEET_METRICS`), or None for core-only messages.
    `DURABLE` says whether publishing waits for the stream's acknowledgement. Unknown fields from
    newer peers are ignored. `gc=False`: no message is part of a cycle, and thousands are kept.
    """

    SUBJECT: ClassVar[str]
    PUBLISHER: ClassVar[str]
    STREAM: ClassVar[str | None] = None
    DURABLE: ClassVar[bool] = True

    def subject(self) -> str:
        """The concrete subject below the root.

        Raises:
            ValueError: a field of the subject is not a token.
        """
        template, fields = _template(type(self))
        tokens = [str(getattr(self, field)) for field in fields]
        for field, text in zip(fields, tokens, strict=True):
            if not _TOKEN.fullmatch(text):
                raise ValueError(
                    f"{type(self).__name__}.{field} is {text!r}: a subject token may only "
                    "hold letters, digits, '_' and '-'"
                )
        return template.format(*tokens)

    @classmethod
    def pattern(cls) -> str:
        """The subscription subject below the root that matches every message of this type."""
        return _FIELD.sub("*", cls.SUBJECT)


@functools.cache
def _template(kind: type[Message]) -> tuple[str, tuple[str, ...]]:
    """The subject of a type with `{}` for each token, and the fields that fill them."""
    return _FIELD.sub("{}", kind.SUBJECT), tuple(_FIELD.findall(kind.SUBJECT))
