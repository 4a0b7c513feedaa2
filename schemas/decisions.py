"""Requests and replies about one recommendation: carry it out, explain it."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.api import Request
from schemas.life import Life, State
from schemas.metrics import Rollup
from schemas.scaling import Execution, Forecast
from schemas.spending import Opportunity, Waste
from schemas.units import Count, Instant, Token

Id = Annotated[
    str, Meta(min_length=1, max_length=400, description="`recommendation_id` of the advice")
]


class ExecuteRequest(Request, frozen=True, kw_only=True):
    """Carry out one recommendation. The same key again gives what became of it, and does nothing.

    For real it must have been accepted and still stand; a dry run only needs to exist.
    """

    recommendation_id: Id
    dry_run: Annotated[bool, Meta(description="true: only say what would be done")] = True
    idempotency_key: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,500}$(?!\n)")] | None,
        Meta(
            description="names this execution; null: for real that of the advice, of a dry run a "
            "new one"
        ),
    ] = None
    requested_by: Annotated[
        str, Meta(max_length=200, description="who asks, for the audit trail")
    ] = ""


class ExecuteReply(msgspec.Struct, frozen=True, kw_only=True):
    """How far the execution is; ask again with its key until it has succeeded or failed."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    execution: Annotated[Execution, Meta(description="its furthest step")]
    is_new: Annotated[bool, Meta(description="false: the key was known, nothing was begun")]

    @property
    def has_ended(self) -> bool:
        """Whether it has succeeded or failed."""
        return self.execution.phase in ("succeeded", "failed")


class ExplainRequest(Request, frozen=True, kw_only=True):
    """Which recommendation to trace back to what it came from."""

    recommendation_id: Id
    sources: Annotated[
        bool, Meta(description="false: only what was said about it, without the metrics behind it")
    ] = True


class TrailEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One message about the advice, as `FLEET_RECOMMENDATIONS` keeps it."""

    sequence: Annotated[Count, Meta(description="its number in the stream")]
    stored_at: Annotated[Instant, Meta(description="when, by the server's clock")]
    subject: Annotated[str, Meta(description="below the root")]
    message: Annotated[msgspec.Raw, Meta(description="as it was sent")]


class EngineSource(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine reported within the messages behind the evidence."""

    node: Annotated[Token, Meta(description="its machine")]
    engine: Annotated[Token, Meta(description="the replica")]
    messages: Annotated[Count, Meta(description="how many of them")]
    first_sequence: Annotated[Count, Meta(description="of the first, in `FLEET_METRICS`")]
    last_sequence: Annotated[Count, Meta(description="of the last")]
    values: Annotated[
        dict[str, float | None],
        Meta(description="in the last one, by signal of the evidence; null: not measured"),
    ]


class MetricSource(msgspec.Struct, frozen=True, kw_only=True):
    """The messages of one subject behind a piece of evidence, by the fields that it is from.

    Of a rollup a field is the mean of its minute, of memory the highest sample.
    """

    subject: Annotated[str, Meta(description="below the root")]
    messages: Annotated[Count, Meta(description="how many of them are still there")]
    first_at: Annotated[Instant, Meta(description="when the first was stored")]
    last_at: Annotated[Instant, Meta(description="when the last was stored")]
    first: Annotated[
        dict[str, float | None], Meta(description="its fields; null: not measured in it")
    ]
    last: Annotated[
        dict[str, float | None], Meta(description="those of the last; null: not measured in it")
    ]
    highest: Annotated[
        dict[str, float | None], Meta(description="of all of them; null: not measured in any")
    ]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One recommendation from the messages behind it to what became of it."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    state: Annotated[State, Meta(description="in one word")]
    closed: Annotated[str, Meta(description="why it does not stand; empty: it stands")]
    refusal: Annotated[
        str, Meta(description="why it must not be carried out now; empty: it may be")
    ]
    life: Annotated[Life, Meta(description="the advice, what was decided, what was done")]
    trail: Annotated[
        list[TrailEntry],
        Meta(
            description="every message about it, in order; of advice to go back also those about "
            "the advice whose execution failed, of which all that was measured is then, too"
        ),
    ]
    engines: Annotated[
        list[EngineSource],
        Meta(description="by node and engine, of advice from engines; empty: not asked, or gone"),
    ] = []
    read_from: Annotated[
        Literal["metrics", "rollups", "nothing"],
        Meta(description="where the measurements were found"),
    ] = "nothing"
    rollups: Annotated[
        list[Rollup], Meta(description="minutes of the pool before it, where metrics are gone")
    ] = []
    forecasts: Annotated[
        list[Forecast], Meta(description="the pool's last of each signal before it")
    ] = []
    missing: Annotated[
        list[str],
        Meta(description="what is no longer in the streams, or could not be read, for people"),
    ] = []
    sources: Annotated[
        list[MetricSource],
        Meta(
            description="behind evidence that names a `subject`, in its order; of scaling advice "
            "that counts how busy GPUs are those of the pool, at most 200"
        ),
    ] = []
    waste: Annotated[
        Waste | None,
        Meta(description="what the pool's GPUs cost and wasted just before it; null: not told"),
    ] = None
    opportunity: Annotated[
        Opportunity | None,
        Meta(description="what could be saved in the pool just before it; null: not told, or not"),
    ] = None
