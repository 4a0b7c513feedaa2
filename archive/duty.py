"""What entitles an archiver to take evictions and to answer."""

import dataclasses

from schemas.protocols import Lease


@dataclasses.dataclass(slots=True)
class Duty:
    """It lasts until it is `over`, or the lease, if any, is lost.

    A helper's is over when it becomes the owner, any when the store turns out not to be ours.
    """

    lease: Lease | None = None
    over: bool = False

    @property
    def held(self) -> bool:
        """Whether evictions may be taken."""
        return not self.over and (self.lease is None or self.lease.held)
