"""The archive's endpoints that tell what it holds: keys, list, status."""

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import structlog

from archive import same_host
from archive.announce import Announcer
from archive.index_entry import HASH_BYTES
from archive.intake import STREAM
from archive.lenders import Lenders
from archive.money import price_table
from archive.ownership import owned_namespace
from archive.settings import ArchiveSettings
from archive.store import ObjectStore
from archive.unusable import Unusable
from archive.vault import Vault
from schemas.api import ArchiveEntry, ArchiveList, ArchiveListRequest, ArchiveStatus, Request
from schemas.archive_money import used_by
from schemas.cache import LENDER_HEADER
from schemas.protocols import (
    Answer,
    Call,
    Clock,
    Endpoint,
    PublishError,
    Requester,
    RequestError,
    WorkQueue,
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
        requester: Requester,
        instance: str,
        clock: Clock,
        namespaces: Collection[str],
        is_owner: Callable[[], bool],
        unusable: Unusable,
        settings: ArchiveSettings,
    ) -> None:
        self._prices = price_table(settings.prices) if settings.shows_money else None
        self._unusable = unusable
        self._vault = vault
        self._store = store
        self._announcer = announcer
        self._queue = queue
        self._lenders = Lenders(requester)
        self._instance = instance
        self._clock = clock
        self._namespaces = frozenset(namespaces)
        self._is_owner = is_owner

    def endpoints(self) -> list[Endpoint]:
        """Raw: keys. JSON: list and status."""
        return [
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

    async def keys(self, call: Call) -> Answer:
        """Eight-byte hashes (`index.key_hash`) of the keys that can be restored, sorted.

        At most 512 KiB a page; `Fleet-More: 1` says that there are more, after the last one:
        `Fleet-After` takes it in hexadecimal. `Fleet-Generation` is the newest generation known.
        To `Fleet-From` and `Fleet-Until`, sequences of the eviction stream, `Fleet-Reached` says
        how far the namespace's evictions between them are worked off (`Unusable.reached`).
        `Fleet-Here: 1` where `Fleet-File`, a cache's value, can be read on this host, and
        `Fleet-Asks: 1` where the cache `Fleet-Lender` can be asked for parts: so its like may be
        lent.
        """
        namespace = owned_namespace(call, self._is_owner)
        index = self._vault.index(namespace)
        try:
            after = bytes.fromhex(call.headers.get("Fleet-After", ""))
        except ValueError:
            raise RequestError(400, "Fleet-After is hexadecimal") from None
        hashes = index.hashes(after, HASHES_PER_PAGE + 1, self._clock())
        headers = {
            "Fleet-Generation": str(index.generation),
            **await self._reached(namespace, call),
        }
        if same_host.has_value(same_host.named_path(call.headers)):
            headers["Fleet-Here"] = "1"
        lender = call.headers.get(LENDER_HEADER)
        if lender is not None and await self._lenders.gives_parts(namespace, lender):
            headers["Fleet-Asks"] = "1"
        if len(hashes) > HASHES_PER_PAGE:
            headers["Fleet-More"] = "1"
        return Answer(b"".join(hashes[:HASHES_PER_PAGE]), headers)

    async def _reached(self, namespace: str, call: Call) -> dict[str, str]:
        bounds = [call.headers.get(name) for name in ("Fleet-From", "Fleet-Until")]
        if None in bounds:
            return {}
        if not all(text and text.isascii() and text.isdigit() for text in bounds):
            raise RequestError(400, "Fleet-From and Fleet-Until are sequences")
        first, until = (int(text or 0) for text in bounds)
        try:
            reached = await self._unusable.reached(namespace, first, until)
        except PublishError as error:
            raise RequestError(503, f"the eviction stream cannot be read now: {error}") from error
        return {"Fleet-Reached": str(reached)}

    def list_entries(self, request: ArchiveListRequest, call: Call) -> ArchiveList:
        """Entries that can be restored, by key; a page ends at `limit` or 256 KiB of keys."""
        index = self._vault.index(owned_namespace(call, self._is_owner))
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
        namespace = owned_namespace(call, self._is_owner)
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


def _near(name: str, names: Sequence[str]) -> str:
    """The question whether one like it is meant, or which there are, where they are few."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f": do you mean {' or '.join(near)}?"
    return f"; it knows {', '.join(names)}" if 0 < len(names) <= MAX_NAMED else ""
