"""The cache's RAM: thread-safe, bounded in bytes, no I/O; gives back what it evicts."""

import threading
import time
from collections.abc import Callable
from typing import Any

from cache.entry import Entry
from cache.policies import make_policy
from schemas.cache import MAX_KEY_BYTES

MB = 1024 * 1024


class InMemoryKVCacheManager:
    """Keys to byte values, at most `max_memory_mb` · 1024·1024 bytes of keys and values.

    Every operation is O(1) (an evicting one: per evicted entry) and holds one lock. The limit is
    never exceeded, not even for a moment. Expired entries are misses; they leave when looked up,
    or without being given back when room is needed.

    Args:
        max_memory_mb: the limit, in units of 1024·1024 bytes.
        eviction_policy: a name in `cache.policies.POLICIES`.
        clock: wall clock in nanoseconds; it never decides the order of eviction.
    """

    def __init__(
        self,
        max_memory_mb: int,
        eviction_policy: str = "lru",
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        if max_memory_mb <= 0:
            raise ValueError(f"max_memory_mb must be positive, not {max_memory_mb}")
        self.limit_bytes = max_memory_mb * MB
        self._policy_name = eviction_policy
        self._policy = make_policy(eviction_policy)
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._used_bytes = 0
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def set(self, key: str, value: bytes, prefix_tokens: int | None = None) -> None:
        """Keep `value`, replacing what `key` had.

        Raises:
            ValueError: key empty, None or above 10 KB; value None; entry larger than the limit.
            TypeError: value not bytes.
        """
        if not key:
            raise ValueError("key cannot be None or empty")
        if value is None:
            raise ValueError("value cannot be None or empty")
        if not isinstance(value, bytes):
            raise TypeError(f"value must be bytes, not {type(value).__name__}")
        if len(key.encode()) > MAX_KEY_BYTES:
            raise ValueError(f"key of {len(key.encode())} bytes exceeds maximum of 10KB")
        self.store(Entry(key=key, value=value, prefix_tokens=prefix_tokens))

    def get(self, key: str) -> bytes | None:
        """The value, or None. An empty key is None and not counted as a miss."""
        if not key:
            return None
        entry = self.lookup(key)
        return None if entry is None else entry.value

    def delete(self, key: str) -> None:
        """Remove the entry; absent is fine."""
        self.remove(key)

    def clear(self) -> None:
        """Remove every entry and reset the statistics."""
        with self._lock:
            self._entries.clear()
            self._policy = make_policy(self._policy_name)
            self._used_bytes = self._hits = self._misses = self._evictions = 0

    def get_metadata(self, key: str) -> dict[str, Any] | None:
        """What is known of the entry, or None; counts neither as access nor as hit or miss.

        `timestamp` is the last access in Unix seconds, `size_mb` key and value in units of
        1024·1024 bytes; the others are `access_count` and `prefix_tokens`.
        """
        entry = self.peek(key)
        if entry is None:
            return None
        return {
            "timestamp": entry.last_accessed_ns / 1e9,
            "size_mb": entry.size_bytes / MB,
            "access_count": entry.access_count,
            "prefix_tokens": entry.prefix_tokens,
        }

    def get_stats(self) -> dict[str, Any]:
        """Sizes now and counters since the start or the last `clear`; `hit_rate` 0 to 1."""
        with self._lock:
            lookups = self._hits + self._misses
            return {
                "total_entries": len(self._entries),
                "memory_used_mb": self._used_bytes / MB,
                "cache_hits": self._hits,
                "cache_misses": self._misses,
                "hit_rate": self._hits / lookups if lookups else 0.0,
                "evictions": self._evictions,
            }

    @property
    def used_bytes(self) -> int:
        """Bytes of all entries; never above `limit_bytes`."""
        return self._used_bytes

    def __len__(self) -> int:
        """Entries held, expired ones that nobody looked up included."""
        return len(self._entries)

    def store(self, entry: Entry) -> list[Entry]:
        """Keep `entry` as the newest, replacing what its key had; returns what left for room.

        The old entry of the key is freed first and not among those returned; neither are expired
        ones. `inserted_at_ns` and `last_accessed_ns` are set where they are 0.

        Raises:
            ValueError: larger than the limit; nothing was evicted or replaced.
        """
        if entry.size_bytes > self.limit_bytes:
            raise ValueError(
                f"entry of {entry.size_bytes} bytes exceeds cache limit of {self.limit_bytes} bytes"
            )
        evicted: list[Entry] = []
        with self._lock:
            now_ns = self._clock()
            entry.inserted_at_ns = entry.inserted_at_ns or now_ns
            entry.last_accessed_ns = entry.last_accessed_ns or now_ns
            if entry.key in self._entries:
                self._take(entry.key)
            while self._used_bytes + entry.size_bytes > self.limit_bytes:
                victim = self._take(self._policy.victim())
                if not victim.expired(now_ns):
                    self._evictions += 1
                    evicted.append(victim)
            self._entries[entry.key] = entry
            self._policy.added(entry.key)
            self._used_bytes += entry.size_bytes
        return evicted

    def lookup(self, key: str) -> Entry | None:
        """The entry, counted as a hit and as its newest access; else None, counted as a miss."""
        with self._lock:
            now_ns = self._clock()
            entry = self._live(key, now_ns)
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            entry.access_count += 1
            entry.last_accessed_ns = now_ns
            self._policy.used(key)
            return entry

    def peek(self, key: str) -> Entry | None:
        """The entry or None; counts nothing and changes no order."""
        with self._lock:
            return self._live(key, self._clock())

    def remove(self, key: str) -> Entry | None:
        """Take the entry out and return it; None when absent or expired."""
        with self._lock:
            entry = self._live(key, self._clock())
            return None if entry is None else self._take(key)

    def take_next(self) -> Entry | None:
        """Take out the entry that would be evicted next; None when none is left but expired ones.

        Those leave on the way. Statistics stay.
        """
        with self._lock:
            now_ns = self._clock()
            while self._entries:
                entry = self._take(self._policy.victim())
                if not entry.expired(now_ns):
                    return entry
            return None

    def _live(self, key: str, now_ns: int) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and entry.expired(now_ns):
            self._take(key)
            return None
        return entry

    def _take(self, key: str) -> Entry:
        entry = self._entries.pop(key)
        self._policy.removed(key)
        self._used_bytes -= entry.size_bytes
        return entry
