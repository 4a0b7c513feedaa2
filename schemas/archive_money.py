"""What the archive uses, what that costs and what it avoids, by namespace and TTL class.

The same figures under the same names in `api.archive.status`, ArchiveMetrics, CacheMetrics, the
recorded hours and the report. Formulas with worked values: docs/archive_costs.md.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from schemas.message import Message
from schemas.units import Bytes, Count, Instant, Number, Token

GIB = 2**30
MONTH_HOURS = 730.0
_BY_CLASS = "by TTL class: 1d, 3d, 7d, 30d, 90d, none (longer, or for ever)"
_WITH_UPKEEP = (
    f"{_BY_CLASS}; `upkeep`: requests that no value needs by itself (listings, trial writes, "
    "lifecycle rules, removals), shared by the bytes that namespaces hold"
)


class ArchivePrices(msgspec.Struct, frozen=True, kw_only=True):
    """The price table in force: `archive.prices`."""

    source: Annotated[str, Meta(description="whose prices")]
    as_of: Annotated[str, Meta(description="when they were looked up")]
    gib_month_usd: Annotated[Number, Meta(description="1 GiB kept for 730 hours")]
    write_usd_per_1000: Annotated[Number, Meta(description="1,000 PUT, COPY and POST requests")]
    list_usd_per_1000: Annotated[Number, Meta(description="1,000 LIST requests")]
    read_usd_per_1000: Annotated[Number, Meta(description="1,000 GET and HEAD requests")]

    @property
    def text(self) -> str:
        """Whose, and of when."""
        return f"{self.source}, {self.as_of}"


class ArchiveCost(msgspec.Struct, frozen=True, kw_only=True):
    """What some use of the archive costs, in US dollars."""

    storage_usd: Annotated[Number, Meta(description="of what it held, for as long as it did")]
    requests_usd: Annotated[
        Number, Meta(description="of its requests: the following three; DELETE is free")
    ]
    total_usd: Annotated[Number, Meta(description="storage and requests")]
    prices: Annotated[str, Meta(description="whose prices, and of when: `archive.prices`")]
    write_usd: Annotated[Number, Meta(description="of PUT, COPY and POST requests")] = 0.0
    list_usd: Annotated[Number, Meta(description="of LIST requests")] = 0.0
    read_usd: Annotated[Number, Meta(description="of GET and HEAD requests")] = 0.0


class ArchiveUse(msgspec.Struct, frozen=True, kw_only=True):
    """What one TTL class of a namespace uses: now, and since counting began or in a period."""

    entries: Annotated[Count, Meta(description="values needed now")]
    held_bytes: Annotated[Bytes, Meta(description="that they, and tombstones, take in the store")]
    held_byte_hours: Annotated[Number, Meta(description="bytes by hours they were held")]
    stored_total: Annotated[Count, Meta(description="values stored")]
    stored_bytes_total: Annotated[
        Bytes, Meta(description="that they, and tombstones, took in the store")
    ]
    restored_total: Annotated[Count, Meta(description="values given back")]
    restored_bytes_total: Annotated[Bytes, Meta(description="of these values")]
    avoided_seconds_total: Annotated[
        Number, Meta(description="sum of their `Fleet-Cost-Seconds`: computing avoided")
    ]
    restored_without_cost_total: Annotated[
        Count, Meta(description="of the values given back, those whose put named no such seconds")
    ] = 0
    requests: Annotated[
        dict[str, Number],
        Meta(
            description="to the store, each try, by how they are billed: write (PUT, COPY, POST), "
            "read (GET, HEAD), list, delete; one for several entries is shared, each an equal "
            "part; a folder has none"
        ),
    ] = {}
    cost: Annotated[
        ArchiveCost | None, Meta(description="null: `archive.prices` are not those of this store")
    ] = None

    @property
    def avoided_seconds(self) -> float | None:
        """Computing avoided; None: values were given back, and none of them said what it took."""
        is_known = self.restored_total > self.restored_without_cost_total
        return self.avoided_seconds_total if is_known or not self.restored_total else None


ArchiveUses = Annotated[dict[str, ArchiveUse], Meta(description=_WITH_UPKEEP)]
NOTHING_USED = ArchiveUse(
    entries=0,
    held_bytes=0,
    held_byte_hours=0.0,
    stored_total=0,
    stored_bytes_total=0,
    restored_total=0,
    restored_bytes_total=0,
    avoided_seconds_total=0.0,
)
_COUNTED = (
    "held_byte_hours",
    "stored_total",
    "stored_bytes_total",
    "restored_total",
    "restored_bytes_total",
    "avoided_seconds_total",
    "restored_without_cost_total",
)
_USD = ("storage_usd", "requests_usd", "total_usd", "write_usd", "list_usd", "read_usd")


class ArchiveMetrics(Message, frozen=True, kw_only=True):
    """The archive of one namespace: counters since `counted_since`, and sizes now.

    Published every 5 s by the archiver that keeps the index, for each namespace that has anything
    there, at most once. What other archivers did is in it: those of several instances add up.
    """

    SUBJECT: ClassVar[str] = "metrics.archive.{instance}"
    PUBLISHER: ClassVar[str] = "archive"
    STREAM: ClassVar[str | None] = "METRICS"
    DURABLE: ClassVar[bool] = False

    instance: Annotated[Token, Meta(description="archive that keeps the index")]
    namespace: Annotated[Token, Meta(description="that of the cache")]
    observed_at: Annotated[Instant, Meta(description="when it was measured")]
    counted_since: Annotated[
        Instant, Meta(description="its counters began then at 0; another instant: they began anew")
    ]
    store: Annotated[str, Meta(description="folder or bucket")]
    classes: ArchiveUses
    prices: Annotated[
        ArchivePrices | None,
        Meta(description="null: `archive.prices` are not those of this store"),
    ] = None


class ArchiveUsage(Message, frozen=True, kw_only=True):
    """One hour of the archive of a namespace.

    Published by the handlers once the hour is over: growth of the counters of ArchiveMetrics from
    sample to sample, so that hours may be added up. `entries` and `held_bytes` are the last ones.
    """

    SUBJECT: ClassVar[str] = "rollup.archive.usage.{namespace}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "ROLLUPS"

    namespace: Annotated[Token, Meta(description="that of the cache")]
    hour_at: Annotated[Instant, Meta(description="begin of the hour, by the server's clock")]
    minutes: Annotated[Count, Meta(description="how many of it had a sample, at most 60")]
    classes: ArchiveUses
    prices: Annotated[
        ArchivePrices | None, Meta(description="the last in force; null: none are of this store")
    ] = None


class ArchiveSpending(Message, frozen=True, kw_only=True):
    """The running hour of the archive of a namespace, and the one before.

    Published by the handlers once a minute while its archive is heard of.
    """

    SUBJECT: ClassVar[str] = "analysis.archive.spending.{namespace}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "EVENTS"

    namespace: Annotated[Token, Meta(description="that of the cache")]
    decided_at: Annotated[Instant, Meta(description="end of the last minute in it")]
    hours: Annotated[
        list[ArchiveUsage],
        Meta(description="the hour before, where it was measured, and the running one"),
    ]


def cost_of(use: ArchiveUse, prices: ArchivePrices) -> ArchiveCost:
    """What `use` costs.

    Worked: 1 GiB held for 730 hours at 0.023 a GiB-month = 0.023; 1,000 writes at 0.005 a
    thousand = 0.005; 10,000 reads at 0.0004 a thousand = 0.004.
    """
    storage_usd = use.held_byte_hours / GIB / MONTH_HOURS * prices.gib_month_usd
    write_usd = use.requests.get("write", 0.0) / 1000 * prices.write_usd_per_1000
    list_usd = use.requests.get("list", 0.0) / 1000 * prices.list_usd_per_1000
    read_usd = use.requests.get("read", 0.0) / 1000 * prices.read_usd_per_1000
    requests_usd = write_usd + list_usd + read_usd
    return ArchiveCost(
        storage_usd=storage_usd,
        requests_usd=requests_usd,
        total_usd=storage_usd + requests_usd,
        prices=prices.text,
        write_usd=write_usd,
        list_usd=list_usd,
        read_usd=read_usd,
    )


def added(uses: Iterable[ArchiveUse]) -> ArchiveUse:
    """All of them together: sizes too, so of one class only at one instant.

    The cost is that of those that have one; None where none has.
    """
    found = list(uses)
    requests: dict[str, float] = {}
    for use in found:
        for kind, count in use.requests.items():
            requests[kind] = requests.get(kind, 0.0) + count
    sums = {name: sum(getattr(use, name) for use in found) for name in _COUNTED}
    return ArchiveUse(
        entries=sum(use.entries for use in found),
        held_bytes=sum(use.held_bytes for use in found),
        **sums,
        requests=requests,
        cost=_added_costs([use.cost for use in found if use.cost is not None]),
    )


def followed(before: ArchiveUse, then: ArchiveUse) -> ArchiveUse:
    """Two stretches of one class, one after the other: sizes are those of the later one."""
    return msgspec.structs.replace(
        added([before, then]), entries=then.entries, held_bytes=then.held_bytes
    )


def holding_nothing(use: ArchiveUse) -> ArchiveUse:
    """What was counted, of a class of which nothing is held any more."""
    return msgspec.structs.replace(use, entries=0, held_bytes=0)


def grown(begin: ArchiveUse, end: ArchiveUse, prices: ArchivePrices | None) -> ArchiveUse:
    """By how much the counters rose, and what that costs; sizes as at the end."""
    growth = {name: max(0, getattr(end, name) - getattr(begin, name)) for name in _COUNTED}
    use = ArchiveUse(
        entries=end.entries,
        held_bytes=end.held_bytes,
        **growth,
        requests={
            kind: max(0.0, count - begin.requests.get(kind, 0.0))
            for kind, count in end.requests.items()
        },
    )
    return use if prices is None else msgspec.structs.replace(use, cost=cost_of(use, prices))


def used_by(classes: Mapping[str, ArchiveUse]) -> ArchiveUse:
    """All classes of a namespace together."""
    return added(classes.values())


def _added_costs(costs: list[ArchiveCost]) -> ArchiveCost | None:
    if not costs:
        return None
    tables = list(dict.fromkeys(text for cost in costs for text in cost.prices.split("; ")))
    return ArchiveCost(
        prices="; ".join(tables),
        **{name: sum(getattr(cost, name) for cost in costs) for name in _USD},
    )
