"""What each namespace uses of the store, by TTL class, and what that costs."""

import dataclasses
from collections import Counter, defaultdict

import msgspec

from archive.billing import NOBODY, UPKEEP, Bill, Payer, Requests, add_requests, payer_of
from archive.index_entry import IndexEntry
from archive.settings import PriceSettings
from schemas.archive_money import ArchivePrices, ArchiveUse, cost_of
from schemas.protocols import Clock
from schemas.units import SECOND_NS

HOUR_SECONDS = 3600.0


@dataclasses.dataclass(slots=True)
class Use:
    """One TTL class of a namespace: what it needs now, and what happened since the start."""

    entries: int = 0
    held_bytes: int = 0
    byte_ns: int = 0
    """Whole numbers: a sum of many short stretches must not drift."""
    counted_ns: int = 0
    stored: int = 0
    stored_bytes: int = 0
    restored: int = 0
    restored_bytes: int = 0
    restored_without_cost: int = 0
    avoided_seconds: float = 0.0
    requests: dict[str, float] = dataclasses.field(default_factory=dict)

    def advance(self, now_ns: int) -> None:
        """What is held has been held until now; of a clock set back, no instant counts twice."""
        self.byte_ns += self.held_bytes * max(0, now_ns - self.counted_ns)
        self.counted_ns = max(self.counted_ns, now_ns)

    def told(self, prices: ArchivePrices | None) -> ArchiveUse:
        """As it is published."""
        use = ArchiveUse(
            entries=self.entries,
            held_bytes=self.held_bytes,
            held_byte_hours=self.byte_ns / SECOND_NS / HOUR_SECONDS,
            stored_total=self.stored,
            stored_bytes_total=self.stored_bytes,
            restored_total=self.restored,
            restored_bytes_total=self.restored_bytes,
            avoided_seconds_total=self.avoided_seconds,
            restored_without_cost_total=self.restored_without_cost,
            requests=dict(self.requests),
        )
        return use if prices is None else msgspec.structs.replace(use, cost=cost_of(use, prices))


class Meter:
    """Counts use by namespace and TTL class; O(1) for each change.

    Held are the bytes that are needed, from when they are packed until they are removed,
    overwritten or swept: what waits in a segment to be removed with it is not counted.

    Args:
        requests: those made of the store by this process, which are counted here for who they
            were made for.
    """

    def __init__(self, clock: Clock, requests: Requests | None = None) -> None:
        self._clock = clock
        self._made = Requests() if requests is None else requests
        self._uses: defaultdict[str, dict[str, Use]] = defaultdict(dict)
        self._since_ns: dict[str, int] = {}
        self._unshared: dict[str, float] = {}
        self._requests: defaultdict[str, float] = defaultdict(float)

    @property
    def namespaces(self) -> list[str]:
        """Those of which anything was counted."""
        return sorted(self._uses)

    def since_ns(self, namespace: str) -> int | None:
        """When its counters began at 0; None: there are none."""
        return self._since_ns.get(namespace)

    @property
    def requests(self) -> Counter[str]:
        """All that were counted, by kind; those that are shared by nobody yet, too."""
        self._book_made()
        return Counter({kind: round(count) for kind, count in self._requests.items()})

    def forget_held(self) -> None:
        """The index is read anew: all that it holds will be counted again."""
        for uses in self._uses.values():
            for use in uses.values():
                use.advance(self._clock())
                use.entries = use.held_bytes = 0

    def count(self, entry: IndexEntry, sign: int) -> None:
        """`entry` is needed from now on (1), or not any more (-1)."""
        use = self._use(payer_of(entry))
        use.advance(self._clock())
        use.entries += sign * (not entry.tombstone)
        use.held_bytes += sign * entry.object_bytes

    def stored(self, entry: IndexEntry) -> None:
        """`entry` was stored anew."""
        use = self._use(payer_of(entry))
        use.stored += not entry.tombstone
        use.stored_bytes += entry.object_bytes

    def restored(self, entry: IndexEntry) -> None:
        """`entry` was given back, so it need not be computed."""
        use = self._use(payer_of(entry))
        use.restored += 1
        use.restored_bytes += entry.size_bytes
        use.restored_without_cost += entry.cost_seconds is None
        use.avoided_seconds += entry.cost_seconds or 0.0

    def book(self, bill: Bill) -> None:
        """Count requests, those of another archiver too."""
        for payer, requests in bill.items():
            add_requests(self._requests, requests)
            if payer == NOBODY:
                add_requests(self._unshared, requests)
            else:
                add_requests(self._use(payer).requests, requests)

    def uses(self, namespace: str, prices: ArchivePrices | None = None) -> dict[str, ArchiveUse]:
        """The use of a namespace by TTL class, and its part of the upkeep."""
        self._book_made()
        self._share_upkeep()
        uses = self._uses.get(namespace, {})
        for use in uses.values():
            use.advance(self._clock())
        return {name: use.told(prices) for name, use in sorted(uses.items())}

    def _book_made(self) -> None:
        self.book(self._made.take())

    def _share_upkeep(self) -> None:
        """Each namespace bears its part by the bytes it holds; while none holds any it waits."""
        if not self._unshared:
            return
        held = {
            name: sum(use.held_bytes for use in uses.values()) for name, uses in self._uses.items()
        }
        held_bytes = sum(held.values())
        if not held_bytes:
            return
        unshared, self._unshared = self._unshared, {}
        for name, its_bytes in held.items():
            if its_bytes:
                share = {kind: n * its_bytes / held_bytes for kind, n in unshared.items()}
                add_requests(self._use((name, UPKEEP)).requests, share)

    def _use(self, payer: Payer) -> Use:
        namespace, ttl_class = payer
        uses = self._uses[namespace]
        found = uses.get(ttl_class)
        if found is None:
            found = uses[ttl_class] = Use(counted_ns=self._clock())
            self._since_ns.setdefault(namespace, found.counted_ns)
        return found


def price_table(settings: PriceSettings) -> ArchivePrices:
    """The prices of the settings, as they are published."""
    return ArchivePrices(
        source=settings.source,
        as_of=settings.as_of,
        gib_month_usd=settings.gib_month_usd,
        write_usd_per_1000=settings.write_usd_per_1000,
        list_usd_per_1000=settings.list_usd_per_1000,
        read_usd_per_1000=settings.read_usd_per_1000,
    )


def billed_as(method: str, url: str) -> str:
    """How an HTTP request to S3 is billed: write, list, read or delete."""
    query = url.partition("?")[2]
    if method == "GET" and ("list-type=" in query or query.startswith("uploads")):
        return "list"
    if method in ("GET", "HEAD"):
        return "read"
    return "delete" if method == "DELETE" else "write"
