"""The open alerts of the whole installation, as the stream tells them."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from handlers.foreign import ForeignMessages
from handlers.window import ExpiringDict
from schemas.analysis import Alert
from schemas.message import UNDECODABLE
from schemas.protocols import Delivery, Subscriber
from schemas.units import SECOND_NS

KEPT_NS = 90 * 86_400 * SECOND_NS
"""As long as the stream has them."""


class OpenAlerts:
    """Follows FLEET_ALERTS; an async context manager.

    Every process hears the alerts of all, so each answers the same. At most 100,000 are kept.
    """

    def __init__(self, subscriber: Subscriber, foreign: ForeignMessages) -> None:
        self._subscriber = subscriber
        self._foreign = foreign
        self._decode: Callable[[bytes], Alert] = msgspec.json.Decoder(Alert).decode
        self._open: ExpiringDict[tuple[str, str, str], Alert] = ExpiringDict(KEPT_NS)

    async def __aenter__(self) -> Self:
        _, last = await self._subscriber.stream_bounds("ALERTS")
        pattern = Alert.pattern()
        async for delivery in self._subscriber.read(
            "ALERTS", subject=pattern, last_per_subject=True
        ):
            self._take(delivery)
        self._unfollow = await self._subscriber.follow(
            "ALERTS", self._take, subject=pattern, start_sequence=last + 1
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._unfollow()

    def _take(self, delivery: Delivery) -> None:
        try:
            alert = self._decode(delivery.payload)
        except UNDECODABLE as error:
            self._foreign.pass_over(delivery, error)
            return
        key = (alert.scope, alert.id, alert.rule)
        if alert.transition == "cleared":
            self._open.discard(key)
        else:
            self._open.put(key, alert, delivery.stored_ns)

    def all(self) -> list[Alert]:
        """Every open alert."""
        return [alert for _, alert in self._open.items()]
