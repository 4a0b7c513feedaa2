"""From the eviction stream to the vault: decode, verify, keep, announce, acknowledge."""

import asyncio
import contextlib

import msgspec
import structlog

from archive import frame
from archive.announce import Announcer
from archive.index_entry import IndexEntry
from archive.parts import Parts
from archive.settings import ArchiveSettings
from archive.vault import Outcome, Vault
from schemas.cache import EVICTED_HEADER, INLINE_LIMIT_BYTES, Evicted, decode_header
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
        frame.check_value(manifest, delivery.payload)
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
    At most `in_flight` evictions, of `in_flight_bytes`, are being handled, and one of those that
    came in parts, which is read only where it is to be stored; its parts are removed once it is
    settled. While the store fails they are held, and the stream holds the rest.
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
        self._running: dict[asyncio.Task[None], WorkItem] = {}
        self._bytes = 0
        self._some_done = asyncio.Event()
        self.queue_error = ""

    @property
    def in_flight(self) -> int:
        """How many evictions are being handled now."""
        return len(self._running)

    async def run(self, lease: Lease, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set, and finish what is in flight; or until the lease is lost.

        What is in flight then stays unsettled and comes again, to the next owner.
        """
        try:
            await self._queue.take_over(STREAM, CONSUMER)
        except PublishError as error:
            log.warning("evictions_not_taken_over", error=str(error))  # they come, only later
        async with asyncio.TaskGroup() as group:
            extending = group.create_task(self._extend_regularly())
            try:
                while lease.held and not stopping.is_set():
                    if self.queue_error:
                        await _wait(stopping, self._settings.retry_seconds)
                    if len(self._running) >= self._settings.in_flight or not self._fits(1):
                        await self._wait_for_room()
                        continue
                    for item in await self._take():
                        self._begin(group, item, lease)
            finally:
                extending.cancel()
            self._vault.packer.flush()
            while self._running:
                if not lease.held:
                    for task in self._running:
                        task.cancel()
                await self._wait_for_room()

    def _fits(self, size_bytes: int) -> bool:
        return not self._bytes or self._bytes + size_bytes <= self._settings.in_flight_bytes

    async def _wait_for_room(self) -> None:
        """Return when something was settled, or soon."""
        self._vault.packer.hurry()
        self._some_done.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TAKE_SECONDS):
                await self._some_done.wait()

    async def _take(self) -> list[WorkItem]:
        free = self._settings.in_flight - len(self._running)
        free_bytes = self._settings.in_flight_bytes - self._bytes
        batch = max(1, min(free, free_bytes // INLINE_LIMIT_BYTES))
        try:
            items = await self._queue.take(STREAM, CONSUMER, batch=batch, wait_seconds=TAKE_SECONDS)
        except PublishError as error:
            if not self.queue_error:
                log.warning("evictions_unreachable", error=str(error))
            self.queue_error = str(error)
            return []
        self.queue_error = ""
        return list(items)

    def _begin(self, group: asyncio.TaskGroup, item: WorkItem, lease: Lease) -> None:
        size_bytes = len(item.delivery.payload)
        task = group.create_task(self._settle(item, lease))
        self._running[task] = item
        self._bytes += size_bytes

        def done(task: asyncio.Task[None]) -> None:
            del self._running[task]
            self._bytes -= size_bytes
            self._some_done.set()

        task.add_done_callback(done)

    async def _extend_regularly(self) -> None:
        """Keep what is in flight from being given to another worker, however long it takes."""
        while True:
            await asyncio.sleep(EXTEND_SECONDS)
            for item in list(self._running.values()):
                with contextlib.suppress(PublishError):  # then it may come again: harmless
                    await item.extend()

    async def _settle(self, item: WorkItem, lease: Lease) -> None:
        try:
            await self._handle(item, lease)
        except PublishError as error:
            # Not settled, so it comes again.
            self._announcer.counts[namespace_of(item.delivery)]["unconfirmed_total"] += 1
            log.warning("eviction_unconfirmed", error=str(error))

    async def _handle(self, item: WorkItem, lease: Lease) -> None:
        counts = self._announcer.counts[namespace_of(item.delivery)]
        try:
            manifest = read_manifest(item.delivery)
            outcome, entry = await self._keep(manifest, item)
        except ValueError as error:
            await item.dead(str(error))
            counts["dead_total"] += 1
            return
        if not lease.held:
            # Another owner may have read its index before this was in the store: it must hear
            # of it too, so the item stays unsettled and comes again.
            return
        if entry is not None:
            # Before the acknowledgement: the cache waits for this event, and a crash between
            # the two then repeats it instead of losing it.
            await self._announcer.stored(entry)
            if outcome == "stored":
                self._vault.meter.stored(entry)
        await item.done()
        counts[f"{outcome}_total"] += 1
        if manifest.parts:
            await self._parts.remove(manifest)

    async def _keep(self, manifest: Evicted, item: WorkItem) -> tuple[Outcome, IndexEntry | None]:
        if not manifest.parts or manifest.tombstone:
            return await self._vault.keep(manifest, item.delivery.payload)
        async with self._large:
            while not self._fits(manifest.size_bytes):
                await self._wait_for_room()
            self._bytes += manifest.size_bytes
            try:
                packed = await self._vault.pack(manifest, lambda: self._parts.read(manifest))
            except BaseException:
                self._bytes -= manifest.size_bytes
                raise
        try:
            return await self._vault.settled(packed)
        finally:
            self._bytes -= manifest.size_bytes
            self._some_done.set()


async def _wait(stopping: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
