"""What an InMemoryKVCacheManager holds, seen from inside."""

from collections.abc import Iterator

from cache.entry import Entry
from cache.memory import InMemoryKVCacheManager
from cache.policies.fifo import Fifo
from cache.policies.lfu import Lfu
from cache.policies.lru import Lru
from cache.policies.policy import EvictionPolicy
from cache.policies.prefix import Prefix
from cache.policies.random import Random
from cache.policies.segments import SegmentQueue
from cache.policies.switching import Switching


def contents(manager: InMemoryKVCacheManager) -> dict[str, Entry]:
    return {key: entry for shard in manager._contents.shards for key, entry in shard.items()}


def order(manager: InMemoryKVCacheManager) -> list[str]:
    """The keys as the policy holds them; with lru, fifo and lfu as they would leave."""
    with manager._lock:
        manager._count_reads()
    return list(_keys(manager._contents.policy))


def check(manager: InMemoryKVCacheManager) -> None:
    """The counters, the contents and the policy agree."""
    entries = contents(manager)
    assert manager.used_bytes == sum(entry.size_bytes for entry in entries.values())
    assert manager.used_bytes <= manager.limit_bytes
    assert len(manager) == len(entries)
    assert sorted(order(manager)) == sorted(entries)
    assert all(key == entry.key for key, entry in entries.items())
    in_force = manager._contents.policy
    assert all(in_force.holds(entry) for entry in entries.values())
    if isinstance(in_force, Switching):
        counts = [len(list(_keys(policy))) for policy in in_force._policies]
        assert in_force._counts == counts
    for policy in getattr(in_force, "_policies", [in_force]):
        held = [entries[key] for key in _keys(policy)]
        if isinstance(policy, Random):
            assert all(policy._entries[entry.place] is entry for entry in held)
        else:
            assert all(entry.key in entry.place.keys for entry in held)
        if isinstance(policy, Prefix):
            assert policy._entries == len(held)


def _keys(policy: EvictionPolicy) -> Iterator[str]:
    match policy:
        case Lru() | Fifo():
            yield from _queued(policy)
        case Lfu():
            for uses in sorted(policy._levels):
                yield from _queued(policy._levels[uses].queue)
        case Prefix():
            for queue in policy._queues:
                yield from _queued(queue)
        case Random():
            yield from (entry.key for entry in policy._entries)
        case Switching():
            for one in reversed(policy._policies):
                yield from _keys(one)


def _queued(queue: SegmentQueue) -> Iterator[str]:
    for segment in queue.segments:
        assert segment.keys, "an empty segment stays nowhere"
        yield from reversed(segment.keys) if segment.is_chain else segment.keys
