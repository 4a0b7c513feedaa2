"""From the eviction stream to the vault: decode, verify, keep, announce, acknowledge."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import structlog

from archive import segment
from archive.announce import Announcer
from archive.index_entry import IndexEntry
from archive.parts import Parts
from archive.settings import ArchiveSettings
from archive.store import StoreError
from archive.vault import Outcome, Vault
from schemas.cache import EVICTED_HEADER, Evicted, decode_header
from schemas.message import UNDECODABLE
from schemas.protocols import Delivery, Lease, PublishError, WorkItem, WorkQueue

log = structlog.get_logger()

STREAM = "EVICTIONS"
CONSUMER = "archiver"
EXTEND_SECONDS = 10.0
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
        segment.check_value(manifest, delivery.payload)
    elif delivery.payload or (manifest.eviction is None):
        raise ValueError("a manifest of parts has a payload, or does not name its eviction")
    return manifest


def namespace_of(delivery: Delivery) -> str:
    """The last token of `evicted.<namespace>`."""
    return delivery.subject.rpartition(".")[2]


class Intake:
    """Takes evictions and settles each exactly once.

    At least once from the stream, once in the store: an eviction is acknowledged after it is
    durable, indexed and announced, so a crash in between repeats it, and repeating is harmless.
    At most `in_flight` values are in memory, and one of those that came in parts, which is read
    only where it is to be stored; its parts are removed once it is settled. While the store
    fails, items go back with a growing delay and are tried one at a time: nothing is lost, and
    the stream holds the rest.
    """

    def __init__(
        self,
        vault: Vault,
        queue: WorkQueue,
        parts: Parts,
        announcer: Announcer,
        settings: ArchiveSettings,
    ) -> None:
        self._vault = vault
        self._parts = parts
        self._large = asyncio.Lock()
        self._queue = queue
        self._announcer = announcer
        self._settings = settings
        self._running: set[asyncio.Task[None]] = set()
        self.store_error = ""
        self.queue_error = ""

    @property
    def in_flight(self) -> int:
        """How many evictions are being handled now."""
        return len(self._running)

    async def run(self, lease: Lease, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set or the lease is lost; what is in flight is finished."""
        try:
            await self._queue.take_over(STREAM, CONSUMER)
        except PublishError as error:
            log.warning("evictions_not_taken_over", error=str(error))  # they come, only later
        async with asyncio.TaskGroup() as group:
            while lease.held and not stopping.is_set():
                if self.store_error or self.queue_error:
                    await _wait(stopping, self._settings.retry_seconds)
                limit = 1 if self.store_error else self._settings.in_flight
                while len(self._running) >= limit:
                    await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                for item in await self._take(limit - len(self._running)):
                    task = group.create_task(self._settle(item, lease))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)

    async def _take(self, batch: int) -> list[WorkItem]:
        try:
            items = await self._queue.take(STREAM, CONSUMER, batch=batch, wait_seconds=TAKE_SECONDS)
        except PublishError as error:
            if not self.queue_error:
                log.warning("evictions_unreachable", error=str(error))
            self.queue_error = str(error)
            return []
        self.queue_error = ""
        return list(items)

    async def _settle(self, item: WorkItem, lease: Lease) -> None:
        try:
            if lease.held:
                await self._handle(item, lease)
            else:
                await item.retry(0)
        except PublishError as error:
            # Not settled, so it comes again.
            self._announcer.counts[namespace_of(item.delivery)]["unconfirmed_total"] += 1
            log.warning("eviction_unconfirmed", error=str(error))

    async def _handle(self, item: WorkItem, lease: Lease) -> None:
        counts = self._announcer.counts[namespace_of(item.delivery)]
        try:
            manifest = read_manifest(item.delivery)
        except ValueError as error:
            await item.dead(str(error))
            counts["dead_total"] += 1
            return
        try:
            outcome, entry = await self._keep(manifest, item)
        except ValueError as error:
            await item.dead(str(error))
            counts["dead_total"] += 1
            return
        except StoreError as error:
            self.store_error = str(error)
            await item.retry(self._retry_seconds(item.attempt))
            await self._announcer.store_failed(
                manifest.namespace, manifest.key, manifest.version, str(error)
            )
            return
        if self.store_error:
            log.info("archive_store_recovered")
            self.store_error = ""
        if not lease.held:
            # Another owner may have read its index before this was in the store: it must hear
            # of it too, so the item stays unsettled and comes again.
            return
        if entry is not None:
            # Before the acknowledgement: the cache waits for this event, and a crash between
            # the two then repeats it instead of losing it.
            await self._announcer.stored(entry)
        await item.done()
        counts[f"{outcome}_total"] += 1
        if manifest.parts:
            await self._parts.remove(manifest)

    async def _keep(self, manifest: Evicted, item: WorkItem) -> tuple[Outcome, IndexEntry | None]:
        if not manifest.parts or manifest.tombstone:
            return await self._vault.keep(manifest, item.delivery.payload)
        async with _extended(item), self._large:
            return await self._vault.keep(manifest, lambda: self._parts.read(manifest))

    def _retry_seconds(self, attempt: int) -> float:
        doublings = min(attempt - 1, 30)
        return min(self._settings.retry_max_seconds, self._settings.retry_seconds * 2.0**doublings)


@contextlib.asynccontextmanager
async def _extended(item: WorkItem) -> AsyncIterator[None]:
    """Keep the item from being given to another worker, however long the body takes."""

    async def extend() -> None:
        while True:
            await asyncio.sleep(EXTEND_SECONDS)
            with contextlib.suppress(PublishError):  # then it may come again, which is harmless
                await item.extend()

    extending = asyncio.create_task(extend())
    try:
        yield
    finally:
        extending.cancel()


async def _wait(stopping: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
