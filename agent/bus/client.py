"""nats-py's client, mended where one message, one late answer or one stalled server ends it.

nats-py keeps saying `is_connected` after its read loop died, so each of these faults is silent.
The overridden methods are private to nats-py; tests/bus/test_bus_traps.py shows what happens
without them.
"""

import asyncio
import contextlib
import functools
import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol.parser import PERMISSIONS_ERR

from agent.bus import chunks
from agent.bus.parser import MessageParser
from schemas.protocols import Answer

READ_BYTES = 256 * 1024
"""As much as asyncio takes from a socket at once."""
FLUSH_SECONDS = 5.0
RETRY_SECONDS = 0.5
_NO_ANSWER = nats.errors.TimeoutError()
_VERSION_LINE = len(b"NATS/1.0\r\n")
_DENIED = re.compile(r'(publish|subscription) to "([^"]+)"', re.IGNORECASE)
_NO_SUBJECT = re.compile(r"\s|^$")


def size_on_wire(payload: bytes, headers: Mapping[str, str]) -> int:
    """Bytes that the server counts against `max_payload`: nats-py looks at the payload alone."""
    if not headers:
        return len(payload)
    lines = sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
    return len(payload) + len("NATS/1.0\r\n\r\n") + lines


def _give_up(answered: asyncio.Future[Answer]) -> None:
    if not answered.done():
        answered.set_exception(nats.errors.TimeoutError())


@functools.lru_cache(256)
def _header_name(name: bytes) -> str | None:
    """None: it is none, and its line is passed over."""
    text = name.strip()
    return None if not text.isascii() or len(text.split()) > 1 else text.decode()


class ConnectionLostError(nats.errors.TimeoutError):
    """The connection broke before the answer came; whether it was done is not known."""

    def __str__(self) -> str:
        return "the connection broke before the answer came"


class DeniedError(nats.errors.Error):
    """The server does not let this user ask that, or hear the answer; in the server's words."""


class Question(NamedTuple):
    """One of several that are asked together."""

    subject: str
    payload: bytes = b""
    headers: Mapping[str, str] = {}


class _Round:
    """The answers to questions that were asked together; one timer and one future for all."""

    def __init__(self, count: int) -> None:
        self.answers: list[Answer | nats.errors.Error] = [_NO_ANSWER] * count
        self.is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._missing = count

    def take(self, place: int, answer: Answer | nats.errors.Error) -> None:
        self.answers[place] = answer
        self._missing -= 1
        if not self._missing:
            self.end()

    def end(self) -> None:
        if not self.is_over.done():
            self.is_over.set_result(None)


class _Place:
    """Where one answer of a round goes; as much of a future as those need who answer."""

    __slots__ = ("_place", "_round")

    def __init__(self, of: _Round, place: int) -> None:
        self._round = of
        self._place = place

    def done(self) -> bool:
        return self._round.answers[self._place] is not _NO_ANSWER

    def set_result(self, answer: Answer) -> None:
        self._round.take(self._place, answer)

    def set_exception(self, error: nats.errors.Error) -> None:
        self._round.take(self._place, error)

    def exception(self) -> None:
        """Nobody has to look at it."""


class _Transport(TcpTransport):
    """Reads what has come as it came: nats-py's 32 KiB stop and start the socket for each part."""

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:  # noqa: ANN401 - nats-py's address
        async with asyncio.timeout(connect_timeout):
            reader, writer = await chunks.connect(uri.hostname, uri.port, buffer_size)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = writer

    async def read(self, _buffer_size: int) -> bytes:
        return bytes(await super().read(READ_BYTES))


class BusClient(Client):
    """A nats-py client that outlives hostile messages, stalled servers and its own mistakes."""

    def __init__(self, on_bad_message: Callable[[str, Exception], None]) -> None:
        super().__init__()
        self._ps = MessageParser(self)
        self._on_bad_message = on_bad_message
        self._inbox = ""
        self._inbox_bytes = b"\0"
        self._inbox_opening = asyncio.Lock()
        self._asked: dict[str, asyncio.Future[Answer] | _Place] = {}
        self._asked_of: dict[str, str] = {}
        self._question_numbers = itertools.count()

    async def settle(self) -> None:
        """Return once the server knows the new subscriptions; a reconnect brings them otherwise."""
        with contextlib.suppress(nats.errors.TimeoutError, OSError):
            if self.is_connected:
                await self.flush(timeout=FLUSH_SECONDS)  # type: ignore[arg-type]  # any number

    async def retire(self, subscription: Subscription) -> None:
        """Take no more messages, handle those received, and never come back.

        Where the server does not answer, the subscription is dropped on this side alone: left
        in place, the next reconnect would subscribe it again.
        """
        try:
            if self.is_connected:
                await subscription.drain()  # type: ignore[no-untyped-call]
        finally:
            self._remove_sub(subscription._id)
            subscription._stop_processing()

    def answer(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> bool:
        """Publish at once; what we do most, so without the half of nats-py's work it needs not.

        `subject` is a reply address as the server delivered it. False where this is not for the
        short way: not connected, much unsent, too large, or a header with a line break.
        """
        return self._write(subject, "", payload, headers)

    async def ask(
        self, subject: str, payload: bytes, headers: Mapping[str, str], timeout_seconds: float
    ) -> Answer:
        """Request and reply, with half of what nats-py's `request` takes of the CPU.

        Raises:
            ConnectionLostError: the connection broke meanwhile.
            DeniedError: this user may not; told as soon as the server says so.
            nats.errors.Error: no responders, no answer in time, or not connected.
            OSError: the socket failed.
        """
        if _NO_SUBJECT.search(subject):
            raise nats.errors.BadSubjectError
        if not self._inbox:
            await self._open_inbox()
        number = f"{next(self._question_numbers):x}"
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer] = loop.create_future()
        self._asked[number] = answered
        self._asked_of[number] = subject
        give_up = loop.call_later(timeout_seconds, _give_up, answered)
        reply = self._inbox + number
        try:
            if not self._write(subject, reply, payload, headers):
                await self.publish(subject, payload, reply, headers=dict(headers) or None)
            return await answered
        finally:
            give_up.cancel()
            del self._asked[number], self._asked_of[number]

    async def ask_all(
        self, questions: Sequence[Question], timeout_seconds: float
    ) -> Sequence[Answer | nats.errors.Error]:
        """As `ask` for each, at a third of the cost: what came of each, in order.

        Raises:
            nats.errors.Error: not connected.
            OSError: the socket failed.
        """
        if not questions:
            return []
        if not self._inbox:
            await self._open_inbox()
        asked = _Round(len(questions))
        numbers = [f"{next(self._question_numbers):x}" for _ in questions]
        give_up = asyncio.get_running_loop().call_later(timeout_seconds, asked.end)
        try:
            for place, (number, question) in enumerate(zip(numbers, questions, strict=True)):
                subject, payload, headers = question
                self._asked[number] = _Place(asked, place)
                self._asked_of[number] = subject
                reply = self._inbox + number
                if not self._write(subject, reply, payload, headers):
                    await self.publish(subject, payload, reply, headers=dict(headers) or None)
            await asked.is_over
        finally:
            give_up.cancel()
            for number in numbers:
                self._asked.pop(number, None)
                self._asked_of.pop(number, None)
        return asked.answers

    async def _open_inbox(self) -> None:
        async def nothing(_message: Msg) -> None:
            """Answers never come so far: `_process_msg` takes them."""

        async with self._inbox_opening:
            if not self._inbox:
                inbox = self.new_inbox() + "."
                self._inbox_bytes = inbox.encode()
                await self.subscribe(inbox + "*", cb=nothing)
                self._inbox = inbox

    def take_at_once(self, subject: bytes, payload: bytes, header: bytes) -> bool:
        """Take an answer to `ask`, unless it has a status line."""
        if not subject.startswith(self._inbox_bytes) or header.startswith(b"NATS/1.0 "):
            return False
        try:
            self._count(payload)
            headers = self._parse_header_lines(header[_VERSION_LINE:]) if header else {}
            self._take_answer(subject, payload, headers)
        except Exception as error:
            self._on_bad_message(subject.decode(errors="replace"), error)
        return True

    def _count(self, payload: bytes) -> None:
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(payload)

    def _take_answer(self, subject: bytes, data: bytes, headers: dict[str, str]) -> None:
        number = subject[len(self._inbox_bytes) :].decode()
        answered = self._asked.get(number)
        if answered is None or answered.done():
            return
        if headers.get("Status") == "503" and not data:
            answered.set_exception(nats.errors.NoRespondersError())
        else:
            answered.set_result(Answer(data, headers))

    def _write(self, subject: str, reply: str, payload: bytes, headers: Mapping[str, str]) -> bool:
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if not lines.count("\n") == lines.count("\r") == len(headers):
            return False
        head = f"NATS/1.0\r\n{lines}\r\n".encode() if headers else b""
        size = len(head) + len(payload)
        unsent = self._pending_data_size + size
        if not self.is_connected or size > self._max_payload or unsent > self._max_pending_size:
            return False
        if self._flush_queue is None or self._flusher_task is None or self._flusher_task.done():
            return False
        where = f"{subject} {reply}" if reply else subject
        start = f"HPUB {where} {len(head)} {size}\r\n" if headers else f"PUB {where} {size}\r\n"
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(payload)
        # In pieces: joining them is left to the socket, so that the payload is copied once.
        self._pending += (start.encode() + head, payload, b"\r\n")
        self._pending_data_size += len(start) + size + 2
        if self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
        return True

    async def close(self) -> None:
        """Close without waiting for what is unsent: on a stalled server that is for ever.

        Whoever waits for an answer is told at once; nats-py would let them wait.
        """
        self._pending.clear()
        self._pending_data_size = 0
        self._abort()
        self._end_waiting(nats.errors.ConnectionClosedError)
        # A connect that failed on its arguments has nothing yet that could be closed.
        if self._flush_queue is not None:
            await super().close()

    def _end_waiting(self, error: type[nats.errors.Error]) -> None:
        for waiting in (*self._resp_map.values(), *self._asked.values(), *self._pongs):
            if not waiting.done():
                waiting.set_exception(error())
                waiting.exception()  # looked at, should nobody wait any more

    def _abort(self) -> None:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        # Subjects, reply addresses and headers are whatever the sender wrote: not UTF-8, cut short.
        try:
            if self.take_at_once(subject, data, headers or b""):
                return
            if subject.startswith(self._inbox_bytes):
                self._count(data)
                self._take_answer(subject, data, await self._process_headers(headers) or {})
            else:
                await super()._process_msg(sid, subject, reply, data, headers)
        except Exception as error:
            subscription = self._subs.get(sid)
            is_kept = reply.startswith(b"$JS.ACK.")
            legible = subject.decode(errors="replace")
            where = legible if is_kept or subscription is None else subscription.subject
            self._on_bad_message(where, error)
            # A stream gives it again until it is taken, and nothing after it: it goes on without
            # its headers, for its reader to refuse.
            if is_kept:
                await super()._process_msg(sid, legible.encode(), reply, data, b"")

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # As nats-py's, which takes each name apart letter by letter, every time.
        headers = {}
        for line in raw.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon and (text := _header_name(name)) is not None:
                headers[text] = value.strip().decode("utf-8", "replace")
        return headers

    async def _process_pong(self) -> None:
        # Who gave up waiting left a cancelled future here, and its answer still comes.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _send_ping(self, future: "asyncio.Future[bool] | None" = None) -> None:
        # nats-py writes it past what still waits in the buffer, so that its answer proves nothing
        # about that: a drained subscription would be dropped before the server heard of it.
        if self._pending and self._transport and self.is_connected:
            self._transport.writelines(self._pending)
            self._pending = []
            self._pending_data_size = 0
        await super()._send_ping(future)

    async def _process_err(self, err_msg: str) -> None:
        # nats-py closes for good on most of what a server may say, a revoked login included.
        if PERMISSIONS_ERR in err_msg:
            await super()._process_err(err_msg)
            self._deny(err_msg)
            return
        error = nats.errors.Error(f"nats: {err_msg}")
        await self._error_cb(error)
        await self._process_op_err(error)

    def _deny(self, said: str) -> None:
        """Tell those who wait for what was denied: nats-py would let them wait.

        The server names the subject, not the message; what is denied once is denied to all.
        """
        found = _DENIED.search(said)
        if found is None:
            return
        verb, denied = found[1].lower(), found[2].lower()
        if verb == "publish":
            numbers = [n for n, subject in self._asked_of.items() if subject.lower() == denied]
        elif self._inbox and denied == f"{self._inbox}*".lower():
            numbers = list(self._asked)
            self._inbox = ""  # who asks next finds out anew: rights may have changed
        else:
            return
        for number in numbers:
            answered = self._asked[number]
            if not answered.done():
                answered.set_exception(DeniedError(said.strip("'")))

    async def _connect_to_server(self, s: Any) -> None:  # noqa: ANN401 - nats-py's server
        # A try that failed after the TCP connection was up leaves its socket open.
        self._abort()
        if s.uri.scheme in ("ws", "wss"):
            await super()._connect_to_server(s)
            return
        s.last_attempt = time.monotonic()
        self._transport = self._transport or _Transport()  # type: ignore[no-untyped-call]
        await self._transport.connect(s.uri, READ_BYTES, self.options["connect_timeout"])

    async def _attempt_reconnect(self) -> None:
        # Closing the old connection waits for its unsent bytes: for ever, if the server stalls.
        self._abort()
        # Answers come to the connection that asked: whoever waits would wait for the time-out.
        self._end_waiting(ConnectionLostError)
        while True:
            try:
                await super()._attempt_reconnect()
            except Exception as error:
                # Garbage instead of a greeting, for example; nats-py would not try again.
                await self._error_cb(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return
