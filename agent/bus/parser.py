"""nats-py's parser, several times as fast where whole messages come in one read."""

from typing import Any, Protocol

from nats.protocol.parser import AWAITING_CONTROL_LINE, CRLF_SIZE, Parser


class Receiver(Protocol):
    """Who takes the messages."""

    def take_at_once(self, subject: bytes, payload: bytes, header: bytes) -> bool:
        """Take a message here and now, or leave it: False."""

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None: ...


class _Unfinished:
    """A message of which the beginning has come: kept in pieces, and joined once."""

    def __init__(self, number: int, subject: bytes, reply: bytes, header: int, size: int) -> None:
        self.number = number
        self.subject = subject
        self.reply = reply
        self._header_size = header
        self._size = size
        self.missing = size + CRLF_SIZE
        self._pieces: list[memoryview] = []

    def take(self, data: memoryview) -> None:
        """More of it, of which nothing is another message's."""
        self._pieces.append(data)
        self.missing -= len(data)

    def whole(self) -> tuple[bytes, bytes]:
        """Header and payload."""
        return self._cut(0, self._header_size), self._cut(self._header_size, self._size)

    def _cut(self, first: int, end: int) -> bytes:
        cut, begin = [], 0
        for piece in self._pieces:
            cut.append(piece[max(first - begin, 0) : max(end - begin, 0)])
            begin += len(piece)
        return b"".join(cut)


class MessageParser(Parser):
    """Takes messages, whole or in pieces; the rest is left to nats-py's parser.

    That one cuts every message out of a buffer, by regular expressions, piece by piece, and copies
    each byte four times. What it kept of an unfinished message it gets the end of; all else that
    servers say, and what is malformed, too.
    """

    def __init__(self, receiver: Any) -> None:  # noqa: ANN401 - nats-py's client calls what it likes
        super().__init__(receiver)
        self._receiver: Receiver = receiver
        self._unfinished: _Unfinished | None = None

    def reset(self) -> None:
        """Forget what came: another connection begins."""
        super().reset()
        self._unfinished = None

    async def parse(self, data: bytes = b"") -> None:
        """Dispatch all messages that `data` completes.

        Raises:
            nats.errors.ProtocolError: this is not what a nats-server says.
        """
        begin = 0
        if self._unfinished is not None:
            begin = min(self._unfinished.missing, len(data))
            self._unfinished.take(memoryview(data)[:begin])
            if self._unfinished.missing:
                return
            await self._finish(self._unfinished)
        elif self.state != AWAITING_CONTROL_LINE:
            begin = self.needed + CRLF_SIZE - len(self.buf)
            await super().parse(data[:begin])
        elif self.buf:
            data = bytes(self.buf) + data
            self.buf.clear()
        rest = await self._messages(data, begin)
        if rest < len(data):
            await super().parse(data[rest:])

    async def _finish(self, message: _Unfinished) -> None:
        self._unfinished = None
        header, payload = message.whole()
        if not self._receiver.take_at_once(message.subject, payload, header):
            number, subject, reply = message.number, message.subject, message.reply
            await self._receiver._process_msg(number, subject, reply, payload, header)

    async def _messages(self, data: bytes, begin: int) -> int:
        """Take the messages that stand at `begin`; where the first other thing begins."""
        receiver, total = self._receiver, len(data)
        while begin < total:
            line_end = data.find(b"\r\n", begin)
            if line_end < 0:
                break
            words = data[begin:line_end].split()
            try:
                if words[0] == b"MSG":
                    _, subject, sid, *reply, whole = words
                    header_size = 0
                elif words[0] == b"HMSG":
                    _, subject, sid, *reply, head, whole = words
                    header_size = int(head)
                else:
                    break
                number, size = int(sid), int(whole)
            except (ValueError, IndexError):
                break
            start = line_end + CRLF_SIZE
            end = start + size
            if not 0 <= header_size <= size or len(reply) > 1:
                break
            to = reply[0] if reply else b""
            if end + CRLF_SIZE > total:
                self._unfinished = _Unfinished(number, subject, to, header_size, size)
                self._unfinished.take(memoryview(data)[start:])
                return total
            begin = end + CRLF_SIZE
            header = data[start : start + header_size]
            payload = data[start + header_size : end]
            if not receiver.take_at_once(subject, payload, header):
                await receiver._process_msg(number, subject, to, payload, header)
        return begin
