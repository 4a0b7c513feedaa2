"""Our parser against nats-py's: the same bytes, however they are cut, give the same calls."""

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from agent.bus.parser import MessageParser

INBOX = b"_INBOX.a."


class Receiver:
    """Notes what a parser calls; with `at_once`, what goes to the inbox is taken at once."""

    def __init__(self, *, at_once: bool) -> None:
        self.calls: list[Any] = []
        self.taken = 0
        self._at_once = at_once

    def take_at_once(self, subject: bytes, payload: bytes, header: bytes) -> bool:
        if not (self._at_once and subject.startswith(INBOX)):
            return False
        self.taken += 1
        self.calls.append((subject, payload, header))
        return True

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        await asyncio.sleep(0)
        if subject.startswith(INBOX):
            self.calls.append((subject, data, headers or b""))
        else:
            self.calls.append((sid, subject, reply, data, headers or b""))

    async def _process_ping(self) -> None:
        self.calls.append("PING")

    async def _process_pong(self) -> None:
        self.calls.append("PONG")

    async def _process_err(self, text: str) -> None:
        self.calls.append(text)

    async def _process_info(self, info: Any) -> None:
        self.calls.append(info)


async def heard(parser: Parser, receiver: Receiver, pieces: Iterable[bytes]) -> list[Any]:
    for piece in pieces:
        await parser.parse(piece)
    return receiver.calls


async def by_both(pieces: list[bytes]) -> tuple[list[Any], list[Any]]:
    theirs, ours = Receiver(at_once=False), Receiver(at_once=True)
    return (
        await heard(Parser(theirs), theirs, pieces),
        await heard(MessageParser(ours), ours, pieces),
    )


def message(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> bytes:
    to = reply + b" " if reply else b""
    sizes = b"%d" % len(payload)
    verb = b"MSG"
    if header:
        verb, sizes = b"HMSG", b"%d %d" % (len(header), len(header) + len(payload))
    return b"%b %b 7 %b%b\r\n%b%b\r\n" % (verb, subject, to, sizes, header, payload)


subjects = st.sampled_from(
    [b"a", b"fleet.v1.metrics.host.n", INBOX + b"1f", b"\xff\xfe", b"_INBOX"]
)
replies = st.sampled_from([b"", b"_INBOX.b.2", b"$JS.ACK.x"])
headers = st.sampled_from([b"", b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0 503\r\n\r\n"])
payloads = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"\r\n", b"PING\r\n", b"MSG a 1 2\r\nhi\r\n"])
)
others = st.sampled_from(
    [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Slow'\r\n", b'INFO {"a": 1}\r\n']
)
lines = st.one_of(st.builds(message, subjects, replies, headers, payloads), others)


@given(said=st.lists(lines, max_size=12), cuts=st.lists(st.integers(0, 800), max_size=12))
def test_any_stream_cut_anywhere_gives_what_nats_py_gives(
    said: list[bytes], cuts: list[int]
) -> None:
    whole = b"".join(said)
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[begin:end] for begin, end in itertools.pairwise(edges)]

    theirs, ours = asyncio.run(by_both(pieces))

    assert ours == theirs
    assert len(ours) == sum(line != b"+OK\r\n" for line in said)


async def test_whole_answers_are_taken_at_once() -> None:
    receiver = Receiver(at_once=True)
    answer = message(INBOX + b"1", b"", b"NATS/1.0\r\nA: b\r\n\r\n", b"value")

    await MessageParser(receiver).parse(answer * 3)

    assert receiver.taken == 3


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a\r\n\r\n",
        b"MSG a x 2\r\nhi\r\n",
        b"MSG a 1 b c 2\r\nhi\r\n",
        b"HMSG a 1 x 2\r\nhi\r\n",
        b"MSG a 1 -2\r\nhi\r\n",
        b"nonsense\r\n",
        b"\r\n",
    ],
    ids=["no number", "no sid", "two replies", "no header size", "negative", "nonsense", "empty"],
)
async def test_what_no_server_says_is_refused_as_by_nats_py(line: bytes) -> None:
    receiver = Receiver(at_once=True)

    with pytest.raises(nats.errors.ProtocolError):
        await MessageParser(receiver).parse(message(b"a", b"", b"", b"before") + line)

    assert len(receiver.calls) == 1
