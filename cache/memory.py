"""The cache's RAM: thread-safe, bounded in bytes, no I/O; gives back what it evicts."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from cache.entry import BareEntry, Entry, utf8_bytes
from cache.policies import make_policy
from cache.policies.switching import Switching
from schemas.cache import MAX_KEY_BYTES
from schemas.units import SECOND_NS

MB = 1024 * 1024
SHARDS = 256
_SHARD = SHARDS - 1
_SAME_REQUEST_NS = SECOND_NS
_BATCH = 64
_AT_ONCE = 1024
_READS = 128
_ANCESTORS = 4096
_BareEntry = cast(type[Entry], BareEntry)  # nobody asks for more of what `set` keeps


class InMemoryKVCacheManager:
    """Keys to byte values, at most `max_memory_mb` · 1024·1024 bytes of keys and values.

    Every operation is O(1) for each key given and each entry evicted. Hits take no lock; whatever
    changes or counts holds one, and learns of the hits before it first. The limit is never
    exceeded, not even for a moment. Expired entries are misses; they leave when
    looked up, or without being given back when room is needed.

    A chain is a list of keys, root first, each naming a longer prefix of the same text. The head
    of a chain stays longer than its tail where it is looked up by `match_prefix` and stored by
    `set_many`: a tail without its head serves nobody. Both together count as one use.

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
        self.limit_bytes = _limit_bytes(max_memory_mb)
        self.policy_name = eviction_policy
        self._policy = make_policy(eviction_policy)
        self._switching: Switching | None = None
        self._target_bytes = self.limit_bytes
        self._clock = clock
        self._lock = threading.Lock()
        # Many small dicts: one that grows or is renewed copies itself, which takes 0.1 s at a
        # million entries.
        self._shards = _empty_shards()
        self._reads: list[Entry] = []
        self._count = 0
        self._used_bytes = 0
        self._tokens = 0
        self._hits = 0
        self._misses = 0
        self._evictions = 0
        self.expired_lookups = 0
        self.expired_late_ns = 0
        self.expired_idle_byte_ns = 0

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
        size_bytes = len(value) + (len(key) if key.isascii() else utf8_bytes(key))
        now_ns = self._clock()
        entry = _BareEntry(
            key=key, value=value, last_accessed_ns=now_ns, prefix_tokens=prefix_tokens
        )
        self._store(entry, size_bytes, now_ns)

    def get(self, key: str) -> bytes | None:
        """The value, or None. An empty key is None and not counted as a miss."""
        # As `lookup`, spelled out: a call more is a tenth of a hit.
        reads = self._reads
        entry = self._shards[hash(key) & _SHARD].get(key)
        if entry is None or entry.expires_at_ns is not None:
            found = self.lookup(key) if key else None
            return None if found is None else bytes(found.value)
        entry.last_accessed_ns = self._clock()
        reads.append(entry)
        if len(reads) >= _READS:
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

    def match_prefix(self, keys: Iterable[str]) -> int:
        """How many keys of a chain are here, from its root to the first that is not.

        They count as hits and as used together, the first missing one as a miss.
        """
        with self._lock:
            self._count_reads()
            now_ns = self._clock()
            found: dict[str, Entry] = {}
            matched = 0
            for key in keys:
                entry = self._find_live(key, now_ns)
                if entry is None:
                    self._misses += 1
                    break
                matched += 1
                found[key] = entry
            self._hits += matched
            if found:
                chain = list(found.values())
                for entry in chain:
                    entry.access_count += 1
                    entry.last_accessed_ns = now_ns
                if len(chain) == 1:
                    self._policy.used(chain)
                else:
                    self._policy.chain_used(chain, now_ns)
            return matched

    def delete(self, key: str) -> None:
        """Remove the entry; absent is fine."""
        self.remove(key)

    def clear(self) -> None:
        """Remove every entry and reset the statistics; others go on while their memory is freed."""
        for _ in self.clear_in_steps():
            pass

    def clear_in_steps(self) -> Iterator[None]:
        """Like `clear`: the first step removes all, each of the others frees some memory."""
        with self._lock:
            shards = self._shards
            # Look-ups take the list of reads first: what was found in the old shards is not told
            # to the new policy.
            self._shards = _empty_shards()
            self._reads = []
            self._policy = make_policy(self.policy_name)
            self._switching = None
            self._count = self._used_bytes = self._tokens = 0
            self._hits = self._misses = self._evictions = 0
        yield
        for shard in shards:
            while shard:
                for _ in range(min(len(shard), _BATCH)):
                    shard.popitem()
                yield

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
                    if self._used_bytes <= target_bytes:
                        break
                    self._evict_next(evicted, now_ns)
                self.limit_bytes = max(target_bytes, self._used_bytes)
                done = self.limit_bytes == target_bytes or self._target_bytes != target_bytes
            time.sleep(0)  # a lock that is taken again at once is never another thread's
        return evicted

    def set_policy(self, eviction_policy: str) -> None:
        """Evict by another policy from now on; entries stay, in the order they would have left.

        The new policy learns of 1,024 at once and of 64 more with every store; those that it
        knows leave first.

        Raises:
            ValueError: unknown policy; nothing changed.
        """
        policy = make_policy(eviction_policy)
        with self._lock:
            if eviction_policy == self.policy_name:
                return
            self._count_reads()
            self._policy = self._switching = Switching(
                self._policy, self._count, policy, self._entry
            )
            self.policy_name = eviction_policy
            self._hand_over(_AT_ONCE, self._clock())

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
                "total_entries": self._count,
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

    @property
    def tokens(self) -> int:
        """Sum of `prefix_tokens` of all entries."""
        return self._tokens

    def __len__(self) -> int:
        """Entries held, expired ones that nobody looked up included."""
        return self._count

    def store(self, entry: Entry) -> list[Entry]:
        """Keep `entry` as the newest, replacing what its key had; returns what left for room.

        The old entry of the key is freed first and not among those returned; neither are expired
        ones. `inserted_at_ns` and `last_accessed_ns` are set where they are 0.

        Raises:
            ValueError: larger than the limit; nothing was evicted or replaced.
        """
        return self._store(entry, entry.size_bytes, self._clock())

    def store_many(self, entries: Sequence[Entry]) -> list[Entry]:
        """Keep the entries of one chain, root first; returns what left for room, as `store`.

        Their keys differ. The chain above the first one's `parent` is in use, too. Where room is
        short, what leaves can be the tail of this very chain: it is returned, too.

        Raises:
            ValueError: one is larger than the limit; nothing was evicted or replaced.
        """
        new = {entry.key: entry for entry in entries}
        if not new:
            return []
        sizes = {key: entry.size_bytes for key, entry in new.items()}
        added_bytes = sum(sizes.values())
        evicted = []
        with self._lock:
            self._check_fits(max(sizes.values()))
            self._count_reads()
            now_ns = self._clock()
            parent = self._keep_chain(entries[0].parent, now_ns)
            for key, entry in new.items():
                entry.place = None
                old = self._shards[hash(key) & _SHARD].pop(key, None)
                if old is not None:
                    self._policy.removed(old)
                    entry.place = old.place
                    self._leave(old)
            self._add_chain(list(new.values()), parent, now_ns)
            while self._used_bytes + added_bytes > self.limit_bytes:
                key = self._policy.pop()
                if key in new:
                    entry = new.pop(key)
                    entry.place = None
                    added_bytes -= sizes[key]
                else:
                    entry = self._forget(key)
                if not entry.expired(now_ns):
                    self._evictions += 1
                    evicted.append(entry)
            for key, entry in new.items():
                self._insert(entry, sizes[key], now_ns)
            if self._switching is not None:
                self._hand_over(_BATCH, now_ns)
        return evicted

    def lookup(self, key: str) -> Entry | None:
        """The entry, counted as a hit and as its newest access; else None, counted as a miss."""
        now_ns = self._clock()
        reads = self._reads  # before the entry, as `clear_in_steps` says
        entry = self._shards[hash(key) & _SHARD].get(key)
        if entry is None or entry.expired(now_ns):
            with self._lock:
                self._misses += 1
                if entry is not None and entry.expires_at_ns is not None:
                    self.expired_lookups += 1
                    self.expired_late_ns += now_ns - entry.expires_at_ns
                self._find_live(key, now_ns)
            return None
        entry.last_accessed_ns = now_ns
        reads.append(entry)
        if len(reads) >= _READS:
            self._catch_up()
        return entry

    def peek(self, key: str) -> Entry | None:
        """The entry or None; counts nothing and changes no order."""
        with self._lock:
            self._count_reads()
            return self._find_live(key, self._clock())

    def remove(self, key: str) -> Entry | None:
        """Take the entry out and return it; None when absent or expired."""
        with self._lock:
            self._count_reads()
            entry = self._find_live(key, self._clock())
            if entry is not None:
                self._take(entry)
            return entry

    def shard(self, number: int) -> list[Entry]:
        """The entries of one of `SHARDS` parts, expired ones included; all parts are the cache.

        For who goes through all entries: a part at a time pauses nobody.
        """
        with self._lock:
            return list(self._shards[number].values())

    def shard_of(self, key: str) -> int:
        """The number of the part in which `key` is or would be."""
        return hash(key) & _SHARD

    def take_next(self) -> Entry | None:
        """Take out the entry that would be evicted next; None when none is left but expired ones.

        Those leave on the way. Statistics stay.
        """
        with self._lock:
            self._count_reads()
            now_ns = self._clock()
            while self._count:
                entry = self._forget(self._policy.pop())
                if not entry.expired(now_ns):
                    return entry
            return None

    def key_batches(self) -> Iterator[list[str]]:
        """The keys in batches; what comes or goes meanwhile may be among them or not."""
        for shard in self._shards:
            with self._lock:
                keys = list(shard)
            yield keys

    def sweep(
        self, keys: Iterable[str], is_worthless: Callable[[Entry, int], bool]
    ) -> tuple[list[Entry], list[Entry]]:
        """Take out, of the entries of `keys`, the expired ones, and the worthless ones.

        `is_worthless` gets each other entry and the time of now.
        """
        expired, worthless = [], []
        with self._lock:
            self._count_reads()
            now_ns = self._clock()
            for key in keys:
                entry = self._shards[hash(key) & _SHARD].get(key)
                if entry is None:
                    continue
                if entry.expired(now_ns):
                    self._take(entry)
                    expired.append(entry)
                elif is_worthless(entry, now_ns):
                    self._take(entry)
                    worthless.append(entry)
        return expired, worthless

    def _store(self, entry: Entry, size_bytes: int, now_ns: int) -> list[Entry]:
        key = entry.key
        evicted: list[Entry] = []
        self._lock.acquire()  # `with` takes 0.2 us more
        try:
            if size_bytes > self.limit_bytes:
                self._check_fits(size_bytes)
            if self._reads:
                self._count_reads()
            parent = None if entry.parent is None else self._keep_chain(entry.parent, now_ns)
            shard = self._shards[hash(key) & _SHARD]
            old = shard.get(key)
            if old is None:
                entry.place = None
                self._count += 1
            else:
                self._policy.removed(old)
                entry.place = old.place
                old.place = None
                self._used_bytes -= old.size_bytes
                if old.prefix_tokens:
                    self._tokens -= old.prefix_tokens
            while self._used_bytes + size_bytes > self.limit_bytes:
                self._evict_next(evicted, now_ns)
            if not entry.last_accessed_ns:
                entry.arrived(now_ns)
            shard[key] = entry
            self._used_bytes += size_bytes
            if entry.prefix_tokens:
                self._tokens += entry.prefix_tokens
            if parent is None:
                self._policy.added(entry, now_ns)
            else:
                self._add_chain((entry,), parent, now_ns)
            if self._switching is not None:
                self._hand_over(_BATCH, now_ns)
        finally:
            self._lock.release()
        return evicted

    def _catch_up(self) -> None:
        with self._lock:
            self._count_reads()

    def _count_reads(self) -> None:
        """Tell statistics and policy of the look-ups since the last time.

        A hit takes no lock: it appends to a list, which the interpreter does at once. Under the
        lock only what was there at first is taken, so none is lost.
        """
        batch = self._reads[:]
        if not batch:
            return
        del self._reads[: len(batch)]
        self._hits += len(batch)
        for entry in batch:
            entry.access_count += 1
        self._policy.used(batch)

    def _add_chain(self, chain: Sequence[Entry], parent: Entry | None, now_ns: int) -> None:
        if parent is None or parent.place is None:  # not here, or just replaced
            if len(chain) == 1:
                self._policy.added(chain[0], now_ns)
            else:
                self._policy.chain_added(chain, None, now_ns)
        else:
            chain[0].parent = parent.key  # one string for both
            self._policy.chain_added(chain, parent, now_ns)

    def _check_fits(self, size_bytes: int) -> None:
        """Under the lock: before it, `resize` could lower the limit again."""
        if size_bytes > self.limit_bytes:
            raise ValueError(
                f"entry of {size_bytes} bytes exceeds cache limit of {self.limit_bytes} bytes"
            )

    def _find_live(self, key: str | None, now_ns: int) -> Entry | None:
        """The entry unless it has expired: then it leaves."""
        if key is None:
            return None
        entry = self._shards[hash(key) & _SHARD].get(key)
        if entry is not None and entry.expired(now_ns):
            self._take(entry)
            return None
        return entry

    def _insert(self, entry: Entry, size_bytes: int, now_ns: int) -> None:
        if not entry.last_accessed_ns:
            entry.arrived(now_ns)
        self._shards[hash(entry.key) & _SHARD][entry.key] = entry
        self._count += 1
        self._used_bytes += size_bytes
        self._tokens += entry.prefix_tokens or 0

    def _take(self, entry: Entry) -> None:
        self._policy.removed(entry)
        self._forget(entry.key)

    def _forget(self, key: str) -> Entry:
        entry = self._shards[hash(key) & _SHARD].pop(key)
        self._leave(entry)
        return entry

    def _leave(self, entry: Entry) -> None:
        entry.place = None
        self._count -= 1
        self._used_bytes -= entry.size_bytes
        self._tokens -= entry.prefix_tokens or 0
        end_ns = entry.expires_at_ns
        if end_ns is not None and end_ns <= self._clock():
            self.expired_idle_byte_ns += entry.size_bytes * max(0, end_ns - entry.last_accessed_ns)

    def _evict_next(self, evicted: list[Entry], now_ns: int) -> None:
        """Take out what should leave next, and note it unless it had expired."""
        entry = self._forget(self._policy.pop())
        if not entry.expired(now_ns):
            self._evictions += 1
            evicted.append(entry)

    def _hand_over(self, entries: int, now_ns: int) -> None:
        if self._switching is not None and self._switching.hand_over(entries, now_ns):
            self._policy = self._switching.newest
            self._switching = None

    def _entry(self, key: str) -> Entry:
        return self._shards[hash(key) & _SHARD][key]

    def _keep_chain(self, key: str | None, now_ns: int) -> Entry | None:
        """Note that the chain that ends with `key` is in use, as far up as it is not noted yet.

        At most 4,096 entries up, so that no chain is long enough for a pause: what is above them
        stays where it is in the order.

        Returns:
            The entry of `key`, if it is here.
        """
        stale: list[Entry] = []
        end = entry = self._find_live(key, now_ns)
        while entry is not None and now_ns - entry.last_accessed_ns > _SAME_REQUEST_NS:
            if len(stale) == _ANCESTORS:
                entry = None
                break
            entry.last_accessed_ns = now_ns
            stale.append(entry)
            entry = self._find_live(entry.parent, now_ns)
        if any(entry is moved for moved in stale):
            entry = None  # they name each other as parents
        if stale:
            self._policy.chain_moved(stale[::-1], entry, now_ns)
        return end


def _empty_shards() -> tuple[dict[str, Entry], ...]:
    return tuple({} for _ in range(SHARDS))


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
