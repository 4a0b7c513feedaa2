"""Reads messages of known types from a stream, for one answer."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from handlers.foreign import ForeignMessages
from handlers.settings import QuerySettings
from schemas.message import UNDECODABLE
from schemas.protocols import Delivery, PublishError, RequestError, Subscriber

M = TypeVar("M")


class Reading:
    """Reads streams within the deadline of a query; what does not decode is passed over."""

    def __init__(
        self, subscriber: Subscriber, settings: QuerySettings, foreign: ForeignMessages
    ) -> None:
        self.subscriber = subscriber
        self._settings = settings
        self._foreign = foreign

    async def messages(
        self,
        stream: str,
        decode: Callable[[Delivery], M],
        **part: Any,  # noqa: ANN401 - of Subscriber.read
    ) -> AsyncGenerator[tuple[Delivery, M], None]:
        """What `Subscriber.read` gives for `part`, decoded. Who stops earlier closes it.

        Raises:
            RequestError: 503 the stream could not be read within the deadline.
        """
        deliveries = self.subscriber.read(stream, **part)
        try:
            async with (
                asyncio.timeout(self._settings.history_timeout_seconds),
                contextlib.aclosing(deliveries),
            ):
                async for delivery in deliveries:
                    try:
                        message = decode(delivery)
                    except UNDECODABLE as error:
                        self._foreign.pass_over(delivery, error)
                    else:
                        yield delivery, message
        except (TimeoutError, PublishError) as error:
            raise RequestError(503, "the stream could not be read now") from error
