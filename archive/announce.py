"""What the archive tells the bus and counts about itself."""

import asyncio
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime

import msgspec
import structlog

from archive.index_entry import IndexEntry
from archive.store import StoreError
from schemas.archive import ArchiveFailed, Expired, Restored, Stored, StoredEntry
from schemas.message import Message
from schemas.protocols import Clock, Publisher, PublishError
from schemas.units import SECOND_NS, instant

log = structlog.get_logger()

CALLERS = 16
GATHER_SECONDS = 0.05
STORE_FAILURE_EVERY_NS = 60 * SECOND_NS
STORED_BYTES = 16 * 1024
"""Of entries that one message says, but for one that is longer alone.

The stream keeps the last 1,000 messages of a namespace, whatever they hold: 16 MiB of its 256.
"""
COUNTERS = (
    "cleared_total",
    "dead_total",
    "declined_total",
    "events_lost_total",
    "expired_total",
    "failed_total",
    "helped_total",
    "repeated_total",
    "restored_total",
    "stored_total",
    "superseded_total",
    "tombstones_dropped_total",
    "unconfirmed_total",
)
"""What is counted of a namespace."""


class Announcer:
    """Publishes the archive's events, each with an id of its own, and counts by namespace."""

    def __init__(self, publisher: Publisher, instance: str, clock: Clock) -> None:
        self._publisher = publisher
        self._clock = clock
        self._id_prefix = f"{instance}.{secrets.token_hex(6)}"
        self._sent = 0
        self._restored: list[tuple[Message, str]] = []
        self._room = asyncio.Semaphore(CALLERS)
        self._store_failure_ns: int | None = None
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def total(self) -> Counter[str]:
        """The counts of all namespaces together, those at 0 included."""
        total = Counter(dict.fromkeys(COUNTERS, 0))
        for counts in list(self.counts.values()):
            total.update(counts)
        return total

    async def stored(self, entries: Sequence[IndexEntry]) -> None:
        """Say that each of `entries` is safe.

        Raises:
            PublishError: not everybody knows yet; the cache waits for these events: say it again.
        """
        now = instant(self._clock())
        messages = [(message, self._next_id()) for message in _stored(entries, now)]
        # A few callers at a time: of thousands on their way the last would come too late.
        async with self._room:
            await self._publisher.publish_all(messages)

    async def restored(self, namespace: str, key: str, version: str, size_bytes: int) -> None:
        """Count that a value was handed back, and say it with others that are soon.

        Nobody waits for it, and each message sent by itself takes as long as some restores.
        """
        self.counts[namespace]["restored_total"] += 1
        restored = Restored(
            namespace=namespace,
            key=key,
            version=version,
            observed_at=instant(self._clock()),
            size_bytes=size_bytes,
        )
        self._restored.append((restored, self._next_id()))
        if len(self._restored) > 1:
            return  # the first says it too
        await asyncio.sleep(GATHER_SECONDS)
        gathered, self._restored = self._restored, []
        try:
            await self._publisher.publish_all(gathered)
        except PublishError as error:
            self.counts[""]["events_lost_total"] += len(gathered)
            log.warning("archive_events_lost", count=len(gathered), error=str(error))

    async def expired(self, entry: IndexEntry) -> None:
        """Say and count that a value was removed because its time was over."""
        self.counts[entry.namespace]["expired_total"] += 1
        await self._try(
            Expired(
                namespace=entry.namespace,
                key=entry.key,
                version=entry.version,
                observed_at=instant(self._clock()),
            )
        )

    async def store_failed(self, entry: IndexEntry, error: StoreError) -> None:
        """Count that entries could not be stored now; log and say it at most once a minute."""
        self.counts[entry.namespace]["failed_total"] += 1
        now_ns = self._clock()
        last_ns = self._store_failure_ns
        if last_ns is not None and now_ns - last_ns < STORE_FAILURE_EVERY_NS:
            return
        self._store_failure_ns = now_ns
        log.error("archive_store_failed", error=str(error))
        await self._failed(entry.namespace, entry.key, entry.version, str(error))

    async def damaged(self, entry: IndexEntry, error: str) -> None:
        """Say and count that a stored value cannot be read any more."""
        self.counts[entry.namespace]["failed_total"] += 1
        await self._failed(entry.namespace, entry.key, entry.version, error)

    async def _failed(self, namespace: str, key: str, version: str, error: str) -> None:
        await self._try(
            ArchiveFailed(
                namespace=namespace,
                key=key,
                version=version,
                observed_at=instant(self._clock()),
                error=error,
            )
        )

    async def _try(self, message: Message) -> None:
        try:
            await self._publish(message)
        except PublishError as error:
            self.counts[""]["events_lost_total"] += 1
            log.warning("archive_event_lost", event_type=type(message).__name__, error=str(error))

    async def _publish(self, message: Message) -> None:
        await self._publisher.publish(message, message_id=self._next_id())

    def _next_id(self) -> str:
        self._sent += 1
        return f"{self._id_prefix}.{self._sent}"


def _stored(entries: Sequence[IndexEntry], now: datetime) -> Iterator[Stored]:
    """The messages that say it, each of one namespace."""
    together: dict[str, list[StoredEntry]] = {}
    size_bytes: Counter[str] = Counter()
    for entry in entries:
        name, said = entry.namespace, _said(entry)
        said_bytes = len(msgspec.json.encode(said))
        if name in together and size_bytes[name] + said_bytes > STORED_BYTES:
            yield Stored(namespace=name, observed_at=now, entries=together.pop(name))
            del size_bytes[name]
        together.setdefault(name, []).append(said)
        size_bytes[name] += said_bytes
    for name, some in together.items():
        yield Stored(namespace=name, observed_at=now, entries=some)


def _said(entry: IndexEntry) -> StoredEntry:
    expires_ns = entry.expires_ns
    return StoredEntry(
        key=entry.key,
        version=entry.version,
        size_bytes=entry.size_bytes,
        stored_bytes=entry.object_bytes,
        expires_at=None if expires_ns is None else instant(expires_ns),
        tombstone=entry.tombstone,
        tag=entry.tag,
    )
