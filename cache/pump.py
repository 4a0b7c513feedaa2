"""Publishes what waits in the outbox, again and again until the stream has it."""

import asyncio

import structlog

from cache.manifest import message
from cache.namespace import Namespace
from schemas.protocols import Lease, Publisher, PublishError, TooLargeError

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.5


class Pump:
    """Empties the outbox of one namespace into `evicted.<namespace>`; `error` = last failure.

    Nothing is sent once the lease is in doubt: the next owner may already have asked what the
    archive holds, and would not learn of it.
    """

    def __init__(self, namespace: Namespace, publisher: Publisher, lease: Lease) -> None:
        self._namespace = namespace
        self._publisher = publisher
        self._lease = lease
        self.error = ""

    async def run(self) -> None:
        """Publish one at a time; several of these run side by side.

        Returns when there is something to send and the lease is not held any more.
        """
        pause_seconds: float | None = FIRST_PAUSE_SECONDS
        while pause_seconds is not None:
            pause_seconds = await self._publish_next(pause_seconds)

    async def _publish_next(self, pause_seconds: float) -> float | None:
        """Publish the next; how long to pause should that after it fail. None: the lease is lost.

        Nothing of it is held here while the one after it is awaited: it may be the last for hours.
        """
        outbox = self._namespace.outbox
        item = await outbox.take()
        if not self._lease.held:
            outbox.give_back(item)
            return None
        try:
            payload, headers = message(item, self._namespace)
        except OSError:
            if item.entry is not None:
                self._namespace.holdings.lose(item.entry)
            return pause_seconds
        try:
            await self._publisher.publish_raw(
                f"evicted.{self._namespace.name}", payload, headers, message_id=item.message_id
            )
        except TooLargeError as error:
            # The server's limit was lowered since the value was accepted.
            log.error("eviction_too_large", error=str(error))
            outbox.lose(item)
            return pause_seconds
        except PublishError as error:
            if not self.error:
                log.warning("eviction_not_acknowledged", error=str(error))
            self.error = str(error)
            await asyncio.sleep(pause_seconds)
            outbox.give_back(item)
            return min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
        if self.error:
            log.info("evictions_acknowledged_again")
            self.error = ""
        outbox.acknowledge(item)
        return FIRST_PAUSE_SECONDS
