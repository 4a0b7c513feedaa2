"""The cache's RAM as a library: keys to bytes, thread-safe, bounded in bytes, no I/O."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

from cache.contents import SHARD_MASK
from cache.entry import BareEntry, Entry, utf8_bytes
from cache.entry_store import READS_AT_ONCE, EntryStore
from schemas.cache import MAX_KEY_BYTES

MB = 1024 * 1024
_BATCH = 64
_BareEntry = cast(type[Entry], BareEntry)  # nobody asks for more of what `set` keeps


class InMemoryKVCacheManager(EntryStore):
    """Keys to byte values, at most `max_memory_mb` · 1024·1024 bytes of keys and values.

    What an `EntryStore` promises of costs, threads, the limit and chains, for who has bytes:
    `set_many` keeps a chain, `match_prefix` looks one up.

    An entry of `set` takes about 300 bytes beyond the texts of its key and value, 82 of them the
    headers of these two objects (measured by `benchmarks/bench_memory.py`).

    Args:
        max_memory_mb: the limit, in units of 1024·1024 bytes.
        eviction_policy: a name in `cache.policies.POLICIES`.
        clock: wall clock in nanoseconds; steps back do not disturb the order of eviction.
    """

    def __init__(
        self,
        max_memory_mb: int,
        eviction_policy: str = "lru",
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(_limit_bytes(max_memory_mb), eviction_policy, clock=clock)
        self._target_bytes = self.limit_bytes

    def set(self, key: str, value: bytes, prefix_tokens: int | None = None) -> None:
        """Keep `value`, replacing what `key` had.

        Raises:
            ValueError: key empty, None or above 10 KB; value None; entry larger than the limit;
                `prefix_tokens` below 0.
            TypeError: key not str, value not bytes, or `prefix_tokens` not int.
        """
        if (
            type(key) is not str
            or not key
            or type(value) is not bytes
            or len(key) > MAX_KEY_BYTES // 4
        ):
            _check(key, value)
        if prefix_tokens is not None:
            _check_tokens(prefix_tokens)
        # As `store`, spelled out where a call more would be a tenth of a set.
        now_ns = self._clock()
        self._lock.acquire()
        try:
            if self._reads:
                self._count_reads()
            if not self._contents.renew(key, value, prefix_tokens, now_ns):
                entry = _BareEntry(
                    key=key, value=value, last_accessed_ns=now_ns, prefix_tokens=prefix_tokens
                )
                size_bytes = len(value) + (len(key) if key.isascii() else utf8_bytes(key))
                self._contents.put(entry, size_bytes, now_ns)
        finally:
            self._lock.release()

    def get(self, key: str) -> bytes | None:
        """The value, or None. An empty key is None and not counted as a miss."""
        # As `lookup`, spelled out: a call more is a tenth of a hit.
        reads = self._reads
        entry = self._contents.shards[hash(key) & SHARD_MASK].get(key)
        if entry is None or entry.expires_at_ns is not None:
            found = self.lookup(key) if key else None
            return None if found is None else bytes(found.value)
        entry.last_accessed_ns = self._clock()
        reads.append(entry)
        if len(reads) >= READS_AT_ONCE:
            self._catch_up()
        value = entry.value
        return value if type(value) is bytes else bytes(value)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The values of those that are here, in the order asked for; each is a `get`."""
        found = {key: self.get(key) for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    def set_many(self, items: Iterable[tuple[str, bytes]], parent: str | None = None) -> None:
        """Keep the pairs of one chain, root first; the first one extends `parent`.

        Where they are larger than the limit together, the head is kept. A key that is there twice
        has its first place and its last value.

        Raises:
            ValueError, TypeError: as `set`; nothing was stored then.
        """
        if parent is not None:
            _check(parent, b"")
        pairs: dict[str, bytes] = {}
        for key, value in items:
            _check(key, value)
            pairs[key] = value
        entries = []
        for key, value in pairs.items():
            entries.append(_BareEntry(key=key, value=value, parent=parent))
            parent = key
        self.store_many(entries)

    def delete(self, key: str) -> None:
        """Remove the entry; absent is fine."""
        self.remove(key)

    def clear(self) -> None:
        """Remove every entry and reset the statistics; others go on while their memory is freed."""
        for _ in self.clear_in_steps():
            pass

    def resize(self, max_memory_mb: int) -> list[Entry]:
        """Set the limit; returns what had to leave for it.

        That leaves in steps, between which others go on; until the last one the limit is what
        is still used. Of several at once the last one counts.

        Raises:
            ValueError: not positive; nothing changed.
        """
        target_bytes = self._target_bytes = _limit_bytes(max_memory_mb)
        evicted: list[Entry] = []
        done = False
        while not done:
            with self._lock:
                self._count_reads()
                now_ns = self._clock()
                for _ in range(_BATCH):
                    if self.used_bytes <= target_bytes:
                        break
                    self._contents.evict_next(evicted, now_ns)
                self.limit_bytes = max(target_bytes, self.used_bytes)
                done = self.limit_bytes == target_bytes or self._target_bytes != target_bytes
            time.sleep(0)  # a lock that is taken again at once is never another thread's
        return evicted

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
            self._count_reads()
            lookups = self._hits + self._misses
            return {
                "total_entries": len(self),
                "memory_used_mb": self.used_bytes / MB,
                "cache_hits": self._hits,
                "cache_misses": self._misses,
                "hit_rate": self._hits / lookups if lookups else 0.0,
                "evictions": self._contents.evictions,
            }


def _limit_bytes(max_memory_mb: int) -> int:
    if not 0 < max_memory_mb < math.inf:
        raise ValueError(f"max_memory_mb must be positive and finite, not {max_memory_mb}")
    return max(1, int(max_memory_mb * MB))


def _check(key: str, value: bytes) -> None:
    if key is not None and not isinstance(key, str):
        raise TypeError(f"key must be str, not {type(key).__name__}")
    if not key:
        raise ValueError("key cannot be None or empty")
    if value is None:
        raise ValueError("value cannot be None or empty")
    if not isinstance(value, bytes):
        raise TypeError(f"value must be bytes, not {type(value).__name__}")
    if utf8_bytes(key) > MAX_KEY_BYTES:
        raise ValueError(f"key of {utf8_bytes(key)} bytes exceeds maximum of 10KB")


def _check_tokens(prefix_tokens: int) -> None:
    if not isinstance(prefix_tokens, int):
        raise TypeError(f"prefix_tokens must be int, not {type(prefix_tokens).__name__}")
    if prefix_tokens < 0:
        raise ValueError(f"prefix_tokens must be at least 0, not {prefix_tokens}")
