"""Entries in RAM for many threads: bounded in bytes, no I/O; gives back what it evicts."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from cache.contents import SHARD_MASK, Contents
from cache.entry import Entry
from cache.policies import make_policy

_BATCH = 64
READS_AT_ONCE = 128


class EntryStore:
    """At most `limit_bytes` of entries, and what was asked of them.

    Every operation is O(1) for each key given and each entry evicted. Hits take no lock; whatever
    changes or counts holds one, and learns of the hits before it first. The limit is never
    exceeded, not even for a moment. Expired entries are misses; they leave when
    looked up, or without being given back when room is needed.

    A chain is a list of keys, root first, each naming a longer prefix of the same text. The head
    of a chain stays longer than its tail where it is looked up by `match_prefix` and stored by
    `store_many`: a tail without its head serves nobody. Both together count as one use.

    `expired_lookups` and `expired_late_ns`: look-ups of what had expired, and for how long it
    had, together.

    Args:
        limit_bytes: the limit.
        eviction_policy: a name in `cache.policies.POLICIES`.
        clock: wall clock in nanoseconds; steps back do not disturb the order of eviction.
    """

    def __init__(
        self,
        limit_bytes: int,
        eviction_policy: str,
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._contents = Contents(limit_bytes, eviction_policy)
        self._clock = clock
        self._lock = threading.Lock()
        self._reads: list[Entry] = []
        self._hits = 0
        self._misses = 0
        self.expired_lookups = 0
        self.expired_late_ns = 0

    @property
    def limit_bytes(self) -> int:
        """What the entries may take; who sets it sets it no lower than `used_bytes`."""
        return self._contents.limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: int) -> None:
        self._contents.limit_bytes = limit_bytes

    @property
    def policy_name(self) -> str:
        """The eviction policy in force."""
        return self._contents.policy_name

    @property
    def used_bytes(self) -> int:
        """Bytes of all entries; never above `limit_bytes`."""
        return self._contents.used_bytes

    @property
    def tokens(self) -> int:
        """Sum of `prefix_tokens` of all entries."""
        return self._contents.tokens

    @property
    def expired_idle_byte_ns(self) -> int:
        """Bytes of expired entries by how long each was held for nobody until its deadline."""
        return self._contents.expired_idle_byte_ns

    def __len__(self) -> int:
        """Entries held, expired ones that nobody looked up included."""
        return self._contents.count

    def store(self, entry: Entry) -> list[Entry]:
        """Keep `entry` as the newest, replacing what its key had; returns what left for room.

        The old entry of the key is freed first and not among those returned; neither are expired
        ones. `inserted_at_ns` and `last_accessed_ns` are set where they are 0.

        Raises:
            ValueError: larger than the limit; nothing was evicted or replaced.
        """
        size_bytes, now_ns = entry.size_bytes, self._clock()
        self._lock.acquire()  # `with` takes 0.2 us more
        try:
            if self._reads:
                self._count_reads()
            return self._contents.put(entry, size_bytes, now_ns)
        finally:
            self._lock.release()

    def store_many(self, entries: Sequence[Entry]) -> list[Entry]:
        """Keep the entries of one chain, root first; returns what left for room, as `store`.

        Their keys differ. The chain above the first one's `parent` is in use, too. Where room is
        short, what leaves can be the tail of this very chain: it is returned, too.

        Raises:
            ValueError: one is larger than the limit; nothing was evicted or replaced.
        """
        if not entries:
            return []
        sizes = {entry.key: entry.size_bytes for entry in entries}
        with self._lock:
            self._count_reads()
            return self._contents.put_chain(entries, sizes, self._clock())

    def lookup(self, key: str) -> Entry | None:
        """The entry, counted as a hit and as its newest access; else None, counted as a miss."""
        now_ns = self._clock()
        reads = self._reads  # before the entry, as `clear_in_steps` says
        entry = self._contents.shards[hash(key) & SHARD_MASK].get(key)
        if entry is None or entry.expired(now_ns):
            with self._lock:
                self._misses += 1
                if entry is not None and entry.expires_at_ns is not None:
                    self.expired_lookups += 1
                    self.expired_late_ns += now_ns - entry.expires_at_ns
                self._contents.find(key, now_ns)
            return None
        entry.last_accessed_ns = now_ns
        reads.append(entry)
        if len(reads) >= READS_AT_ONCE:
            self._catch_up()
        return entry

    def match_prefix(self, keys: Iterable[str]) -> int:
        """How many keys of a chain are here, from its root to the first that is not.

        They count as hits and as used together, the first missing one as a miss.
        """
        contents = self._contents
        with self._lock:
            self._count_reads()
            now_ns = self._clock()
            found: dict[str, Entry] = {}
            matched = 0
            for key in keys:
                entry = contents.find(key, now_ns)
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
                    contents.policy.used(chain)
                else:
                    contents.policy.chain_used(chain, now_ns)
            return matched

    def peek(self, key: str) -> Entry | None:
        """The entry or None; counts nothing and changes no order."""
        with self._lock:
            self._count_reads()
            return self._contents.find(key, self._clock())

    def remove(self, key: str) -> Entry | None:
        """Take the entry out and return it; None when absent or expired."""
        with self._lock:
            self._count_reads()
            now_ns = self._clock()
            entry = self._contents.find(key, now_ns)
            if entry is not None:
                self._contents.take(entry, now_ns)
            return entry

    def take_next(self) -> Entry | None:
        """Take out the entry that would be evicted next; None when none is left but expired ones.

        Those leave on the way. Statistics stay.
        """
        contents = self._contents
        with self._lock:
            self._count_reads()
            now_ns = self._clock()
            while contents.count:
                entry = contents.take_next(now_ns)
                if not entry.expired(now_ns):
                    return entry
            return None

    def shard(self, number: int) -> list[Entry]:
        """The entries of one of `SHARDS` parts, expired ones included; all parts are the cache.

        For who goes through all entries: a part at a time pauses nobody.
        """
        with self._lock:
            return list(self._contents.shards[number].values())

    def shard_of(self, key: str) -> int:
        """The number of the part in which `key` is or would be."""
        return hash(key) & SHARD_MASK

    def key_batches(self) -> Iterator[list[str]]:
        """The keys in batches; what comes or goes meanwhile may be among them or not."""
        for shard in self._contents.shards:
            with self._lock:
                keys = list(shard)
            yield keys

    def sweep(
        self, keys: Iterable[str], is_worthless: Callable[[Entry, int], bool]
    ) -> tuple[list[Entry], list[Entry]]:
        """Take out, of the entries of `keys`, the expired ones, and the worthless ones.

        `is_worthless` gets each other entry and the time of now.
        """
        contents = self._contents
        expired, worthless = [], []
        with self._lock:
            self._count_reads()
            now_ns = self._clock()
            for key in keys:
                entry = contents.shards[hash(key) & SHARD_MASK].get(key)
                if entry is None:
                    continue
                if entry.expired(now_ns):
                    contents.take(entry, now_ns)
                    expired.append(entry)
                elif is_worthless(entry, now_ns):
                    contents.take(entry, now_ns)
                    worthless.append(entry)
        return expired, worthless

    def clear_in_steps(self) -> Iterator[None]:
        """Remove all and reset the statistics in the first step, free some memory in each other."""
        with self._lock:
            # Look-ups take the list of reads first: what was found in the old shards is not told
            # to the new policy.
            shards = self._contents.clear()
            self._reads = []
            self._hits = self._misses = 0
        yield
        for shard in shards:
            while shard:
                for _ in range(min(len(shard), _BATCH)):
                    shard.popitem()
                yield

    def set_policy(self, eviction_policy: str) -> None:
        """Evict by another policy from now on; entries stay, in the order they would have left.

        The new policy learns of 1,024 at once and of 64 more with every store; those that it
        knows leave first.

        Raises:
            ValueError: unknown policy; nothing changed.
        """
        policy = make_policy(eviction_policy)
        with self._lock:
            if eviction_policy != self._contents.policy_name:
                self._count_reads()
                self._contents.switch_policy(eviction_policy, policy, self._clock())

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
        self._contents.policy.used(batch)
