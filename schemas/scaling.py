"""Scaling advice and what became of it: recommendation, decision, execution."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from schemas.changes import CacheChange, GpuChange, Move
from schemas.message import Message, Simulated
from schemas.units import Count, Instant, Number, Ratio, Seconds, Token

Action = Literal["scale_up", "scale_down", "consolidate", "right_size", "tune_cache"]
SCALING: tuple[Action, ...] = ("scale_up", "scale_down")
"""What changes the number of replicas, which is all that an executor can do."""
ROLLBACK = "rollback"
"""`reason` of advice to go back after an execution that failed, given by the executor."""
HeldReason = Literal[
    "hold", "unknown", "failure", "saving", "churn", "payback", "rejected", "settling", "limit"
]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One measured fact behind advice: the value, its threshold and the messages it came from.

    `stream_from` and `stream_to` are sequence numbers in the metrics stream: the messages in
    between, replayed, give the same advice. `…_projected` is what a signal would be after scaling
    down, with `failures_survived` replicas lost and the load that is expected. `gpu_busy_ratio` is
    the mean `utilization_ratio` of the pool's GPUs that carry a replica.
    """

    signal: Annotated[
        str,
        Meta(
            description="a field of EngineMetrics; `capacity_usage_ratio`: running by "
            "`requests_running_max`; `gpu_busy_ratio`; `…_projected`: with failures; "
            "`requests_in_flight_p90`, `…_expected`: forecast; `short_risk_ratio`: plan; "
            "`kv_cache_tokens_lost`; `usd_per_replica_hour`: derived; with `subject`: from `fields`"
        ),
    ]
    value: Annotated[
        float,
        Meta(
            description="in the unit of `signal`; without `subject` the mean over the replicas, "
            "or GPUs, that were measured"
        ),
    ]
    threshold: Annotated[
        float | None,
        Meta(
            description="target of the signal, of the settings of the handler; of expected "
            "requests, how many the planned replicas run at once; null: it has none"
        ),
    ] = None
    window_seconds: Annotated[
        Seconds | None,
        Meta(
            description="how long the condition has held: the action's hold; of a forecast, how "
            "far ahead; null: none needed"
        ),
    ] = None
    engines: Annotated[list[Token], Meta(description="replicas that were measured")] = []
    stream_from: Annotated[
        Count | None,
        Meta(description="first message in `FLEET_METRICS` that counts; null: not told"),
    ] = None
    stream_to: Annotated[
        Count | None, Meta(description="last one, which brought the advice; null: not told")
    ] = None
    subject: Annotated[
        Annotated[str, Meta(pattern=r"^(metrics|rollup)(\.[A-Za-z0-9_-]+)+$(?!\n)")] | None,
        Meta(description="of the messages that count, below the root; null: the pool's engines'"),
    ] = None
    fields: Annotated[
        list[str], Meta(description="of these messages, that `value` was worked out from")
    ] = []
    measured_from: Annotated[
        Instant | None, Meta(description="of a rollup: the first minute; null: not of rollups")
    ] = None
    measured_to: Annotated[
        Instant | None, Meta(description="end of the last one; null with `measured_from`")
    ] = None
    sources: Annotated[
        list[str],
        Meta(
            description="of `gpu_busy_ratio` what measured it, as `utilization_source` of "
            "GpuMetrics has it; of a price models of GPU, their list prices, whose and of when"
        ),
    ] = []


class ForecastHorizon(msgspec.Struct, frozen=True, kw_only=True):
    """What is expected at one distance, with what forecasts at that distance came to of late."""

    ahead_seconds: Annotated[Seconds, Meta(description="from the end of the minute")]
    p10: Annotated[Number, Meta(description="one value of ten is expected below")]
    p50: Annotated[Number, Meta(description="half the values are expected below")]
    p90: Annotated[Number, Meta(description="one value of ten is expected above")]
    error_ratio: Annotated[
        Number | None,
        Meta(description="absolute errors by the sum of the values; null: only zeros came"),
    ] = None
    last_value_error_ratio: Annotated[
        Number | None,
        Meta(description="the same, had the last value been the forecast; null with it"),
    ] = None
    coverage_ratio: Annotated[
        Ratio, Meta(description="share of the values between p10 and p90; 0.8 is aimed at")
    ]
    scored: Annotated[Count, Meta(description="forecasts that have come true, gaps left out")]
    season_seconds: Annotated[
        Seconds | None, Meta(description="season that carries the forecast; null: none does")
    ] = None


class Forecast(Message, frozen=True, kw_only=True):
    """The load of a pool to come, once a minute.

    Only horizons whose forecasts have been better than the last value; none: not published.
    """

    SUBJECT: ClassVar[str] = "forecast.{signal}.{pool}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "EVENTS"

    pool: Annotated[Token, Meta(description="`pool` of EngineMetrics")]
    signal: Annotated[
        Literal["requests_in_flight", "prompt_tokens_per_second", "generation_tokens_per_second"],
        Meta(description="sum over the engines; in flight: running and waiting"),
    ]
    minute_at: Annotated[Instant, Meta(description="begin of the last minute that is known")]
    last: Annotated[Number, Meta(description="the signal's mean in that minute")]
    horizons: Annotated[
        list[ForecastHorizon], Meta(description="those that are given out, the nearest first")
    ]
    simulated: Simulated = False


class Recommendation(Message, frozen=True, kw_only=True):
    """What to change in one pool, why, and until when the advice holds.

    One per decision. `recommendation_id` is `<pool>.<action>.<decision key>`, the same from every
    replica and every replay, and is the idempotency key of the execution. `replicas_to` is a
    target, not a step: doing it twice changes nothing. Only `scale_up` and `scale_down` change it;
    what other advice changes is in fields of its own, and people do it. Money fields are null
    without a price.
    """

    SUBJECT: ClassVar[str] = "recommendation.{action}.{pool}"
    PUBLISHER: ClassVar[str] = "handlers; executor to go back after a failure"
    STREAM: ClassVar[str | None] = "RECOMMENDATIONS"

    action: Annotated[
        Action,
        Meta(description="what to do"),
    ]
    pool: Annotated[
        Token,
        Meta(description="`pool` of the metrics; of a cache that has none its `namespace`"),
    ]
    recommendation_id: Annotated[str, Meta(description="`<pool>.<action>.<decided at, ns>`")]
    idempotency_key: Annotated[
        str, Meta(description="for the execution: the same as `recommendation_id`")
    ]
    decided_at: Annotated[Instant, Meta(description="when, by the server's clock")]
    expires_at: Annotated[
        Instant,
        Meta(
            description="from then on it does not stand: `expires_after_seconds` of the "
            "handler's settings later"
        ),
    ]
    replicas_from: Annotated[
        Count,
        Meta(
            description="engines of the pool that report now; `tune_cache`: its caches; "
            "`right_size`: its GPUs; `consolidate`: its nodes with work"
        ),
    ]
    replicas_to: Annotated[
        Count, Meta(description="how many there should be; as many where it scales nothing")
    ]
    reason: Annotated[
        str,
        Meta(
            description="up: the signal furthest above its target, or `min_replicas`; down: "
            "`spare_capacity`; `forecast`: planned for the load to come; `rollback`: an execution "
            "failed; of `tune_cache` the cause of its first change; `cheaper_model_fits`; "
            "`fewer_nodes_hold_it`"
        ),
    ]
    text: Annotated[str, Meta(description="for people: change, reason and figures")]
    evidence: Annotated[list[Evidence], Meta(description="each signal that was measured")]
    confidence_ratio: Annotated[
        Ratio,
        Meta(
            description="share of replicas heard of late by share of signals measured; of "
            "`tune_cache` the share of conditions that the cache's counters can tell; of "
            "`right_size` that of the history that was measured, of the GPU with most gaps; of "
            "`consolidate` that of the nodes with GPUs whose load is known"
        ),
    ]
    risk: Annotated[
        Literal["low", "medium", "high"],
        Meta(
            description="up: low; down: medium, to a single replica high; `tune_cache`: low, "
            "medium where a TTL is to change; `right_size`: medium, to an older generation high; "
            "`consolidate`: medium"
        ),
    ]
    effective_after_seconds: Annotated[
        Seconds,
        Meta(
            description="until the change helps; up: `handlers.scaling.startup_lead_seconds`, "
            "`right_size`, `consolidate`: `handlers.gpu_advice.switch_seconds`, else 0"
        ),
    ]
    saving_usd_per_hour: Annotated[
        float | None,
        Meta(
            description="replicas less by price, negative for up; `right_size`: by the price of "
            "GPUs; `consolidate`: of the nodes that are emptied; null: no price"
        ),
    ] = None
    one_off_cost_usd: Annotated[
        Number | None,
        Meta(
            description="what the change costs once; down: KV cache to compute anew, at most; "
            "`right_size`: the new GPUs beside the old ones for "
            "`handlers.gpu_advice.switch_seconds`; `consolidate`: the GPUs whose work begins anew, "
            "for as long; null: not measured, no price, or up"
        ),
    ] = None
    payback_hours: Annotated[
        Number | None,
        Meta(description="until that is saved, with or without a price; null: not measured, or up"),
    ] = None
    supersedes: Annotated[
        str | None,
        Meta(description="`recommendation_id` of the advice that it replaces; null: none stood"),
    ] = None
    simulated: Simulated = False
    cache_changes: Annotated[
        list[CacheChange], Meta(description="of `tune_cache`: what to change, the surest first")
    ] = []
    gpu_changes: Annotated[
        list[GpuChange], Meta(description="of `right_size`: which models, by the present one")
    ] = []
    moves: Annotated[
        list[Move], Meta(description="of `consolidate`: what goes where, in this order")
    ] = []


class HeldAdvice(Message, frozen=True, kw_only=True):
    """A change that the load of a pool asks for, and why it is not advised.

    Told once it has lasted for 30 s, and again every ten minutes; with `reason` null once nothing
    has been held for 30 s.
    """

    SUBJECT: ClassVar[str] = "analysis.held_advice.pool.{pool}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "EVENTS"

    pool: Annotated[Token, Meta(description="`pool` of EngineMetrics")]
    decided_at: Annotated[Instant, Meta(description="when, by the server's clock")]
    action: Annotated[
        Literal["scale_up", "scale_down"], Meta(description="what would be advised otherwise")
    ]
    replicas_from: Annotated[Count, Meta(description="engines of the pool that report now")]
    replicas_to: Annotated[Count, Meta(description="how many the load asks for")]
    reason: Annotated[
        HeldReason | None,
        Meta(
            description="`hold`: not for long enough; `unknown`: not all measured, or GPUs "
            "shared; `failure`: would not survive one; `saving`: too little; `churn`: too often; "
            "`payback`: too much KV cache lost; `rejected`: of late; `settling`: carried out; "
            "`limit`: `max_replicas` reached; null: nothing is held now"
        ),
    ]
    text: Annotated[str, Meta(description="why, for people")] = ""
    simulated: Simulated = False


class Decision(Message, frozen=True, kw_only=True):
    """What an orchestrator or operator (or the handlers: superseded, expired) said to advice."""

    SUBJECT: ClassVar[str] = "decision.{verdict}.{pool}"
    PUBLISHER: ClassVar[str] = "orchestrator, operator, executor; handlers for superseded, expired"
    STREAM: ClassVar[str | None] = "RECOMMENDATIONS"

    verdict: Annotated[
        Literal["accepted", "rejected", "superseded", "expired"],
        Meta(description="what became of the advice"),
    ]
    pool: Annotated[Token, Meta(description="that of the advice")]
    recommendation_id: Annotated[str, Meta(description="the advice")]
    decided_at: Annotated[
        Instant, Meta(description="when, by the clock of who decided; of the handlers the server's")
    ]
    decided_by: Annotated[
        str,
        Meta(
            description="`handlers`, or who decided as it calls itself: `operator:ann`, before the "
            "colon the role that `executor.deciders` names"
        ),
    ]
    reason: Annotated[str, Meta(description="why, for people")] = ""
    simulated: Simulated = False


class Execution(Message, frozen=True, kw_only=True):
    """A step in carrying out accepted advice, with the state before and after."""

    SUBJECT: ClassVar[str] = "execution.{phase}.{pool}"
    PUBLISHER: ClassVar[str] = "executor, orchestrator; handlers for requested"
    STREAM: ClassVar[str | None] = "RECOMMENDATIONS"

    phase: Annotated[
        Literal["requested", "started", "succeeded", "failed"], Meta(description="how far it is")
    ]
    pool: Annotated[Token, Meta(description="that of the advice")]
    recommendation_id: Annotated[str, Meta(description="the advice")]
    idempotency_key: Annotated[
        str, Meta(description="that of the advice: a step with the same key is not done twice")
    ]
    observed_at: Annotated[
        Instant, Meta(description="when the step was taken, by the executor's clock")
    ]
    executed_by: Annotated[
        str,
        Meta(
            description="name that the executor gives itself; of `requested` who is to do it, "
            "`executor`: the service of that role"
        ),
    ]
    dry_run: Annotated[bool, Meta(description="true: only shown, nothing was changed")] = True
    replicas_before: Annotated[
        Count | None, Meta(description="before the change; null: not told")
    ] = None
    replicas_after: Annotated[
        Count | None, Meta(description="after the change; null: not told, or not done yet")
    ] = None
    error: Annotated[
        str | None, Meta(description="why it failed, for people; null: it did not")
    ] = None
    simulated: Simulated = False
    requested_by: Annotated[
        str, Meta(description="name that who asked for it gives itself; empty: not told")
    ] = ""
    text: Annotated[
        str, Meta(description="what was done, or would be in a dry run, for people")
    ] = ""
    rollback: Annotated[
        str | None,
        Meta(description="`recommendation_id` of the advice to go back; null: nothing to undo"),
    ] = None
