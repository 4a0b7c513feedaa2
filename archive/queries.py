"""The archive's endpoints: restore, keys, list, status."""

import asyncio
import difflib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence

import msgspec
import structlog

from archive import same_host
from archive.announce import Announcer
from archive.fetch_time import FetchTime
from archive.handover import Handover
from archive.incoming import Incoming
from archive.index_entry import HASH_BYTES, IndexEntry
from archive.intake import STREAM
from archive.money import price_table
from archive.settings import ArchiveSettings
from archive.store import ObjectRefusedError, ObjectStore, StoreError
from archive.vault import DamagedObjectError, Vault
from schemas.api import ArchiveEntry, ArchiveList, ArchiveListRequest, ArchiveStatus, Request
from schemas.archive_money import used_by
from schemas.cache import (
    EVICTED_HEADER,
    INLINE_LIMIT_BYTES,
    decode_header,
    encode_header,
    read_key,
    read_range,
)
from schemas.protocols import (
    Answer,
    Call,
    Clock,
    Endpoint,
    PublishError,
    RequestError,
    WorkQueue,
    busy,
    json_endpoint,
)
from schemas.units import instant

log = structlog.get_logger()

HASHES_PER_PAGE = 512 * 1024 // HASH_BYTES
LIST_KEY_BYTES = 256 * 1024
MAX_NAMED = 5
"""Namespaces that are named to who asked for another one."""
NAMED = 20


class Queries:
    """Answers for every namespace; the namespace is the last token of the subject.

    `is_owner` says whether this archiver still owns the store: without that its index may be
    behind another's, and it answers 503.
    """

    def __init__(
        self,
        vault: Vault,
        store: ObjectStore,
        announcer: Announcer,
        queue: WorkQueue,
        instance: str,
        clock: Clock,
        namespaces: Collection[str],
        is_owner: Callable[[], bool],
        handover: Handover,
        settings: ArchiveSettings,
    ) -> None:
        self._handover = handover
        self._settings = settings
        self._prices = price_table(settings.prices) if settings.shows_money else None
        self._fetch_time = FetchTime()
        self._vault = vault
        self._store = store
        self._announcer = announcer
        self._queue = queue
        self._instance = instance
        self._clock = clock
        self._namespaces = frozenset(namespaces)
        self._is_owner = is_owner
        self._announcing: set[asyncio.Task[None]] = set()

    def endpoints(self) -> list[Endpoint]:
        """Raw: restore, range and keys. JSON: list and status."""
        return [
            Endpoint("archive_restore", "api.archive.restore.*", self.restore),
            Endpoint("archive_range", f"api.archive.range.*.{self._instance}", self.read_range),
            Endpoint("archive_keys", "api.archive.keys.*", self.keys),
            json_endpoint(
                "archive_list",
                "api.archive.list.*",
                ArchiveListRequest,
                self.list_entries,
                reply_type=ArchiveList,
            ),
            json_endpoint(
                "archive_status",
                "api.archive.status.*",
                Request,
                self.status,
                reply_type=ArchiveStatus,
            ),
        ]

    def restore(self, call: Call) -> Answer | Awaitable[Answer]:
        """The value of the key in the payload, with its manifest in `Fleet-Evicted`.

        `Fleet-Generation` (absent = newest): anything older is a miss. A miss is an empty answer
        with `Fleet-Status: miss`. One that would take longer to fetch than to compute anew is a
        miss too, with the estimate in `Fleet-Declined-Seconds`, unless `Fleet-Gate: off` comes
        along. A damaged object is answered 500 once and a miss from then on; `Fleet-Verify: off`:
        the asker looks at the digest of a large value itself, and asks again where it is wrong.
        The payload of a value above the inline limit is empty: it is held for ranges, which this
        instance (`Fleet-Instance`) answers as the value comes; 429 while too many are.
        """
        namespace = self._namespace(call)
        key = read_key(call.payload)
        text = call.headers.get("Fleet-Generation")
        if text is not None and not (text.isascii() and text.isdigit()):
            raise RequestError(400, "Fleet-Generation is a count")
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
        generation = None if text is None else int(text)
        verify = call.headers.get("Fleet-Verify") != "off"
        return self._restore(known, namespace, key, generation, verify=verify)

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
        *,
        verify: bool,
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
        incoming = Incoming(verify=verify)
        fetching = asyncio.create_task(self._fetch(namespace, key, generation, known, incoming))
        try:
            manifest = await incoming.begun()
        except BaseException:
            fetching.cancel()
            raise
        finally:
            self._handover.release(size_bytes)
        if manifest is None:
            return Answer(headers={"Fleet-Status": "miss"})
        headers = {EVICTED_HEADER: encode_header(msgspec.json.encode(manifest).decode())}
        if manifest.size_bytes <= INLINE_LIMIT_BYTES:
            return Answer(bytes(await incoming.read(0, manifest.size_bytes)), headers)
        name = (namespace, key, manifest.version)
        self._handover.hold(name, incoming, manifest.size_bytes, fetching)
        return Answer(headers={**headers, "Fleet-Instance": self._instance})

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
        namespace = self._namespace(call, token=-2)
        name = (namespace, read_key(call.payload), call.headers.get("Fleet-Version", ""))
        size_bytes = self._handover.size(name)
        if size_bytes is None:
            raise _not_held()
        first, end = read_range(call.headers, size_bytes)
        try:
            path = decode_header(call.headers.get("Fleet-File", ""))
        except ValueError as error:
            raise RequestError(400, f"header Fleet-File: {error}") from None
        content = await self._handover.read(name, first, end)
        if path and same_host.write(path, first, content, size_bytes):
            return Answer(headers={"Fleet-Written": "1"})
        return Answer(bytes(content))

    def keys(self, call: Call) -> Answer:
        """Eight-byte hashes (`index.key_hash`) of the keys that can be restored, sorted.

        At most 512 KiB a page; `Fleet-More: 1` says that there are more, after the last one:
        `Fleet-After` takes it in hexadecimal. `Fleet-Generation` is the newest generation known.
        """
        index = self._vault.index(self._namespace(call))
        try:
            after = bytes.fromhex(call.headers.get("Fleet-After", ""))
        except ValueError:
            raise RequestError(400, "Fleet-After is hexadecimal") from None
        hashes = index.hashes(after, HASHES_PER_PAGE + 1, self._clock())
        headers = {"Fleet-Generation": str(index.generation)}
        if len(hashes) > HASHES_PER_PAGE:
            headers["Fleet-More"] = "1"
        return Answer(b"".join(hashes[:HASHES_PER_PAGE]), headers)

    def list_entries(self, request: ArchiveListRequest, call: Call) -> ArchiveList:
        """Entries that can be restored, by key; a page ends at `limit` or 256 KiB of keys."""
        index = self._vault.index(self._namespace(call))
        found = index.listing(request.prefix, request.after, request.limit + 1, self._clock())
        entries: list[ArchiveEntry] = []
        key_bytes = 0
        for entry in found[: request.limit]:
            key_bytes += len(entry.key.encode())
            if entries and key_bytes > LIST_KEY_BYTES:
                break
            expires_ns = entry.expires_ns
            entries.append(
                ArchiveEntry(
                    key=entry.key,
                    version=entry.version,
                    size_bytes=entry.size_bytes,
                    stored_bytes=entry.object_bytes,
                    stored_at=instant(entry.stored_ns),
                    expires_at=None if expires_ns is None else instant(expires_ns),
                )
            )
        return ArchiveList(entries=entries, more=len(entries) < len(found))

    async def status(self, _request: Request, call: Call) -> ArchiveStatus:
        """What the namespace holds; entries not yet swept are counted.

        404 where the cache does not serve it here and nothing of it was ever archived.
        """
        namespace = self._namespace(call)
        known = (self._namespaces, self._vault.namespaces, self._announcer.counts)
        if not any(namespace in names for names in known):
            names = sorted(set().union(*known) - {""})
            raise RequestError(
                404, f"the archive knows no namespace {namespace}{_near(namespace, names)}"
            )
        index = self._vault.index(namespace)
        counts: Counter[str] = self._announcer.counts.get(namespace, Counter())
        meter = self._vault.meter
        classes = meter.uses(namespace, self._prices)
        since_ns = meter.since_ns(namespace)
        refused = self._vault.trouble.unreadable
        return ArchiveStatus(
            namespace=namespace,
            instance=self._instance,
            store=self._store.description,
            entries=index.entries,
            tombstones=index.tombstones,
            size_bytes=index.size_bytes,
            stored_bytes=index.object_bytes,
            pending=await self.pending(),
            stored_total=counts["stored_total"],
            restored_total=counts["restored_total"],
            declined_total=counts["declined_total"],
            classes=classes,
            requests=dict(meter.requests),
            cost=used_by(classes).cost,
            counted_since=None if since_ns is None else instant(since_ns),
            prices=self._prices,
            expired_total=counts["expired_total"],
            superseded_total=counts["superseded_total"],
            failed_total=counts["failed_total"],
            dead_total=counts["dead_total"],
            dropped_total=self._vault.dropped[namespace],
            damaged=self._vault.damaged(namespace),
            refused_objects=len(refused),
            refused=dict(list(refused.items())[:NAMED]),
            budget_bytes=index.budget_bytes,
        )

    async def pending(self) -> int | None:
        """Evictions of all namespaces that wait in the stream; None = not known."""
        try:
            return await self._queue.depth(STREAM)
        except (PublishError, TimeoutError):
            return None

    async def announced(self) -> None:
        """Return once everything that was answered is announced, or given up."""
        await asyncio.gather(*self._announcing)

    def _announce(self, saying: Coroutine[None, None, None]) -> None:
        """Say it while the answer is on its way: nobody who restores waits for an event."""
        task = asyncio.create_task(saying)
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)

    def _namespace(self, call: Call, token: int = -1) -> str:
        if not self._is_owner():
            raise RequestError(503, "this archiver does not own the store now; ask again")
        return call.subject.split(".")[token]


def _near(name: str, names: Sequence[str]) -> str:
    """The question whether one like it is meant, or which there are, where they are few."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f": do you mean {' or '.join(near)}?"
    return f"; it knows {', '.join(names)}" if 0 < len(names) <= MAX_NAMED else ""


def _not_held() -> RequestError:
    return RequestError(409, "that version is not held here any more; restore again")
