"""What the owner of a namespace asks the archive, and hears from it."""

import asyncio
import struct
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from cache.archived import HASH_BYTES, LAST_KEY
from cache.entry import Entry
from cache.manifest import (
    ForeignAnswerError,
    WrongDigestError,
    check_restored,
    read_restored,
    restored_entry,
)
from cache.namespace import Namespace
from cache.offers import Offers
from cache.restores import Restore
from cache.room import Room, run_together
from cache.value_file import Draft
from schemas.archive import Stored
from schemas.cache import (
    INLINE_LIMIT_BYTES,
    PARTS_IN_FLIGHT,
    Evicted,
    encode_header,
    part_count,
    part_range,
)
from schemas.digest import RunningDigest
from schemas.protocols import (
    Answer,
    Clock,
    Delivery,
    PublishError,
    Requester,
    RequestError,
    Subscriber,
)
from schemas.units import token

log = structlog.get_logger()

CHECK_SECONDS = 0.25
KEYS_TIMEOUT_SECONDS = 5.0
_decode_stored = msgspec.json.Decoder(Stored).decode


async def _no_generation(_generation: int) -> None:
    """Nobody keeps one."""


class ArchiveLink:
    """Restores, and keeps `Namespace.archived` true to what the archive holds.

    Large values come into `room`: into a file that the archiver on this host fills, or in ranges.

    Nothing is restored before the archive has worked off what was in the eviction stream when
    this owner began: its predecessor's last tombstones may be among it. What it can neither archive
    nor put aside, as FLEET_DEAD is full, is not waited for.
    """

    def __init__(
        self,
        namespace: Namespace,
        requester: Requester,
        subscriber: Subscriber,
        clock: Clock,
        room: Room,
        *,
        restore_timeout_seconds: float,
    ) -> None:
        self.adopt: Callable[[int], Awaitable[None]] = _no_generation
        """Told that the archive knows a newer generation: to go on from that one."""
        self._room = room
        self._namespace = namespace
        self._requester = requester
        self._subscriber = subscriber
        self._clock = clock
        self._restore_timeout_seconds = restore_timeout_seconds
        self._offers = Offers(namespace.files, room, restore_timeout_seconds)
        self._sync_until: int | None = None
        self._seen_first = self._reached = 0
        self.error = ""

    async def listen(self) -> Callable[[], Awaitable[None]]:
        """Hear what the archive has stored; returns what ends that.

        Raises:
            PublishError: the server does not answer.
        """
        return await self._subscriber.follow(
            "EVENTS", self._on_stored, subject=f"archived.stored.{self._namespace.name}"
        )

    async def run(self) -> None:
        """Sync with the archive whenever that is due, for ever."""
        async with asyncio.TaskGroup() as group:
            if self._namespace.archiving:
                group.create_task(self._heed_generation())
            while True:
                await self._advance_sync()
                await asyncio.sleep(CHECK_SECONDS)

    async def restore(self, key: str) -> Entry | None:
        """The entry that the archive has of `key`, now in RAM; None where it has none to give.

        One question at a time for each key. No answer within the time limit counts as a miss.
        """
        under_way = self._namespace.restores.under_way(key)
        if under_way is not None:
            under_way.may_evict_bytes = None  # asked for now, whoever asked first
            await under_way.finished.wait()
            return under_way.answer
        return (await self.bring_back(key)).answer

    async def bring_back(self, key: str, *, may_evict_bytes: int | None = None) -> Restore:
        """Ask the archive for `key`, which nobody does yet; how that ended.

        The entry comes into RAM only if no more than `may_evict_bytes` must leave for it (None:
        whatever must).
        """
        restore = self._namespace.restores.begin(key)
        restore.may_evict_bytes = may_evict_bytes
        entry = None
        try:
            entry = await self._ask_for(key, restore)
        finally:
            self._namespace.restores.finish(key, restore, entry)
        return restore

    async def _ask_for(self, key: str, restore: Restore) -> Entry | None:
        headers = {"Fleet-Generation": str(self._namespace.generation)}
        if restore.may_evict_bytes is not None:
            headers["Fleet-Gate"] = "off"  # nobody waits for it now
        try:
            try:
                # It is verified here in any case, so the archive need not do that too.
                entry = await self._fetch(key, {**headers, "Fleet-Verify": "off"})
            except WrongDigestError:
                # Is it damaged in the store? Then the archive has to know.
                entry = await self._fetch(key, headers)
        except (RequestError, ForeignAnswerError) as error:
            restore.failed = True
            self._namespace.counters.restores_failed += 1
            if not self.error:
                log.warning("restore_failed", namespace=self._namespace.name, error=str(error))
            self.error = str(error)
            return None
        self.error = ""
        return entry

    async def _fetch(self, key: str, headers: dict[str, str]) -> Entry | None:
        name = self._namespace.name
        limit_bytes, which = self._namespace.limits.value_limit
        with self._offers.offer(limit_bytes) as offer:
            answer = await self._requester.request(
                f"api.archive.restore.{name}",
                key.encode(),
                {**headers, "Fleet-First-Part": "1", **(offer.headers if offer else {})},
                timeout_seconds=self._restore_timeout_seconds,
            )
            if "Fleet-Declined-Seconds" in answer.headers:
                self._namespace.counters.restores_declined += 1
            generation = int(headers["Fleet-Generation"])
            manifest = read_restored(answer, namespace=name, key=key, generation=generation)
            if manifest is None:
                return None
            if manifest.size_bytes <= INLINE_LIMIT_BYTES:
                check_restored(manifest, answer.payload)
                return restored_entry(manifest, answer.payload, self._clock())
            if manifest.size_bytes > limit_bytes:
                raise ForeignAnswerError(
                    f"value of {manifest.size_bytes} bytes is above {limit_bytes} ({which})"
                )
            if offer is not None and "Fleet-Written" in answer.headers:
                return restored_entry(manifest, offer.take(manifest.size_bytes), self._clock())
        return await self._entry(manifest, answer)

    async def _entry(self, manifest: Evicted, answer: Answer) -> Entry:
        if "Fleet-Instance" not in answer.headers:
            raise ForeignAnswerError("header Fleet-Instance is missing")
        async with self._room.hold(manifest.size_bytes, self._restore_timeout_seconds):
            draft = self._namespace.files.draft(manifest.size_bytes)
            digest = RunningDigest(draft.digest, like=manifest.digest)
            try:
                await self._read_ranges(manifest, answer, draft, digest)
                if await digest.finish() != manifest.digest:
                    raise WrongDigestError
            finally:
                digest.cancel()
        return restored_entry(manifest, draft.finish(), self._clock())

    async def _read_ranges(
        self, manifest: Evicted, answer: Answer, draft: Draft, digest: RunningDigest
    ) -> None:
        """Have the value from the archiver that is fetching it; a few ranges at once.

        Its answer may have brought the first part.
        """
        parts = iter(range(part_count(manifest.size_bytes)))
        instance = token(answer.headers["Fleet-Instance"])
        subject = f"api.archive.range.{self._namespace.name}.{instance}"
        key, headers = manifest.key.encode(), {"Fleet-Version": manifest.version}
        if draft.path:
            headers["Fleet-File"] = encode_header(draft.path)

        def take(first: int, end: int, payload: bytes) -> None:
            if len(payload) != end - first:
                raise ForeignAnswerError(f"{len(payload)} bytes for {first}-{end - 1}")
            draft.write(first, payload)
            digest.came(first, end)

        if answer.payload:
            take(*part_range(next(parts), manifest.size_bytes), answer.payload)

        async def read() -> None:
            for part in parts:
                first, end = part_range(part, manifest.size_bytes)
                given = await self._requester.request(
                    subject,
                    key,
                    {**headers, "Fleet-Range": f"{first}-{end - 1}"},
                    timeout_seconds=self._restore_timeout_seconds,
                )
                if "Fleet-Written" in given.headers:
                    digest.came(first, end)
                else:  # it is on another host
                    headers.pop("Fleet-File", None)
                    take(first, end, given.payload)

        await run_together([read() for _ in range(PARTS_IN_FLIGHT)])

    def _on_stored(self, delivery: Delivery) -> None:
        namespace = self._namespace
        for entry in _decode_stored(delivery.payload).entries:
            target = entry.key if entry.tag is None else (entry.tag,)
            namespace.archived.confirm(target, entry.version, tombstone=entry.tombstone)
            if not entry.tombstone:
                namespace.outbox.confirm(entry.key, entry.version)

    async def _advance_sync(self) -> None:
        archived, outbox = self._namespace.archived, self._namespace.outbox
        if self._sync_until is None:
            if not archived.needs_sync:
                return
            archived.begin_sync(outbox.waiting_values(), outbox.waiting_tombstones())
        try:
            first, last = await self._subscriber.stream_bounds("EVICTIONS")
            if self._sync_until is None:
                self._sync_until = last
                self._reached = 0
            if last < self._sync_until:  # it was deleted and made anew: it counts from 1 again
                self._sync_until, self._reached = last, 0
            # The stream is a work queue: what was worked off is no longer in it.
            if first <= self._sync_until and not await self._is_worked_off(first, self._sync_until):
                return
            archived.caught_up = True
            hashes = await self._listed_keys()
        except (PublishError, RequestError, ForeignAnswerError, TimeoutError) as error:
            # Usual at start, when the archive is not there yet; components() tells it.
            if not self.error:
                log.info("archive_not_synced", namespace=self._namespace.name, error=str(error))
            self.error = str(error)
            return
        archived.finish_sync(hashes)
        self._sync_until = None
        self.error = ""
        log.info("archive_synced", namespace=self._namespace.name, archived_keys=len(hashes))

    async def _is_worked_off(self, first: int, until: int) -> bool:
        """Whether what is left of this namespace's evictions up to `until` is unusable."""
        is_moving, self._seen_first = first != self._seen_first, first
        if is_moving:
            return False
        self._reached = max(self._reached, first - 1)
        if self._reached < until:
            try:
                answer = await self._requester.request(
                    f"api.archive.keys.{self._namespace.name}",
                    headers={
                        "Fleet-After": LAST_KEY,
                        "Fleet-From": str(self._reached + 1),
                        "Fleet-Until": str(until),
                    },
                    timeout_seconds=KEYS_TIMEOUT_SECONDS,
                )
                # An archiver of an earlier release does not say.
                self._reached = int(answer.headers.get("Fleet-Reached", self._reached))
            except (RequestError, PublishError, ValueError):
                return False  # usual while it is not there: components() tells what is waited for
        return self._reached >= until

    async def _heed_generation(self) -> None:
        """Go on from the archive's generation, where the bus has forgotten that there was one.

        What is evicted under an older one would be taken for cleared, and thrown away. Asked until
        it is answered.
        """
        while True:
            try:
                answer = await self._requester.request(
                    f"api.archive.keys.{self._namespace.name}",
                    headers={"Fleet-After": LAST_KEY},
                    timeout_seconds=KEYS_TIMEOUT_SECONDS,
                )
                newest = int(answer.headers.get("Fleet-Generation", "0"))
                if newest > self._namespace.generation:
                    await self.adopt(newest)
            except (PublishError, RequestError, ValueError, TimeoutError) as error:
                log.debug("generation_unheard", namespace=self._namespace.name, error=str(error))
                await asyncio.sleep(CHECK_SECONDS)
            else:
                return

    async def _listed_keys(self) -> list[int]:
        hashes: list[int] = []
        after = ""
        while True:
            answer = await self._requester.request(
                f"api.archive.keys.{self._namespace.name}",
                headers={"Fleet-After": after} if after else None,
                timeout_seconds=KEYS_TIMEOUT_SECONDS,
            )
            page, rest = divmod(len(answer.payload), HASH_BYTES)
            if rest:
                raise ForeignAnswerError("the archive's list of keys is cut short")
            hashes.extend(struct.unpack(f">{page}Q", answer.payload))
            after = answer.payload[-HASH_BYTES:].hex()
            if answer.headers.get("Fleet-More") != "1" or not page:
                return hashes
