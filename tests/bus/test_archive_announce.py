"""How the archive says what it has stored, on a real server."""

import itertools

import msgspec
import pytest

from agent.bus import Bus
from archive.announce import STORED_BYTES, Announcer
from archive.frame import FrameHeader
from archive.index_entry import IndexEntry
from schemas.archive import Stored
from schemas.units import instant
from tests.support.evictions import ManualClock, evicted
from tests.support.waiting import until

pytestmark = pytest.mark.bus
ENVELOPE_BYTES = 128 + 64
"""Namespace, time, and commas between the entries."""


def stored(key: str) -> IndexEntry:
    header = FrameHeader(manifest=evicted(key), codec="raw", stored_at=instant(0), payload_bytes=5)
    return IndexEntry.of(header, 100, segment="7d-" + "0" * 32)


async def heard_of(bus: Bus, entries: list[IndexEntry]) -> list[tuple[int, list[str]]]:
    """Length and keys of each message that says that these are stored."""
    messages: list[tuple[int, list[str]]] = []

    def take(_subject: str, payload: bytes) -> None:
        said = msgspec.json.decode(payload, type=Stored)
        messages.append((len(payload), [entry.key for entry in said.entries]))

    await bus.subscribe("archived.stored.default", take)
    await Announcer(bus, "archive", ManualClock()).stored(entries)
    await until(lambda: sum(len(keys) for _, keys in messages) >= len(entries))
    return messages


async def test_a_batch_is_one_message(bus: Bus) -> None:
    keys = [f"conversation:{number:064x}" for number in range(64)]

    messages = await heard_of(bus, list(map(stored, keys)))

    assert [said for _, said in messages] == [keys]


@pytest.mark.parametrize(
    "letter",
    ["k", "\x01", "é", "🔑"],
    ids=["plain", "six bytes in JSON", "two bytes", "four bytes"],
)
async def test_what_is_long_together_is_said_in_several_messages(bus: Bus, letter: str) -> None:
    keys = [f"{number}".ljust(400, letter) for number in range(64)]

    messages = await heard_of(bus, list(map(stored, keys)))

    assert [key for _, said in messages for key in said] == keys
    lengths = [length for length, _ in messages]
    assert max(lengths) <= STORED_BYTES + ENVELOPE_BYTES
    assert all(one + following > STORED_BYTES for one, following in itertools.pairwise(lengths))


async def test_one_that_is_longer_alone_is_said_nevertheless(bus: Bus) -> None:
    keys = ["k" * (STORED_BYTES + 1), "between", "l" * (STORED_BYTES + 1)]

    messages = await heard_of(bus, list(map(stored, keys)))

    assert [said for _, said in messages] == [keys[:1], keys[1:2], keys[2:]]
