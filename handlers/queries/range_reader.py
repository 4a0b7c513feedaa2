"""Reads a time range of a stream, within the bytes and the time that one answer may cost."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

from handlers.foreign import ForeignMessages
from handlers.queries.thinning import gently
from handlers.settings import QuerySettings
from schemas.message import UNDECODABLE
from schemas.protocols import Delivery, PublishError, RequestError, Subscriber
from schemas.units import instant

T = TypeVar("T")

SCANS = 2
"""Scans at a time, of each kind; the others wait. Bounds the memory they take."""

_ROUNDED_NS = 1_000
"""NATS is asked by a rounded microsecond, which may be the one after."""


class RangeReader:
    """Few scans at a time, each within `history_scan_bytes` and `history_timeout_seconds`."""

    def __init__(
        self, subscriber: Subscriber, settings: QuerySettings, foreign: ForeignMessages
    ) -> None:
        self._subscriber = subscriber
        self._settings = settings
        self._foreign = foreign
        self._scans = asyncio.Semaphore(SCANS)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """One answer: waits for its turn, and is over at the deadline.

        Raises:
            RequestError: 503 no answer from the stream, or none in time.
        """
        try:
            async with asyncio.timeout(self._settings.history_timeout_seconds), self._scans:
                yield
        except TimeoutError as error:
            raise RequestError(503, "the history could not be read in time") from error
        except PublishError as error:
            raise RequestError(503, "the history cannot be read now") from error

    async def first_ns(self, stream: str, subject: str = ">") -> int | None:
        """When the first message that `stream` still has was stored; None: it has none."""
        async with contextlib.aclosing(self._subscriber.read(stream, subject=subject)) as found:
            async for delivery in found:
                return delivery.stored_ns
        return None

    async def scan(
        self, stream: str, subject: str, start_ns: int, end_ns: int
    ) -> list[Delivery] | None:
        """What was stored from `start_ns` on and before `end_ns`; None: more than we may read."""
        found: list[Delivery] = []
        scanned_bytes = 0
        deliveries = self._subscriber.read(
            stream, subject=subject, start_ns=max(1, start_ns - _ROUNDED_NS), end_ns=end_ns
        )
        async with contextlib.aclosing(deliveries):
            async for delivery in deliveries:
                if not start_ns <= delivery.stored_ns < end_ns:
                    continue
                scanned_bytes += len(delivery.payload)
                if scanned_bytes > self._settings.history_scan_bytes:
                    return None
                found.append(delivery)
        return found

    def decoded(self, delivery: Delivery, decode: Callable[[bytes], T]) -> T | None:
        """What comes of it; None, and counted, where it is not what its subject says."""
        try:
            return decode(delivery.payload)
        except UNDECODABLE as error:
            self._foreign.pass_over(delivery, error)
            return None

    async def all_decoded(
        self, deliveries: Sequence[Delivery], decode: Callable[[bytes], T | None]
    ) -> list[T]:
        """What comes of those that decode: a foreign message must not hide the others."""
        found = await gently(deliveries, lambda delivery: self.decoded(delivery, decode))
        return [one for one in found if one is not None]

    def too_much(self, narrower: str) -> RequestError:
        """The refusal of a range that holds too much; `narrower`: what to name instead."""
        return RequestError(
            413,
            f"this range holds more than {self._settings.history_scan_bytes} bytes: {narrower}, "
            "or ask for less time",
        )

    async def why_nothing(self, what: str, *places: tuple[str, str]) -> str:
        """Why an answer is empty, from the first message in each of these streams and subjects."""
        firsts: dict[str, int] = {}
        for stream, subject in places:
            first_ns = await self.first_ns(stream, subject)
            if first_ns is not None:
                firsts[stream] = min(firsts.get(stream, first_ns), first_ns)
        found: list[str] = []
        for stream, first_ns in firsts.items():
            reaches = "" if found else " reaches back"
            found.append(f"FLEET_{stream}{reaches} to {instant(first_ns):%F %T}Z")
        if found:
            return f"no {what} is recorded in this range; {' and '.join(found)}"
        streams = dict.fromkeys(f"FLEET_{stream}" for stream, _ in places)
        return f"no {what} is recorded: there is none in {' and '.join(streams)}"
