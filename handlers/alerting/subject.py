"""Whom a metrics message is about, as alerts name it."""

from typing import Any

import msgspec

from schemas.engines import CacheMetrics, EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics
from schemas.streams import StreamMetrics

FLEET = "all"


class Subject(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a value is about: a node or pool (`all`: the fleet), and which part of it.

    `source`: the GPU, engine, cache or stream whose message told it; "" = the node itself.
    """

    id: str
    part: str | None = None
    source: str = ""
    pool: str | None = None
    simulated: bool = False
    detail: str | None = None


def source_of(message: Message) -> str:
    """The part of a node that sends messages of its own; "" = the node itself."""
    match message:
        case GpuMetrics():
            return message.gpu
        case EngineMetrics():
            return message.engine
        case StreamMetrics():
            return message.stream
        case CacheMetrics():
            return f"{message.instance} {message.namespace}"
    return ""


def part_of(source: str, holder: Any, element: str | None) -> str | None:  # noqa: ANN401 - a Struct
    """A source, an element of a list (named by that field), or one of a source's: `GPU-1 79`."""
    if element is None:
        return source or None
    name = str(getattr(holder, element))
    return f"{source} {name}" if source else name


def subject_of(message: Message, id_: str, source: str, part: str | None, holder: Any) -> Subject:  # noqa: ANN401 - any Struct
    """Subject of a value in `holder`, a Struct of `message`, whose `text` says more."""
    return Subject(
        id=id_,
        part=part,
        source=source,
        pool=getattr(message, "pool", None),
        simulated=bool(getattr(message, "simulated", False)),
        detail=getattr(holder, "text", None),
    )
