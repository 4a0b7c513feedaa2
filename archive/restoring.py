"""Gives archived values back: whole, or held for ranges that are read as the value comes."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import NamedTuple

import msgspec
import structlog

from archive import same_host
from archive.announce import Announcer
from archive.fetch_time import FetchTime
from archive.handover import Handover
from archive.incoming import Incoming
from archive.index_entry import IndexEntry
from archive.ownership import owned_namespace
from archive.settings import ArchiveSettings
from archive.store import ObjectRefusedError, StoreError
from archive.vault import DamagedObjectError, Vault
from schemas.cache import (
    EVICTED_HEADER,
    INLINE_LIMIT_BYTES,
    PART_BYTES,
    WRITTEN_WITHIN_SECONDS,
    encode_json_header,
    part_count,
    part_range,
    read_key,
    read_range,
)
from schemas.protocols import Answer, Call, Clock, Endpoint, RequestError, busy

log = structlog.get_logger()

MAX_DIGITS = 20


class Restoring:
    """Answers for every namespace, as `Queries` does."""

    def __init__(
        self,
        vault: Vault,
        announcer: Announcer,
        instance: str,
        clock: Clock,
        handover: Handover,
        settings: ArchiveSettings,
        is_owner: Callable[[], bool],
    ) -> None:
        self._vault = vault
        self._announcer = announcer
        self._instance = instance
        self._clock = clock
        self._handover = handover
        self._settings = settings
        self._is_owner = is_owner
        self._fetch_time = FetchTime()
        self._announcing: set[asyncio.Task[None]] = set()

    def endpoints(self) -> list[Endpoint]:
        """Raw: restore and range."""
        return [
            Endpoint("archive_restore", "api.archive.restore.*", self.restore),
            Endpoint("archive_range", f"api.archive.range.*.{self._instance}", self.read_range),
        ]

    def restore(self, call: Call) -> Answer | Awaitable[Answer]:
        """The value of the key in the payload, with its manifest in `Fleet-Evicted`.

        `Fleet-Generation` (absent = newest): anything older is a miss. A miss is an empty answer
        with `Fleet-Status: miss`. One that would take longer to fetch than to compute anew is a
        miss too, with the estimate in `Fleet-Declined-Seconds`, unless `Fleet-Gate: off` comes
        along. A damaged object is answered 500 once and a miss from then on; `Fleet-Verify: off`:
        the asker looks at the digest of a large value itself, and asks again where it is wrong.
        A value above the inline limit is held for ranges, which this instance (`Fleet-Instance`)
        answers as the value comes; 429 while too many are. The payload is empty then, or with
        `Fleet-First-Part: 1` the first part.

        A cache that may be on this host names an empty file in `Fleet-File`, and in `Fleet-Room`
        how many bytes it may take: a large value is written there, verified, and the answer says
        `Fleet-Written: 1`, unless that cannot be done within `WRITTEN_WITHIN_SECONDS`.
        """
        namespace = owned_namespace(call, self._is_owner)
        key = read_key(call.payload)
        generation = _count(call, "Fleet-Generation")
        known = self._vault.index(namespace).find(key, self._clock())
        if known is not None and call.headers.get("Fleet-Gate") != "off":
            declined_seconds = self._dearer_than_computing(known)
            if declined_seconds is not None:
                self._announcer.counts[namespace]["declined_total"] += 1
                log.debug("restore_declined", namespace=namespace, seconds=declined_seconds)
                return Answer(
                    headers={
                        "Fleet-Status": "miss",
                        "Fleet-Declined-Seconds": f"{declined_seconds:.6f}",
                    }
                )
        wish = _Wish(
            verify=call.headers.get("Fleet-Verify") != "off",
            first_part=call.headers.get("Fleet-First-Part") == "1",
            path=same_host.named_path(call.headers),
            room_bytes=_count(call, "Fleet-Room") or 0,
        )
        return self._restore(known, namespace, key, generation, wish)

    def _dearer_than_computing(self, known: IndexEntry) -> float | None:
        """Seconds to fetch it, where that is more than it costs to compute; else None."""
        if self._settings.restore_gate == "off" or known.cost_seconds is None:
            return None
        seconds = self._fetch_time.estimate(known.object_bytes, time.monotonic())
        return seconds if seconds is not None and seconds > known.cost_seconds else None

    async def _restore(
        self,
        known: IndexEntry | None,
        namespace: str,
        key: str,
        generation: int | None,
        wish: "_Wish",
    ) -> Answer:
        # Inline values are few and small.
        size_bytes = 0 if known is None else known.size_bytes
        if size_bytes <= INLINE_LIMIT_BYTES:
            size_bytes = 0
        if not self._handover.reserve(size_bytes):
            raise busy(
                f"large values being handed back hold {self._handover.used_bytes} of "
                f"{self._handover.max_bytes} bytes (archive.handover_max_bytes); try later"
            )
        may_write = bool(wish.path) and 0 < size_bytes <= wish.room_bytes
        place = None
        incoming = Incoming(verify=wish.verify or may_write)
        fetching = asyncio.create_task(self._fetch(namespace, key, generation, known, incoming))
        try:
            manifest = await incoming.begun()
            if manifest is None:
                return Answer(headers={"Fleet-Status": "miss"})
            headers = {EVICTED_HEADER: encode_json_header(msgspec.json.encode(manifest))}
            if manifest.size_bytes <= INLINE_LIMIT_BYTES:
                return Answer(bytes(await incoming.read(0, manifest.size_bytes)), headers)
            if may_write and manifest.size_bytes == size_bytes:
                place = same_host.Place.take(wish.path, size_bytes)  # while the rest is coming
            if place is not None:
                with contextlib.suppress(OSError):  # TimeoutError is one, too
                    await _fill(place, incoming, size_bytes)
                    return Answer(headers={**headers, "Fleet-Written": "1"})
        except BaseException:
            fetching.cancel()
            raise
        finally:
            if place is not None:
                place.close()
            self._handover.release(size_bytes)
        name = (namespace, key, manifest.version)
        self._handover.hold(name, incoming, manifest.size_bytes, fetching)
        headers["Fleet-Instance"] = self._instance
        if not wish.first_part:
            return Answer(headers=headers)
        return Answer(bytes(await self._handover.read(name, 0, PART_BYTES)), headers)

    async def _fetch(
        self,
        namespace: str,
        key: str,
        generation: int | None,
        known: IndexEntry | None,
        incoming: Incoming,
    ) -> None:
        """Fetch a value, and tell `incoming` how that ended."""
        began = time.monotonic()
        error: Exception | None = None
        try:
            found = await self._vault.fetch(namespace, key, generation, incoming)
            if found is None:
                error = _not_held() if incoming.has_begun else None
            else:
                manifest, value = found
                incoming.begin(manifest, value)
                if known is not None:
                    now = time.monotonic()
                    self._fetch_time.observe(known.object_bytes, now - began, now)
                    self._vault.meter.restored(known)
                self._announce(
                    self._announcer.restored(namespace, key, manifest.version, len(value))
                )
        except DamagedObjectError as damage:
            self._announce(self._announcer.damaged(damage.entry, damage.reason))
            error = RequestError(500, f"archived object of this key is damaged: {damage.reason}")
        except ObjectRefusedError as refusal:
            error = RequestError(503, f"the object of this key cannot be read: {refusal.reason}")
        except StoreError as failure:
            log.error("archive_unreadable", error=str(failure))
            error = RequestError(503, "the archive's store cannot be read now")
        except asyncio.CancelledError:
            error = _not_held()
            raise
        except Exception as failure:  # whoever waits for the value answers it
            error = failure
        finally:
            incoming.end(error)

    async def read_range(self, call: Call) -> Answer:
        """Bytes of a large value that a restore holds, once they came; 409: it holds it no more.

        They are right once the last was answered: until then the value may turn out to be damaged.
        With `Fleet-File` they are written into that file where it is on this host: the answer is
        empty then, and says `Fleet-Written: 1`.
        """
        namespace = owned_namespace(call, self._is_owner, token=-2)
        name = (namespace, read_key(call.payload), call.headers.get("Fleet-Version", ""))
        size_bytes = self._handover.size(name)
        if size_bytes is None:
            raise _not_held()
        first, end = read_range(call.headers, size_bytes)
        path = same_host.named_path(call.headers)
        content = await self._handover.read(name, first, end)
        if path and same_host.write(path, first, content, size_bytes):
            return Answer(headers={"Fleet-Written": "1"})
        return Answer(bytes(content))

    async def announced(self) -> None:
        """Return once everything that was answered is announced, or given up."""
        await asyncio.gather(*self._announcing)

    def _announce(self, saying: Coroutine[None, None, None]) -> None:
        """Say it while the answer is on its way: nobody who restores waits for an event."""
        task = asyncio.create_task(saying)
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)


def _not_held() -> RequestError:
    return RequestError(409, "that version is not held here any more; restore again")


class _Wish(NamedTuple):
    """How the asker would have the value: see `Restoring.restore`."""

    verify: bool
    first_part: bool
    path: str
    room_bytes: int


async def _fill(place: same_host.Place, incoming: Incoming, size_bytes: int) -> None:
    """Write the value as it comes; raises TimeoutError where that takes too long to wait for."""
    async with asyncio.timeout(WRITTEN_WITHIN_SECONDS):
        for part in range(part_count(size_bytes)):
            first, end = part_range(part, size_bytes)
            place.write(first, await incoming.read(first, end))


def _count(call: Call, header: str) -> int | None:
    text = call.headers.get(header)
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < MAX_DIGITS):
        raise RequestError(400, f"{header} is a count")
    return None if text is None else int(text)
