"""Reads messages of one type back from a stream, for an answer."""

import asyncio
import contextlib
from typing import TypeVar

import msgspec

from handlers.foreign import ForeignMessages
from handlers.settings import QuerySettings
from schemas.message import UNDECODABLE, Message
from schemas.protocols import PublishError, RequestError, Subscriber

M = TypeVar("M", bound=Message)


class StreamReader:
    """Within the deadline and the bytes of the settings; what does not decode is passed over."""

    def __init__(
        self, subscriber: Subscriber, settings: QuerySettings, foreign: ForeignMessages
    ) -> None:
        self._subscriber = subscriber
        self._settings = settings
        self._foreign = foreign

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
        deliveries = self._subscriber.read(
            stream,
            subject=subject,
            start_ns=start_ns,
            end_ns=end_ns,
            last_per_subject=last_per_subject,
        )
        try:
            async with (
                asyncio.timeout(self._settings.history_timeout_seconds),
                contextlib.aclosing(deliveries),
            ):
                async for delivery in deliveries:
                    scanned_bytes += len(delivery.payload)
                    if not last_per_subject and scanned_bytes > self._settings.history_scan_bytes:
                        raise RequestError(
                            413,
                            f"this holds more than {self._settings.history_scan_bytes} bytes: ask "
                            "for less time, or for one pool or node",
                        )
                    try:
                        found.append(decoder.decode(delivery.payload))
                    except UNDECODABLE as error:
                        self._foreign.pass_over(delivery, error)
        except (TimeoutError, PublishError) as error:
            raise RequestError(503, "the stream could not be read now") from error
        return found
