"""What the archive says of what it uses: heard here, and told on with each CacheMetrics."""

from collections.abc import Awaitable, Callable

import msgspec

from schemas.archive_money import ArchiveMetrics
from schemas.protocols import Clock, Subscriber
from schemas.units import SECOND_NS

FRESH_NS = 60 * SECOND_NS
"""Older figures are not told on: nobody keeps the archive's index now."""
_decode = msgspec.json.Decoder(ArchiveMetrics).decode


class ArchiveFigures:
    """The last ArchiveMetrics of each namespace, whichever archiver said it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heard: dict[str, tuple[int, ArchiveMetrics]] = {}

    async def listen(self, subscriber: Subscriber) -> Callable[[], Awaitable[None]]:
        """Hear them; returns what ends that.

        Raises:
            PublishError: the server does not answer.
        """
        return await subscriber.subscribe(ArchiveMetrics.pattern(), self._hear)

    def of(self, namespace: str) -> ArchiveMetrics | None:
        """What was said within the last minute; None: nothing was."""
        heard_ns, message = self._heard.get(namespace, (0, None))
        return message if self._clock() - heard_ns <= FRESH_NS else None

    def _hear(self, _subject: str, payload: bytes) -> None:
        message = _decode(payload)
        self._heard[message.namespace] = (self._clock(), message)
