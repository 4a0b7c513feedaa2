"""What handlers give out on its way to the bus: a queue for each stream, until acknowledged."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Protocol

import structlog

from schemas.protocols import Emit, Publisher, PublishError, TooLargeError

log = structlog.get_logger()

PUBLISH_BATCH = 64
RETRY_SECONDS = 0.25
SETTLE_SECONDS = 3.0


class Source(Protocol):
    """Whose events they are: they are published only while it is `current`."""

    unpublished: int

    @property
    def current(self) -> bool:
        """Whether what it said still counts."""


class Outgoing:
    """Publishes events until they are acknowledged, can never be, or no longer count.

    Each stream has a queue of its own: one that is missing or full holds up nothing but its own
    events. An event that can never be published is dropped. `start` runs a queue's loop.
    """

    def __init__(
        self,
        publisher: Publisher,
        counters: Counter[str],
        start: Callable[[Coroutine[None, None, None], str], None],
    ) -> None:
        self._publisher = publisher
        self._counters = counters
        self._start = start
        self._queues: dict[str | None, asyncio.Queue[tuple[Source, Emit]]] = {}

    def add(self, source: Source, emits: Iterable[Emit]) -> None:
        """Publish `emits`; `source.unpublished` counts those not settled yet."""
        for emit in emits:
            stream = emit.message.STREAM
            queue = self._queues.get(stream)
            if queue is None:
                queue = self._queues[stream] = asyncio.Queue()
                self._start(self._publish_loop(queue), f"_publish_{stream}")
            source.unpublished += 1
            queue.put_nowait((source, emit))

    def waiting(self) -> int:
        """Events that wait for their turn."""
        return sum(queue.qsize() for queue in self._queues.values())

    async def settle(self) -> None:
        """Wait until everything is settled, a few seconds at most."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                for queue in list(self._queues.values()):
                    await queue.join()
        except TimeoutError:
            log.warning("handlers_stop_unpublished", events=self.waiting())

    async def _publish_loop(self, queue: asyncio.Queue[tuple[Source, Emit]]) -> None:
        while True:
            batch = [await queue.get()]
            while len(batch) < PUBLISH_BATCH and not queue.empty():
                batch.append(queue.get_nowait())
            if not await self._publish_together(batch):
                await asyncio.gather(*(self._publish(source, emit) for source, emit in batch))
            for _ in batch:
                queue.task_done()

    async def _publish_together(self, batch: Sequence[tuple[Source, Emit]]) -> bool:
        """Nearly always all goes well, at a third of the cost; else each is to be looked at."""
        emits = [emit for source, emit in batch if source.current]
        try:
            await self._publisher.publish_all([(one.message, one.message_id) for one in emits])
        except Exception:
            return False
        self._counters["published_total"] += len(emits)
        for source, _ in batch:
            source.unpublished -= 1
        return True

    async def _publish(self, source: Source, emit: Emit) -> None:
        while source.current:
            try:
                await self._publisher.publish(emit.message, message_id=emit.message_id)
            except TooLargeError as error:
                self._counters["unpublishable_total"] += 1
                log.error("event_unpublishable", id=emit.message_id, error=str(error))
                break
            except PublishError as error:
                self._counters["publish_retries_total"] += 1
                log.warning("event_not_published", id=emit.message_id, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as error:
                self._counters["unpublishable_total"] += 1
                log.error("event_unpublishable", id=emit.message_id, error=repr(error))
                break
            else:
                self._counters["published_total"] += 1
                break
        source.unpublished -= 1
