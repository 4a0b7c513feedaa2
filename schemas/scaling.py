"""Scaling advice and what became of it: recommendation, decision, execution."""

from typing import ClassVar, Literal

import msgspec

from schemas.message import Message
from schemas.units import Count, Instant, Number, Ratio, Seconds, Token

Action = Literal["scale_up", "scale_down", "consolidate", "right_size", "tune_cache"]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One measured fact behind advice: the value, its threshold and the messages it came from.

    `stream_from` and `stream_to` are sequence numbers in the metrics stream: the messages in
    between, replayed, give the same advice.
    """

    signal: str
    value: float
    threshold: float | None = None
    window_seconds: Seconds | None = None
    engines: list[Token] = []
    stream_from: Count | None = None
    stream_to: Count | None = None


class Recommendation(Message, frozen=True, kw_only=True):
    """What to change in one pool, why, and until when the advice holds.

    One per decision. `recommendation_id` is `<pool>.<action>.<decision key>`, the same from every
    replica and every replay, and is the idempotency key of the execution. `replicas_to` is a
    target, not a step: doing it twice changes nothing. Money fields are null without a price.
    """

    SUBJECT: ClassVar[str] = "recommendation.{action}.{pool}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "RECOMMENDATIONS"

    action: Action
    pool: Token
    recommendation_id: str
    idempotency_key: str
    decided_at: Instant
    expires_at: Instant
    replicas_from: Count
    replicas_to: Count
    reason: str
    text: str
    evidence: list[Evidence]
    confidence_ratio: Ratio
    risk: Literal["low", "medium", "high"]
    effective_after_seconds: Seconds
    saving_usd_per_hour: float | None = None
    one_off_cost_usd: Number | None = None
    payback_hours: Number | None = None
    supersedes: str | None = None
    simulated: bool = False


class Decision(Message, frozen=True, kw_only=True):
    """What an orchestrator or operator (or the handlers: superseded, expired) said to advice."""

    SUBJECT: ClassVar[str] = "decision.{verdict}.{pool}"
    PUBLISHER: ClassVar[str] = "orchestrator, operator; handlers for superseded and expired"
    STREAM: ClassVar[str | None] = "RECOMMENDATIONS"

    verdict: Literal["accepted", "rejected", "superseded", "expired"]
    pool: Token
    recommendation_id: str
    decided_at: Instant
    decided_by: str
    reason: str = ""
    simulated: bool = False


class Execution(Message, frozen=True, kw_only=True):
    """A step in carrying out accepted advice, with the state before and after."""

    SUBJECT: ClassVar[str] = "execution.{phase}.{pool}"
    PUBLISHER: ClassVar[str] = "orchestrator, handlers"
    STREAM: ClassVar[str | None] = "RECOMMENDATIONS"

    phase: Literal["requested", "started", "succeeded", "failed"]
    pool: Token
    recommendation_id: str
    idempotency_key: str
    observed_at: Instant
    executed_by: str
    dry_run: bool = True
    replicas_before: Count | None = None
    replicas_after: Count | None = None
    error: str | None = None
    simulated: bool = False
