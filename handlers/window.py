"""State that forgets: an expiring map, what was seen last, a rolling maximum."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MAX_ENTRIES = 100_000
MAX_SAMPLES = 4096


class ExpiringDict(Generic[K, V]):
    """A map that forgets a key `ttl_ns` after it was last put or refreshed.

    Nodes, GPUs and engines vanish without saying goodbye, so every map keyed by something from
    the bus is one of these. At most `max_entries`: the one untouched for longest goes first.
    `on_forgotten` hears of each key that goes, but not of one discarded.
    All operations are O(1), amortised; `items` is O(n).
    """

    def __init__(
        self,
        ttl_ns: int,
        max_entries: int = MAX_ENTRIES,
        on_forgotten: Callable[[K], None] = lambda key: None,
    ) -> None:
        self._ttl_ns = ttl_ns
        self._max_entries = max_entries
        self._on_forgotten = on_forgotten
        # In the order of the last touch. Not a dict: the first key of one whose first keys were
        # removed is found in O(n).
        self._entries: OrderedDict[K, tuple[int, V]] = OrderedDict()
        self._first_end_ns = 0  # nothing is forgotten before it

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, value: V, now_ns: int) -> None:
        """Store `value` and start its life anew."""
        entries = self._entries
        entries[key] = (now_ns, value)
        entries.move_to_end(key)
        # Sooner than so far only where the server's clock was set back.
        self._first_end_ns = min(self._first_end_ns, now_ns + self._ttl_ns)
        if now_ns >= self._first_end_ns:
            self.expire(now_ns)
        if len(entries) > self._max_entries:
            self._on_forgotten(entries.popitem(last=False)[0])

    def refresh(self, key: K, make: Callable[[], V], now_ns: int) -> V:
        """The value of `key`, made when it is not there; its life starts anew."""
        entry = self._entries.get(key)
        alive = entry is not None and now_ns - entry[0] < self._ttl_ns
        value = entry[1] if entry is not None and alive else make()
        self.put(key, value, now_ns)
        return value

    def get(self, key: K, now_ns: int) -> V | None:
        """The value, or None when it is not there or was forgotten."""
        entry = self._entries.get(key)
        if entry is None or now_ns - entry[0] >= self._ttl_ns:
            return None
        return entry[1]

    def discard(self, key: K) -> None:
        """Forget `key` now; absent is fine."""
        self._entries.pop(key, None)

    def items(self, now_ns: int | None = None) -> list[tuple[K, V]]:
        """What is remembered at `now_ns`, the one untouched for longest first.

        Without an instant nothing is forgotten: for snapshots, which have none.
        """
        if now_ns is not None:
            self.expire(now_ns)
        return [(key, value) for key, (_, value) in self._entries.items()]

    def values(self, now_ns: int) -> list[V]:
        """What is remembered at `now_ns`, without the keys."""
        self.expire(now_ns)
        return [value for ns, value in self._entries.values() if now_ns - ns < self._ttl_ns]

    def untouched(self, since_ns: int) -> list[tuple[K, V]]:
        """What was last touched at `since_ns` or before, that first. O(as many)."""
        found = []
        for key, (ns, value) in self._entries.items():
            if ns > since_ns:
                break
            found.append((key, value))
        return found

    def touched(self) -> list[tuple[int, K, V]]:
        """Everything with the instant of its last touch, which grows: for snapshots."""
        return [(ns, key, value) for key, (ns, value) in self._entries.items()]

    def expire(self, now_ns: int) -> None:
        """Drop what is older than the time to live."""
        if now_ns < self._first_end_ns:
            return
        while self._entries:
            oldest = next(iter(self._entries))
            self._first_end_ns = self._entries[oldest][0] + self._ttl_ns
            if now_ns < self._first_end_ns:
                return
            del self._entries[oldest]
            self._on_forgotten(oldest)


class LastSeen(Generic[K]):
    """Keys of the last `ttl_ns`, at most `max_entries`: further ones are not taken.

    Keeps no order, so that seeing a key costs little; `forget` costs O(n), and is for ticks.
    """

    def __init__(self, ttl_ns: int, max_entries: int = MAX_ENTRIES) -> None:
        self._ttl_ns = ttl_ns
        self._max_entries = max_entries
        self._seen_ns: dict[K, int] = {}

    def __len__(self) -> int:
        return len(self._seen_ns)

    def __iter__(self) -> Iterator[K]:
        return iter(self._seen_ns)

    def see(self, key: K, now_ns: int) -> bool:
        """Start the life of `key` anew; False when it is a further one."""
        if key not in self._seen_ns and len(self._seen_ns) >= self._max_entries:
            return False
        self._seen_ns[key] = now_ns
        return True

    def forget(self, now_ns: int) -> None:
        """Drop the keys whose life is over."""
        for key in [key for key, ns in self._seen_ns.items() if now_ns - ns >= self._ttl_ns]:
            del self._seen_ns[key]


class OfLast(Generic[K, V]):
    """What `make` gives for the last key: who asks for it after another shares it."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        self._key: K | None = None
        self._value: V | None = None

    def __call__(self, key: K) -> V:
        """What was made of this very object, which does not change."""
        if self._key is key:
            return self._value  # type: ignore[return-value]  # of this key
        value = self._value = self._make(key)
        self._key = key
        return value


class RollingMax:
    """The highest sample of the last `span_ns`, those in (now - span, now]. O(1), amortised.

    A sample that a later one reaches can never be the maximum again and is dropped at once, so
    what is kept falls from left to right: never more samples than there are distinct values.
    """

    def __init__(self, span_ns: int) -> None:
        self._span_ns = span_ns
        self._samples: deque[tuple[int, float]] = deque()

    def add(self, ns: int, value: float) -> None:
        """Add a sample; `ns` grows from call to call."""
        samples = self._samples
        while samples and samples[-1][1] <= value:
            samples.pop()
        samples.append((ns, value))

    def value(self, now_ns: int) -> float | None:
        """The highest sample, or None without samples."""
        samples, oldest_ns = self._samples, now_ns - self._span_ns
        while samples and samples[0][0] <= oldest_ns:
            samples.popleft()
        return samples[0][1] if samples else None

    def samples(self) -> list[tuple[int, float]]:
        """Those that can still be the maximum, the oldest first: for snapshots."""
        return list(self._samples)

    def restore(self, samples: Iterable[tuple[int, float]]) -> None:
        """Go on with what `samples` gave, in place of all that was added."""
        self._samples = deque(samples)
