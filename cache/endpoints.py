"""The endpoints of one owned namespace: `cache.<namespace>.<operation>`."""

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import msgspec
import structlog

from cache.archive_link import ArchiveLink
from cache.classes import Classes
from cache.entry import Entry
from cache.namespace import DisabledError, Namespace, VersionConflictError
from cache.ours import acknowledged, check_owned
from cache.outbox import Item
from cache.ownership import Ownership, OwnershipError
from cache.ranges import MISS, Ranges
from cache.requests import PutRequest, read_file_put, read_put, read_upload
from cache.room import Room
from cache.same_host import SameHost
from cache.settings import MIB, CacheSettings
from cache.tags import TagDeletion, is_by_tag
from cache.tombstones import OutboxCrowdedError
from cache.uploads import Uploads, is_abort
from cache.value_file import ValueFile
from schemas.api import CacheReply, ClearReply, EntryMeta, NamespaceStats, Nothing
from schemas.cache import INLINE_LIMIT_BYTES, CacheEvent, encode_header, read_key
from schemas.protocols import (
    Answer,
    Call,
    Clock,
    Endpoint,
    Lease,
    Publisher,
    PublishError,
    RequestError,
    busy,
    json_endpoint,
)
from schemas.units import SECOND_NS, instant

log = structlog.get_logger()


class NamespaceEndpoints:
    """Answers for one namespace while its lease is held, with 503 from the moment it is not.

    Hits in RAM or outbox, plain misses, and writes of keys that were never archived are answered
    at once. What waits: a miss that asks the archive, a write whose tombstone must be
    acknowledged first, a clear.
    """

    def __init__(
        self,
        namespace: Namespace,
        ownership: Ownership,
        link: ArchiveLink,
        classes: Classes,
        tags: TagDeletion,
        lease: Lease,
        publisher: Publisher,
        settings: CacheSettings,
        instance: str,
        clock: Clock,
        room: Room,
    ) -> None:
        self._ranges = Ranges(namespace, instance, self._key_of)
        self._same_host = SameHost(namespace, instance, self._store, self._kept_key, classes, clock)
        self.uploads = Uploads(
            namespace.name,
            instance,
            self._store_upload,
            room,
            namespace.files.draft,
            timeout_seconds=settings.upload_timeout_seconds,
        )
        self._namespace = namespace
        self._ownership = ownership
        self._link = link
        self._classes = classes
        self._tags = tags
        self._lease = lease
        self._publisher = publisher
        self._settings = settings
        self._instance = instance
        self._clock = clock
        self._clearing = asyncio.Lock()

    def endpoints(self) -> list[Endpoint]:
        """All operations.

        Raw: get, put, ranges and parts. Key in, JSON out: delete, exists and meta. JSON: stats and
        clear.
        """
        name = self._namespace.name

        def at(operation: str) -> tuple[str, str]:
            return f"cache_{operation}_{name}", f"cache.{name}.{operation}"

        return [
            Endpoint(*at("get"), self.get),
            Endpoint(*at("put"), self.put),
            self._guarded(self._ranges.endpoint()),
            self._guarded(self.uploads.endpoint()),
            self._guarded(self._same_host.endpoint()),
            Endpoint(*at("delete"), self.delete, reply_type=CacheReply),
            Endpoint(*at("exists"), self.exists, reply_type=CacheReply),
            Endpoint(*at("meta"), self.meta, reply_type=EntryMeta),
            json_endpoint(*at("stats"), Nothing, self.stats, reply_type=NamespaceStats),
            json_endpoint(*at("clear"), Nothing, self.clear, reply_type=ClearReply),
        ]

    def get(self, call: Call) -> Answer | Awaitable[Answer]:
        """The value, with `Fleet-Version`; a miss is empty with `Fleet-Status: miss`.

        Above the inline limit the payload is empty, and headers say where to read ranges.
        `Fleet-Tags` and the `Fleet-Ttl-Seconds` that are left come with an entry that has them.
        What RAM does not have is asked of the archive, unless `Fleet-No-Restore: 1`.
        """
        started_ns = time.perf_counter_ns()
        key = self._key_of(call)
        name = self._classes.check(call.headers)
        namespace = self._namespace
        entry = namespace.find(key)
        if entry is not None:
            self._classes.hit(name, entry)
            self._classes.took(name or entry.request_class, started_ns)
            namespace.latencies.hit.add(time.perf_counter_ns() - started_ns)
            return self._hit(entry, call)
        if call.headers.get("Fleet-No-Restore") == "1" or not namespace.restores.possible(key):
            if namespace.limits.config.enabled:
                self._classes.miss(name)
                self._classes.took(name, started_ns)
                namespace.latencies.miss.add(time.perf_counter_ns() - started_ns)
            return MISS
        return self._restore(key, call, name, started_ns)

    async def _restore(self, key: str, call: Call, name: str | None, started_ns: int) -> Answer:
        entry = await self._link.restore(key)
        self._namespace.latencies.miss.add(time.perf_counter_ns() - started_ns)
        self._check_owned()
        self._classes.miss(name, entry)
        self._classes.took(name, started_ns)
        if entry is None:
            return MISS
        if entry.value_bytes > INLINE_LIMIT_BYTES and self._namespace.peek(key) is None:
            raise busy(
                "the value is archived, but there is no room to bring it back now; try later"
            )
        answer = self._hit(entry, call)
        return answer if isinstance(answer, Answer) else await answer

    def _key_of(self, call: Call) -> str:
        """The key that is the payload, as it is kept for this client."""
        self._check_owned()
        return self._kept_key(call)(read_key(call.payload))

    def _kept_key(self, call: Call) -> Callable[[str], str]:
        """What gives the key under which a key of this client, which is admitted, is kept."""
        clients, config = self._namespace.clients, self._namespace.limits.config
        return functools.partial(clients.key, config, clients.admit(config, call.headers))

    def _hit(self, entry: Entry, call: Call) -> Answer | Awaitable[Answer]:
        answer = self._ranges.hit(entry, call)
        if not entry.tags and entry.expires_at_ns is None:
            return answer
        if isinstance(answer, Answer):
            return self._with_labels(answer, entry)
        return self._labelled_later(answer, entry)

    async def _labelled_later(self, answer: Awaitable[Answer], entry: Entry) -> Answer:
        return self._with_labels(await answer, entry)

    def _with_labels(self, answer: Answer, entry: Entry) -> Answer:
        """With what a reader that keeps a copy must know of the entry."""
        if answer is MISS:
            return answer
        headers = dict(answer.headers)
        if entry.tags:
            headers["Fleet-Tags"] = ",".join(map(encode_header, entry.tags))
        if entry.expires_at_ns is not None:
            left_ns = max(0, entry.expires_at_ns - self._clock())
            headers["Fleet-Ttl-Seconds"] = str(left_ns / SECOND_NS)
        return Answer(answer.payload, headers)

    def put(self, call: Call) -> Answer | Awaitable[Answer]:
        """Keep the payload under `Fleet-Key`; the answer is empty with `Fleet-Version`.

        `Fleet-Status: not-cached` where the prefix is too short to be kept: the key is empty now.
        With `Fleet-Size` the value comes in parts, and the answer says where they go; with
        `Fleet-Abort: 1` that is given up, by its `Fleet-Upload`; with
        `Fleet-File` it is in the inbox. 503 "kept
        here" when the archive, which may hold an older value, cannot be told in time.
        """
        self._check_owned()
        if is_abort(call):
            return self.uploads.receive(call)
        kept_key = self._kept_key(call)
        if "Fleet-File" in call.headers:
            request = read_file_put(call.headers, call.payload, kept_key)
            self._check_announced(request)
            return self._same_host.put(request, call.headers["Fleet-File"])
        if "Fleet-Size" in call.headers:
            request = read_upload(call.headers, call.payload, kept_key)
            self._check_announced(request)
            return self.uploads.begin(request, call.headers.get("Fleet-Upload"))
        return self._store(*read_put(call.headers, call.payload, self._clock(), kept_key))

    def _store_upload(
        self, request: PutRequest, value: memoryview | ValueFile
    ) -> Answer | Awaitable[Answer]:
        return self._store(request.entry(value, self._clock()), request.expected_version)

    def _check_announced(self, request: PutRequest) -> None:
        """Refuse what could not be kept before it is sent."""
        if not self._namespace.limits.config.enabled:
            self._refuse_disabled()
        limit_bytes, which = self._namespace.limits.value_limit
        if request.size_bytes > limit_bytes:
            raise RequestError(
                413,
                f"value of {request.size_bytes} bytes is above the limit of {limit_bytes} bytes "
                f"({which})",
            )
        self._check_room(request.size_bytes)
        try:
            self._namespace.check_version(request.key, request.expected_version)
        except VersionConflictError as error:
            raise RequestError(409, str(error)) from None
        try:
            self._namespace.limits.check_room(request.key, request.size_bytes)
        except ValueError as error:
            raise RequestError(413, str(error)) from None

    def _check_room(self, size_bytes: int) -> None:
        if self._namespace.limits.refuses(size_bytes):
            raise busy("evictions wait for the archive, and archive_when_full is refuse; try later")

    def _store(self, entry: Entry, expected_version: str | None) -> Answer | Awaitable[Answer]:
        self._check_owned()
        self._check_room(entry.size_bytes)
        if self._namespace.tombstones.needed(entry.key):
            return self._put_durably(entry, expected_version)
        self._put(entry, expected_version)
        return self._kept(entry)

    async def _put_durably(self, entry: Entry, expected_version: str | None) -> Answer:
        self._check_owned()
        tombstone = self._put(entry, expected_version)
        if not await self._acknowledged(tombstone):
            raise RequestError(
                503,
                "kept here, but the archive could not be told durably yet; it is being tried "
                "again, and until then the older value could return after a restart",
            )
        return self._kept(entry)

    def _kept(self, entry: Entry) -> Answer:
        headers = {"Fleet-Version": entry.version}
        if not self._namespace.limits.caches(entry):
            headers["Fleet-Status"] = "not-cached"
        return Answer(headers=headers)

    def _put(self, entry: Entry, expected_version: str | None) -> Item | None:
        try:
            tombstone = self._namespace.put(entry, expected_version)
        except VersionConflictError as error:
            raise RequestError(409, str(error)) from None
        except DisabledError:
            self._refuse_disabled()
        except OutboxCrowdedError:
            _refuse_crowded()
        except ValueError as error:
            raise RequestError(413, str(error)) from None
        self._classes.put(entry)
        return tombstone

    def delete(self, call: Call) -> Answer | Awaitable[Answer]:
        """Remove the key, or `{"tag": …}` all that was put with that tag.

        `existed`: the key was in RAM or on its way to the archive.
        """
        self._check_owned()
        if is_by_tag(call.payload):
            return self._tags.delete(call)
        key = self._key_of(call)
        if self._namespace.tombstones.needed(key):
            return self._delete_durably(key)
        return self._delete(key)[0]

    async def _delete_durably(self, key: str) -> Answer:
        self._check_owned()
        answer, tombstone = self._delete(key)
        if not await self._acknowledged(tombstone):
            raise RequestError(
                503,
                "deleted here, but the archive could not be told durably yet; it is being tried "
                "again, and until then the entry could return after a restart",
            )
        return answer

    def _delete(self, key: str) -> tuple[Answer, Item | None]:
        try:
            existed, version, tombstone = self._namespace.delete(key)
        except OutboxCrowdedError:
            _refuse_crowded()
        return _json(CacheReply(existed=existed, version=version)), tombstone

    def exists(self, call: Call) -> Answer:
        """Whether the key is in RAM or on its way to the archive; the archive is not asked."""
        found = self._namespace.peek(self._key_of(call))
        if found is None:
            return _json(CacheReply(existed=False))
        return _json(CacheReply(existed=True, version=found[0].version))

    def meta(self, call: Call) -> Answer:
        """What is known of an entry in RAM or on its way to the archive; counts as no access."""
        found = self._namespace.peek(self._key_of(call))
        if found is None:
            return _json(EntryMeta(found=False))
        entry, where = found
        now_ns = self._clock()
        decision = self._namespace.evictions.decide(entry, now_ns)
        deadline_ns = decision.deadline_ns
        return _json(
            EntryMeta(
                found=True,
                where=where,
                version=entry.version,
                size_bytes=entry.value_bytes,
                inserted_at=instant(entry.inserted_at_ns),
                last_accessed=instant(entry.last_accessed_ns),
                access_count=entry.access_count,
                expires_at=None if entry.expires_at_ns is None else instant(entry.expires_at_ns),
                ttl_seconds=entry.ttl_seconds,
                prefix_tokens=entry.prefix_tokens,
                parent=entry.parent,
                cost_seconds=entry.cost_seconds,
                request_class=entry.request_class,
                tags=list(entry.tags),
                meta=dict(entry.meta),
                archive_ttl_seconds=(
                    0.0 if deadline_ns is None else max(0, deadline_ns - now_ns) / SECOND_NS
                ),
                archive_ttl_reason=f"{decision.heuristic}: {decision.reason}",
                archive_score=decision.score,
            )
        )

    def stats(self, _request: Nothing, _call: Call) -> NamespaceStats:
        """Counters since this instance took the namespace, and sizes now."""
        self._check_owned()
        namespace, counters = self._namespace, self._namespace.counters
        return NamespaceStats(
            namespace=namespace.name,
            instance=self._instance,
            generation=namespace.generation,
            policy=namespace.limits.config.eviction_policy,
            total_entries=len(namespace.memory),
            memory_used_mb=namespace.memory.used_bytes / MIB,
            used_bytes=namespace.memory.used_bytes,
            limit_bytes=namespace.memory.limit_bytes,
            cache_hits=counters.hits,
            cache_misses=counters.misses,
            hit_rate=counters.hit_ratio,
            puts=counters.puts,
            evictions=counters.evictions,
            evictions_acknowledged=namespace.outbox.acknowledged,
            evictions_lost=namespace.outbox.lost,
            restores=counters.restores,
            restores_declined=counters.restores_declined,
            restored_cost_seconds=counters.restored_cost_seconds,
            outbox_entries=len(namespace.outbox),
            outbox_bytes=namespace.outbox.used_bytes,
            ttl_decisions=dict(namespace.evictions.decisions),
            evictions_watched=len(namespace.learner),
            evictions_returned=namespace.learner.returns,
            inbox=namespace.files.inbox,
            classes=self._classes.stats(),
        )

    async def adopt(self, generation: int) -> None:
        """The archive has this generation, newer than ours: the bus has lost its record of it.

        What was cleared since then, under a number that the archive takes for an older one, is
        cleared once more.

        Raises:
            PublishError: it could not be made durable.
        """
        async with self._clearing:
            namespace = self._namespace
            if generation <= namespace.generation:
                return
            is_cleared = namespace.clears > 0
            try:
                raised = await self._ownership.raise_generation(generation + is_cleared)
            except OwnershipError as error:
                raise PublishError(str(error)) from error
            if is_cleared:
                await namespace.clear(raised)
            else:
                namespace.generation = raised
        log.warning("generation_adopted", namespace=namespace.name, generation=raised)

    async def clear(self, _request: Nothing, _call: Call) -> ClearReply:
        """Empty the namespace, archive included.

        The new generation, and what tells it to the archive, are durable before the reply.
        """
        self._check_owned()
        async with self._clearing:
            try:
                generation = await self._ownership.raise_generation()
            except (OwnershipError, PublishError) as error:
                log.warning("clear_failed", namespace=self._namespace.name, error=str(error))
                raise RequestError(
                    503, "nothing is cleared: the new generation could not be made durable"
                ) from error
            entries, tombstone = await self._namespace.clear(generation)
        with contextlib.suppress(PublishError):
            await self._publisher.publish(
                CacheEvent(
                    kind="cleared",
                    namespace=self._namespace.name,
                    instance=self._instance,
                    observed_at=instant(self._clock()),
                    generation=generation,
                    entries=entries,
                )
            )
        if not await self._acknowledged(tombstone):
            raise RequestError(
                503,
                "cleared here, but the archive could not be told durably yet; it is being tried "
                "again, and until then who asks the archive itself may read what was cleared",
            )
        return ClearReply(entries=entries, generation=generation)

    async def _acknowledged(self, tombstone: Item | None) -> bool:
        outbox, timeout_seconds = self._namespace.outbox, self._settings.tombstone_timeout_seconds
        return all(await acknowledged(outbox, [tombstone], timeout_seconds))

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        def handle(call: Call) -> Answer | Awaitable[Answer]:
            self._check_owned()
            return endpoint.handle(call)

        return dataclasses.replace(endpoint, handle=handle)

    def _refuse_disabled(self) -> NoReturn:
        raise RequestError(
            503, f"enabled is off in the configuration of {self._namespace.name}"
        ) from None

    def _check_owned(self) -> None:
        check_owned(self._lease, self._namespace.name)


def _json(reply: msgspec.Struct) -> Answer:
    return Answer(msgspec.json.encode(reply))


def _refuse_crowded() -> NoReturn:
    raise busy("too many deletions wait for the eviction stream; try later") from None
