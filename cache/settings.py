"""Settings of the cache service."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.cache import INLINE_LIMIT_BYTES
from schemas.units import Token

MIB = 1024 * 1024
TEN_YEARS_SECONDS = 315_360_000
PolicyName = Literal["fifo", "lfu", "lru", "prefix", "random"]
Reach = Literal["everywhere", "same_host", "nowhere"]


class TtlSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long an evicted entry without a TTL of its own stays in the archive."""

    heuristic: Annotated[
        Literal["static", "size_aware", "adaptive", "reuse"],
        Meta(
            description="static: base_seconds; size_aware: shorter for larger entries; adaptive: "
            "longer with every access; reuse: as long as what came back before makes it worth"
        ),
    ] = "adaptive"
    base_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=TEN_YEARS_SECONDS,
            description="static: the life, 0 = not archived; size_aware: that of reference_bytes; "
            "adaptive: that of an entry never read; reuse: that of score 1 from its last access",
        ),
    ] = 3600.0
    alpha: Annotated[
        float, Meta(ge=0, le=1e6, description="adaptive: share of base_seconds added per access")
    ] = 0.25
    min_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=TEN_YEARS_SECONDS,
            description="shortest life; reuse: what deserves less is not archived; not for static",
        ),
    ] = 30.0
    max_seconds: Annotated[
        float, Meta(ge=0, le=TEN_YEARS_SECONDS, description="longest life; not for static")
    ] = 604_800.0
    reference_bytes: Annotated[
        int, Meta(ge=1, description="size_aware: the size that lives base_seconds")
    ] = 65_536
    min_score: Annotated[
        float, Meta(ge=0, le=1e6, description="reuse: a lower score is not archived")
    ] = 0.1
    deadline: Annotated[
        Literal["fixed", "sliding"],
        Meta(description="sliding: every hit in RAM starts Fleet-Ttl-Seconds anew"),
    ] = "fixed"
    watched_evictions: Annotated[
        int,
        Meta(
            ge=1000,
            le=10_000_000,
            description="evictions of each namespace that are remembered, to learn which come "
            "back; about 500 bytes each",
        ),
    ] = 50_000

    def __post_init__(self) -> None:
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"min_seconds ({self.min_seconds:g}) must not be above "
                f"max_seconds ({self.max_seconds:g})"
            )


class NamespaceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one namespace has of its own; null, or left out: as in `[cache]`."""

    max_memory_mb: Annotated[int, Meta(ge=1)] | None = None
    eviction_policy: PolicyName | None = None
    outbox_max_bytes: Annotated[int, Meta(ge=16 * MIB)] | None = None
    archive_mode: Literal["on", "log", "off"] | None = None
    archive_when_full: Literal["drop", "refuse"] | None = None
    archive_on_stop: bool | None = None
    ttl: TtlSettings | None = None


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one cache instance owns, how large it is, and how it meets the archive."""

    namespaces: Annotated[
        tuple[Token, ...],
        Meta(min_length=1, description="namespaces to own, or to stand by for"),
    ] = ("default",)
    max_memory_mb: Annotated[
        int, Meta(ge=1, description="RAM for keys and values of each namespace, in 1024*1024 bytes")
    ] = 1024
    eviction_policy: Annotated[
        PolicyName,
        Meta(
            description="which entry leaves first when room is needed; prefix suits the KV blocks "
            "of prompts (docs/cache_policies.md)"
        ),
    ] = "prefix"
    outbox_max_bytes: Annotated[
        int,
        Meta(
            ge=16 * MIB,
            description="RAM, besides max_memory_mb, of each namespace for evicted entries that "
            "are not archived yet",
        ),
    ] = 192 * MIB
    max_value_bytes: Annotated[
        int,
        Meta(
            ge=INLINE_LIMIT_BYTES,
            le=1024 * MIB,
            description="largest value of a put; no more than max_memory_mb, nor, where evictions "
            "are archived, than half of outbox_max_bytes",
        ),
    ] = 64 * MIB
    uploads_max_bytes: Annotated[
        int,
        Meta(
            ge=MIB,
            description="RAM, besides max_memory_mb, of each namespace for values that are being "
            "received in parts, from clients or from the archive; more of them wait. Until its "
            "size is known a restore takes an eighth of it, at most 32 MiB",
        ),
    ] = 256 * MIB
    upload_timeout_seconds: Annotated[
        float,
        Meta(gt=0, le=3600, description="an upload without a new part for so long is given up"),
    ] = 10.0
    same_host: Annotated[
        bool,
        Meta(description="give clients of this user on this host the files of large values"),
    ] = True
    same_host_folder: Annotated[
        str,
        Meta(
            description="where those files lie; empty: $XDG_RUNTIME_DIR or /dev/shm, whichever has "
            "more room, if it is a tmpfs"
        ),
    ] = ""
    same_host_min_bytes: Annotated[
        int, Meta(ge=4096, description="values of this size and more are files")
    ] = 256 * 1024
    lend: Annotated[
        Reach,
        Meta(
            description="which archivers read large evictions from this cache until they are "
            "stored, so that no stream has to take them: everywhere, those on this host "
            "(`same_host`), nowhere"
        ),
    ] = "everywhere"
    evictions_in_flight: Annotated[
        int, Meta(ge=1, le=16, description="evictions published at once, of each namespace")
    ] = 8
    restore_timeout_seconds: Annotated[
        float, Meta(gt=0, le=60, description="a miss that asks the archive gives up after this")
    ] = 2.0
    tombstone_timeout_seconds: Annotated[
        float,
        Meta(gt=0, le=60, description="a put or delete waits this long for its tombstone's ack"),
    ] = 2.0
    drain_timeout_seconds: Annotated[
        float, Meta(gt=0, le=60, description="at stop: time to publish what is still in the outbox")
    ] = 3.0
    metrics_interval_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="between two CacheMetrics of a namespace")
    ] = 5.0
    archive_mode: Annotated[
        Literal["on", "log", "off"],
        Meta(
            description="off: evictions are dropped, and what was archived before is given up "
            "(it could be outdated when switched on again); log: the same, but each eviction that "
            "would be archived is a log line with its size and TTL, and the decisions are counted"
        ),
    ] = "on"
    archive_when_full: Annotated[
        Literal["drop", "refuse"],
        Meta(description="outbox full: drop the oldest eviction, or answer puts with 429"),
    ] = "drop"
    archive_on_stop: Annotated[
        bool, Meta(description="at stop: send everything in RAM to the archive")
    ] = False
    ttl: Annotated[
        TtlSettings, Meta(description="archive life of entries put without Fleet-Ttl-Seconds")
    ] = TtlSettings()

    match_prefetch: Annotated[
        bool,
        Meta(description="a match brings back what the archive has of the rest of the chain"),
    ] = True
    warm_queue_keys: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="most keys of each namespace that wait to be warmed"),
    ] = 10_000
    warm_per_second: Annotated[
        float,
        Meta(gt=0, le=10_000, description="keys warmed a second, while no get asks the archive"),
    ] = 100.0
    warm_evict_ratio: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="share of max_memory_mb that may leave RAM for warmed entries, until the "
            "queue was empty once; what needs more is left out",
        ),
    ] = 0.1
    namespace: Annotated[
        dict[Token, NamespaceSettings],
        Meta(
            description="a table [cache.namespace.NAME] for each namespace with limits of its "
            "own: max_memory_mb, eviction_policy, outbox_max_bytes, archive_mode, "
            "archive_when_full, archive_on_stop, ttl (the whole table)"
        ),
    ] = {}

    def __post_init__(self) -> None:
        if len(set(self.namespaces)) != len(self.namespaces):
            raise ValueError(f"namespaces names one twice: {', '.join(self.namespaces)}")
        for name in self.namespace:
            if name not in self.namespaces:
                raise ValueError(
                    f"namespace.{name} is not among namespaces: {', '.join(self.namespaces)}"
                )

    def of(self, namespace: str) -> "CacheSettings":
        """The settings that hold for this namespace."""
        own = self.namespace.get(namespace, NamespaceSettings())
        given = {name: getattr(own, name) for name in own.__struct_fields__}
        return msgspec.structs.replace(
            self, **{name: value for name, value in given.items() if value is not None}
        )
