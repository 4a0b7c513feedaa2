"""Requests and replies about money: waste, trends, opportunities, and the report of a period."""

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.analysis import Scope
from schemas.api import Request
from schemas.archive_money import ArchivePrices, ArchiveUse
from schemas.spending import Figures, Opportunity, Saving, Trend, TrendLine, Usd, Waste
from schemas.units import Count, Instant, Number, Ratio, Token


class WasteReply(msgspec.Struct, frozen=True, kw_only=True):
    """The last Waste of each node, pool and the fleet; `text` says why there is none."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    rows: Annotated[list[Waste], Meta(description="by scope and `id`; at most `limit`")]
    total: Annotated[Count, Meta(description="how many match, those beyond `limit` included")]
    text: Annotated[str, Meta(description="why there are none; else empty")] = ""


class TrendsReply(msgspec.Struct, frozen=True, kw_only=True):
    """The last Trend of each pool and the fleet, or of the node asked for."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    rows: Annotated[list[Trend], Meta(description="by scope and `id`; at most `limit`")]
    total: Annotated[Count, Meta(description="how many match, those beyond `limit` included")]
    text: Annotated[str, Meta(description="why there are none; else empty")] = ""


class OpportunitiesReply(msgspec.Struct, frozen=True, kw_only=True):
    """What can be saved, of each pool and each node in none."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    rows: Annotated[
        list[Opportunity],
        Meta(description="the highest score of a saving first; at most `limit`, none empty"),
    ]
    total: Annotated[Count, Meta(description="how many match, those beyond `limit` included")]
    text: Annotated[str, Meta(description="why there are none; else empty")] = ""


class ReportRequest(Request, frozen=True, kw_only=True):
    """A period of whole hours, of the fleet, a pool or a node."""

    start: Annotated[
        Instant | None,
        Meta(
            description="in its first hour, at most 90 days before `end`; null: `seconds` before "
            "`end`"
        ),
    ] = None
    end: Annotated[Instant | None, Meta(description="in its last hour; null: now")] = None
    seconds: Annotated[
        Annotated[float, Meta(ge=3600, le=90 * 86400)] | None,
        Meta(description="instead of `start`; null: 7 days where `start` is null too"),
    ] = None
    pool: Annotated[Token | None, Meta(description="only that pool; null: all")] = None
    node: Annotated[Token | None, Meta(description="only that machine; null: all")] = None
    simulated: Annotated[bool, Meta(description="count simulated GPUs, too")] = False


class ReportStep(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the period."""

    at: Annotated[Instant, Meta(description="its begin")]
    figures: Annotated[Figures, Meta(description="of the hours in it that were measured")]


class ReportGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A pool or node within the report."""

    id: Annotated[Token, Meta(description="its name")]
    figures: Annotated[Figures, Meta(description="of the period")]


class ReportModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of GPU within the report, and the price that is in force now."""

    name: Annotated[str, Meta(description="GPU's `name`; `unknown`: no name; `other`: the 32nd on")]
    gpu_hours: Annotated[Number, Meta(description="in all states")]
    usd: Annotated[Usd | None, Meta(description="at the prices of then; null: no price")]
    waste_usd: Annotated[
        Usd | None, Meta(description="of it idle, held and under-used; null: no price")
    ]
    usd_per_gpu_hour: Annotated[
        Usd | None,
        Meta(description="now; null: no price, or one that goes by node, pool or label, too"),
    ]
    price_source: Annotated[
        str | None, Meta(description="whose price, or `by node, pool or label`; null: no price")
    ]
    price_as_of: Annotated[
        str | None, Meta(description="day of that price; null: not dated, or no price")
    ]


class ReportSaving(msgspec.Struct, frozen=True, kw_only=True):
    """An opportunity that stands, and where."""

    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="pool, or node in none")]
    saving: Annotated[Saving, Meta(description="what to do, and what that saves")]


class ArchiveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What the archive used, cost and saved in the period."""

    use: Annotated[ArchiveUse, Meta(description="of the period; sizes as last told in it")]
    avoided_seconds: Annotated[
        Number | None,
        Meta(description="computing avoided; null: no value given back said what it took"),
    ]
    avoided_usd: Annotated[
        Usd | None,
        Meta(
            description="these seconds of one GPU at `usd_per_gpu_hour`; null: either is not known"
        ),
    ]
    net_usd: Annotated[
        float | None,
        Meta(description="that less `use.cost.total_usd`, below 0: it cost more; null: as those"),
    ]


class ReportArchiveNamespace(msgspec.Struct, frozen=True, kw_only=True):
    """The archive of one namespace within the report."""

    namespace: Annotated[Token, Meta(description="that of the cache")]
    pool: Annotated[
        Token | None,
        Meta(
            description="that computes its values: `handlers.waste.archive_pools`, else the one "
            "of the same name, else the only one; null: not known"
        ),
    ]
    usd_per_gpu_hour: Annotated[
        Usd | None,
        Meta(
            description="mean cost of its GPUs in the period, of a fleet without pools that of "
            "all; null: no pool is known, or no price"
        ),
    ]
    classes: Annotated[
        dict[str, ArchiveFigures],
        Meta(description="by TTL class, and `upkeep`: its part of what no value needs by itself"),
    ]
    total: Annotated[ArchiveFigures, Meta(description="all of these together")]


class ReportArchive(msgspec.Struct, frozen=True, kw_only=True):
    """The archive within the report."""

    namespaces: Annotated[list[ReportArchiveNamespace], Meta(description="by name")]
    total: Annotated[ArchiveFigures, Meta(description="all of these together")]
    prices: Annotated[
        list[ArchivePrices], Meta(description="in force in the period; empty: none of this store")
    ]
    measured_ratio: Annotated[
        Ratio, Meta(description="minutes in which it was heard of by minutes of the period")
    ]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the GPUs of a period cost, gave and wasted, and what to do about it."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    start: Annotated[Instant, Meta(description="begin of its first hour")]
    end: Annotated[Instant, Meta(description="end of its last hour, or now")]
    text: Annotated[str, Meta(description="the outcome in a few sentences")]
    figures: Annotated[Figures, Meta(description="of the whole period")]
    before: Annotated[
        Figures | None, Meta(description="of as long before it; null: nothing was measured then")
    ]
    measured_ratio: Annotated[
        Ratio, Meta(description="minutes with a sample by minutes of the period")
    ]
    steps: Annotated[
        list[ReportStep], Meta(description="in time order, at most 200, gaps left out")
    ]
    step_seconds: Annotated[
        Number,
        Meta(description="length of each, in whole hours; a day has a whole number of them"),
    ]
    pools: Annotated[list[ReportGroup], Meta(description="of the fleet, the most waste first")]
    nodes: Annotated[
        list[ReportGroup], Meta(description="the most waste first, at most 20; not of a node")
    ]
    models: Annotated[list[ReportModel], Meta(description="the most GPU-hours first")]
    savings: Annotated[
        list[ReportSaving],
        Meta(description="that stand now, the highest score first; empty for a period of the past"),
    ]
    trends: Annotated[list[TrendLine], Meta(description="of the period, against the one before")]
    notes: Annotated[list[str], Meta(description="what the numbers do not say by themselves")]
    simulated: Annotated[bool, Meta(description="true: some of these GPUs are simulated")] = False
    archive: Annotated[
        ReportArchive | None,
        Meta(description="of a pool the namespaces it computes; null: none heard of, or a node"),
    ] = None
