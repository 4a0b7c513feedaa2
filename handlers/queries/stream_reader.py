"""Reads messages of one type back from a stream, for an answer."""

import contextlib
from typing import TypeVar

import msgspec

from handlers.foreign import ForeignMessages
from handlers.queries.reading import Reading
from handlers.settings import QuerySettings
from schemas.message import Message
from schemas.protocols import RequestError, Subscriber

M = TypeVar("M", bound=Message)


class StreamReader:
    """Within the deadline and the bytes of the settings; what does not decode is passed over."""

    def __init__(
        self, subscriber: Subscriber, settings: QuerySettings, foreign: ForeignMessages
    ) -> None:
        self._reading = Reading(subscriber, settings, foreign)
        self._most_bytes = settings.history_scan_bytes

    async def last(self, stream: str, kind: type[M], subject: str | None = None) -> list[M]:
        """The last message on each subject of one type.

        Raises:
            RequestError: as `between`.
        """
        return await self._read(stream, kind, subject or kind.pattern(), last_per_subject=True)

    async def between(
        self, stream: str, kind: type[M], subject: str, start_ns: int, end_ns: int
    ) -> list[M]:
        """All messages stored in a range of time.

        Raises:
            RequestError: 413 more than `history_scan_bytes`, 503 no answer from the stream.
        """
        return await self._read(stream, kind, subject, start_ns=start_ns, end_ns=end_ns)

    async def _read(
        self,
        stream: str,
        kind: type[M],
        subject: str,
        *,
        start_ns: int | None = None,
        end_ns: int | None = None,
        last_per_subject: bool = False,
    ) -> list[M]:
        decoder = msgspec.json.Decoder(kind)
        found: list[M] = []
        scanned_bytes = 0
        messages = self._reading.messages(
            stream,
            lambda delivery: decoder.decode(delivery.payload),
            subject=subject,
            start_ns=start_ns,
            end_ns=end_ns,
            last_per_subject=last_per_subject,
        )
        async with contextlib.aclosing(messages):
            async for delivery, message in messages:
                scanned_bytes += len(delivery.payload)
                if not last_per_subject and scanned_bytes > self._most_bytes:
                    raise RequestError(
                        413,
                        f"this holds more than {self._most_bytes} bytes: ask for less time, or "
                        "for one pool or node",
                    )
                found.append(message)
        return found
