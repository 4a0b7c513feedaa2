"""Keeps a language model that fails from being asked again and again."""

FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 3600.0


class Breaker:
    """Open for 30 s after a failure, twice as long after each further one, up to an hour.

    An endpoint that says when to ask again is not asked before. When the pause is over one
    question goes through; success closes the breaker. Times are monotonic seconds.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._closed_at = 0.0
        self.reason = ""

    def open_seconds(self, now: float) -> float:
        """How long it stays open from `now` on; 0: ask."""
        return max(0.0, self._closed_at - now)

    def failed(
        self, now: float, reason: str, *, retry_after_seconds: float | None, is_transient: bool
    ) -> None:
        """A question failed; one that cannot succeed without a change of settings waits longest."""
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self._failures)
        if not is_transient:
            pause = LONGEST_PAUSE_SECONDS
        self._failures = min(self._failures + 1, 10)
        self._closed_at = now + max(pause, retry_after_seconds or 0.0)
        self.reason = reason

    def succeeded(self) -> None:
        """A question was answered."""
        self._failures = 0
        self._closed_at = 0.0
        self.reason = ""
