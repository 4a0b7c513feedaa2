"""A whole run: measured, judged, explained and advised, step by step, on one request."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from schemas.alert_api import AlertsReply
from schemas.analysis import Scope
from schemas.api import RecommendationsReply, Request, UtilizationReply
from schemas.insights import Insight
from schemas.message import CorrelationId, Message, Simulated
from schemas.report import OpportunitiesReply, TrendsReply, WasteReply
from schemas.units import Count, Instant, Seconds, Token

StepName = Literal[
    "collect",
    "utilization",
    "alerts",
    "waste",
    "trends",
    "opportunities",
    "insight",
    "recommendations",
]


class RunStep(Message, frozen=True, kw_only=True):
    """A step of a whole run has ended. Published as it does: what a run that dies had found."""

    SUBJECT: ClassVar[str] = "analysis.run.{scope}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "EVENTS"

    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    correlation_id: CorrelationId
    step: Annotated[
        StepName,
        Meta(description="in this order, but `utilization` to `opportunities` at the same time"),
    ]
    state: Annotated[
        Literal["done", "failed", "skipped"],
        Meta(description="failed: its result is null in the reply; skipped: not asked for, or off"),
    ]
    text: Annotated[str, Meta(description="for people: what it found, or why there is no result")]
    began_at: Annotated[Instant, Meta(description="when, by the clock of who runs it")]
    seconds: Annotated[Seconds, Meta(description="how long it took; 0: skipped")]
    ids: Annotated[
        list[str],
        Meta(description="`insight_id`, or each `recommendation_id`; of other steps empty"),
    ] = []
    service_id: Annotated[
        str | None,
        Meta(description="of the process that runs it, as `nats micro ls` shows it; null: unknown"),
    ] = None


class RunRequest(Request, frozen=True, kw_only=True):
    """A whole run of the fleet, or of one pool or node."""

    node: Annotated[Token | None, Meta(description="that machine; null: see `pool`")] = None
    pool: Annotated[
        Token | None, Meta(description="that pool; null: the fleet, where `node` is null too")
    ] = None
    insight: Annotated[bool, Meta(description="false: have nothing explained in words")] = True
    limit: Annotated[int, Meta(ge=1, le=1000, description="at most so many rows of each kind")] = 50
    correlation_id: Annotated[
        CorrelationId | None, Meta(description="to know its messages by; null: a new one")
    ] = None


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """From whom metrics have come of late (`handlers.queries.forget_seconds`)."""

    nodes: Annotated[Count, Meta(description="machines that sent host metrics")]
    gpus: Annotated[Count, Meta(description="GPUs")]
    engines: Annotated[Count, Meta(description="inference engines")]
    newest_age_seconds: Annotated[Seconds, Meta(description="of the newest of their last samples")]
    oldest_age_seconds: Annotated[Seconds, Meta(description="of the oldest of their last samples")]
    simulated: Simulated = False


class RunReply(msgspec.Struct, frozen=True, kw_only=True):
    """What each step answered, as its own endpoint would; null: it failed or was skipped.

    Of the fleet without its nodes: ask for one. A recommendation is none of the run's own: it is
    in `FLEET_RECOMMENDATIONS` before, and stands after it.
    """

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    correlation_id: CorrelationId
    state: Annotated[
        Literal["complete", "partial"], Meta(description="partial: at least one step failed")
    ]
    began_at: Annotated[Instant, Meta(description="when, by the clock of who runs it")]
    seconds: Annotated[Seconds, Meta(description="how long all of it took")]
    steps: Annotated[list[RunStep], Meta(description="in the order of their names in `step`")]
    collected: Annotated[Collected | None, Meta(description="null: failed: nothing was heard")]
    utilization: Annotated[UtilizationReply | None, Meta(description="null: failed")]
    alerts: Annotated[AlertsReply | None, Meta(description="null: failed")]
    waste: Annotated[WasteReply | None, Meta(description="null: failed")]
    trends: Annotated[TrendsReply | None, Meta(description="null: failed")]
    opportunities: Annotated[OpportunitiesReply | None, Meta(description="null: failed")]
    insight: Annotated[Insight | None, Meta(description="null: failed or skipped")]
    recommendations: Annotated[
        RecommendationsReply | None,
        Meta(description="null: failed; skipped for a node, as advice is about pools"),
    ]
