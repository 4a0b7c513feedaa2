"""The operations on many entries in one message: match, mget, mput, keys."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn

import msgspec

from cache.archive_link import ArchiveLink
from cache.batch_reply import LEFT_OUT, Reply
from cache.batch_requests import read_keys, read_mput
from cache.classes import Classes
from cache.contents import SHARDS
from cache.entry import Entry
from cache.namespace import Namespace, VersionConflictError
from cache.ours import acknowledged, check_owned
from cache.outbox import Item
from cache.settings import CacheSettings
from cache.tombstones import OutboxCrowdedError
from schemas.api import BatchError, KeysReply, KeysRequest, MatchReply
from schemas.cache import (
    INLINE_LIMIT_BYTES,
    MAX_BATCH_KEYS,
    MAX_CHAIN_KEYS,
)
from schemas.protocols import (
    Answer,
    Call,
    Clock,
    Endpoint,
    Lease,
    RequestError,
    busy,
    json_endpoint,
)

RESTORES_AT_ONCE = 8
"""Of one mget: as many questions to the archive are under way."""
KEYS_ANSWER_BYTES = 512 * 1024
Versions = list[str | BatchError]

_encode = msgspec.json.encode


class BatchEndpoints:
    """Many entries of one namespace at once: a message costs more than a lookup.

    All but `keys` do at most 10,000 lookups or 1,000 puts without giving way, a few milliseconds.
    """

    def __init__(
        self,
        namespace: Namespace,
        link: ArchiveLink,
        lease: Lease,
        classes: Classes,
        settings: CacheSettings,
        clock: Clock,
        prefetch: Callable[[Sequence[str]], int],
    ) -> None:
        self._prefetch = prefetch
        self._namespace = namespace
        self._link = link
        self._lease = lease
        self._classes = classes
        self._settings = settings
        self._clock = clock

    def endpoints(self) -> list[Endpoint]:
        """Raw: mget and mput. A list in, JSON out: match. JSON: keys."""
        name = self._namespace.name

        def at(operation: str) -> tuple[str, str]:
            return f"cache_{operation}_{name}", f"cache.{name}.{operation}"

        return [
            Endpoint(*at("match"), self.match, reply_type=MatchReply),
            Endpoint(*at("mget"), self.mget),
            Endpoint(*at("mput"), self.mput),
            json_endpoint(*at("keys"), KeysRequest, self.keys, reply_type=KeysReply),
        ]

    def match(self, call: Call) -> Answer:
        """How many keys of a chain are here, root first; they count as used, the tail first.

        The archive is not waited for, but what it has of the rest, up to the first key that it
        does not have, is queued to come back, unless `Fleet-No-Restore: 1`.
        """
        keys = self._keys_of(call, MAX_CHAIN_KEYS)
        matched = self._namespace.match(keys)
        coming = 0
        if matched < len(keys) and call.headers.get("Fleet-No-Restore") != "1":
            coming = self._prefetch(keys[matched:])
        return Answer(_encode(MatchReply(matched=matched, coming=coming)))

    def mget(self, call: Call) -> Answer | Awaitable[Answer]:
        """A line of sizes and the values, in the order of the keys.

        Size null: a miss. -1: left out, because it did not fit into this answer, which holds at
        most 1,000,000 bytes and is filled from the last key on: who asks again for the first ones
        leaves the head of a chain as what was used last. What RAM does not have is asked of the
        archive, unless `Fleet-No-Restore: 1`, as much as comes within the time limit of one
        restore; with `Fleet-No-Wait: 1` it is left out instead, and not counted.
        """
        started_ns = time.perf_counter_ns()
        keys = self._keys_of(call, MAX_BATCH_KEYS)
        name = self._classes.check(call.headers)
        reply = Reply(keys)
        waits = call.headers.get("Fleet-No-Wait") != "1"
        missing: list[int] = []
        for place, entry in reversed(list(enumerate(self._find(reply, call, waits=waits)))):
            if entry is None:
                if reply.sizes[place] is None:
                    missing.append(place)
                    self._namespace.count(None)
            elif self._offer(reply, place, entry):
                self._classes.hit(name, entry)
                self._namespace.count(entry)
        missing.reverse()
        answered = reply.taken + len(missing)
        share_ns = (time.perf_counter_ns() - started_ns) // max(1, answered)
        if (
            missing
            and waits
            and call.headers.get("Fleet-No-Restore") != "1"
            and any(self._namespace.restores.possible(keys[place]) for place in missing)
        ):
            self._charge(reply.classes(name), reply.taken, share_ns)
            return self._restored(reply, missing, name, share_ns)
        classes = reply.classes(name)
        if self._namespace.limits.config.enabled:
            for _ in missing:
                self._classes.miss(name)
            self._namespace.latencies.miss.add(share_ns, len(missing))
            if name:
                classes[name] += len(missing)
        self._charge(classes, reply.taken, share_ns)
        return reply.answer()

    def _charge(self, classes: Mapping[str, int], hits: int, share_ns: int) -> None:
        """Each key has its share of the time: one message is to cost what its keys would."""
        self._namespace.latencies.hit.add(share_ns, hits)
        for name, times in classes.items():
            self._classes.spent(name, share_ns, times)

    def _find(self, reply: Reply, call: Call, *, waits: bool) -> Sequence[Entry | None]:
        """The entries; what is not to be waited for, or will find no room, is left out before.

        So that who then asks for it alone is counted once.
        """
        namespace, keys = self._namespace, reply.keys
        if waits:
            return namespace.find_many(keys)
        asks_archive = call.headers.get("Fleet-No-Restore") != "1"
        room_bytes = reply.room_bytes
        here = []
        for place in reversed(range(len(keys))):
            found = namespace.holdings.peek(keys[place])
            if found is None:
                fits = not asks_archive or not namespace.restores.possible(keys[place])
            else:
                size = found[0].value_bytes
                fits = size <= min(room_bytes, INLINE_LIMIT_BYTES)
                room_bytes -= size if fits else 0
            if fits:
                here.append(place)
            else:
                reply.sizes[place] = LEFT_OUT
        here.reverse()
        found_there = namespace.find_many([keys[place] for place in here])
        entries: list[Entry | None] = [None] * len(keys)
        for place, entry in zip(here, found_there, strict=True):
            entries[place] = entry
            if entry is None and asks_archive and namespace.restores.possible(keys[place]):
                reply.sizes[place] = LEFT_OUT  # its life ended just now
        return entries

    def _offer(self, reply: Reply, place: int, entry: Entry) -> bool:
        try:
            return reply.offer(place, entry)
        except OSError:
            self._namespace.holdings.lose(entry)
            return False

    async def _restored(
        self, reply: Reply, missing: Sequence[int], name: str | None, share_ns: int
    ) -> Answer:
        """With what the archive gives in time; each such key is charged its own restore, too."""
        todo = iter(missing)
        took_ns = dict.fromkeys(missing, share_ns)
        began_ns = time.perf_counter_ns()

        async def bring_back() -> None:
            for place in todo:
                key = reply.keys[place]
                if self._namespace.restores.possible(key):
                    if reply.is_full:
                        reply.sizes[place] = LEFT_OUT
                        continue
                    asked_ns = time.perf_counter_ns()
                    try:
                        entry = await self._link.restore(key)
                    finally:
                        took_ns[place] += time.perf_counter_ns() - asked_ns
                    if entry is not None:
                        self._offer(reply, place, entry)

        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(self._settings.restore_timeout_seconds),
                asyncio.TaskGroup() as group,
            ):
                for _ in range(RESTORES_AT_ONCE):
                    group.create_task(bring_back())
        for place in todo:  # not asked for in time
            took_ns[place] += time.perf_counter_ns() - began_ns
        self._check_owned()
        for place in missing:
            self._classes.miss(name, reply.entry(place))
            self._namespace.latencies.miss.add(took_ns[place])
            if name:
                self._classes.spent(name, took_ns[place])
        return reply.answer()

    def mput(self, call: Call) -> Answer | Awaitable[Answer]:
        """Keep the entries; the answer is a JSON list with the version or error of each.

        A malformed message keeps none of them. 409: another version is here. 503 "kept here":
        the archive, which may hold an older value, cannot be told in time; with
        `Fleet-No-Wait: 1` an entry of which it would have to be told is 429, and what follows it in
        a chain.
        """
        self._check_owned()
        namespace, config = self._namespace, self._namespace.limits.config
        client = namespace.clients.admit(config, call.headers)
        entries = read_mput(
            call.headers,
            call.payload,
            self._clock(),
            lambda key: namespace.clients.key(config, client, key),
        )
        if not config.enabled:
            self._refuse_disabled()
        if namespace.limits.refuses(sum(entry.size_bytes for entry, _ in entries)):
            raise busy("evictions wait for the archive, and archive_when_full is refuse; try later")
        is_chain = call.headers.get("Fleet-Chain") == "1"
        chain = is_chain and namespace.limits.keeps_chains([entry for entry, _ in entries])
        if call.headers.get("Fleet-No-Wait") == "1":
            return self._mput_at_once(entries, is_chain=is_chain, chain=chain)
        if any(namespace.tombstones.needed(entry.key) for entry, _ in entries):
            return self._mput_durably(entries, chain=chain)
        versions, tombstones = self._mput(entries, chain=chain)
        if any(tombstones):  # for what left for those before it in this message
            return self._once_told(versions, tombstones)
        return Answer(_encode(versions))

    async def _mput_durably(
        self, entries: Sequence[tuple[Entry, str | None]], *, chain: bool
    ) -> Answer:
        """Kept only here, not before: where too many wait already, this is refused unbegun."""
        self._check_owned()
        return await self._once_told(*self._mput(entries, chain=chain))

    def _mput_at_once(
        self, entries: Sequence[tuple[Entry, str | None]], *, is_chain: bool, chain: bool
    ) -> Answer:
        """Those of which the archive need not be told; the others are 429, and not kept.

        Nor is what follows such a one in a chain.
        """
        later = BatchError(
            error="the archive has to be told of it; put it without Fleet-No-Wait",
            code=429,
            retry_after_seconds=0,
        )
        needed = self._namespace.tombstones.needed
        versions: Versions = [later] * len(entries)
        if is_chain:
            told = (place for place, (entry, _) in enumerate(entries) if needed(entry.key))
            end = next(told, len(entries))
            if end:
                versions[:end], _ = self._mput(entries[:end], chain=chain)
            return Answer(_encode(versions))
        for place, one in enumerate(entries):
            if not needed(one[0].key):
                (versions[place],), _ = self._mput([one], chain=False)
        return Answer(_encode(versions))

    async def _once_told(self, versions: Versions, tombstones: Sequence[Item | None]) -> Answer:
        outbox, timeout_seconds = self._namespace.outbox, self._settings.tombstone_timeout_seconds
        durable = await acknowledged(outbox, tombstones, timeout_seconds)
        for place, is_durable in enumerate(durable):
            if not is_durable:
                versions[place] = BatchError(
                    error="kept here, but the archive could not be told durably yet", code=503
                )
        return Answer(_encode(versions))

    def _mput(
        self, entries: Sequence[tuple[Entry, str | None]], *, chain: bool
    ) -> tuple[Versions, list[Item | None]]:
        if not self._namespace.limits.config.enabled:  # since the message came
            self._refuse_disabled()
        if self._namespace.outbox.crowded and any(
            self._namespace.tombstones.needed(entry.key) for entry, _ in entries
        ):
            raise busy("too many deletions wait for the eviction stream; try later")
        versions: Versions
        tombstones: list[Item | None]
        if chain:
            try:
                tombstones = self._namespace.put_chain([entry for entry, _ in entries])
            except ValueError as error:
                raise RequestError(413, str(error)) from None
            versions = [entry.version for entry, _ in entries]
        else:
            versions, tombstones = [], []
            for entry, expected in entries:
                version, tombstone = self._put(entry, expected)
                versions.append(version)
                tombstones.append(tombstone)
        for entry, _ in entries:
            if entry.version:
                self._classes.put(entry)
        return versions, tombstones

    def _put(
        self, entry: Entry, expected_version: str | None
    ) -> tuple[str | BatchError, Item | None]:
        try:
            tombstone = self._namespace.put(entry, expected_version)
        except VersionConflictError as error:
            return BatchError(error=str(error), code=409), None
        except OutboxCrowdedError:
            refusal = busy("too many deletions wait for the eviction stream; try later")
            return BatchError(
                error=refusal.text,
                code=refusal.code,
                retry_after_seconds=refusal.retry_after_seconds,
            ), None
        except ValueError as error:
            return BatchError(error=str(error), code=413), None
        return entry.version, tombstone

    async def keys(self, request: KeysRequest, call: Call) -> KeysReply:
        """Keys in RAM that begin with `prefix`, after the key `after`; in no telling order.

        A key that is here all the while is listed exactly once, as long as the owner stays.
        Others are answered while this goes on, a 256th of the cache at a time.
        """
        self._check_owned()
        clients, config = self._namespace.clients, self._namespace.limits.config
        (own,) = clients.keys(config, call.headers, [""])
        prefix, after = own + request.prefix, own + request.after
        found: list[str] = []
        room_bytes = KEYS_ANSWER_BYTES
        first = self._namespace.memory.shard_of(after) if request.after else 0
        for number in range(first, SHARDS):
            now_ns = self._clock()
            keys = sorted(
                entry.key
                for entry in self._namespace.memory.shard(number)
                if entry.key.startswith(prefix)
                and not entry.expired(now_ns)
                and (number != first or entry.key > after)
            )
            for key in keys:
                room_bytes -= len(_encode(key)) + 1
                if found and (room_bytes < 0 or len(found) == request.limit):
                    return KeysReply(keys=found, more=True)
                found.append(key.removeprefix(own))
            await asyncio.sleep(0)
        return KeysReply(keys=found, more=False)

    def _keys_of(self, call: Call, limit: int) -> Sequence[str]:
        """The keys in the payload, as they are kept for this client."""
        self._check_owned()
        namespace, keys = self._namespace, read_keys(call.payload, limit)
        return namespace.clients.keys(namespace.limits.config, call.headers, keys)

    def _refuse_disabled(self) -> NoReturn:
        name = self._namespace.name
        raise RequestError(503, f"enabled is off in the configuration of {name}")

    def _check_owned(self) -> None:
        check_owned(self._lease, self._namespace.name)
