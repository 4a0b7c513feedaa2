"""What is going on, in words: insights, and how to ask for them."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from schemas.analysis import Scope, Severity
from schemas.message import CorrelationId, Message, Simulated
from schemas.units import Count, Instant, Number, Seconds, Token


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing worth knowing, and what it rests on."""

    text: Annotated[str, Meta(description="for people")]
    severity: Annotated[Severity, Meta(description="the worst of its evidence")]
    evidence: Annotated[list[str], Meta(description="of `evidence` of the insight")]


class Insight(Message, frozen=True, kw_only=True):
    """An explanation of alerts, utilization, waste, savings and advice; nothing acts on it.

    Published when the evidence has changed, at most every `insights.interval_seconds`, and on
    request. Written by a language model that saw no real names, and only if every number in it
    occurs in its evidence; else by a template, and `template_reason` says why.
    """

    SUBJECT: ClassVar[str] = "insight.{scope}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "ALERTS"

    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    insight_id: Annotated[str, Meta(description="`<scope>.<id>.<decided at, ns>`")]
    decided_at: Annotated[Instant, Meta(description="when its evidence was read, by who wrote it")]
    text: Annotated[str, Meta(description="the whole in short, for people")]
    findings: Annotated[list[Finding], Meta(description="the worst first")]
    source: Annotated[Literal["llm", "template"], Meta(description="who wrote the text")]
    template_reason: Annotated[
        str | None, Meta(description="why no language model wrote it; null: one did")
    ]
    evidence: Annotated[
        list[str],
        Meta(
            description="`alert_id` with its severity, `recommendation_id`, and what was judged of "
            "utilization, waste and savings; another list: the evidence has changed"
        ),
    ]
    evidence_digest: Annotated[
        str, Meta(description="SHA-256 of what was known, figures included; hexadecimal")
    ]
    model: Annotated[
        str | None,
        Meta(
            description="language model that wrote it, or failed to, as its endpoint is asked for "
            "it; null: none was asked"
        ),
    ] = None
    latency_seconds: Annotated[
        Seconds | None,
        Meta(description="until it answered or was given up; null: none was asked just now"),
    ] = None
    prompt_tokens: Annotated[
        Count | None, Meta(description="tokens that it read; null: not told, or none was asked")
    ] = None
    completion_tokens: Annotated[
        Count | None, Meta(description="tokens that it wrote; null: not told, or none was asked")
    ] = None
    cost_usd: Annotated[
        Number | None, Meta(description="of these tokens; null: no price is set, or not told")
    ] = None
    simulated: Simulated = False
    correlation_id: Annotated[
        CorrelationId | None, Meta(description="of the whole run that asked for it; null: none did")
    ] = None


class InsightsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which insights to answer: the last one of each, or one written now.

    With `now` that of the node or the pool, else of the fleet. It is written anew unless one of
    the same evidence is younger than `insights.interval_seconds`, which takes up to
    `insights.deadline_seconds`.
    """

    node: Annotated[Token | None, Meta(description="only that machine's; null: of all")] = None
    pool: Annotated[Token | None, Meta(description="only that pool's; null: of all")] = None
    now: Annotated[bool, Meta(description="true: write one")] = False
    limit: Annotated[int, Meta(ge=1, le=10_000, description="at most so many rows")] = 1000
    correlation_id: Annotated[
        CorrelationId | None, Meta(description="what one written for this carries; null: nothing")
    ] = None


class InsightsReply(msgspec.Struct, frozen=True, kw_only=True):
    """Insights, the newest first."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    rows: Annotated[list[Insight], Meta(description="newest first; at most `limit`")]
    total: Annotated[Count, Meta(description="how many match, those beyond `limit` included")]
    text: Annotated[str, Meta(description="why there are none; else empty")] = ""
