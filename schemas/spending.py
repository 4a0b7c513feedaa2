"""What the GPUs cost, what of it is wasted, where that goes, and what could be saved."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from schemas.analysis import Scope
from schemas.message import Message, Simulated
from schemas.units import Count, Instant, Number, Ratio, Token

Usd = Annotated[float, Meta(ge=0, le=1e15, description="US dollars")]
TrendMetric = Literal[
    "utilization_ratio",
    "usd_per_hour",
    "waste_usd_per_hour",
    "tokens_per_second",
    "usd_per_million_tokens",
    "joules_per_token",
]

_NO_PRICE = "null: none of these GPUs has a price"


class StateUse(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU-time of one state. Each minute of each GPU is in exactly one of the four states."""

    gpu_hours: Annotated[Number, Meta(description="in hours of one GPU")]
    usd: Annotated[
        Usd | None,
        Meta(description=f"of those that have a price, energy as `handlers.prices`; {_NO_PRICE}"),
    ]
    energy_joules: Annotated[
        Number | None,
        Meta(description="growth of the counter, else mean power by time; null: neither"),
    ]


class ModelUse(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU-time of one model of GPU."""

    gpu_hours: Annotated[Number, Meta(description="in all four states")]
    usd: Annotated[Usd | None, Meta(description=f"in all four states; {_NO_PRICE}")]
    waste_usd: Annotated[
        Usd | None, Meta(description=f"of that idle, held and under-used; {_NO_PRICE}")
    ]


class Usage(Message, frozen=True, kw_only=True):
    """One hour of the GPUs of a node, a pool or the fleet: time, money, energy, tokens.

    Published by the handlers once the hour is over, simulated GPUs apart from real ones; sums of
    whole minutes, so that hours, and only hours, may be added up. A minute in which a GPU sent at
    least one sample counts as a minute of that GPU, else not at all. Of a GPU with MIG the GPU
    counts, its instances do not. The four states add up to all GPU-time; the under-used part is
    within `active`.
    """

    SUBJECT: ClassVar[str] = "rollup.usage.{scope}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "ROLLUPS"

    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    pool: Annotated[
        Token | None, Meta(description="of a node: the one of its GPUs or engines; null: in none")
    ] = None
    hour_at: Annotated[Instant, Meta(description="begin of the hour, by the server's clock")]
    minutes: Annotated[Count, Meta(description="how many of it had a sample, at most 60")]
    active: Annotated[StateUse, Meta(description="working")]
    idle_held: Annotated[StateUse, Meta(description="memory held, nothing running")]
    idle: Annotated[StateUse, Meta(description="neither")]
    unknown: Annotated[StateUse, Meta(description="too little measured to tell")]
    under_used_gpu_hours: Annotated[
        Number,
        Meta(description="of `active`, the share by which use fell short of the target"),
    ]
    under_used_usd: Annotated[Usd | None, Meta(description=f"of that share; {_NO_PRICE}")]
    unpriced_gpu_hours: Annotated[Number, Meta(description="of GPUs without a price")]
    utilization_ratio: Annotated[
        Ratio | None, Meta(description="mean over GPU-time; null: never measured")
    ]
    utilization_gpu_hours: Annotated[Number, Meta(description="GPU-time that the mean is of")]
    power_efficiency_ratio: Annotated[
        Ratio | None,
        Meta(description="utilization by share of the power limit drawn, at most 1; null: unknown"),
    ]
    power_gpu_hours: Annotated[Number, Meta(description="GPU-time that this mean is of")]
    energy_gpu_hours: Annotated[Number, Meta(description="GPU-time whose energy is known")]
    prompt_tokens: Annotated[
        Number | None, Meta(description="that engines read; null: no engine told")
    ]
    generation_tokens: Annotated[
        Number | None, Meta(description="that engines wrote; null: no engine told")
    ]
    models: Annotated[
        dict[str, ModelUse], Meta(description="by the GPU's `name`, at most 32; `unknown`: no name")
    ]
    simulated: Simulated = False


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What some hours come to. Money is null where no GPU has a price."""

    gpus: Annotated[
        Number | None,
        Meta(description="GPU-hours by hours measured: how many on average; null: none was seen"),
    ]
    gpu_hours: Annotated[Number, Meta(description="in all four states")]
    used_gpu_hours: Annotated[
        Number, Meta(description="of them neither waste nor of unknown state")
    ]
    under_used_gpu_hours: Annotated[Number, Meta(description="of them under-used")]
    idle_held_gpu_hours: Annotated[Number, Meta(description="of them idle but held")]
    idle_gpu_hours: Annotated[Number, Meta(description="of them idle")]
    unknown_gpu_hours: Annotated[Number, Meta(description="of them of unknown state")]
    usd: Annotated[Usd | None, Meta(description="what they cost; null: no price")]
    used_usd: Annotated[
        Usd | None, Meta(description="of it neither waste nor of unknown state; null: no price")
    ]
    idle_usd: Annotated[Usd | None, Meta(description="of it idle; null: no price")]
    idle_held_usd: Annotated[Usd | None, Meta(description="of it idle but held; null: no price")]
    under_used_usd: Annotated[Usd | None, Meta(description="of it under-used; null: no price")]
    unknown_usd: Annotated[Usd | None, Meta(description="of it of unknown state; null: no price")]
    waste_usd: Annotated[
        Usd | None,
        Meta(description="idle, held and under-used together; null: no price, or no known state"),
    ]
    waste_ratio: Annotated[
        Ratio | None,
        Meta(
            description="waste by cost, else by GPU-hours; null: neither is above 0, or no state "
            "is known"
        ),
    ]
    usd_per_hour: Annotated[Usd | None, Meta(description="cost; null: no price")]
    waste_usd_per_hour: Annotated[Usd | None, Meta(description="waste; null: as of `waste_usd`")]
    waste_usd_per_month: Annotated[
        Usd | None, Meta(description="730 such hours; null: as of `waste_usd`")
    ]
    energy_joules: Annotated[Number | None, Meta(description="drawn; null: not measured")]
    idle_energy_joules: Annotated[
        Number | None, Meta(description="of it idle or idle but held; null: not measured")
    ]
    utilization_ratio: Annotated[
        Ratio | None, Meta(description="mean over GPU-time; null: not measured")
    ]
    power_efficiency_ratio: Annotated[
        Ratio | None,
        Meta(description="utilization by share of the power limit, at most 1; null: unknown"),
    ]
    tokens_per_second: Annotated[
        Number | None, Meta(description="read and written; null: no engine told")
    ]
    tokens_per_second_per_gpu: Annotated[
        Number | None, Meta(description="of all GPUs, idle ones too; null: no engine or GPU")
    ]
    usd_per_million_tokens: Annotated[
        Usd | None, Meta(description="read and written; null: no token, or a GPU has no price")
    ]
    usd_per_million_generation_tokens: Annotated[
        Usd | None, Meta(description="written alone; null: none, or a GPU has no price")
    ]
    joules_per_token: Annotated[
        Number | None,
        Meta(description="read and written; null: no token, or energy of under 95 % of GPU-time"),
    ]


class Waste(Message, frozen=True, kw_only=True):
    """What a node's, pool's or the fleet's GPUs cost, and what of that is wasted.

    Of the running hour and the one before: an hour at least, once that much was seen. Published
    once a minute, of a node every ten. `figures` are of real GPUs alone where there are any.
    """

    SUBJECT: ClassVar[str] = "analysis.waste.{scope}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "EVENTS"

    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    decided_at: Annotated[Instant, Meta(description="end of the last minute in it")]
    since: Annotated[Instant, Meta(description="begin of the first hour in it")]
    figures: Annotated[Figures, Meta(description="of these hours together")]
    hours: Annotated[
        list[Usage],
        Meta(
            description="the hour before, where it was measured, and the running one; beside real "
            "GPUs those of the simulated ones, too, which `figures` leaves out"
        ),
    ]
    simulated: Simulated = False


class TrendLine(msgspec.Struct, frozen=True, kw_only=True):
    """Where one number goes: a robust slope, and the last day against the day before."""

    metric: Annotated[TrendMetric, Meta(description="of Figures, hour by hour")]
    points: Annotated[Count, Meta(description="hours in which it was measured")]
    last: Annotated[float | None, Meta(description="in the last hour; null: not measured in it")]
    slope_per_day: Annotated[
        float | None,
        Meta(description="median of the slopes of all pairs of hours; null: too short a history"),
    ]
    slope_low_per_day: Annotated[
        float | None, Meta(description="95 % interval, lower end; null with the slope")
    ]
    slope_high_per_day: Annotated[
        float | None, Meta(description="95 % interval, upper end; null with the slope")
    ]
    direction: Annotated[
        Literal["rising", "falling", "steady", "unknown"],
        Meta(description="rising or falling: the interval lies on that side of 0"),
    ]
    change_ratio: Annotated[
        float | None,
        Meta(description="this period's mean by the last one's, less 1; null: not both measured"),
    ]
    text: Annotated[str, Meta(description="for people; says how much history is missing")]


class Trend(Message, frozen=True, kw_only=True):
    """Where a pool or the fleet goes, by up to 7 days of hours. Published after each hour."""

    SUBJECT: ClassVar[str] = "analysis.trend.{scope}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "EVENTS"

    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    decided_at: Annotated[Instant, Meta(description="end of the last hour in it")]
    since: Annotated[Instant, Meta(description="begin of the first hour in it")]
    lines: Annotated[
        list[TrendLine], Meta(description="one a metric, those never measured left out")
    ]
    simulated: Simulated = False


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do, what it saves and what it takes."""

    kind: Annotated[
        Literal["release_idle", "unload_held", "pack_under_used", "rebalance"],
        Meta(description="which; `docs/analysis.md` has the rule of each"),
    ]
    text: Annotated[str, Meta(description="for people: what to do, and why")]
    gpus: Annotated[
        Count, Meta(description="how many GPUs would be saved; rebalance: are too full")
    ]
    parts: Annotated[
        list[str], Meta(description="`<node>-<gpu>`, at most 16; under-used: none in particular")
    ]
    saving_usd_per_hour: Annotated[
        Usd | None, Meta(description="null: no price, or it saves no money")
    ]
    saving_usd_per_month: Annotated[Usd | None, Meta(description="730 hours; null with the hour's")]
    effort: Annotated[
        Literal["low", "medium", "high"],
        Meta(description="low: nothing runs there; medium: unload; high: move work"),
    ]
    score: Annotated[
        Number | None,
        Meta(description="saving per month by effort (1, 2, 4); null: no saving in money"),
    ]
    evidence: Annotated[list[str], Meta(description="what was measured, in words")]


class Opportunity(Message, frozen=True, kw_only=True):
    """What could be saved in a pool, or on a node in no pool.

    Each GPU is in one of them at most, so that their savings may be added up. Published when
    they change, else every ten minutes.
    """

    SUBJECT: ClassVar[str] = "analysis.opportunity.{scope}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "EVENTS"

    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    decided_at: Annotated[Instant, Meta(description="when, by the server's clock")]
    savings: Annotated[list[Saving], Meta(description="the highest score first; empty: none")]
    saving_usd_per_month: Annotated[
        Usd | None, Meta(description="of all together; null: none has a price")
    ]
    simulated: Simulated = False
