"""Requests and replies of the JSON endpoints. An empty payload means the defaults."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.analysis import Utilization
from schemas.archive_money import ArchiveCost, ArchivePrices, ArchiveUses
from schemas.cache import MAX_COST_SECONDS, MAX_KEY_BYTES, MAX_PREFIX_TOKENS, ClassStats
from schemas.lifecycle import ComponentState, InstanceRecord, Role
from schemas.scaling import HeldAdvice, Recommendation
from schemas.units import Bytes, Count, Instant, Number, Ratio, Seconds, Token

Limit = Annotated[int, Meta(ge=1, le=10_000, description="at most this many rows")]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request body. Unknown fields are refused by name (400)."""


class Nothing(Request, frozen=True, kw_only=True):
    """A request without parameters."""


class Filter(Request, frozen=True, kw_only=True):
    """Which of the fleet's latest values to answer."""

    node: Annotated[Token | None, Meta(description="only that machine's; null: of all")] = None
    pool: Annotated[Token | None, Meta(description="only that pool's; null: of all")] = None
    limit: Limit = 1000


class HistoryRequest(Request, frozen=True, kw_only=True):
    """A time range: `start` and `end`, or the last `seconds` (default 10 minutes).

    More than `limit` samples are thinned evenly; the reply then says how many there were.
    """

    node: Annotated[
        Token | None,
        Meta(description="only that machine's; null: of all, or of the one in the subject"),
    ] = None
    gpu: Annotated[
        Token | None, Meta(description="only that GPU's, `gpu` of GpuMetrics; null: of all")
    ] = None
    start: Annotated[
        Instant | None,
        Meta(
            description="first instant, at most 90 days before `end`; null: `seconds` before `end`"
        ),
    ] = None
    end: Annotated[Instant | None, Meta(description="up to here, not with it; null: now")] = None
    seconds: Annotated[
        Annotated[float, Meta(gt=0, le=90 * 86400)] | None,
        Meta(
            description="instead of `start`, at most 90 days; null: 600 where `start` is null too"
        ),
    ] = None
    limit: Limit = 1000
    engine: Annotated[
        Token | None,
        Meta(description="only that engine's, `engine` of EngineMetrics; null: of all"),
    ] = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One node's or GPU's latest values of one kind, with their age."""

    node: Annotated[Token, Meta(description="its machine")]
    gpu: Annotated[
        Token | None, Meta(description="`gpu` of GpuMetrics; null: a machine's values")
    ] = None
    pool: Annotated[Token | None, Meta(description="that of the sample; null: in none")] = None
    observed_at: Annotated[Instant, Meta(description="that of the sample, by its machine's clock")]
    age_seconds: Annotated[
        Seconds,
        Meta(
            description="since the stream stored it; asked of the agent itself, since it was taken"
        ),
    ]
    simulated: Annotated[bool, Meta(description="that of the sample")]
    values: Annotated[
        dict[str, Any],
        Meta(
            description="the fields of HostMetrics or GpuMetrics that the subject asks for, "
            "null as there"
        ),
    ]


class LatestReply(msgspec.Struct, frozen=True, kw_only=True):
    """The last values seen. `text` says why there are none, when there are none."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    rows: Annotated[list[Row], Meta(description="by node, then GPU index; at most `limit`")]
    total: Annotated[Count, Meta(description="how many match, those beyond `limit` included")]
    text: Annotated[str, Meta(description="why there are none; else empty")] = ""


class HistorySample(msgspec.Struct, frozen=True, kw_only=True):
    """One instant (or one minute, from rollups) of one node, GPU or engine."""

    at: Annotated[Instant, Meta(description="`observed_at` of the sample; begin of the minute")]
    node: Annotated[Token, Meta(description="its machine")]
    gpu: Annotated[
        Token | None, Meta(description="`gpu` of GpuMetrics; null: a machine's values")
    ] = None
    simulated: Annotated[bool, Meta(description="that of the sample or minute")]
    values: Annotated[
        dict[str, Any],
        Meta(
            description="measured numbers by field, one of several devices the highest; in a "
            "minute each a Summary"
        ),
    ]
    engine: Annotated[
        Token | None, Meta(description="`engine` of EngineMetrics; null: of a machine or GPU")
    ] = None


class HistoryReply(msgspec.Struct, frozen=True, kw_only=True):
    """Samples in time order. `source` is `rollups` where the raw metrics no longer reach."""

    source: Annotated[
        Literal["metrics", "rollups"],
        Meta(
            description="`rollups`: minutes, where the raw metrics do not reach back or are "
            "too many"
        ),
    ]
    start: Annotated[Instant, Meta(description="begin of the range")]
    end: Annotated[Instant, Meta(description="end of the range")]
    samples: Annotated[
        list[HistorySample],
        Meta(description="in time order; at most `limit`, and 768 KiB of JSON"),
    ]
    matched: Annotated[Count, Meta(description="how many there are in the range, before thinning")]
    text: Annotated[
        str, Meta(description="why there are none, and since when there are some; else empty")
    ] = ""


class UtilizationReply(msgspec.Struct, frozen=True, kw_only=True):
    """The last judgement of each node, pool and the fleet; `text` says why there is none."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    rows: Annotated[list[Utilization], Meta(description="by scope and `id`; at most `limit`")]
    total: Annotated[Count, Meta(description="how many match, those beyond `limit` included")]
    text: Annotated[str, Meta(description="why there are none; else empty")] = ""


class RecommendationsReply(msgspec.Struct, frozen=True, kw_only=True):
    """Advice that stands: not expired, rejected, superseded or carried out; and what is held."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    rows: Annotated[list[Recommendation], Meta(description="newest first; at most `limit`")]
    total: Annotated[Count, Meta(description="how many match, those beyond `limit` included")]
    text: Annotated[str, Meta(description="why there are none; else empty")] = ""
    held: Annotated[
        list[HeldAdvice] | None,
        Meta(
            description="what loads ask for and is not advised, by pool; at most `limit`; "
            "null: it could not be read now"
        ),
    ] = None


class RoleHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One role of the installation: is it expected, present, ready."""

    role: Annotated[Role, Meta(description="whose it is")]
    expected: Annotated[bool, Meta(description="true: a setting says that it must be there")]
    instances: Annotated[Count, Meta(description="how many are registered")]
    ready: Annotated[bool, Meta(description="at least one instance is")]
    state: Annotated[
        ComponentState,
        Meta(
            description="that of its best instance; without one failed, or off where none is "
            "expected"
        ),
    ]
    text: Annotated[str, Meta(description="what is wrong, by instance; empty: nothing")] = ""


class InstanceHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One instance, with the age of its last heartbeat and of each component's probe."""

    role: Annotated[Role, Meta(description="from `record`")]
    instance: Annotated[Token, Meta(description="from `record`")]
    node: Annotated[Token, Meta(description="from `record`")]
    ready: Annotated[bool, Meta(description="it says so, and is not silent")]
    state: Annotated[
        ComponentState,
        Meta(description="worst of its components; failed: silent for two heartbeats"),
    ]
    age_seconds: Annotated[Seconds, Meta(description="since its last heartbeat")]
    component_age_seconds: Annotated[
        dict[str, Seconds], Meta(description="since each component was looked at, by name")
    ]
    record: Annotated[InstanceRecord, Meta(description="what it last said of itself")]


class HealthReply(msgspec.Struct, frozen=True, kw_only=True):
    """The whole installation's health. `ready`: all expected roles are present and ready."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    answered_by: Annotated[str, Meta(description="`<role>.<instance>`")]
    status: Annotated[
        Literal["healthy", "degraded", "critical"],
        Meta(
            description="critical: not ready, or an expected role failed; degraded: something "
            "is not ok"
        ),
    ]
    live: Annotated[bool, Meta(description="always true: who answers lives")]
    ready: Annotated[bool, Meta(description="every expected role has an instance that is")]
    roles: Annotated[
        list[RoleHealth], Meta(description="in `basic`, `ready` and `detailed`; else empty")
    ] = []
    instances: Annotated[list[InstanceHealth], Meta(description="in `detailed`; else empty")] = []


class CacheReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `delete` and `exists`."""

    existed: Annotated[bool, Meta(description="it was in RAM or on its way to the archive")]
    version: Annotated[
        str | None,
        Meta(description="of the entry; after `delete` of the deletion; null: not there"),
    ] = None


class TagRequest(Request, frozen=True, kw_only=True):
    """A `delete` of every entry that was put with this tag."""

    tag: Annotated[str, Meta(description="one of `Fleet-Tags`, 1 byte to 16 KiB")]


class TagReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted by its tag; what the archive had of it is gone, too, and not counted."""

    entries: Annotated[Count, Meta(description="left RAM and the way to the archive")]
    version: Annotated[str, Meta(description="of the deletion; entries with a lower one are gone")]


class MatchReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much of a chain is here."""

    matched: Annotated[Count, Meta(description="keys from the root to the first that is not here")]
    coming: Annotated[
        Count,
        Meta(description="keys behind those that the archive has, now queued to be brought back"),
    ] = 0


class BatchEntry(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One entry of an `mput`; what is left out is as the headers say for all."""

    key: Annotated[str, Meta(description="1 byte to 10 KiB of UTF-8")]
    size: Annotated[Bytes, Meta(description="of its value, at most 512 KiB")]
    prefix_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_PREFIX_TOKENS)] | None,
        Meta(description="as `Fleet-Prefix-Tokens`, at most 10⁹; null: the header's"),
    ] = None
    parent: Annotated[
        str | None, Meta(description="key, as `Fleet-Parent`; null: the header's, or in a chain")
    ] = None
    cost_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=MAX_COST_SECONDS)] | None,
        Meta(description="as `Fleet-Cost-Seconds`, at most 10⁶; null: the header's"),
    ] = None
    ttl_seconds: Annotated[
        Seconds | None, Meta(description="as `Fleet-Ttl-Seconds`; null: the header's")
    ] = None
    version: Annotated[
        str | None, Meta(description="of the entry to replace, else 409; null: whatever is there")
    ] = None


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the place of a version in the answer to `mput`."""

    error: Annotated[str, Meta(description="why the entry was refused")]
    code: Annotated[int, Meta(description="as for put: 409, 413, 429 or 503")]
    retry_after_seconds: Annotated[
        Seconds | None, Meta(description="with 429: when it is worth putting the entry again")
    ] = None


class KeysRequest(Request, frozen=True, kw_only=True):
    """Which keys to list."""

    prefix: Annotated[str, Meta(description="they begin with it")] = ""
    after: Annotated[
        str, Meta(description="last key of the page before; empty: the first page")
    ] = ""
    limit: Limit = 1000


class KeysReply(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the keys in RAM, in no telling order."""

    keys: Annotated[list[str], Meta(description="at most `limit`, and 512 KiB of JSON")]
    more: Annotated[bool, Meta(description="`after` = the last key gives the next page")]


class WarmRequest(Request, frozen=True, kw_only=True):
    """Keys to bring back from the archive; without any: how far that is."""

    keys: Annotated[list[str], Meta(description="at most 10,000")] = []
    cancel: Annotated[bool, Meta(description="forget those that still wait, first")] = False


class WarmReply(msgspec.Struct, frozen=True, kw_only=True):
    """Where the queue stands; counts since nothing was left to do before."""

    accepted: Annotated[Count, Meta(description="of this request, and not waiting before")]
    waiting: Annotated[Count, Meta(description="keys still to do")]
    restored: Annotated[Count, Meta(description="brought back into RAM")]
    here: Annotated[Count, Meta(description="were in RAM, or on their way to the archive")]
    absent: Annotated[Count, Meta(description="the archive has nothing of them to give")]
    failed: Annotated[Count, Meta(description="the archive did not answer in time")]
    left_out: Annotated[
        Count, Meta(description="too much would have had to leave RAM, or cancelled")
    ]


class EntryMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one cached entry; `found` false leaves the rest null."""

    found: Annotated[bool, Meta(description="it is in RAM or on its way to the archive")]
    where: Annotated[
        Literal["ram", "outbox"] | None,
        Meta(description="`outbox`: on its way to the archive; null: not found"),
    ] = None
    version: Annotated[
        str | None, Meta(description="`<epoch>-<count>` in hexadecimal; null: not found")
    ] = None
    size_bytes: Annotated[Bytes | None, Meta(description="of the value; null: not found")] = None
    inserted_at: Annotated[
        Instant | None, Meta(description="when it was put, by the cache's clock; null: not found")
    ] = None
    last_accessed: Annotated[
        Instant | None, Meta(description="its last hit, else its put; null: not found")
    ] = None
    access_count: Annotated[
        Count | None, Meta(description="hits since it was put; null: not found")
    ] = None
    expires_at: Annotated[
        Instant | None, Meta(description="from then on a miss; null: never, or not found")
    ] = None
    ttl_seconds: Annotated[
        Seconds | None,
        Meta(
            description="`Fleet-Ttl-Seconds` of its put; null: not given, restored since, or "
            "not found"
        ),
    ] = None
    prefix_tokens: Annotated[
        Count | None,
        Meta(description="`Fleet-Prefix-Tokens` of its put; null: not given, or not found"),
    ] = None
    parent: Annotated[
        str | None,
        Meta(description="key, `Fleet-Parent` of its put; null: not given, or not found"),
    ] = None
    cost_seconds: Annotated[
        Number | None,
        Meta(description="`Fleet-Cost-Seconds` of its put; null: not given, or not found"),
    ] = None
    request_class: Annotated[
        str | None, Meta(description="`Fleet-Class` of its put; null: not given, or not found")
    ] = None
    tags: Annotated[list[str], Meta(description="`Fleet-Tags` of its put")] = []
    meta: Annotated[dict[str, str], Meta(description="`Fleet-Meta` of its put")] = {}
    archive_ttl_seconds: Annotated[
        Seconds | None,
        Meta(
            description="how long the archive would keep it, evicted now; 0: not at all; null: "
            "not found"
        ),
    ] = None
    archive_ttl_reason: Annotated[
        str | None,
        Meta(description="why: heuristic, or `writer`, and what it saw; null: not found"),
    ] = None
    archive_score: Annotated[
        float | None, Meta(description="1: ordinary, see `schemas.worth`; null: not found")
    ] = None


class NamespaceStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the instance took the namespace, and sizes now.

    `ttl_decisions`: evictions by `<heuristic>.archived` or `.refused`; the heuristic `writer` is
    a TTL that came with the put. Of the evictions, those now watched and those asked for again.
    """

    namespace: Annotated[Token, Meta(description="the one asked")]
    instance: Annotated[Token, Meta(description="cache that owns it")]
    generation: Annotated[Count, Meta(description="raised by each clear")]
    policy: Annotated[str, Meta(description="`cache.eviction_policy`")]
    total_entries: Annotated[Count, Meta(description="values in RAM")]
    memory_used_mb: Annotated[float, Meta(description="`used_bytes` in other units")]
    used_bytes: Annotated[Bytes, Meta(description="of RAM: keys, values and what came with them")]
    limit_bytes: Annotated[Bytes, Meta(description="`cache.max_memory_mb`")]
    cache_hits: Annotated[
        Count, Meta(description="lookups that found their key in RAM or on its way to the archive")
    ]
    cache_misses: Annotated[Count, Meta(description="lookups that did not")]
    hit_rate: Annotated[Ratio | None, Meta(description="hits by lookups; null: no lookup yet")]
    puts: Annotated[Count, Meta(description="values stored")]
    evictions: Annotated[Count, Meta(description="values that left RAM for want of room")]
    evictions_acknowledged: Annotated[
        Count, Meta(description="values that the eviction stream has")
    ]
    evictions_lost: Annotated[
        Count, Meta(description="values dropped because the way there was full")
    ]
    restores: Annotated[Count, Meta(description="misses in RAM that the archive answered")]
    restores_declined: Annotated[
        Count, Meta(description="of those not answered: computing anew is quicker than to fetch")
    ] = 0
    restored_cost_seconds: Annotated[
        Number, Meta(description="sum of `Fleet-Cost-Seconds` of the values that came back")
    ] = 0.0
    outbox_entries: Annotated[
        Count, Meta(description="evictions and deletions not known to be in the archive yet")
    ]
    outbox_bytes: Annotated[Bytes, Meta(description="their size")]
    ttl_decisions: Annotated[
        dict[str, Count],
        Meta(
            description="evictions by `<heuristic>.archived` or `.refused`; `writer`: a TTL "
            "that came with the put"
        ),
    ] = {}
    evictions_watched: Annotated[
        Count, Meta(description="evictions now watched, to learn which are asked for again")
    ] = 0
    evictions_returned: Annotated[
        Count, Meta(description="of all that were watched, those asked for again")
    ] = 0
    inbox: Annotated[
        str,
        Meta(description="where clients of the same user and host write files to put; empty: none"),
    ] = ""
    classes: Annotated[
        dict[str, ClassStats], Meta(description="by `Fleet-Class`, up to 32 and `other`")
    ] = {}


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """Reads of one version of a value, without a message, through a file kept open."""

    key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY_BYTES, description="the value's")]
    version: Annotated[str, Meta(max_length=64, description="the one that was read")]
    hits: Annotated[int, Meta(ge=1, le=1000000000, description="how often it was read")]


class Touched(Request, frozen=True, kw_only=True):
    """Reads that a client on the same host did without asking, for recency and statistics."""

    reads: Annotated[
        list[Read], Meta(max_length=1000, description="of at most 1,000 versions")
    ] = []


class TouchedReply(msgspec.Struct, frozen=True, kw_only=True):
    """`counted`: of how many reads the version still is here. `instance` owns the namespace."""

    instance: Annotated[Token, Meta(description="cache that owns the namespace")]
    counted: Annotated[Count, Meta(description="of how many reads the version still is here")]


class ClearReply(msgspec.Struct, frozen=True, kw_only=True):
    """How many entries left RAM, and the generation from now on."""

    entries: Annotated[Count, Meta(description="how many left RAM")]
    generation: Annotated[
        Count, Meta(description="from now on; what was archived before is never given back")
    ]


class ArchiveEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One archived entry."""

    key: Annotated[str, Meta(description="the entry's")]
    version: Annotated[str, Meta(description="the entry's, of the cache")]
    size_bytes: Annotated[Bytes, Meta(description="of the value")]
    stored_bytes: Annotated[
        Bytes, Meta(description="of the object in the store: header and compressed value")
    ]
    stored_at: Annotated[Instant, Meta(description="when, by the archive's clock")]
    expires_at: Annotated[
        Instant | None, Meta(description="from then on it is not given back; null: never")
    ]


class ArchiveListRequest(Request, frozen=True, kw_only=True):
    """Which archived entries to list, in key order after `after`."""

    prefix: Annotated[str, Meta(description="only keys that begin with it")] = ""
    after: Annotated[str, Meta(description="only keys above it, as text")] = ""
    limit: Limit = 1000


class ArchiveList(msgspec.Struct, frozen=True, kw_only=True):
    """Archived entries; `more` says that `after` = the last key gives the next ones."""

    entries: Annotated[
        list[ArchiveEntry], Meta(description="by key; at most `limit`, or 256 KiB of keys")
    ]
    more: Annotated[bool, Meta(description="there are more after the last one")]


class ArchiveStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The archive of one namespace: what it holds, what waits, what went wrong.

    `dropped_total`: values given up because the others filled `budget_bytes` (0 = no limit).
    """

    namespace: Annotated[Token, Meta(description="the one asked")]
    instance: Annotated[Token, Meta(description="archive that owns the store")]
    store: Annotated[str, Meta(description="folder or bucket")]
    entries: Annotated[
        Count, Meta(description="values, expired ones until the next sweep included")
    ]
    tombstones: Annotated[Count, Meta(description="kept so that older versions stay gone")]
    size_bytes: Annotated[Bytes, Meta(description="of the values")]
    stored_bytes: Annotated[Bytes, Meta(description="of the objects in the store")]
    pending: Annotated[
        Count | None,
        Meta(description="evictions of all namespaces on their way here; null: not known now"),
    ]
    stored_total: Annotated[
        Count,
        Meta(description="evictions and tombstones stored since it started, like the following"),
    ]
    restored_total: Annotated[Count, Meta(description="values given back")]
    expired_total: Annotated[
        Count, Meta(description="values removed, or not stored, as their time was over")
    ]
    superseded_total: Annotated[
        Count, Meta(description="evictions not stored, as a newer version or generation is known")
    ]
    failed_total: Annotated[
        Count,
        Meta(description="tries to store that failed, and values that could not be read any more"),
    ]
    dead_total: Annotated[
        Count, Meta(description="evictions that are malformed, now in `FLEET_DEAD`")
    ]
    dropped_total: Annotated[
        Count, Meta(description="values given up because the others filled the budget")
    ] = 0
    budget_bytes: Annotated[Bytes, Meta(description="`archive.budget_bytes`; 0: no limit")] = 0
    classes: ArchiveUses = {}
    requests: Annotated[
        dict[str, Count],
        Meta(
            description="to the store, for all namespaces and by all archivers, since this one "
            "keeps the index, by how they are billed: write, list, read, delete; a folder has none"
        ),
    ] = {}
    cost: Annotated[
        ArchiveCost | None,
        Meta(
            description="of all classes, since `counted_since`; null: `archive.prices` are not "
            "those of this store"
        ),
    ] = None
    declined_total: Annotated[
        Count,
        Meta(description="values not given back, as computing them anew is quicker than to fetch"),
    ] = 0
    counted_since: Annotated[
        Instant | None,
        Meta(description="the counters of `classes` began then at 0; null: nothing to count yet"),
    ] = None
    prices: Annotated[
        ArchivePrices | None,
        Meta(description="table of `cost`; null: `archive.prices` are not those of this store"),
    ] = None
    damaged: Annotated[
        Count,
        Meta(
            description="values found damaged when they were read, and since then neither put "
            "anew, deleted nor due to expire; from the start, or the last reindex"
        ),
    ] = 0
    refused_objects: Annotated[
        Count,
        Meta(description="objects of all namespaces that the store does not give now"),
    ] = 0
    refused: Annotated[dict[str, str], Meta(description="these and why; the first 20")] = {}


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An eviction that the archive could not take, as it lies in `FLEET_DEAD`."""

    id: Annotated[Count, Meta(description="its number there, for retry and drop")]
    reason: Annotated[str, Meta(description="what is wrong with it")]
    died_at: Annotated[Instant, Meta(description="when it was put there, by the server's clock")]
    payload_bytes: Annotated[Bytes, Meta(description="of the message, as far as it was kept")]
    key: Annotated[str | None, Meta(description="of its manifest; null: that cannot be read")] = (
        None
    )
    version: Annotated[str | None, Meta(description="of its manifest; null: as `key`")] = None
    size_bytes: Annotated[
        Bytes | None, Meta(description="of the value, by its manifest; null: as `key`")
    ] = None
    parts: Annotated[
        Count, Meta(description="messages that hold the value; they are kept for 7 days")
    ] = 0
    is_cut: Annotated[
        bool, Meta(description="true: it was too large to be kept whole, so it cannot be retried")
    ] = False
    namespace: Annotated[
        str, Meta(description="of its eviction; retry and drop take it in their subject")
    ] = ""


class ArchiveDeadRequest(Request, frozen=True, kw_only=True):
    """Which dead letters to list, of a namespace or of all, in the order in which they died."""

    after: Annotated[Count, Meta(description="only those with a higher id")] = 0
    limit: Annotated[int, Meta(ge=1, le=1000, description="at most so many")] = 100


class ArchiveDead(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters; `more` says that `after` = the last id gives the next ones."""

    letters: Annotated[list[DeadLetter], Meta(description="by id")]
    more: Annotated[bool, Meta(description="there are more after the last one")]


class ArchiveDeadChoice(Request, frozen=True, kw_only=True):
    """The dead letter to send back, or to drop."""

    id: Annotated[Count, Meta(description="as listed")]


class ArchiveJobRequest(Request, frozen=True, kw_only=True):
    """Begin the work, unless it is under way, or only ask how far it is."""

    start: Annotated[bool, Meta(description="false: only ask")] = True
    adopt: Annotated[
        bool,
        Meta(description="of a reindex: take the store over where it is not this installation's"),
    ] = False


class ArchiveJob(msgspec.Struct, frozen=True, kw_only=True):
    """How far some work on the whole archive is, or how its last run ended."""

    instance: Annotated[Token, Meta(description="archive that does it")]
    state: Annotated[
        Literal["never", "running", "done", "failed"],
        Meta(description="never: not since this archive started"),
    ]
    done: Annotated[Count, Meta(description="objects or entries so far")] = 0
    total: Annotated[Count | None, Meta(description="of so many; null: not known")] = None
    seconds: Annotated[Seconds, Meta(description="that it has taken")] = 0.0
    counts: Annotated[dict[str, Count], Meta(description="what was done, by kind")] = {}
    error: Annotated[str, Meta(description="why it failed; else empty")] = ""
    put_aside: Annotated[
        dict[str, str],
        Meta(
            description="objects that a reindex left out, wholly or in part, as they are damaged, "
            "foreign or cannot be read, and why; the first 20"
        ),
    ] = {}
