"""How long it takes to fetch a value from the store, learned from those that were fetched."""

DECAY = 0.97
"""Of an observation's weight with each that follows: half is gone after 23."""
LEAST_OBSERVED = 5
STALE_SECONDS = 30.0
"""So old an observation no longer speaks for the store as it is."""


class FetchTime:
    """Seconds = base + bytes / rate, by weighted least squares over what was seen of late.

    O(1) in time and memory. `now_seconds` is any clock that does not go back.
    """

    def __init__(self) -> None:
        self._observed = 0
        self._observed_seconds = 0.0
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, size_bytes: int, took_seconds: float, now_seconds: float) -> None:
        """A fetch of so many bytes took so long."""
        x, y = float(size_bytes), took_seconds
        self._weight = DECAY * self._weight + 1
        self._x = DECAY * self._x + x
        self._y = DECAY * self._y + y
        self._xx = DECAY * self._xx + x * x
        self._xy = DECAY * self._xy + x * y
        self._observed += 1
        self._observed_seconds = now_seconds

    def estimate(self, size_bytes: int, now_seconds: float) -> float | None:
        """Seconds for so many bytes; None where too little was seen, or nothing of late.

        Never below 0, and never less for more bytes.
        """
        is_stale = now_seconds - self._observed_seconds > STALE_SECONDS
        if self._observed < LEAST_OBSERVED or is_stale:
            return None
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        # All of about one size say nothing about others: then time grows with size.
        if variance <= (mean_x / 100) ** 2:
            return mean_y * max(1.0, size_bytes / max(mean_x, 1.0))
        slope = max(0.0, (self._xy / self._weight - mean_x * mean_y) / variance)
        return max(0.0, mean_y + slope * (size_bytes - mean_x))
