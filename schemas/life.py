"""The life of one recommendation, told from the messages about it in the order of the stream."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from schemas.protocols import Delivery
from schemas.scaling import Decision, Execution, Recommendation
from schemas.units import to_ns

AboutAdvice: TypeAlias = Recommendation | Decision | Execution
State: TypeAlias = Literal[
    "open",
    "accepted",
    "rejected",
    "expired",
    "superseded",
    "requested",
    "executing",
    "executed",
    "failed",
]

_DECODERS: dict[str, msgspec.json.Decoder[AboutAdvice]] = {
    "recommendation": msgspec.json.Decoder(Recommendation),
    "decision": msgspec.json.Decoder(Decision),
    "execution": msgspec.json.Decoder(Execution),
}

WANTED = frozenset({"open", "accepted", "requested", "executing"})
"""States of advice that may still be carried out, or is being."""


def decode(delivery: Delivery) -> AboutAdvice:
    """A message of `FLEET_RECOMMENDATIONS`; raises what msgspec does where it cannot be read."""
    return _DECODERS[delivery.subject.split(".", 1)[0]].decode(delivery.payload)


def earlier_advice(message: AboutAdvice) -> str | None:
    """Of which recommendation's life a message is part; None: it begins one, and ends none."""
    if isinstance(message, Recommendation):
        return message.supersedes
    return message.recommendation_id


class Run(msgspec.Struct, kw_only=True):
    """One execution: what was said under one idempotency key, the first of each kind."""

    requested: Annotated[Execution | None, Meta(description="null: not told")] = None
    started: Annotated[Execution | None, Meta(description="null: not yet")] = None
    ended: Annotated[Execution | None, Meta(description="succeeded or failed; null: not yet")] = (
        None
    )

    def add(self, step: Execution) -> None:
        """The next step; of a kind that is there already, the first counts."""
        if step.phase == "requested":
            self.requested = self.requested or step
        elif step.phase == "started":
            self.started = self.started or step
        else:
            self.ended = self.ended or step

    @property
    def last(self) -> Execution:
        """The furthest step."""
        step = self.ended or self.started or self.requested
        assert step is not None  # noqa: S101 - a run begins with a step
        return step


class Life(msgspec.Struct, kw_only=True):
    """What became of one recommendation.

    The first decision counts, and only where the advice still stood: whoever reads the stream
    comes to the same result, however many decided at once.
    """

    advice: Annotated[Recommendation, Meta(description="as it was given")]
    decision: Annotated[
        Decision | None, Meta(description="accepted or rejected, the first one; null: none yet")
    ] = None
    superseded_by: Annotated[
        str | None,
        Meta(description="`recommendation_id` of newer advice; empty: not told; null: by none"),
    ] = None
    has_expired: Annotated[bool, Meta(description="the handlers said so")] = False
    expired_because: Annotated[str, Meta(description="why they did, for people")] = ""
    runs: Annotated[dict[str, Run], Meta(description="executions by idempotency key")] = {}

    def add(self, message: AboutAdvice) -> None:
        """The next message about this recommendation (of newer advice: that supersedes it)."""
        if isinstance(message, Execution):
            self.runs.setdefault(message.idempotency_key, Run()).add(message)
        elif isinstance(message, Recommendation):
            self.superseded_by = self.superseded_by or message.recommendation_id
        elif message.verdict == "superseded":
            self.superseded_by = self.superseded_by or ""
        elif message.verdict == "expired":
            self.has_expired, self.expired_because = True, message.reason
        elif self.decision is None and not self._is_closed:
            self.decision = message

    @property
    def _is_closed(self) -> bool:
        return self.has_expired or self.superseded_by is not None

    @property
    def is_carried_out(self) -> bool:
        """Whether an execution that was no dry run has succeeded."""
        return any(run.ended is not None and run.ended.phase == "succeeded" for run in self._real)

    @property
    def is_under_way(self) -> bool:
        """Whether an execution that is no dry run has started and not ended."""
        return any(run.started is not None and run.ended is None for run in self._real)

    @property
    def _real(self) -> list[Run]:
        return [run for run in self.runs.values() if not run.last.dry_run]

    def state(self, now_ns: int) -> State:
        """In one word."""
        if self.is_carried_out:
            return "executed"
        if self.is_under_way:
            return "executing"
        if self.decision is not None and self.decision.verdict == "rejected":
            return "rejected"
        if self.superseded_by is not None:
            return "superseded"
        if self.has_expired or now_ns >= to_ns(self.advice.expires_at):
            return "expired"
        if self._real:
            return "failed" if all(run.ended for run in self._real) else "requested"
        return "open" if self.decision is None else "accepted"

    def closed(self, now_ns: int) -> str:
        """Why it does not stand any more, for people; empty while it stands."""
        if self.decision is not None and self.decision.verdict == "rejected":
            why = f": {self.decision.reason}" if self.decision.reason else ""
            return f"{self.decision.decided_by} rejected it{why}"
        if self.superseded_by is not None:
            return f"superseded by {self.superseded_by or 'newer advice'}"
        is_early = self.has_expired and now_ns < to_ns(self.advice.expires_at)
        if is_early and self.expired_because:
            return f"it was ended: {self.expired_because}"
        if self.has_expired or now_ns >= to_ns(self.advice.expires_at):
            return f"it expired at {self.advice.expires_at:%F %T}Z"
        return ""

    def refusal(self, now_ns: int) -> str:
        """Why it must not be carried out now, for people; empty when it may."""
        if self.is_carried_out:
            return "it was carried out already"
        if self.is_under_way:
            return "it is being carried out"
        if reason := self.closed(now_ns):
            return reason
        return "" if self.decision is not None else "nobody has accepted it"


def decision_id(recommendation_id: str) -> str:
    """Message id of a decision: one for all, so that the stream keeps the first and no other."""
    return f"{recommendation_id}.decided"


def step_id(step: Execution) -> str:
    """Message id of a step: of one key the stream keeps one request, one start and one end."""
    is_end = step.phase in ("succeeded", "failed")
    return f"{step.idempotency_key}.execution.{'ended' if is_end else step.phase}"
