"""Paths into metrics messages, as alert rules write them: `host.memory.utilization_ratio`."""

import re
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import msgspec

from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics

_KINDS: dict[str, type[Message]] = {
    "host": HostMetrics,
    "gpu": GpuMetrics,
    "engine": EngineMetrics,
}
_STEP = re.compile(r"(?P<field>\w+)(\[(?P<part>\w+)\])?")


class MetricPath:
    """One number of a message, or one per element of a list (`filesystems[mountpoint]`).

    Raises:
        ValueError: the path names no field of the message.
    """

    def __init__(self, path: str) -> None:
        kind, *steps = path.split(".")
        if kind not in _KINDS or not steps:
            raise ValueError(f"metric {path!r}: begin with one of {', '.join(_KINDS)}")
        self.text = path
        self.message_type = _KINDS[kind]
        self._steps: list[tuple[str, str | None]] = []
        struct: type[Any] | None = self.message_type
        for step in steps:
            match = _STEP.fullmatch(step)
            hints = get_type_hints(struct) if struct is not None else {}
            if match is None or match["field"] not in hints:
                raise ValueError(f"metric {path!r}: there is no {step!r} here")
            struct = _struct_within(hints[match["field"]])
            if match["part"] and (struct is None or match["part"] not in get_type_hints(struct)):
                raise ValueError(f"metric {path!r}: {step!r} has no such part")
            self._steps.append((match["field"], match["part"]))
        # Nearly every path is a field of the message itself: read on each one, it has to be quick.
        (first, part), *deeper = self._steps
        self._plain_field = None if part or deeper else first

    def read(self, message: Message) -> Sequence[tuple[str | None, float | None]]:
        """The part's name and value, of every part; value None = not measured.

        The part is the GPU or engine the message is about, or the list's element.
        """
        part = getattr(message, "gpu", None) or getattr(message, "engine", None)
        if self._plain_field is not None:
            return ((part, getattr(message, self._plain_field)),)
        found: list[tuple[str | None, Any]] = [(part, message)]
        for field, part_field in self._steps:
            found = [(part, getattr(value, field)) for part, value in found if value is not None]
            if part_field is not None:
                found = [
                    (str(getattr(element, part_field)), element)
                    for _, elements in found
                    for element in elements or ()
                ]
        return found


def _struct_within(hint: Any) -> type[Any] | None:  # noqa: ANN401 - any type expression
    """The Struct in `X`, `X | None`, `list[X] | None`; None where there is none."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    for inner in get_args(hint):
        struct = _struct_within(inner)
        if struct is not None:
            return struct
    return None
