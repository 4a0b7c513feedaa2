"""What RAM holds, and in which order it leaves. Its user has the lock and the clock."""

from collections.abc import Mapping, Sequence

from cache.entry import BareEntry, Entry
from cache.policies import make_policy
from cache.policies.policy import EvictionPolicy
from cache.policies.switching import Switching
from schemas.units import SECOND_NS

SHARDS = 256
SHARD_MASK = SHARDS - 1
_SAME_REQUEST_NS = SECOND_NS
_BATCH = 64
_AT_ONCE = 1024
_ANCESTORS = 4096

Shards = tuple[dict[str, Entry], ...]


class Contents:
    """Entries by key, what they take, and the policy that says which leaves next.

    For one thread at a time, but that anybody may look into `shards`: the entry of a key is in
    `shards[hash(key) & SHARD_MASK]`. An entry that has expired leaves when it is found, or
    without being given back when room is needed.

    `used_bytes` is never above `limit_bytes`; who sets that keeps it so. `tokens` is the sum of
    `prefix_tokens`, `evictions` what was given back for want of room, `expired_idle_byte_ns` the
    bytes of expired entries by how long each was held after its last access, until its deadline.
    """

    def __init__(self, limit_bytes: int, policy_name: str) -> None:
        """Hold nothing yet.

        Raises:
            ValueError: unknown policy.
        """
        self.limit_bytes = limit_bytes
        self.policy_name = policy_name
        self.policy = make_policy(policy_name)
        self._switching: Switching | None = None
        self.shards = _empty_shards()
        self.count = 0
        self.used_bytes = 0
        self.tokens = 0
        self.evictions = 0
        self.expired_idle_byte_ns = 0

    def clear(self) -> Shards:
        """Hold nothing, and have evicted nothing; returns what was held, for the caller to free."""
        held = self.shards
        self.shards = _empty_shards()
        self.policy = make_policy(self.policy_name)
        self._switching = None
        self.count = self.used_bytes = self.tokens = self.evictions = 0
        return held

    def switch_policy(self, policy_name: str, policy: EvictionPolicy, now_ns: int) -> None:
        """Evict by `policy`, which is new, from now on.

        It learns of 1,024 entries at once and of 64 more with every put.
        """
        self.policy = self._switching = Switching(
            self.policy, self.count, policy, lambda key: self.shards[hash(key) & SHARD_MASK][key]
        )
        self.policy_name = policy_name
        self._hand_over(_AT_ONCE, now_ns)

    def find(self, key: str | None, now_ns: int) -> Entry | None:
        """The entry unless it has expired: then it leaves."""
        if key is None:
            return None
        entry = self.shards[hash(key) & SHARD_MASK].get(key)
        if entry is not None and entry.expired(now_ns):
            self.take(entry, now_ns)
            return None
        return entry

    def put(self, entry: Entry, size_bytes: int, now_ns: int) -> list[Entry]:
        """Hold `entry`, whose size is known, as the newest; returns what left for room.

        Raises:
            ValueError: larger than the limit; nothing was evicted or replaced.
        """
        if size_bytes > self.limit_bytes:
            self._refuse(size_bytes)
        key = entry.key
        evicted: list[Entry] = []
        parent = None if entry.parent is None else self._keep_chain(entry.parent, now_ns)
        shard = self.shards[hash(key) & SHARD_MASK]
        old = shard.get(key)
        # Much as `_leave` and `_insert`, spelled out: a call more would be a tenth of a set.
        if old is None:
            entry.place = None
            self.count += 1
        else:
            self.policy.removed(old)
            entry.place = old.place
            old.place = None
            self.used_bytes -= old.size_bytes
            if old.prefix_tokens:
                self.tokens -= old.prefix_tokens
        while self.used_bytes + size_bytes > self.limit_bytes:
            self.evict_next(evicted, now_ns)
        if not entry.last_accessed_ns:
            entry.arrived(now_ns)
        shard[key] = entry
        self.used_bytes += size_bytes
        if entry.prefix_tokens:
            self.tokens += entry.prefix_tokens
        if parent is None:
            self.policy.added(entry, now_ns)
        else:
            self._add_chain((entry,), parent, now_ns)
        if self._switching is not None:
            self._hand_over(_BATCH, now_ns)
        return evicted

    def renew(self, key: str, value: bytes, prefix_tokens: int | None, now_ns: int) -> bool:
        """Have the entry of `key` hold `value` as the newest, as if it had just come with it.

        Less work than a `put`. False where that must be done: for what is not here, has
        no room, or has more than a `BareEntry`, which nobody but the cache may know.
        """
        entry = self.shards[hash(key) & SHARD_MASK].get(key)
        if type(entry) is not BareEntry or entry.parent is not None:
            return False
        used_bytes = self.used_bytes + len(value) - len(entry.value)
        if used_bytes > self.limit_bytes or self._switching is not None:
            return False
        if prefix_tokens != entry.prefix_tokens:
            self.tokens += (prefix_tokens or 0) - (entry.prefix_tokens or 0)
            entry.prefix_tokens = prefix_tokens
        self.used_bytes = used_bytes
        entry.value = value
        entry.last_accessed_ns = now_ns
        entry.access_count = 0
        self.policy.renewed(entry, now_ns)
        return True

    def put_chain(
        self, chain: Sequence[Entry], sizes: Mapping[str, int], now_ns: int
    ) -> list[Entry]:
        """Hold the entries of one chain, root first; returns what left for room.

        `sizes` has the size of each by its key. What leaves can be the tail of this very chain.

        Raises:
            ValueError: one is larger than the limit; nothing was evicted or replaced.
        """
        largest_bytes = max(sizes.values())
        if largest_bytes > self.limit_bytes:
            self._refuse(largest_bytes)
        new = {entry.key: entry for entry in chain}
        added_bytes = sum(sizes.values())
        evicted = []
        parent = self._keep_chain(chain[0].parent, now_ns)
        for key, entry in new.items():
            entry.place = None
            old = self.shards[hash(key) & SHARD_MASK].pop(key, None)
            if old is not None:
                self.policy.removed(old)
                entry.place = old.place
                self._leave(old, now_ns)
        self._add_chain(list(new.values()), parent, now_ns)
        while self.used_bytes + added_bytes > self.limit_bytes:
            key = self.policy.pop()
            if key in new:
                entry = new.pop(key)
                entry.place = None
                added_bytes -= sizes[key]
            else:
                entry = self._forget(key, now_ns)
            if not entry.expired(now_ns):
                self.evictions += 1
                evicted.append(entry)
        for key, entry in new.items():
            self._insert(entry, sizes[key], now_ns)
        if self._switching is not None:
            self._hand_over(_BATCH, now_ns)
        return evicted

    def take(self, entry: Entry, now_ns: int) -> None:
        """Hold `entry` no longer."""
        self.policy.removed(entry)
        self._forget(entry.key, now_ns)

    def take_next(self, now_ns: int) -> Entry:
        """Take out what should leave next, expired or not; there must be something."""
        return self._forget(self.policy.pop(), now_ns)

    def evict_next(self, evicted: list[Entry], now_ns: int) -> None:
        """Take out what should leave next, and note it unless it had expired."""
        entry = self._forget(self.policy.pop(), now_ns)
        if not entry.expired(now_ns):
            self.evictions += 1
            evicted.append(entry)

    def _refuse(self, size_bytes: int) -> None:
        raise ValueError(
            f"entry of {size_bytes} bytes exceeds cache limit of {self.limit_bytes} bytes"
        )

    def _insert(self, entry: Entry, size_bytes: int, now_ns: int) -> None:
        if not entry.last_accessed_ns:
            entry.arrived(now_ns)
        self.shards[hash(entry.key) & SHARD_MASK][entry.key] = entry
        self.count += 1
        self.used_bytes += size_bytes
        self.tokens += entry.prefix_tokens or 0

    def _forget(self, key: str, now_ns: int) -> Entry:
        entry = self.shards[hash(key) & SHARD_MASK].pop(key)
        self._leave(entry, now_ns)
        return entry

    def _leave(self, entry: Entry, now_ns: int) -> None:
        entry.place = None
        self.count -= 1
        self.used_bytes -= entry.size_bytes
        self.tokens -= entry.prefix_tokens or 0
        end_ns = entry.expires_at_ns
        if end_ns is not None and end_ns <= now_ns:
            self.expired_idle_byte_ns += entry.size_bytes * max(0, end_ns - entry.last_accessed_ns)

    def _hand_over(self, entries: int, now_ns: int) -> None:
        if self._switching is not None and self._switching.hand_over(entries, now_ns):
            self.policy = self._switching.newest
            self._switching = None

    def _add_chain(self, chain: Sequence[Entry], parent: Entry | None, now_ns: int) -> None:
        if parent is None or parent.place is None:  # not here, or just replaced
            if len(chain) == 1:
                self.policy.added(chain[0], now_ns)
            else:
                self.policy.chain_added(chain, None, now_ns)
        else:
            chain[0].parent = parent.key  # one string for both
            self.policy.chain_added(chain, parent, now_ns)

    def _keep_chain(self, key: str | None, now_ns: int) -> Entry | None:
        """Note that the chain that ends with `key` is in use, as far up as it is not noted yet.

        At most 4,096 entries up, so that no chain is long enough for a pause: what is above them
        stays where it is in the order.

        Returns:
            The entry of `key`, if it is here.
        """
        stale: list[Entry] = []
        end = entry = self.find(key, now_ns)
        while entry is not None and now_ns - entry.last_accessed_ns > _SAME_REQUEST_NS:
            if len(stale) == _ANCESTORS:
                entry = None
                break
            entry.last_accessed_ns = now_ns
            stale.append(entry)
            entry = self.find(entry.parent, now_ns)
        if any(entry is moved for moved in stale):
            entry = None  # they name each other as parents
        if stale:
            self.policy.chain_moved(stale[::-1], entry, now_ns)
        return end


def _empty_shards() -> Shards:
    """Many small dicts: one that grows or is renewed copies itself, 0.1 s at a million entries."""
    return tuple({} for _ in range(SHARDS))
