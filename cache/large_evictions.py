"""Brings large values to the archive: lent while that reads them, else sent in parts.

Parts first, each acknowledged, then one manifest.
"""

import asyncio
import time

import structlog

from cache.lending import Lending
from cache.manifest import eviction_token, message_of_parts
from cache.namespace import Namespace
from cache.outbox import Item
from cache.room import run_together
from schemas.cache import PARTS_IN_FLIGHT, part_count, part_range
from schemas.protocols import (
    Lease,
    Publisher,
    PublishError,
    StreamFullError,
    TooLargeError,
)

log = structlog.get_logger()

PAUSE_SECONDS = 0.25
FULL_SECONDS = 120.0
"""A value that finds no room in the stream of parts for so long is lost: the stream may be
smaller than the value, or full of what nobody takes, and others wait behind it."""


class LargeEvictions:
    """Takes large values out of the outbox; sends one at a time, so that none is stuck half sent.

    A failed part is sent again, those acknowledged are not. A value that is dropped meanwhile,
    because it was overwritten, deleted or cleared, or that is given up, is followed by a manifest
    that says so, for the archive to remove its parts. `error` = last failure.
    """

    def __init__(
        self, namespace: Namespace, publisher: Publisher, lease: Lease, lending: Lending
    ) -> None:
        self._namespace = namespace
        self._publisher = publisher
        self._lease = lease
        self.lending = lending
        self.error = ""

    async def run(self) -> None:
        """Go on for ever; returns when there is something to send and the lease is lost."""
        async with asyncio.TaskGroup() as lent:
            while await self._bring_next(lent):
                pass

    async def _bring_next(self, lent: asyncio.TaskGroup) -> bool:
        """Lend or send the next; False: the lease is lost.

        Nothing of it is held here while the one after it is awaited: it may be the last for hours.
        """
        outbox = self._namespace.outbox
        item = await outbox.take(large=True)
        if not self._lease.held:
            outbox.give_back(item)
            return False
        if not await self.lending.begins(item, lent) and not await self._send(item):
            outbox.give_back(item)
        return True

    async def _send(self, item: Item) -> bool:
        """Whether it is settled; False: the lease is lost."""
        outbox = self._namespace.outbox
        entry = item.entry
        assert entry is not None  # noqa: S101 - only values are large
        try:
            await asyncio.to_thread(entry.compute_digest)
        except OSError:
            self._namespace.holdings.lose(entry)
            return True
        keep, give_up = message_of_parts(item, self._namespace)
        missing = set(range(part_count(entry.value_bytes)))
        last_progress = time.monotonic()
        while self._lease.held:
            left = len(missing)
            try:
                await self._send_parts(item, missing)
                wanted = outbox.get(item.key) is item
                await self._publish_manifest(item, keep if wanted else give_up)
            except OSError:
                self._namespace.holdings.lose(entry)  # the next round gives up what was sent of it
                continue
            except TooLargeError as error:
                log.error("eviction_too_large", error=str(error))
                outbox.lose(item)
                return True
            except PublishError as error:
                self._note(error)
                if len(missing) < left or not isinstance(error, StreamFullError):
                    last_progress = time.monotonic()
                if missing and time.monotonic() - last_progress > FULL_SECONDS:
                    log.error("eviction_parts_full", error=str(error))
                    outbox.lose(item)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if self.error:
                log.info("large_evictions_acknowledged_again")
                self.error = ""
            if wanted or item.stored:  # as it was lent before
                outbox.acknowledge(item)
            return True
        return False

    async def _send_parts(self, item: Item, missing: set[int]) -> None:
        """Send those missing, a few at once, until one fails or nobody wants the value."""
        assert item.entry is not None  # noqa: S101 - only values are large
        entry = item.entry
        subject = f"evicted_part.{self._namespace.name}.{eviction_token(item)}"
        parts = iter(sorted(missing))

        async def send() -> None:
            for part in parts:
                if self._namespace.outbox.get(item.key) is not item or not self._lease.held:
                    return
                first, end = part_range(part, entry.value_bytes)
                await self._publisher.publish_raw(
                    f"{subject}.{part}",
                    entry.payload(first, end),
                    message_id=f"{item.message_id}.{part}",
                )
                missing.discard(part)

        await run_together([send() for _ in range(PARTS_IN_FLIGHT)])

    async def _publish_manifest(self, item: Item, headers: dict[str, str]) -> None:
        if not self._lease.held:
            raise PublishError("the lease is lost")
        await self._publisher.publish_raw(
            f"evicted.{self._namespace.name}", b"", headers, message_id=item.message_id
        )

    def _note(self, error: PublishError) -> None:
        if not self.error:
            log.warning("large_eviction_not_acknowledged", error=str(error))
        self.error = str(error)
