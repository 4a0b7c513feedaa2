"""Which metrics message a delivery is, by its subject."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from schemas.archive_money import ArchiveMetrics
from schemas.engines import CacheMetrics, EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Delivery
from schemas.streams import StreamMetrics


class _Kind(NamedTuple):
    """How messages of one type are decoded, and which tokens end their subject."""

    decode: Callable[[bytes], Message]
    tokens_of: Callable[[Message], str]


def _kind(message_type: type[Message]) -> _Kind:
    _, _, *fields = message_type.SUBJECT.split(".")
    read: Callable[[Message], Any] = operator.attrgetter(*(field.strip("{}") for field in fields))
    tokens_of = read if len(fields) == 1 else lambda message: ".".join(read(message))
    return _Kind(msgspec.json.Decoder(message_type).decode, tokens_of)


_KINDS: dict[str, _Kind] = {
    kind.SUBJECT.split(".")[1]: _kind(kind)
    for kind in (
        HostMetrics,
        GpuMetrics,
        EngineMetrics,
        CacheMetrics,
        StreamMetrics,
        ArchiveMetrics,
    )
}
"""By the second token of their subjects, of which the first is `metrics`."""


def decode(delivery: Delivery) -> Message:
    """The metrics message of a delivery.

    Raises:
        ValueError: no such subject, or the payload is not that message.
    """
    first, _, rest = delivery.subject.partition(".")
    family, _, tokens = rest.partition(".")
    kind = _KINDS.get(family) if first == "metrics" else None
    if kind is None:
        raise ValueError(f"no message type for subject {delivery.subject}")
    message = kind.decode(delivery.payload)
    if kind.tokens_of(message) != tokens:
        raise ValueError(f"{delivery.subject} carries a message of {message.subject()}")
    return message
