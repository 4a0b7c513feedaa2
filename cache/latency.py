"""How long requests took, as histograms that cost less than a microsecond a request."""

_FINE_BITS = 3
_BUCKETS = 64 << _FINE_BITS


class Histogram:
    """Durations in nanoseconds, each counted in a bucket at most an eighth wide.

    `add` is O(1); the sum is exact, so the mean is.
    """

    __slots__ = ("_counts", "_total_ns", "count")

    def __init__(self) -> None:
        self.count = 0
        self._total_ns = 0
        self._counts = [0] * _BUCKETS

    def add(self, duration_ns: int, times: int = 1) -> None:
        """Count one duration, at least 0, so many times."""
        self.count += times
        self._total_ns += times * duration_ns
        shift = duration_ns.bit_length() - _FINE_BITS - 1
        if shift > 0:
            self._counts[(shift << _FINE_BITS) + (duration_ns >> shift)] += times
        else:
            self._counts[duration_ns] += times

    def mean_seconds(self, *others: "Histogram") -> float | None:
        """The mean of all durations, those of `others` included; None without any."""
        together = (self, *others)
        count = sum(one.count for one in together)
        return sum(one._total_ns for one in together) / count / 1e9 if count else None

    def quantile_seconds(self, share: float) -> float | None:
        """The upper edge of the bucket that `share` (0 to 1) of all durations lie in or below."""
        wanted, seen = share * self.count, 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                shift = max(0, (index >> _FINE_BITS) - 1)
                return ((index - (shift << _FINE_BITS) + 1) << shift) / 1e9
        return None


class Latencies:
    """Of look-ups: those that RAM or the outbox answered, and the others."""

    def __init__(self) -> None:
        self.hit = Histogram()
        self.miss = Histogram()
