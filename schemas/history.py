"""Requests and replies about time ranges: what was judged, what caches did, what was advised."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.analysis import Scope
from schemas.api import Limit, Request
from schemas.life import Life, State
from schemas.scaling import Action
from schemas.units import Count, Instant, Seconds, Token

AnalysisKind = Literal["utilization", "waste", "trend", "opportunity", "consolidation"]
AnalysisSource = Literal["events", "rollups"]
AnalysisSources = Literal["events", "rollups", "both"]

_Start = Annotated[
    Instant | None,
    Meta(description="first instant, at most 90 days before `end`; null: `seconds` before `end`"),
]
_End = Annotated[Instant | None, Meta(description="up to here, not with it; null: now")]
_MostSeconds = Annotated[float, Meta(gt=0, le=90 * 86400)]


class AnalysisHistoryRequest(Request, frozen=True, kw_only=True):
    """What was judged in a time range: `start` to `end`, or the last `seconds` (6 hours).

    Of the fleet, the pools and the nodes, unless one of them is named. More than `limit` rows are
    thinned evenly; the reply then says how many there were.
    """

    kind: Annotated[
        AnalysisKind,
        Meta(description="of which `analysis.<kind>.<scope>.<id>`"),
    ]
    node: Annotated[Token | None, Meta(description="only of that machine; null: of all")] = None
    pool: Annotated[Token | None, Meta(description="only of that pool; null: of all")] = None
    scope: Annotated[
        Scope | None,
        Meta(description="only of all nodes, of all pools, or of the fleet; null: of each"),
    ] = None
    start: _Start = None
    end: _End = None
    seconds: Annotated[
        _MostSeconds | None,
        Meta(description="instead of `start`; null: 21,600 where `start` is null too"),
    ] = None
    limit: Limit = 1000
    messages: Annotated[
        bool, Meta(description="true: with each event as it was published; then fewer fit")
    ] = False


class AnalysisRow(msgspec.Struct, frozen=True, kw_only=True):
    """What was judged of one node, pool or the fleet at one instant."""

    at: Annotated[
        Instant,
        Meta(description="when the server stored it; from rollups the begin of its minute or hour"),
    ]
    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    source: Annotated[
        AnalysisSource,
        Meta(
            description="`events`: the judgement itself; `rollups`: worked out from a minute or "
            "an hour, where FLEET_EVENTS no longer has it"
        ),
    ]
    simulated: Annotated[bool, Meta(description="that of the event or rollup")]
    period_seconds: Annotated[
        Seconds | None,
        Meta(description="60 or 3600: of the minute or hour; null: from an event"),
    ] = None
    values: Annotated[
        dict[str, float | str],
        Meta(
            description="by name, `docs/analysis.md` lists them; absent: not measured, or not "
            "in a rollup"
        ),
    ]
    message: Annotated[
        dict[str, Any] | None,
        Meta(
            description="the event as it was published; null: not asked for by `messages`, or "
            "from a rollup"
        ),
    ] = None


class AnalysisHistoryReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was judged in a time range, each node, pool and the fleet from one source."""

    kind: Annotated[AnalysisKind, Meta(description="as asked")]
    source: Annotated[
        AnalysisSources,
        Meta(description="of the rows; both: some nodes or pools from the one, some the other"),
    ]
    start: Annotated[Instant, Meta(description="begin of the range")]
    end: Annotated[Instant, Meta(description="end of the range")]
    rows: Annotated[
        list[AnalysisRow], Meta(description="in time order; at most `limit`, and 768 KiB of JSON")
    ]
    matched: Annotated[Count, Meta(description="how many there are in the range, before thinning")]
    text: Annotated[
        str, Meta(description="why there are none, and since when there are some; else empty")
    ] = ""


class CacheHistoryRequest(Request, frozen=True, kw_only=True):
    """What caches did in a time range: `start` to `end`, or the last `seconds` (10 minutes).

    More than `limit` samples are thinned evenly; the reply then says how many there were.
    """

    instance: Annotated[
        Token | None, Meta(description="only that cache's, of CacheMetrics; null: of all")
    ] = None
    namespace: Annotated[
        Token | None,
        Meta(description="only that namespace's; of an LMCache `lmcache`; null: of all"),
    ] = None
    start: _Start = None
    end: _End = None
    seconds: Annotated[
        _MostSeconds | None,
        Meta(description="instead of `start`; null: 600 where `start` is null too"),
    ] = None
    limit: Limit = 1000


class CacheSample(msgspec.Struct, frozen=True, kw_only=True):
    """One instant (or one minute, from rollups) of one namespace of a cache, or of an LMCache."""

    at: Annotated[Instant, Meta(description="`observed_at` of the sample; begin of the minute")]
    instance: Annotated[Token, Meta(description="`instance` of CacheMetrics")]
    namespace: Annotated[Token, Meta(description="`namespace` of CacheMetrics")]
    node: Annotated[Token | None, Meta(description="machine of an LMCache; ours: null")] = None
    pool: Annotated[Token | None, Meta(description="pool of an LMCache; ours: null")] = None
    simulated: Annotated[bool, Meta(description="that of the sample or minute")]
    values: Annotated[
        dict[str, Any],
        Meta(
            description="measured numbers by field of CacheMetrics; in a minute each a Summary, "
            "of a counter its highest is the last"
        ),
    ]


class CacheHistoryReply(msgspec.Struct, frozen=True, kw_only=True):
    """Samples of caches in time order. `source` as in HistoryReply."""

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
        list[CacheSample], Meta(description="in time order; at most `limit`, and 768 KiB of JSON")
    ]
    matched: Annotated[Count, Meta(description="how many there are in the range, before thinning")]
    text: Annotated[
        str, Meta(description="why there are none, and since when there are some; else empty")
    ] = ""


class AdviceHistoryRequest(Request, frozen=True, kw_only=True):
    """What was advised in a time range: `start` to `end`, or the last `seconds` (a day)."""

    pool: Annotated[Token | None, Meta(description="only on that pool; null: on all")] = None
    action: Annotated[Action | None, Meta(description="only of that action; null: of all")] = None
    start: _Start = None
    end: _End = None
    seconds: Annotated[
        _MostSeconds | None,
        Meta(description="instead of `start`; null: 86,400 where `start` is null too"),
    ] = None
    limit: Limit = 1000


class AdviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One recommendation, and what became of it up to now."""

    at: Annotated[Instant, Meta(description="when the server stored the recommendation")]
    state: Annotated[State, Meta(description="in one word")]
    closed: Annotated[str, Meta(description="why it does not stand; empty: it stands")]
    life: Annotated[Life, Meta(description="the advice, what was decided, what was done")]


class AdviceHistoryReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was advised in a time range, in its order; of more than `limit` the newest."""

    start: Annotated[Instant, Meta(description="begin of the range")]
    end: Annotated[Instant, Meta(description="end of the range")]
    rows: Annotated[
        list[AdviceRow], Meta(description="oldest first; at most `limit`, and 768 KiB of JSON")
    ]
    matched: Annotated[Count, Meta(description="how many there are in the range")]
    text: Annotated[
        str, Meta(description="why there are none, and since when there are some; else empty")
    ] = ""
