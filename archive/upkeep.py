"""Work on the whole archive: sweeps, and the index written anew; at a time, or on request."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable

import structlog

from archive.adoption import Adoption
from archive.announce import Announcer
from archive.claim import Claim
from archive.duty import Duty
from archive.job import Done, Job, OnProgress
from archive.marks import ClaimError, MarkRefusedError, NotOurStoreError, OwnUnreadableError
from archive.store import LEFTOVER_SECONDS, StoreError
from archive.sweep import Sweeper
from archive.vault import Vault
from schemas.api import ArchiveJobRequest
from schemas.protocols import Clock, Endpoint, PublishError
from schemas.units import SECOND_NS

log = structlog.get_logger()

LEFTOVERS_NS = int(LEFTOVER_SECONDS * SECOND_NS)
CHECK_SECONDS = 1.0
"""How long is believed, while many objects are removed, that the store is this installation's."""


class Upkeep:
    """Sweeps and reindexes, each one at a time, and only a store that is still ours.

    Where it is another's, `duty`, the present one, is over.
    """

    def __init__(
        self,
        vault: Vault,
        claim: Claim,
        adoption: Adoption,
        announcer: Announcer,
        instance: str,
        clock: Clock,
        duty: Callable[[], Duty],
    ) -> None:
        self._vault = vault
        self._sweeper = Sweeper(vault, self.check_before_removal)
        self._claim = claim
        self._adoption = adoption
        self._announcer = announcer
        self._clock = clock
        self._duty = duty
        self.trouble = ""
        """Why nothing can be removed though the store works; empty: it can."""
        self._leftovers_due_ns = clock() + LEFTOVERS_NS
        self._checked_until = 0.0
        self._checking = asyncio.Lock()
        """What was seen last is told last."""
        self._sweeping = asyncio.Lock()
        self._sweep_job = Job("sweep", instance, self._sweep_now)
        self._reindex_job = Job("reindex", instance, self._reindex)

    def endpoints(self) -> list[Endpoint]:
        """JSON: sweep and reindex.

        An archiver that is refused its store serves them as well: a sweep says why it can not,
        and a reindex may adopt.
        """
        return [self._sweep_job.endpoint(), self._reindex_job.endpoint()]

    async def stop(self) -> None:
        """Give up what is under way on request."""
        await self._sweep_job.stop()
        await self._reindex_job.stop()

    async def sweep(self) -> None:
        """Remove what expired or was cleared."""
        try:
            await self._sweep(lambda _done, _total: None)
        except StoreError as error:
            log.error("archive_sweep_failed", error=str(error))
        else:
            await self._remove_leftovers()

    async def _remove_leftovers(self) -> None:
        """Once a day what archivers left that were killed while they wrote.

        Each start of a keeper does that, but the helpers that are killed are not the keeper.
        """
        if self._clock() < self._leftovers_due_ns:
            return
        self._leftovers_due_ns = self._clock() + LEFTOVERS_NS
        try:
            await self._vault.store.remove_leftovers()
        except StoreError as error:  # what else it may do here, it may go on doing
            log.warning("archive_leftovers_stay", error=str(error))

    async def _reindex(self, on_progress: OnProgress, request: ArchiveJobRequest) -> Done:
        """Write the index anew; of a store that is not ours only where it is to be adopted."""
        if request.adopt and not self._duty().held:
            await self._adoption.adopt()
        try:
            await self.check_claim()
        except (MarkRefusedError, OwnUnreadableError):
            if not request.adopt:
                raise
            await self._write_mark()
        rebuilt = await self._vault.catalog.rebuild(on_progress)
        self._vault.trouble.forget_damage()
        return rebuilt

    async def _sweep_now(self, on_progress: OnProgress, _request: ArchiveJobRequest) -> Done:
        return await self._sweep(on_progress), {}

    async def _sweep(self, on_progress: OnProgress) -> Counter[str]:
        """One sweep; how many entries it removed, by kind."""
        await self.check_claim()
        if not self._duty().held:
            # Its index may be behind that of who keeps it now.
            raise StoreError("this archiver does not keep the index now: ask again")
        removed: Counter[str] = Counter()
        async with self._sweeping, contextlib.aclosing(self._sweeper.sweep()) as entries:
            async for entry in entries:
                if entry.tombstone:
                    kind = "tombstones_dropped"
                elif entry.is_expired(self._clock()):
                    kind = "expired"
                    await self._announcer.expired(entry)
                else:
                    kind = "cleared"
                if kind != "expired":
                    self._announcer.counts[entry.namespace][f"{kind}_total"] += 1
                removed[kind] += 1
                on_progress(removed.total(), None)
        return removed

    async def _write_mark(self) -> None:
        """Of a store that is this one's for all it knows, and of which that cannot be read."""
        try:
            await self._claim.adopt()
        except PublishError as error:
            raise StoreError(str(error)) from error
        await self.check_claim()

    async def check_before_removal(self) -> None:
        """Before each object is removed or put aside; as `check_now`, or a second ago."""
        if time.monotonic() >= self._checked_until:
            await self.check_claim()
            self._checked_until = time.monotonic() + CHECK_SECONDS
        self._check_duty()

    async def check_now(self) -> None:
        """Is the store there, this installation's, and this archiver the one that keeps the index?

        Raises:
            StoreError: it is not, or that cannot be told.
        """
        await self.check_claim()
        self._check_duty()

    def _check_duty(self) -> None:
        """This process may have been stopped for longer than its lease lasts.

        Another archiver may need by now what is not needed by this one's index.
        """
        if not self._duty().held and not self._adoption.keeps_index:
            raise StoreError("another archiver may keep the index by now: nothing more is removed")

    async def check_claim(self) -> None:
        """Before anything is removed or given up: is the store there, and this one's?

        Somebody else may have taken it over meanwhile, or it was unmounted.

        Raises:
            StoreError: it is not, or that cannot be told.
        """
        async with self._checking:
            await self._check_claim()

    async def _check_claim(self) -> None:
        try:
            await self._claim.check(keeps=self._duty().held)
        except NotOurStoreError:
            self._duty().over = True
            raise
        except ClaimError as error:  # it was ours, so what can be given back is
            self.trouble = f"nothing is removed: {error}"
            raise
        except PublishError as error:
            raise StoreError(f"the bus does not say whose the store is: {error}") from error
        self.trouble = ""
