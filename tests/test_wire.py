"""Each file in tests/wire/ is a message as once sent: today's code must still read it."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.catalog import EVENTS
from schemas.message import Message

WIRE = Path(__file__).parent / "wire"


def wire_file(kind: type[Message]) -> Path:
    return WIRE / (re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower() + ".json")


def kept(sent: Any, now: Any) -> Any:
    """`now` without the fields that were added since `sent`."""
    if isinstance(sent, dict):
        return {name: kept(value, now.get(name)) for name, value in sent.items()}
    if isinstance(sent, list):
        return [kept(*pair) for pair in zip(sent, now, strict=True)]
    return now


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_a_message_once_sent_is_read_and_written_the_same(kind: type[Message]) -> None:
    content = wire_file(kind).read_bytes()

    message = msgspec.json.decode(content, type=kind)

    sent = msgspec.json.decode(content)
    assert kept(sent, msgspec.json.decode(msgspec.json.encode(message))) == sent
    assert re.fullmatch(kind.pattern().replace("*", r"[A-Za-z0-9_-]+"), message.subject())


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_fields_of_newer_peers_are_ignored(kind: type[Message]) -> None:
    tree = msgspec.json.decode(wire_file(kind).read_bytes())
    tree["field_of_the_future"] = 1

    assert isinstance(msgspec.convert(tree, kind), kind)
