"""From the eviction stream to the vault: decode, verify, keep, announce, acknowledge."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec
import structlog

from archive import frame
from archive.announce import Announcer
from archive.keeping import Count, Keeping, Kept
from archive.lenders import Lenders, NotLentError
from archive.lent_value import is_lent, lent_value
from archive.packer import INLINE_BYTES
from archive.parts import Parts
from archive.settings import ArchiveSettings
from archive.unusable import Unusable
from schemas.cache import EVICTED_HEADER, Evicted, decode_header
from schemas.message import UNDECODABLE
from schemas.protocols import Delivery, PublishError, Requester, WorkItem, WorkQueue

log = structlog.get_logger()

STREAM = "EVICTIONS"
CONSUMER = "archiver"
EXTEND_SECONDS = 10.0
LARGE_AT_ONCE = 4
BATCH = 256
"""Small evictions that are announced and acknowledged together."""
TAKEN_AT_ONCE = 1024
GATHER_SECONDS = 0.02
"""More may come while fewer than a batch are there; it takes longer until they are durable."""
TAKE_SECONDS = 0.25
"""Longest wait for an eviction: stopping and a lost lease are noticed so soon."""

_decode_manifest = msgspec.json.Decoder(Evicted).decode


def read_manifest(delivery: Delivery) -> Evicted:
    """The manifest of an eviction; a value in its payload is what the manifest says.

    Raises:
        ValueError: no manifest, an unreadable one, or one of another value or namespace.
    """
    header = delivery.headers.get(EVICTED_HEADER)
    if header is None:
        raise ValueError(f"no header {EVICTED_HEADER}")
    try:
        manifest = _decode_manifest(decode_header(header))
    except (ValueError, *UNDECODABLE) as error:
        raise ValueError(f"header {EVICTED_HEADER}: {error}") from error
    namespace = namespace_of(delivery)
    if manifest.namespace != namespace:
        raise ValueError(f"manifest is of namespace {manifest.namespace}, not {namespace}")
    if not manifest.parts:
        frame.check_value(manifest, delivery.payload)
    elif delivery.payload or (manifest.eviction is None):
        raise ValueError("a manifest of parts has a payload, or does not name its eviction")
    return manifest


def namespace_of(delivery: Delivery) -> str:
    """The last token of `evicted.<namespace>`."""
    return delivery.subject.rpartition(".")[2]


class Held(Protocol):
    """What entitles to take evictions, such as a lease."""

    @property
    def held(self) -> bool:
        """Once False it stays so."""


class Intake:
    """Takes evictions and settles each exactly once.

    At least once from the stream, once in the store: an eviction is acknowledged after it is
    durable, indexed and announced, so a crash in between repeats it, and repeating is harmless.
    At most `in_flight` evictions, of `in_flight_bytes`, are being handled. One that came in parts
    is read only where it is to be stored; its parts are removed once it is settled. One that a
    cache lends (`is_lent`) is settled where it cannot be read: then it is sent. While the
    store fails they are held, and the stream holds the rest. What cannot be settled for another
    reason is given back.
    """

    def __init__(
        self,
        queue: WorkQueue,
        parts: Parts,
        requester: Requester,
        announcer: Announcer,
        settings: ArchiveSettings,
    ) -> None:
        self._parts = parts
        self._lenders = Lenders(requester)
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._queue = queue
        self._announcer = announcer
        self._settings = settings
        self._running: dict[asyncio.Task[None], Sequence[WorkItem]] = {}
        self._bytes = 0
        self._some_done = asyncio.Event()
        self.in_flight = 0
        """How many evictions are being handled now."""
        self.queue_error = ""
        self.unusable = Unusable(queue, STREAM, settings.retry_seconds)

    async def run(
        self, keeping: Keeping, lease: Held, stopping: asyncio.Event, count: Count
    ) -> None:
        """Work until `stopping` is set, and finish what is in flight; or until the lease is lost.

        What is in flight then stays unsettled and comes again. `count` is told what became of
        each that was acknowledged.
        """

        def begin(items: Sequence[WorkItem]) -> None:
            size_bytes = sum(len(item.delivery.payload) for item in items)
            task = group.create_task(self._settle(items, keeping, lease, count))
            self._running[task] = items
            self.in_flight += len(items)
            self._bytes += size_bytes

            def done(task: asyncio.Task[None]) -> None:
                del self._running[task]
                self.in_flight -= len(items)
                self._bytes -= size_bytes
                self._some_done.set()

            task.add_done_callback(done)

        async with asyncio.TaskGroup() as group:
            extending = group.create_task(self._extend_regularly())
            try:
                while lease.held and not stopping.is_set():
                    if self.queue_error:
                        await _wait(stopping, self._settings.retry_seconds)
                    if self.in_flight >= self._settings.in_flight or not self._fits(1):
                        await self._wait_for_room(keeping)
                        continue
                    for items in _batches(await self._take(keeping)):
                        begin(items)
            finally:
                extending.cancel()
            with contextlib.suppress(PublishError):  # then others have it later
                await self._queue.give_back(STREAM, CONSUMER)
            keeping.packer.flush()
            while self._running:
                if not lease.held:
                    for task in self._running:
                        task.cancel()
                await self._wait_for_room(keeping)

    def _fits(self, size_bytes: int) -> bool:
        return not self._bytes or self._bytes + size_bytes <= self._settings.in_flight_bytes

    async def _wait_for_room(self, keeping: Keeping) -> None:
        """Return when something was settled, or soon."""
        keeping.packer.hurry()
        self._some_done.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TAKE_SECONDS):
                await self._some_done.wait()

    async def _take(self, keeping: Keeping) -> Sequence[WorkItem]:
        free = self._settings.in_flight - self.in_flight
        free_bytes = self._settings.in_flight_bytes - self._bytes
        try:
            await keeping.ready()
            items = await self._queue.take(
                STREAM,
                CONSUMER,
                batch=min(free, TAKEN_AT_ONCE),
                max_bytes=free_bytes,
                wait_seconds=TAKE_SECONDS,
            )
        except PublishError as error:
            if not self.queue_error:
                log.warning("evictions_unreachable", error=str(error))
            self.queue_error = str(error)
            return []
        self.queue_error = ""
        if len(items) < BATCH and not (items and items[-1].pending):
            await asyncio.sleep(GATHER_SECONDS)
        return items

    async def _extend_regularly(self) -> None:
        """Keep what is in flight from being given to another worker, however long it takes."""
        while True:
            await asyncio.sleep(EXTEND_SECONDS)
            for item in [item for items in self._running.values() for item in items]:
                with contextlib.suppress(PublishError):  # then it may come again: harmless
                    await item.extend()

    async def _settle(
        self, items: Sequence[WorkItem], keeping: Keeping, lease: Held, count: Count
    ) -> None:
        try:
            await self._handle(items, keeping, lease, count)
        except PublishError as error:
            await self._give_back(items, error)

    async def _give_back(self, items: Sequence[WorkItem], error: PublishError) -> None:
        log.warning("evictions_given_back", count=len(items), error=str(error))
        for item in items:
            self._announcer.counts[namespace_of(item.delivery)]["unconfirmed_total"] += 1
            with contextlib.suppress(PublishError):  # then it comes again later
                await item.retry(self._settings.retry_seconds)

    async def _handle(
        self, items: Sequence[WorkItem], keeping: Keeping, lease: Held, count: Count
    ) -> None:
        taken = await self._read(items)
        if not taken:
            return
        try:
            kept = await self._keep(keeping, taken)
        except NotLentError as error:  # of the only one, which its cache has still: it sends it
            log.info("eviction_not_lent", reason=str(error))
            await self._queue.done_all([item for item, _ in taken])
            return
        except ValueError as error:  # of the only one, whose value came in parts
            await self._bury(taken[0][0], error)
            return
        if not lease.held:
            # Another owner may have read its index before this was in the store: it must hear
            # of it too, so the items stay unsettled and come again.
            return
        # Before the acknowledgement: the cache waits for these events, and a crash between the
        # two then repeats them instead of losing them.
        await self._announcer.stored([entry for _, entry in kept if entry is not None])
        if not await self._queue.done_all([item for item, _ in taken]):  # so they come again
            log.warning("evictions_unconfirmed", count=len(taken))
            for _, manifest in taken:
                self._announcer.counts[manifest.namespace]["unconfirmed_total"] += 1
            return
        for (item, manifest), one in zip(taken, kept, strict=True):
            count(manifest.namespace, one)
            # Of a value that is lent there are none, or some that belong to a later message.
            if manifest.parts and not is_lent(item.delivery.headers):
                await self._parts.remove(manifest)

    async def _read(self, items: Sequence[WorkItem]) -> list[tuple[WorkItem, Evicted]]:
        """Those that are evictions, with their manifests; the others are buried."""
        taken = []
        for item in items:
            try:
                taken.append((item, read_manifest(item.delivery)))
            except ValueError as error:
                await self._bury_alone(item, error)
        return taken

    async def _bury_alone(self, item: WorkItem, error: ValueError) -> None:
        """Bury one of several: where it cannot be, as FLEET_DEAD is full, the others go on."""
        try:
            await self._bury(item, error)
        except PublishError as failure:
            await self._give_back([item], failure)

    async def _bury(self, item: WorkItem, error: ValueError) -> None:
        try:
            await item.dead(str(error))
        except PublishError:
            self.unusable.met(item.delivery)
            raise
        self.unusable.gone(item.delivery)
        self._announcer.counts[namespace_of(item.delivery)]["dead_total"] += 1

    async def _keep(
        self, keeping: Keeping, taken: Sequence[tuple[WorkItem, Evicted]]
    ) -> list[Kept]:
        if len(taken) == 1 and taken[0][1].parts and not taken[0][1].tombstone:
            return await self._keep_large(keeping, *taken[0])
        kept = await keeping.pack_all(
            [(manifest, item.delivery.payload) for item, manifest in taken]
        )
        await keeping.settle_all(kept)
        return kept

    async def _keep_large(self, keeping: Keeping, item: WorkItem, manifest: Evicted) -> list[Kept]:
        headers = item.delivery.headers
        value = (
            lent_value(headers, manifest, self._lenders)
            if is_lent(headers)
            else self._parts.value(manifest)
        )
        async with self._large:
            while not self._fits(manifest.size_bytes):
                await self._wait_for_room(keeping)
            self._bytes += manifest.size_bytes
            try:
                kept = await keeping.pack_all([(manifest, value)])
            except BaseException:
                self._bytes -= manifest.size_bytes
                raise
        try:
            await keeping.settle_all(kept)
        finally:
            self._bytes -= manifest.size_bytes
            self._some_done.set()
        return kept


def _batches(items: Sequence[WorkItem]) -> Iterator[Sequence[WorkItem]]:
    """Small values by the batch; larger ones, and what has no value with it, each alone."""
    small = [item for item in items if 0 < len(item.delivery.payload) <= INLINE_BYTES]
    for first in range(0, len(small), BATCH):
        yield small[first : first + BATCH]
    for item in items:
        if not 0 < len(item.delivery.payload) <= INLINE_BYTES:
            yield [item]


async def _wait(stopping: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
