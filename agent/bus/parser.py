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


class MessageParser(Parser):
    """Takes the messages that are whole in what was read; the rest is left to nats-py's parser.

    That one cuts every message out of a buffer, by regular expressions, piece by piece. What it
    kept of an unfinished message it gets the end of; all else that servers say, and what is
    malformed, too.
    """

    def __init__(self, receiver: Any) -> None:  # noqa: ANN401 - nats-py's client calls what it likes
        super().__init__(receiver)
        self._receiver: Receiver = receiver

    async def parse(self, data: bytes = b"") -> None:
        """Dispatch all messages that `data` completes.

        Raises:
            nats.errors.ProtocolError: this is not what a nats-server says.
        """
        if self.state != AWAITING_CONTROL_LINE:
            missing = self.needed + CRLF_SIZE - len(self.buf)
            await super().parse(data[:missing])
            data = data[missing:]
        elif self.buf:
            data = bytes(self.buf) + data
            self.buf.clear()
        rest = await self._messages(data)
        if rest < len(data):
            await super().parse(data[rest:])

    async def _messages(self, data: bytes) -> int:
        """Take the whole messages that `data` begins with; where the first other thing begins."""
        receiver, begin, total = self._receiver, 0, len(data)
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
            if not 0 <= header_size <= size or len(reply) > 1 or end + CRLF_SIZE > total:
                break
            begin = end + CRLF_SIZE
            header = data[start : start + header_size]
            payload = data[start + header_size : end]
            if not receiver.take_at_once(subject, payload, header):
                to = reply[0] if reply else b""
                await receiver._process_msg(number, subject, to, payload, header)
        return begin
