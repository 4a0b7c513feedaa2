"""Ownership by lease: a key that its owner renews, and that expires when the owner is gone."""

import asyncio
import contextlib
import time

import structlog

from schemas.protocols import Bucket, Lease, PublishError, RevisionConflictError

log = structlog.get_logger()

LEASE_SECONDS = 6.0
RENEW_SECONDS = 2.0
SAFETY_SECONDS = 1.0


class BucketLease:
    """One held lease. Sure of itself until a second before the bucket would let it expire."""

    def __init__(self, name: str, revision: int, started: float) -> None:
        self.name = name
        self.revision = revision
        self._fence = revision
        self._until = started + LEASE_SECONDS - SAFETY_SECONDS
        self._lost = asyncio.Event()

    @property
    def held(self) -> bool:
        """True while it is certain that nobody else owns it; once False, it stays so."""
        if time.monotonic() >= self._until and not self._lost.is_set():
            log.warning("lease_lost", lease=self.name, error="not renewed in time")
            self._lost.set()
        return not self._lost.is_set()

    @property
    def fence(self) -> int:
        """Grows with every change of owner."""
        return self._fence

    async def wait_lost(self) -> None:
        """Return once the lease is lost or given back."""
        while self.held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.01, self._until - time.monotonic())):
                    await self._lost.wait()

    def renewed(self, revision: int, started: float) -> None:
        """The bucket took the renewal that began at `started` (monotonic seconds)."""
        self.revision = revision
        self._until = started + LEASE_SECONDS - SAFETY_SECONDS

    def lose(self) -> None:
        """Somebody else may own it from now on."""
        self._lost.set()


class BucketLeases:
    """Leases in the bucket `fleet-lease` (entries expire after 6 s, renewed every 2 s).

    `owner` names this service instance across restarts: what it held before it died is its own
    again at once. Two live processes must never share an owner name; the registry sees to that.
    """

    def __init__(self, bucket: Bucket, owner: str) -> None:
        self._bucket = bucket
        self._owner = owner.encode()
        self._renewals: dict[BucketLease, asyncio.Task[None]] = {}

    async def try_acquire(self, name: str) -> Lease | None:
        """The lease, or None while somebody else has it or the server does not answer."""
        started = time.monotonic()
        try:
            found = await self._bucket.get(name)
            if found is None:
                revision = await self._bucket.create(name, self._owner)
            elif found[0] == self._owner and not self._holds(name):
                revision = await self._bucket.update(name, self._owner, found[1])
            else:
                return None
        except (RevisionConflictError, PublishError):
            return None
        lease = BucketLease(name, revision, started)
        self._renewals[lease] = asyncio.create_task(self._renew(lease))
        return lease

    async def is_held(self, name: str) -> bool:
        """Whether anybody has the lease; see Leases."""
        return await self._bucket.get(name) is not None

    def _holds(self, name: str) -> bool:
        return any(lease.name == name and lease.held for lease in self._renewals)

    async def _renew(self, lease: BucketLease) -> None:
        while lease.held:
            await asyncio.sleep(RENEW_SECONDS)
            started = time.monotonic()
            try:
                revision = await self._bucket.update(lease.name, self._owner, lease.revision)
            except RevisionConflictError:
                log.warning("lease_lost", lease=lease.name, error="expired, or taken by another")
                lease.lose()
            except PublishError as error:
                log.warning("lease_renewal_failed", lease=lease.name, error=str(error))
            else:
                if lease.held:
                    lease.renewed(revision, started)
        lease.lose()

    async def release(self, lease: Lease) -> None:
        """Give it back, so that others need not wait for its expiry."""
        assert isinstance(lease, BucketLease)  # noqa: S101 - we only ever hand out our own
        renewal = self._renewals.pop(lease, None)
        if renewal is not None:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
        was_held = lease.held
        lease.lose()
        if was_held:
            # The revision: delayed on its way, it must not take the next owner's lease away.
            with contextlib.suppress(PublishError, RevisionConflictError):
                await self._bucket.delete(lease.name, lease.revision)

    async def close(self) -> None:
        """Give all back."""
        for lease in list(self._renewals):
            await self.release(lease)
