"""The archive service: one archiver keeps the index, all of them take evictions."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Collection
from types import TracebackType
from typing import Self

import structlog

from archive.adoption import KEEPERS_LEASE, Adoption, Serve
from archive.announce import Announcer
from archive.catalog import Catalog
from archive.claim import Claim
from archive.condition import Condition
from archive.dead_letters import DeadLetters
from archive.duty import Duty
from archive.handover import Handover
from archive.helper import Helper
from archive.index_bucket import IndexBucket
from archive.intake import CONSUMER, STREAM, Intake
from archive.keeper import Keeper
from archive.keeping import Kept
from archive.marks import ClaimError
from archive.metering import Metering
from archive.parts import Parts
from archive.queries import Queries
from archive.restoring import Restoring
from archive.settings import ArchiveSettings
from archive.store import ObjectStore, StoreError
from archive.upkeep import Upkeep
from archive.vault import Vault
from schemas.lifecycle import Component, ComponentState
from schemas.protocols import (
    Bucket,
    Clock,
    Endpoint,
    Lease,
    Leases,
    LetterStream,
    PartStream,
    Publisher,
    PublishError,
    Requester,
    WorkQueue,
)

log = structlog.get_logger()

READY_SECONDS = 10.0
"""Who starts services need not wait longer for a store that is slow to read, or fails slowly."""


@dataclasses.dataclass(frozen=True, slots=True)
class ArchiveBus:
    """What the archive needs of the bus."""

    publisher: Publisher
    queue: WorkQueue
    parts: PartStream
    index: Bucket
    make_index: Callable[[], Awaitable[None]]
    state: Bucket
    letters: LetterStream
    requester: Requester
    leases: Leases
    serve: Serve


class ArchiveService:
    """Takes evictions into a store and gives them back.

    An async context manager. Inside, whoever holds the lease `archive` reads the index from the
    store, serves the endpoints, sweeps, and takes evictions. The others take evictions too, and
    ask that one what to do with each (`archive.helper`); every `standby_poll_seconds` they try to
    take its place. Guarantees: an acknowledged eviction is durable in the store, superseded,
    expired or in FLEET_DEAD; a value past its expiry, of an older generation, or with a wrong
    digest is never returned. `namespaces` are those the cache serves; they have a status before
    anything of them comes. Leaving finishes what is in flight, within `drain_seconds`; the rest
    comes again.
    """

    name = "archive"

    def __init__(
        self,
        bus: ArchiveBus,
        store: ObjectStore,
        settings: ArchiveSettings,
        instance: str,
        clock: Clock,
        *,
        namespaces: Collection[str] = (),
    ) -> None:
        self._bus = bus
        self._store = store
        self._settings = settings
        self._clock = clock
        self._announcer = Announcer(bus.publisher, instance, clock)
        self._index_bucket = IndexBucket(bus.index, bus.make_index)
        self._vault = Vault(
            store,
            settings,
            clock,
            on_failure=self._announcer.store_failed,
            catalog=Catalog(store, self._index_bucket, self._check_before_removal),
            check_store=self._check_store,
        )
        parts = Parts(bus.parts)
        self._intake = Intake(bus.queue, parts, bus.requester, self._announcer, settings)
        self._dead_letters = DeadLetters(bus.letters, bus.publisher, parts)
        self._claim = Claim(store, bus.state, self._vault.catalog.recognises)
        self._adoption = Adoption(self._claim, bus.leases, bus.serve)
        self._duty = Duty(over=True)
        self._upkeep = Upkeep(
            self._vault,
            self._claim,
            self._adoption,
            self._announcer,
            instance,
            clock,
            lambda: self._duty,
        )
        self._handover = Handover(settings.handover_max_bytes)
        self._queries = Queries(
            self._vault,
            store,
            self._announcer,
            bus.queue,
            bus.requester,
            instance,
            clock,
            namespaces,
            is_owner=self._is_owner,
            unusable=self._intake.unusable,
            settings=settings,
        )
        self._restoring = Restoring(
            self._vault,
            self._announcer,
            instance,
            clock,
            self._handover,
            settings,
            is_owner=self._is_owner,
        )
        self._metering = Metering(self._vault, bus.publisher, instance, clock, settings)
        self._keeper = Keeper(self._vault, store, self._is_owner, self._count)
        self._condition = Condition(
            store,
            bus.letters,
            settings,
            clock,
            trouble=lambda: self._vault.packer.store_error or self._load_error,
            pending=self._queries.pending,
            queue_trouble=lambda: self._intake.queue_error,
            unusable=lambda: self._intake.unusable.count,
        )
        self._state = "starting"
        self._settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._work: asyncio.Task[None] | None = None
        self._probes: asyncio.Task[None] | None = None
        self._load_error = ""

    async def __aenter__(self) -> Self:
        """Open the store and begin.

        Raises:
            StoreError: the store cannot be written; the text says what to do.
        """
        await self._store.open()
        await self._tasks.__aenter__()
        self._work = self._tasks.create_task(self._own_or_help())
        self._probes = self._tasks.create_task(self._probe_regularly())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        if self._work is not None:
            await asyncio.wait({self._work}, timeout=self._settings.drain_seconds)
            self._work.cancel()
        if self._probes is not None:
            self._probes.cancel()
        if isinstance(error, Exception):
            # The body's own error leaves as it is, not in a group.
            kind = error = trace = None
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            await self._store.close()

    @property
    def is_active(self) -> bool:
        """Whether this archiver keeps the index and serves."""
        return self._state == "active"

    async def _check_store(self) -> None:
        await self._upkeep.check_now()

    async def _check_before_removal(self) -> None:
        await self._upkeep.check_before_removal()

    def _is_owner(self) -> bool:
        return self._duty.held

    async def wait_ready(self) -> None:
        """Return once this archiver serves, or it is clear that it cannot yet.

        Another one may own the store, it may fail, or its index may take long to read: health
        says which, evictions wait in their stream, and it serves as soon as it can.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                await self._settled.wait()

    def components(self) -> list[Component]:
        """The lease as it is now, store and backlog as the last probe saw them."""
        lease: ComponentState = "ok" if self._state in ("active", "helping") else "degraded"
        known = [
            self._condition.component("lease", lease, self._state),
            *self._condition.components(self._load_error),
        ]
        found = self._vault.trouble.text(self._vault.namespaces, self._clock())
        trouble = "; ".join(filter(None, (found, self._upkeep.trouble)))
        if trouble and self._duty.held:
            known.append(self._condition.component("objects", "degraded", trouble))
        return known

    def counters(self) -> dict[str, float]:
        """Totals of this process and sizes now, all namespaces together."""
        indexes = list(self._vault.namespaces.values())
        segments = list(self._vault.ledger.segments.values())
        return {
            **{name: float(count) for name, count in self._announcer.total().items()},
            "entries": float(sum(index.entries for index in indexes)),
            "tombstones": float(sum(index.tombstones for index in indexes)),
            "size_bytes": float(sum(index.size_bytes for index in indexes)),
            "stored_bytes": float(sum(index.object_bytes for index in indexes)),
            "objects": float(len(segments)),
            "object_bytes": float(sum(segment.object_bytes for segment in segments)),
            "index_failures_total": float(self._vault.catalog.bucket_failures),
            "dropped_total": float(self._vault.dropped.total()),
            "unreadable_objects": float(self._vault.catalog.unreadable),
            "in_flight": float(self._intake.in_flight),
            "handover_bytes": float(self._handover.used_bytes),
        }

    async def _own_or_help(self) -> None:
        while not self._stopping.is_set():
            is_lost = False
            if await self._is_ours():
                lease = self._adoption.keepers_lease()
                lease = lease or await self._bus.leases.try_acquire(KEEPERS_LEASE)
                lease = lease or await self._help()
                if lease is None:
                    break
                try:
                    await self._own(lease)
                    self._load_error = ""
                    is_lost = self._duty.over  # as the store is another's: told at once
                except (StoreError, PublishError) as error:
                    self._not_begun(error)
                finally:
                    self._duty.over = True
                    self._state = "starting"
                    await self._bus.leases.release(lease)
            if not is_lost:
                await self._pause(self._settings.retry_seconds)
        await self._adoption.withdraw()

    async def _is_ours(self) -> bool:
        """Whether the store may be worked on; where it is another's, its adoption is offered."""
        try:
            await self._claim.check()
        except (StoreError, PublishError) as error:
            if isinstance(error, ClaimError):
                self._state = "refused: the store is not this installation's"
                # First: who reads the error may act at once.
                await self._adoption.offer(self._upkeep.endpoints())
            self._not_begun(error)
            return False
        return True

    def _not_begun(self, error: StoreError | PublishError) -> None:
        if str(error) != self._load_error:
            log.error("archive_index_not_loaded", error=str(error))
        self._load_error = str(error)
        self._settled.set()

    async def _help(self) -> Lease | None:
        """Take evictions for the owner until it is gone: then the lease; None: when stopping."""
        self._vault.forget()
        self._load_error = ""
        await self._adoption.withdraw()
        self._enter("helping")
        log.info("archive_helping", store=self._store.description)
        duty = Duty()
        helper = Helper(
            self._store,
            self._index_bucket,
            self._settings,
            self._bus.requester,
            self._clock,
            self._announcer.store_failed,
        )
        lease: Lease | None = None
        try:
            async with asyncio.TaskGroup() as group:
                working = group.create_task(
                    self._intake.run(helper, duty, self._stopping, self._count_helped)
                )
                while lease is None and not working.done():
                    await self._pause(self._settings.standby_poll_seconds)
                    if self._stopping.is_set():
                        await asyncio.wait({working})
                    else:
                        lease = await self._bus.leases.try_acquire(KEEPERS_LEASE)
                duty.over = True
        finally:
            await helper.close()
        return lease

    async def _own(self, lease: Lease) -> None:
        def on_progress(done: int, total: int) -> None:
            self._state = f"reading the index: {done} of {total} objects"

        self._duty = duty = Duty(lease)
        await self._claim.check(keeps=True)  # it may have changed hands while this one helped
        await self._vault.load(on_progress)
        self._load_error = ""
        stop_serving = await self._bus.serve(self._endpoints())
        await self._adoption.withdraw()
        self._enter("active")
        log.info("archive_active", store=self._store.description, **self.counters())
        try:
            async with asyncio.TaskGroup() as group:
                regular = [
                    group.create_task(self._sweep_regularly()),
                    group.create_task(self._condition.keep_lifecycle()),
                    group.create_task(self._metering.run()),
                ]
                await self._take_over()
                await self._intake.run(self._vault, duty, self._stopping, self._count)
                for task in regular:
                    task.cancel()
        finally:
            await self._upkeep.stop()
            await self._vault.close()
            self._condition.forget_lifecycle()
            await stop_serving()
            await self._handover.close()
            await self._restoring.announced()
            await self._metering.tell()  # the last counts of this life

    async def _take_over(self) -> None:
        try:
            await self._bus.queue.take_over(STREAM, CONSUMER)
        except PublishError as error:
            log.warning("evictions_not_taken_over", error=str(error))  # they come, only later

    def _count(self, namespace: str, kept: Kept) -> None:
        outcome, entry = kept
        self._announcer.counts[namespace][f"{outcome}_total"] += 1
        if outcome == "stored" and entry is not None:
            self._vault.meter.stored(entry)

    def _count_helped(self, namespace: str, _kept: Kept) -> None:
        # What became of it is counted by the owner, for the namespace's status.
        self._announcer.counts[namespace]["helped_total"] += 1

    def _endpoints(self) -> list[Endpoint]:
        keeping = (*self._restoring.endpoints(), *self._queries.endpoints())
        beside = (*self._keeper.endpoints(), *self._dead_letters.endpoints())
        return [*keeping, *beside, *self._upkeep.endpoints()]

    async def sweep(self) -> None:
        """Remove what expired or was cleared; also runs by itself."""
        await self._upkeep.sweep()

    async def _sweep_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval_seconds)
            await self.sweep()

    async def _probe_regularly(self) -> None:
        while not self._stopping.is_set():
            await self._condition.look()
            if self.is_active:
                # A bucket that was deleted and made anew takes everything: it has to be asked.
                with contextlib.suppress(StoreError):  # health has it from here
                    await self._upkeep.check_claim()
            await self._pause(self._settings.probe_interval_seconds)

    def _enter(self, state: str) -> None:
        self._state = state
        self._settled.set()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
