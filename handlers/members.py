"""Which handlers processes are alive, by leases: the registry hears of a death a minute late."""

from collections.abc import Callable, Iterable

from schemas.protocols import Lease, Leases, PublishError


class Members:
    """Counts the processes that share the slots.

    Each holds a lease of its own, which ends 6 s after it died, as those of its slots do.
    `registered` names the processes that may be there, this one, `name`, included.
    """

    def __init__(self, leases: Leases, name: str, registered: Callable[[], Iterable[str]]) -> None:
        self._leases = leases
        self._name = name
        self._registered = registered
        self._lease: Lease | None = None
        self._alive = 1

    async def count(self) -> int:
        """How many are alive, at least this one; while the server does not answer, as before."""
        if self._lease is None or not self._lease.held:
            self._lease = await self._leases.try_acquire(_lease_of(self._name))
        others = {*self._registered()} - {self._name}
        try:
            held = [await self._leases.is_held(_lease_of(other)) for other in others]
        except PublishError:
            return self._alive
        self._alive = 1 + sum(held)
        return self._alive


def _lease_of(name: str) -> str:
    return f"handlers.member.{name}"
