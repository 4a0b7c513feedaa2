"""What an executor acts on: the interface that each way to act has."""

from typing import Protocol

from schemas.scaling import Recommendation


class ActionError(Exception):
    """An action that failed; the text is for people and has no secrets.

    `has_acted`: False where it is certain that it has changed nothing.
    """

    def __init__(self, text: str, *, has_acted: bool = True) -> None:
        super().__init__(text)
        self.has_acted = has_acted


class Target(Protocol):
    """Something whose pools have replicas. Every call may be cancelled, and then leaves nothing."""

    def refusal(self, pool: str) -> str:
        """Why this pool is not to be changed; empty: it may be."""

    def plan(self, advice: Recommendation) -> str:
        """What `scale` would do, for people."""

    async def observe(self, pool: str) -> int | None:
        """How many replicas the pool is to have now; None: that cannot be told.

        Raises:
            ActionError: it could not be looked up.
        """

    async def scale(self, advice: Recommendation) -> str:
        """Bring the pool to `replicas_to`; returns what was done, for people.

        Raises:
            ActionError: it was not done, or not as far as is known.
        """

    async def close(self) -> None:
        """Close what is open."""
