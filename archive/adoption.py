"""How an archiver whose store is not its own is told to take it over."""

from collections.abc import Awaitable, Callable, Sequence

from archive.claim import Claim
from archive.store import StoreError
from schemas.protocols import Endpoint, Lease, Leases, PublishError

KEEPERS_LEASE = "archive"
LEASE = "archive.adoption"
"""Of several that are refused their stores one answers."""
Serve = Callable[[Sequence[Endpoint]], Awaitable[Callable[[], Awaitable[None]]]]
"""Serves endpoints and returns what drains them again."""


class Adoption:
    """Serves endpoints for as long as nobody keeps the index, so nobody else would answer them."""

    def __init__(self, claim: Claim, leases: Leases, serve: Serve) -> None:
        self._claim = claim
        self._leases = leases
        self._serve = serve
        self._stop_serving: Callable[[], Awaitable[None]] | None = None
        self._lease: Lease | None = None
        self._keepers: Lease | None = None

    async def offer(self, endpoints: Sequence[Endpoint]) -> None:
        """Serve them where nobody else does; to be called again and again."""
        if self._keepers is not None:  # it is being adopted
            return
        try:
            is_kept = await self._leases.is_held(KEEPERS_LEASE)
        except PublishError:
            return
        if is_kept or (self._lease is not None and not self._lease.held):
            await self.withdraw()
        elif self._lease is None:
            self._lease = await self._leases.try_acquire(LEASE)
            if self._lease is not None:
                self._stop_serving = await self._serve(endpoints)

    async def adopt(self) -> None:
        """Take the store over, and be the one that keeps the index of it.

        Raises:
            StoreError: the store cannot be written, the bus does not answer, or another archiver
                keeps the index meanwhile.
        """
        # Before the mark is written: then nobody else can become the keeper, and this one goes on
        # answering who asked for it.
        self._keepers = self._keepers or await self._leases.try_acquire(KEEPERS_LEASE)
        if self._keepers is None:
            raise StoreError("another archiver keeps the index by now: it has to be asked")
        try:
            await self._claim.adopt()
        except (StoreError, PublishError) as error:
            lease = self.keepers_lease()
            if lease is not None:
                await self._leases.release(lease)
            raise StoreError(str(error)) from error

    @property
    def keeps_index(self) -> bool:
        """Whether this archiver has begun to, by an adoption, and its service does not know yet."""
        return self._keepers is not None and self._keepers.held

    def keepers_lease(self) -> Lease | None:
        """That of an adoption, once."""
        lease, self._keepers = self._keepers, None
        return lease

    async def withdraw(self) -> None:
        """Serve them no longer."""
        stop_serving, self._stop_serving = self._stop_serving, None
        lease, self._lease = self._lease, None
        if stop_serving is not None:
            await stop_serving()
        if lease is not None:
            await self._leases.release(lease)
