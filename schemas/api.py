"""Requests and replies of the JSON endpoints. An empty payload means the defaults."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.analysis import Utilization
from schemas.cache import MAX_KEY_BYTES
from schemas.lifecycle import ComponentState, InstanceRecord, Role
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.scaling import Recommendation
from schemas.units import Bytes, Count, Instant, Number, Ratio, Seconds, Token

Limit = Annotated[int, Meta(ge=1, le=10_000, description="at most this many rows")]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request body. Unknown fields are refused by name (400)."""


class Nothing(Request, frozen=True, kw_only=True):
    """A request without parameters."""


class Filter(Request, frozen=True, kw_only=True):
    """Which of the fleet's latest values to answer."""

    node: Token | None = None
    pool: Token | None = None
    limit: Limit = 1000


class HistoryRequest(Request, frozen=True, kw_only=True):
    """A time range: `start` and `end`, or the last `seconds` (default 10 minutes).

    More than `limit` samples are thinned evenly; the reply then says how many there were.
    """

    node: Token | None = None
    gpu: Token | None = None
    start: Instant | None = None
    end: Instant | None = None
    seconds: Annotated[float, Meta(gt=0, le=90 * 86400)] | None = None
    limit: Limit = 1000


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One node's or GPU's latest values of one kind, with their age."""

    node: Token
    gpu: Token | None = None
    pool: Token | None = None
    observed_at: Instant
    age_seconds: Seconds
    simulated: bool
    values: dict[str, Any]


class LatestReply(msgspec.Struct, frozen=True, kw_only=True):
    """The last values seen. `text` says why there are none, when there are none."""

    answered_at: Instant
    rows: list[Row]
    total: Count
    text: str = ""


class HistorySample(msgspec.Struct, frozen=True, kw_only=True):
    """One instant (or one minute, from rollups) of one node or GPU."""

    at: Instant
    node: Token
    gpu: Token | None = None
    simulated: bool
    values: dict[str, Any]


class HistoryReply(msgspec.Struct, frozen=True, kw_only=True):
    """Samples in time order. `source` is `rollups` where the raw metrics no longer reach."""

    source: Literal["metrics", "rollups"]
    start: Instant
    end: Instant
    samples: list[HistorySample]
    matched: Count


class UtilizationReply(msgspec.Struct, frozen=True, kw_only=True):
    """The last judgement of each node, pool and the fleet; `text` says why there is none."""

    answered_at: Instant
    rows: list[Utilization]
    total: Count
    text: str = ""


class RecommendationsReply(msgspec.Struct, frozen=True, kw_only=True):
    """Advice that stands: not expired, rejected, superseded or carried out."""

    answered_at: Instant
    rows: list[Recommendation]
    total: Count
    text: str = ""


class RoleHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One role of the installation: is it expected, present, ready."""

    role: Role
    expected: bool
    instances: Count
    ready: bool
    state: ComponentState
    text: str = ""


class InstanceHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One instance, with the age of its last heartbeat and of each component's probe."""

    role: Role
    instance: Token
    node: Token
    ready: bool
    state: ComponentState
    age_seconds: Seconds
    component_age_seconds: dict[str, Seconds]
    record: InstanceRecord


class HealthReply(msgspec.Struct, frozen=True, kw_only=True):
    """The whole installation's health. `ready`: all expected roles are present and ready."""

    answered_at: Instant
    answered_by: str
    status: Literal["healthy", "degraded", "critical"]
    live: bool
    ready: bool
    roles: list[RoleHealth] = []
    instances: list[InstanceHealth] = []


class CacheReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `delete` and `exists`."""

    existed: bool
    version: str | None = None


class EntryMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one cached entry; `found` false leaves the rest null."""

    found: bool
    where: Literal["ram", "outbox"] | None = None
    version: str | None = None
    size_bytes: Bytes | None = None
    inserted_at: Instant | None = None
    last_accessed: Instant | None = None
    access_count: Count | None = None
    expires_at: Instant | None = None
    ttl_seconds: Seconds | None = None
    prefix_tokens: Count | None = None
    parent: str | None = None
    cost_seconds: Number | None = None
    request_class: str | None = None
    tags: list[str] = []
    meta: dict[str, str] = {}
    archive_ttl_seconds: Seconds | None = None
    archive_ttl_reason: str | None = None
    archive_score: float | None = None


class NamespaceStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the instance took the namespace, and sizes now.

    `ttl_decisions`: evictions by `<heuristic>.archived` or `.refused`; the heuristic `writer` is
    a TTL that came with the put. Of the evictions, those now watched and those asked for again.
    """

    namespace: Token
    instance: Token
    generation: Count
    policy: str
    total_entries: Count
    memory_used_mb: float
    used_bytes: Bytes
    limit_bytes: Bytes
    cache_hits: Count
    cache_misses: Count
    hit_rate: Ratio | None
    puts: Count
    evictions: Count
    evictions_acknowledged: Count
    evictions_lost: Count
    restores: Count
    outbox_entries: Count
    outbox_bytes: Bytes
    ttl_decisions: dict[str, Count] = {}
    evictions_watched: Count = 0
    evictions_returned: Count = 0
    inbox: Annotated[
        str,
        Meta(description="where clients of the same user and host write files to put; empty: none"),
    ] = ""


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """Reads of one version of a value, without a message, through a file kept open."""

    key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY_BYTES)]
    version: Annotated[str, Meta(max_length=64)]
    hits: Annotated[int, Meta(ge=1, le=1_000_000_000)]


class Touched(Request, frozen=True, kw_only=True):
    """Reads that a client on the same host did without asking, for recency and statistics."""

    reads: Annotated[list[Read], Meta(max_length=1000)] = []


class TouchedReply(msgspec.Struct, frozen=True, kw_only=True):
    """`counted`: of how many reads the version still is here. `instance` owns the namespace."""

    instance: Token
    counted: Count


class KeysReply(msgspec.Struct, frozen=True, kw_only=True):
    """Keys in RAM, in order; `more` says that `after` = the last one gives the next ones."""

    keys: list[str]
    more: bool


class ClearReply(msgspec.Struct, frozen=True, kw_only=True):
    """How many entries left RAM, and the generation from now on."""

    entries: Count
    generation: Count


class ArchiveEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One archived entry."""

    key: str
    version: str
    size_bytes: Bytes
    stored_bytes: Bytes
    stored_at: Instant
    expires_at: Instant | None


class ArchiveListRequest(Request, frozen=True, kw_only=True):
    """Which archived entries to list, in key order after `after`."""

    prefix: str = ""
    after: str = ""
    limit: Limit = 1000


class ArchiveList(msgspec.Struct, frozen=True, kw_only=True):
    """Archived entries; `more` says that `after` = the last key gives the next ones."""

    entries: list[ArchiveEntry]
    more: bool


class ArchiveStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The archive of one namespace: what it holds, what waits, what went wrong.

    `dropped_total`: values given up because the others filled `budget_bytes` (0 = no limit).
    """

    namespace: Token
    instance: Token
    store: str
    entries: Count
    tombstones: Count
    size_bytes: Bytes
    stored_bytes: Bytes
    pending: Annotated[
        Count | None,
        Meta(description="evictions of all namespaces on their way here; null: not known now"),
    ]
    stored_total: Count
    restored_total: Count
    expired_total: Count
    superseded_total: Count
    failed_total: Count
    dead_total: Count
    dropped_total: Count = 0
    budget_bytes: Bytes = 0


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's own fresh values: `api.gpu.<name>.<node>`, `api.system.<name>.<node>`."""

    host: HostMetrics | None = None
    gpus: list[GpuMetrics] = []
