"""What each namespace uses of the store, by TTL class, and what that costs."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

from archive.index_entry import IndexEntry
from archive.lifecycle import FOREVER
from archive.settings import PriceSettings
from schemas.api import ArchiveCost, ArchiveUse
from schemas.protocols import Clock
from schemas.units import SECOND_NS

HOUR_SECONDS = 3600.0
MONTH_HOURS = 730.0
GIB = 2**30


@dataclasses.dataclass(slots=True)
class Use:
    """One TTL class of a namespace: what it needs now, and what happened since the start."""

    entries: int = 0
    held_bytes: int = 0
    byte_seconds: float = 0.0
    counted_ns: int = 0
    stored: int = 0
    stored_bytes: int = 0
    restored: int = 0
    restored_bytes: int = 0
    avoided_seconds: float = 0.0

    def advance(self, now_ns: int) -> None:
        """What is held has been held until now."""
        self.byte_seconds += self.held_bytes * max(0, now_ns - self.counted_ns) / SECOND_NS
        self.counted_ns = now_ns


class Meter:
    """Counts use by namespace and TTL class; O(1) for each change.

    Held are the bytes that are needed: what waits in a segment to be removed with it is not
    counted, and a month has 730 hours.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._uses: defaultdict[str, dict[str, Use]] = defaultdict(dict)

    def forget_held(self) -> None:
        """The index is read anew: all that it holds will be counted again."""
        for uses in self._uses.values():
            for use in uses.values():
                use.advance(self._clock())
                use.entries = use.held_bytes = 0

    def count(self, entry: IndexEntry, sign: int) -> None:
        """`entry` is needed from now on (1), or not any more (-1)."""
        use = self._use(entry)
        use.advance(self._clock())
        use.entries += sign
        use.held_bytes += sign * entry.object_bytes

    def stored(self, entry: IndexEntry) -> None:
        """`entry` was stored anew."""
        use = self._use(entry)
        use.stored += 1
        use.stored_bytes += entry.object_bytes

    def restored(self, entry: IndexEntry) -> None:
        """`entry` was given back, so it need not be computed."""
        use = self._use(entry)
        use.restored += 1
        use.restored_bytes += entry.size_bytes
        use.avoided_seconds += entry.cost_seconds or 0.0

    def uses(self, namespace: str) -> dict[str, ArchiveUse]:
        """The use of a namespace by TTL class."""
        found = {}
        for name, use in sorted(self._uses.get(namespace, {}).items()):
            use.advance(self._clock())
            found[name] = ArchiveUse(
                entries=use.entries,
                held_bytes=use.held_bytes,
                held_byte_hours=use.byte_seconds / HOUR_SECONDS,
                stored_total=use.stored,
                stored_bytes_total=use.stored_bytes,
                restored_total=use.restored,
                restored_bytes_total=use.restored_bytes,
                avoided_seconds_total=use.avoided_seconds,
            )
        return found

    def cost(
        self, namespace: str, requests: Mapping[str, int], prices: PriceSettings
    ) -> ArchiveCost:
        """What the namespace has cost since the start.

        Requests serve several namespaces at once: each bears its share of what was stored and
        restored. Worked: 1 GiB held for 730 hours = `gib_month_usd`.
        """
        uses = self.uses(namespace).values()
        byte_hours = sum(use.held_byte_hours for use in uses)
        storage_usd = byte_hours / GIB / MONTH_HOURS * prices.gib_month_usd
        of_one = {
            "write": prices.write_usd_per_1000 / 1000,
            "list": prices.list_usd_per_1000 / 1000,
            "read": prices.read_usd_per_1000 / 1000,
        }
        all_usd = sum(of_one.get(kind, 0.0) * count for kind, count in requests.items())
        requests_usd = all_usd * self._share(namespace)
        return ArchiveCost(
            storage_usd=storage_usd,
            requests_usd=requests_usd,
            total_usd=storage_usd + requests_usd,
            prices=f"{prices.source}, {prices.as_of}",
        )

    def _share(self, namespace: str) -> float:
        moved = {
            name: sum(use.stored + use.restored for use in uses.values())
            for name, uses in self._uses.items()
        }
        return moved.get(namespace, 0) / (sum(moved.values()) or 1)

    def _use(self, entry: IndexEntry) -> Use:
        ttl_class, dash, _ = entry.segment.partition("-")
        uses = self._uses[entry.namespace]
        # An object of its own, as earlier releases wrote them, is in no class.
        return uses.setdefault(ttl_class if dash else FOREVER, Use(counted_ns=self._clock()))


def billed_as(method: str, url: str) -> str:
    """How an HTTP request to S3 is billed: write, list, read or delete."""
    query = url.partition("?")[2]
    if method == "GET" and ("list-type=" in query or query.startswith("uploads")):
        return "list"
    if method in ("GET", "HEAD"):
        return "read"
    return "delete" if method == "DELETE" else "write"
