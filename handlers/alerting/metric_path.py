"""Paths into metrics messages, as alert rules write them: `host.memory.utilization_ratio`."""

import functools
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

from schemas.alerts import SEVERITIES
from schemas.engines import CacheMetrics, EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.streams import StreamMetrics

KINDS: dict[str, type[Message]] = {
    "host": HostMetrics,
    "gpu": GpuMetrics,
    "engine": EngineMetrics,
    "cache": CacheMetrics,
    "stream": StreamMetrics,
}
OF_THE_FLEET: tuple[type[Message], ...] = (CacheMetrics, StreamMetrics)
"""Of no node."""

Place: TypeAlias = tuple[type[Message], tuple[str, ...], str | None]
"""A Struct within a message: its type, the fields to it, and, of a list, the elements' name."""

_STEP = re.compile(r"(?P<field>\w+)(\[(?P<inner>\w+(\|\w+)*)\])?")
_RANKS = {severity: float(rank) for rank, severity in enumerate(SEVERITIES, start=1)}


class MetricPath:
    """A number of a message, or of each element of a list in it.

    `place` is the Struct that has it, `field` its name there, and `convert`, where the field is
    no number, makes one of it: of a severity its rank, of words whether one is there. `least` and
    `most` are what the schema allows of it.

    Raises:
        ValueError: the path names no field of the message, or none that is a number.
    """

    def __init__(self, path: str) -> None:
        kind, *steps = path.split(".")
        if kind not in KINDS or not steps:
            raise ValueError(f"metric {path!r}: begin with one of {', '.join(KINDS)}")
        self.text = path
        *containers, last = (_step(path, step) for step in steps)
        struct: type[msgspec.Struct] = KINDS[kind]
        fields: list[str] = []
        element: str | None = None
        for field, inner in containers:
            inside, is_list = _struct_within(_hint(path, struct, field))
            wants_element = inner is not None
            if inside is None or element is not None or is_list != wants_element:
                raise ValueError(f"metric {path!r}: {field!r} has no such part")
            if inner is not None:
                _hint(path, inside, inner)
            fields, element, struct = [*fields, field], inner, inside
        self.place: Place = (KINDS[kind], tuple(fields), element)
        self.field, words = last
        hint = _hint(path, struct, self.field)
        self.convert = _conversion(path, hint, self.field, words)
        self.is_yes_or_no = self.convert is not None or bool in _alternatives(hint)
        self.least, self.most = (0.0, 1.0) if words else _bounds(struct, self.field)

    @property
    def message_type(self) -> type[Message]:
        """Of which messages it is."""
        return self.place[0]


def holders(place: Place) -> Callable[[Message], Sequence[Any] | None]:
    """A function that gives the Structs at `place` in a message; None = not measured."""
    _, fields, element = place
    if not fields:
        return lambda message: (message,)
    is_list = element is not None
    first, *deeper = (operator.attrgetter(field) for field in fields)
    if is_list and not deeper:
        return first

    def find(message: Message) -> Sequence[Any] | None:
        found: Any = first(message)
        for step in deeper:
            if found is None:
                return None
            found = step(found)
        return found if found is None or is_list else (found,)

    return find


def _step(path: str, step: str) -> tuple[str, str | None]:
    match = _STEP.fullmatch(step)
    if match is None:
        raise ValueError(f"metric {path!r}: {step!r} is not a field")
    return match["field"], match["inner"]


@functools.cache
def _hints(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return get_type_hints(struct)


def _hint(path: str, struct: type[msgspec.Struct], field: str) -> Any:  # noqa: ANN401 - any type expression
    hints = _hints(struct)
    if field not in struct.__struct_fields__:
        raise ValueError(f"metric {path!r}: there is no {field!r} here")
    return hints[field]


def _alternatives(hint: Any) -> list[Any]:  # noqa: ANN401 - any type expression
    """`X` of `X`, `X | None`, `Annotated[X, …]`."""
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [one for inner in get_args(hint) for one in _alternatives(inner)]
    return [hint]


def _struct_within(hint: Any) -> tuple[type[msgspec.Struct] | None, bool]:  # noqa: ANN401
    """The Struct in `X`, `X | None`, `list[X] | None`, and whether it is a list's."""
    for one in _alternatives(hint):
        is_list = get_origin(one) is list
        inner = get_args(one)[0] if is_list else one
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            return inner, is_list
    return None, False


def _bounds(struct: type[msgspec.Struct], field: str) -> tuple[float, float]:
    """The least and the most that a field may be, by its schema."""
    (kinds,) = (list(_kinds(one.type)) for one in _fields(struct) if one.name == field)
    if any(isinstance(kind, inspect.LiteralType) for kind in kinds):
        return min(_RANKS.values()), max(_RANKS.values())
    numbers = [kind for kind in kinds if isinstance(kind, inspect.IntType | inspect.FloatType)]
    if not numbers:
        return 0.0, 1.0
    least = min(-math.inf if kind.ge is None else float(kind.ge) for kind in numbers)
    return least, max(math.inf if kind.le is None else float(kind.le) for kind in numbers)


def _kinds(found: inspect.Type) -> Iterator[inspect.Type]:
    """Those of a union, whatever is said about them."""
    if isinstance(found, inspect.Metadata):
        yield from _kinds(found.type)
    elif isinstance(found, inspect.UnionType):
        for one in found.types:
            yield from _kinds(one)
    else:
        yield found


@functools.cache
def _fields(struct: type[msgspec.Struct]) -> Sequence[inspect.Field]:
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)  # noqa: S101 - of a Struct
    return info.fields


def _conversion(
    path: str,
    hint: Any,  # noqa: ANN401 - any type expression
    field: str,
    words: str | None,
) -> Callable[[Any], float] | None:
    """What makes a number of the field's value; None where it is one."""
    kinds = [kind for kind in _alternatives(hint) if kind is not NoneType]
    if words is None and all(kind in (int, float, bool) for kind in kinds):
        return None
    if words is None and all(
        get_origin(kind) is Literal and set(get_args(kind)) <= _RANKS.keys() for kind in kinds
    ):
        return _RANKS.__getitem__
    if words is not None and kinds == [str]:
        wanted = frozenset(words.split("|"))
        return lambda value: float(value in wanted)
    if words is not None and kinds == [list[str]]:
        wanted = frozenset(words.split("|"))
        return lambda value: float(not wanted.isdisjoint(value))
    is_text = all(kind in (str, list[str]) for kind in kinds)
    how = f"; write {field}[WORD|WORD]" if is_text else ""
    raise ValueError(f"metric {path!r}: {field!r} is not a number{how}")
