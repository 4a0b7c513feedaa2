"""What a stranger may send: payloads that are no message, and messages with one wrong field."""

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent import catalog
from schemas.engines import EngineMetrics
from schemas.message import UNDECODABLE, Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.units import instant

MAX_PAYLOAD = 1024 * 1024
WIRE = Path(__file__).parents[1] / "wire"

NO_JSON_OBJECT: dict[str, bytes] = {
    "nul": b"\x00" * 64,
    "not-utf8": b"\xff\xfe{}",
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "cut-short": b'{"node": "n1',
    "two-objects": b"{}{}",
    "python": b"{'node': None}",
    "xml": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    "null": b"null",
    "text": b'"text"',
    "list": b"[]",
    "number": b"1",
    "nan": b"NaN",
    "nan-field": b'{"limit": NaN}',
    "infinity-field": b'{"limit": -Infinity}',
    "huge-float-field": b'{"limit": 1e999}',
    "huge-int-field": b'{"limit": 1' + b"0" * 10_000 + b"}",
    "lone-surrogate-field": b'{"node": "\\ud800"}',
    "nested-and-cut-short": b'{"a":' * 10_000,
    "nested": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "unknown-field": b'{"nonsense": 1}',
    "a-mebibyte-of-brackets": b"[" * MAX_PAYLOAD,
    "a-mebibyte-of-one-text": b'{"a":"' + b"a" * (MAX_PAYLOAD - 8) + b'"}',
}
"""None of them is a request or an event of ours."""

WRONG_VALUES = (
    b"[[]]",
    b'{"a": {}}',
    b"true",
    b'"x y\\u0000"',
    b'"' + b"a" * 100_000 + b'"',
    b'"\\udfff\\ud800"',
    b"-1",
    b"1" + b"0" * 400,
    b"18446744073709551616",
    b"9223372036854775807",
    b"1e308",
    b"-1e-308",
    b'"0001-01-01T00:00:00+23:59"',
    b'"9999-12-31T23:59:59-23:59"',
    b"[" * 5_000 + b"]" * 5_000,
)
"""JSON values, each of them wrong, or extreme, for most fields."""


def real_message(kind: type[Message]) -> Message:
    """A message of this kind as once sent."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
    return msgspec.json.decode((WIRE / f"{name}.json").read_bytes(), type=kind)


def with_one_wrong_field(kind: type[Message]) -> Iterator[bytes]:
    """The message with each field left out, and set to each wrong value."""
    fields = msgspec.to_builtins(real_message(kind))
    for name in fields:
        rest = {other: value for other, value in fields.items() if other != name}
        yield msgspec.json.encode(rest)
        for value in WRONG_VALUES:
            yield msgspec.json.encode({**rest, name: msgspec.Raw(value)})


def is_readable(kind: type[Message], payload: bytes) -> bool:
    """Whether it is a message of this kind after all."""
    try:
        msgspec.json.decode(payload, type=kind)
    except UNDECODABLE:
        return False
    return True


def subjects() -> list[str]:
    """Every subject that a service hears or a stream keeps, its marks not filled in."""
    return [
        *(event.SUBJECT for event in catalog.EVENTS),
        *(raw.subject for raw in catalog.RAW_EVENTS),
        *(endpoint.subject for endpoint in catalog.endpoints()),
    ]


class Flood:
    """Messages without end, no name twice: rubbish on every subject, and metrics of made-up parts.

    The metrics are well-formed: of nodes and pools that are not there, or of further and further
    GPUs and engines of three nodes.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._subjects = subjects()
        self._rubbish = [body for body in NO_JSON_OBJECT.values() if len(body) < 2000]
        self._metrics = [real_message(kind) for kind in (HostMetrics, GpuMetrics, EngineMetrics)]

    def message(self) -> tuple[str, bytes]:
        """Subject and payload of the next one."""
        if self._chance.random() < 0.5:
            subject = re.sub(
                r"\{\w+\}", lambda _: self._name(), self._chance.choice(self._subjects)
            )
            return subject, self._chance.choice([*self._rubbish, self._chance.randbytes(200)])
        message = self._chance.choice(self._metrics)
        fields = {name: self._name() for name in ("gpu", "engine") if hasattr(message, name)}
        if self._chance.random() < 0.5:
            fields |= {"node": self._name(), "pool": self._name()}
        else:
            fields |= {"node": f"n{self._chance.randrange(3)}"}
        made_up = msgspec.structs.replace(message, observed_at=instant(time.time_ns()), **fields)
        return made_up.subject(), msgspec.json.encode(made_up)

    def _name(self) -> str:
        return f"x{self._chance.getrandbits(64):016x}"
