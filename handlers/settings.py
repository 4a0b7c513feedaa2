"""Settings of the handlers service: one table per handler."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from handlers.alerting.defaults import DEFAULT_RULES
from handlers.prices import PriceSettings
from handlers.rightsizing.gpu_models import GpuModelSettings
from handlers.scaling.pool_load import LoadSignal
from schemas.alerts import AlertRule
from schemas.units import Token


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of settings; unknown keys are errors."""


class Thresholds(Table, frozen=True, kw_only=True):
    """Where a resource becomes a bottleneck; the threshold itself counts as reached."""

    warning_ratio: Annotated[float, Meta(ge=0, le=1, description="warning from this use on")]
    critical_ratio: Annotated[float, Meta(ge=0, le=1, description="critical from this use on")]

    def __post_init__(self) -> None:
        if self.warning_ratio > self.critical_ratio:
            raise ValueError("warning_ratio must not be above critical_ratio")


class Band(Table, frozen=True, kw_only=True):
    """Where a resource is used well: efficiency 1; less than that is waste, more leaves no room."""

    least_ratio: Annotated[float, Meta(gt=0, le=1, description="used well from this use on")]
    most_ratio: Annotated[
        float,
        Meta(ge=0, le=1, description="up to this use; above it efficiency falls by twice the rest"),
    ]

    def __post_init__(self) -> None:
        if self.least_ratio > self.most_ratio:
            raise ValueError("least_ratio must not be above most_ratio")


class UtilizationSettings(Table, frozen=True, kw_only=True):
    """Levels, bottlenecks and GPU states of nodes, pools and the fleet.

    GPU memory has no bottleneck threshold: inference engines reserve most of it on purpose.
    """

    window_seconds: Annotated[
        float, Meta(ge=5, le=3600, description="mean and peak are taken over this long")
    ] = 60.0
    publish_seconds: Annotated[
        float, Meta(ge=1, le=3600, description="publish this often when nothing changes")
    ] = 60.0
    margin_ratio: Annotated[
        float,
        Meta(ge=0, le=0.2, description="a level or bottleneck ends this far below its start"),
    ] = 0.05
    bottlenecks_max: Annotated[
        int, Meta(ge=1, le=1000, description="list at most this many bottlenecks, worst first")
    ] = 32
    cpu: Annotated[Thresholds, Meta(description="CPU bottleneck")] = Thresholds(
        warning_ratio=0.80, critical_ratio=0.95
    )
    memory: Annotated[Thresholds, Meta(description="host memory bottleneck")] = Thresholds(
        warning_ratio=0.85, critical_ratio=0.95
    )
    gpu: Annotated[Thresholds, Meta(description="GPU bottleneck")] = Thresholds(
        warning_ratio=0.90, critical_ratio=0.98
    )
    kv_cache: Annotated[Thresholds, Meta(description="KV-cache bottleneck")] = Thresholds(
        warning_ratio=0.85, critical_ratio=0.95
    )
    disk: Annotated[Thresholds, Meta(description="bottleneck of the busiest disk")] = Thresholds(
        warning_ratio=0.80, critical_ratio=0.95
    )
    network: Annotated[
        Thresholds,
        Meta(description="bottleneck of the fullest network interface, by its speed"),
    ] = Thresholds(warning_ratio=0.75, critical_ratio=0.95)
    cpu_efficient: Annotated[Band, Meta(description="CPU used well")] = Band(
        least_ratio=0.6, most_ratio=0.8
    )
    memory_efficient: Annotated[Band, Meta(description="host memory used well")] = Band(
        least_ratio=0.6, most_ratio=0.8
    )
    gpu_efficient: Annotated[Band, Meta(description="GPU used well")] = Band(
        least_ratio=0.7, most_ratio=0.9
    )
    gpu_active_ratio: Annotated[
        float, Meta(ge=0, le=1, description="a GPU with this mean utilization is active")
    ] = 0.05
    gpu_active_power_ratio: Annotated[
        float, Meta(ge=0, le=1, description="a GPU at this share of its power limit is active")
    ] = 0.5
    gpu_held_memory_ratio: Annotated[
        float, Meta(ge=0, le=1, description="an idle GPU with this share of its memory is held")
    ] = 0.05


class RollupSettings(Table, frozen=True, kw_only=True):
    """Minutes of hosts, GPUs, engines, pools and caches."""

    grace_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=60,
            description="wait this long after a minute for its stragglers; then nodes and pools "
            "take turns within 5 s",
        ),
    ] = 5.0


class AlertSettings(Table, frozen=True, kw_only=True):
    """Alert rules, to which the bucket `fleet-config` adds while we run."""

    rules: Annotated[
        tuple[AlertRule, ...],
        Meta(description="the rules; a list here replaces the built-in ones (but `node_stale`)"),
    ] = DEFAULT_RULES
    gap_seconds: Annotated[
        float,
        Meta(ge=1, le=3600, description="without a value for this long, `for_seconds` starts anew"),
    ] = 60.0
    stale_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=3600,
            description="a node without host metrics for this long is stale: threshold of the rule "
            "`node_stale`",
        ),
    ] = 30.0
    stale_intervals: Annotated[
        float, Meta(ge=1, le=100, description="… but not before this many of its own intervals")
    ] = 3.0
    forget_seconds: Annotated[
        float,
        Meta(ge=3600, description="an open alert without news for this long is cleared"),
    ] = 7 * 86400.0


LEAST_TARGET = 0.001
"""What is asked for by a target stays a number however high a load is."""


class ScalingSettings(Table, frozen=True, kw_only=True):
    """Scaling advice for pools of inference engines.

    By the rule of Kubernetes' HPA, or by what the load will be when a new replica serves: once a
    day of it was seen, and while every engine tells how many requests run, wait and can run.
    """

    policy: Annotated[
        Literal["hpa", "forecast"], Meta(description="what decides: the load of now, or to come")
    ] = "hpa"
    risk_ratio: Annotated[
        float,
        Meta(gt=0, le=0.5, description="forecast: share of the minutes that may be short"),
    ] = 0.01
    plan_snapshot_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="forecast: state of the pools of a slot that outlives a restart, about "
            "25 KB a pool; further pools need a day again",
        ),
    ] = 512 * 1024
    waiting_per_replica_target: Annotated[
        float, Meta(ge=LEAST_TARGET, description="requests waiting per replica that are still fine")
    ] = 5.0
    kv_cache_target_ratio: Annotated[
        float, Meta(ge=LEAST_TARGET, le=1, description="aim at this mean KV-cache use")
    ] = 0.85
    capacity_target_ratio: Annotated[
        float,
        Meta(ge=LEAST_TARGET, le=1, description="aim at this share of the requests that can run"),
    ] = 0.80
    ttft_target_seconds: Annotated[
        Annotated[float, Meta(ge=LEAST_TARGET)] | None,
        Meta(description="aim at this p95 to the first token; null: it does not count"),
    ] = None
    itl_target_seconds: Annotated[
        Annotated[float, Meta(ge=LEAST_TARGET)] | None,
        Meta(description="aim at this p95 between tokens; null: it does not count"),
    ] = None
    prompt_target_tokens_per_second: Annotated[
        Annotated[float, Meta(ge=LEAST_TARGET)] | None,
        Meta(description="aim at so many prompt tokens of a replica; null: they do not count"),
    ] = None
    generation_target_tokens_per_second: Annotated[
        Annotated[float, Meta(ge=LEAST_TARGET)] | None,
        Meta(description="aim at so many generated tokens of a replica; null: they do not count"),
    ] = None
    gpu_busy_target_ratio: Annotated[
        Annotated[float, Meta(ge=LEAST_TARGET, le=1)] | None,
        Meta(
            description="aim at this mean `utilization_ratio` of the pool's GPUs; null: it does "
            "not count, as that of many drivers tells of any kernel, not of how much work it is"
        ),
    ] = None
    tolerance_ratio: Annotated[
        float, Meta(ge=0, le=1, description="no advice within this distance of the target")
    ] = 0.10
    up_hold_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="too much load must have held this long")
    ] = 30.0
    panic_ratio: Annotated[
        float,
        Meta(ge=1, description="load above so many times the target need not have held …"),
    ] = 2.0
    panic_hold_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="… for `up_hold_seconds`, but only for this long")
    ] = 6.0
    up_most_ratio: Annotated[
        float,
        Meta(
            gt=1,
            le=10_000,
            description="by the load advise at most so many times the replicas there are, or …",
        ),
    ] = 2.0
    up_most_replicas: Annotated[
        int, Meta(ge=1, le=10_000, description="… so many more, whichever is more")
    ] = 4
    down_hold_seconds: Annotated[
        float, Meta(ge=0, le=86400, description="too little load must have held this long")
    ] = 300.0
    failures_survived: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description="scale down only to what carries the expected load with so many replicas "
            "lost: within the targets; by a plan of `forecast`, filled to the full",
        ),
    ] = 1
    least_saving_ratio: Annotated[
        float, Meta(ge=0, le=1, description="no scale-down by less than this share of a pool")
    ] = 0.05
    least_saving_usd_per_hour: Annotated[
        float, Meta(ge=0, description="no scale-down that saves less; without a price: any")
    ] = 0.10
    payback_max_hours: Annotated[
        float,
        Meta(
            ge=0,
            description="no scale-down whose loss of KV cache takes longer to make up for; one "
            "that is not measured does not count",
        ),
    ] = 1.0
    downs_per_hour_max: Annotated[
        int, Meta(ge=1, le=1000, description="no scale-down after so many within an hour")
    ] = 6
    rejected_hold_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=86400,
            description="what was rejected is not advised again for so long, unless more is needed",
        ),
    ] = 3600.0
    startup_lead_seconds: Annotated[
        float,
        Meta(ge=0, le=86400, description="a new replica serves after this long"),
    ] = 120.0
    expires_after_seconds: Annotated[
        float, Meta(gt=0, le=86400, description="advice is void after this long")
    ] = 600.0
    engine_ttl_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="an engine silent for this long is gone")
    ] = 30.0
    min_replicas: Annotated[int, Meta(ge=1, description="never advise fewer")] = 1
    max_replicas: Annotated[int, Meta(ge=1, le=10_000, description="never advise more")] = 32
    usd_per_replica_hour: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="price of a replica; null: that of its GPUs, by `handlers.prices`"),
    ] = None
    gpus_per_replica: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(
            description="that one replica brings, to price it by and for "
            "`gpu_busy_target_ratio`; null: the pool's GPUs by its replicas, for a price once "
            "that was the same whole number for 5 minutes on end"
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must not be above max_replicas")
        if self.expires_after_seconds < self.startup_lead_seconds:
            raise ValueError(
                "expires_after_seconds must be at least startup_lead_seconds: advice would be void "
                "before it can have worked"
            )


class ForecastSettings(Table, frozen=True, kw_only=True):
    """Forecasts of the load of pools, from one-minute means."""

    signals: Annotated[
        tuple[LoadSignal, ...],
        Meta(description="what is forecast; requests in flight are those running and waiting"),
    ] = ("requests_in_flight",)
    horizons_seconds: Annotated[
        tuple[Annotated[float, Meta(ge=60, le=14_400)], ...],
        Meta(min_length=1, max_length=8, description="how far ahead, in whole minutes"),
    ] = (180.0, 900.0)
    seasons_seconds: Annotated[
        tuple[Annotated[float, Meta(ge=360, le=1_209_600)], ...],
        Meta(max_length=4, description="seasons that may be there; those that help are found"),
    ] = (86_400.0,)
    snapshot_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="state of the pools of a slot that outlives a restart, about 12 KB a pool "
            "and signal; it must fit into the server's `max_payload` when deflated",
        ),
    ] = 512 * 1024


class WasteSettings(Table, frozen=True, kw_only=True):
    """What counts as waste, and what is worth telling of it."""

    target_ratio: Annotated[
        float,
        Meta(ge=0.05, le=1, description="a GPU that works below this utilization is under-used"),
    ] = 0.7
    idle_minutes: Annotated[
        int,
        Meta(ge=1, le=1440, description="idle or held for so long on end is an opportunity"),
    ] = 30
    unbalanced_minutes: Annotated[
        int,
        Meta(ge=1, le=1440, description="full beside idle GPUs for so long is an opportunity"),
    ] = 10
    least_saving_usd_per_hour: Annotated[
        float, Meta(ge=0, description="opportunities that save less are not told")
    ] = 0.10
    snapshot_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="state of a slot, for nodes, pools and fleet each, that outlives a "
            "restart: about 0.5 KB a node, 8 KB a pool with a week of trends",
        ),
    ] = 256 * 1024
    archive_pools: Annotated[
        dict[Token, Token],
        Meta(
            description="namespace of the cache to the pool whose GPUs compute its values, so that "
            "a restore has a price; without: the pool of the same name, else the only one"
        ),
    ] = {}


class TuneCacheSettings(Table, frozen=True, kw_only=True):
    """When a cache is worth tuning, ours or a scraped LMCache."""

    window_seconds: Annotated[
        float, Meta(ge=60, le=86400, description="growth of its counters is judged over this long")
    ] = 300.0
    confirm_windows: Annotated[
        int,
        Meta(ge=1, le=100, description="so many windows in a row begin a condition, and end it"),
    ] = 3
    margin_ratio: Annotated[
        float,
        Meta(ge=0, le=0.5, description="it ends this share of the threshold on the other side"),
    ] = 0.1
    least_events: Annotated[
        int, Meta(ge=1, description="fewer lookups, or evictions, in a window tell nothing")
    ] = 100
    hit_ratio: Annotated[
        float, Meta(ge=0, le=1, description="`low_hit_ratio`: hits by lookups below this")
    ] = 0.5
    full_ratio: Annotated[
        float, Meta(ge=0, le=1, description="`nearly_full`: RAM used above this, and evictions")
    ] = 0.9
    least_gain_ratio: Annotated[
        float,
        Meta(ge=0, le=1, description="`nearly_full`: not where more room gains fewer of lookups"),
    ] = 0.02
    thrash_ratio: Annotated[
        float,
        Meta(ge=0, description="`thrash`: evicted entries asked for again, by evictions, above"),
    ] = 0.25
    ttl_short_ratio: Annotated[
        float, Meta(ge=0, le=1, description="`ttl_short`: lookups of what has expired above this")
    ] = 0.05
    ttl_long_ratio: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="`ttl_long`: share of RAM above this held from last use to expiry, while "
            "it is nearly full",
        ),
    ] = 0.25
    expires_after_seconds: Annotated[
        float, Meta(ge=600, le=86400, description="advice is void after this long")
    ] = 21600.0


class RightSizeSettings(Table, frozen=True, kw_only=True):
    """When a cheaper model of GPU is advised."""

    headroom_ratio: Annotated[
        float,
        Meta(ge=0, le=2, description="so much above the p99 must fit, of memory and rates"),
    ] = 0.15
    least_saving_usd_per_hour: Annotated[
        float, Meta(ge=0, description="what saves less is not advised")
    ] = 0.10
    least_saving_ratio: Annotated[
        float, Meta(ge=0, le=1, description="… nor what saves a smaller share of the cost")
    ] = 0.05
    expires_after_seconds: Annotated[
        float, Meta(ge=3600, le=86400, description="advice is void after this long")
    ] = 86400.0


class ConsolidateSettings(Table, frozen=True, kw_only=True):
    """How the work of a pool may be packed onto fewer nodes."""

    fixed_nodes: Annotated[
        tuple[str, ...],
        Meta(description="names of nodes, `*` for any characters, whose work must not move"),
    ] = ()
    node_groups: Annotated[
        tuple[str, ...],
        Meta(
            description="names of nodes, `*` for any characters: work moves only among nodes of "
            "the same pool whose first match is the same, or that have none"
        ),
    ] = ()
    gpu_memory_max_ratio: Annotated[
        float, Meta(gt=0, le=1, description="GPU memory used at most afterwards")
    ] = 0.9
    gpu_busy_max_ratio: Annotated[
        float, Meta(gt=0, le=1, description="GPU activity at most afterwards")
    ] = 0.8
    host_memory_max_ratio: Annotated[
        float, Meta(gt=0, le=1, description="host memory used at most afterwards")
    ] = 0.85
    least_nodes: Annotated[
        int, Meta(ge=1, description="so many nodes of a pool keep work, in case one is lost")
    ] = 2
    moves_max: Annotated[
        int, Meta(ge=1, le=1000, description="GPUs whose work moves, in one plan")
    ] = 16
    least_saving_usd_per_hour: Annotated[
        float, Meta(ge=0, description="a plan that saves less is not advised")
    ] = 0.10
    least_saving_ratio: Annotated[
        float, Meta(ge=0, le=1, description="… nor one that saves a smaller share of the cost")
    ] = 0.05
    better_ratio: Annotated[
        float,
        Meta(ge=0, le=10, description="a plan replaces another that still fits if it saves more"),
    ] = 0.2
    expires_after_seconds: Annotated[
        float, Meta(ge=3600, le=86400, description="advice is void after this long")
    ] = 21600.0


class GpuAdviceSettings(Table, frozen=True, kw_only=True):
    """Advice on the GPUs of pools, from what each needed at most."""

    history_hours: Annotated[
        int, Meta(ge=1, le=168, description="so long must be known before there is advice")
    ] = 24
    confirm_times: Annotated[
        int,
        Meta(ge=1, le=100, description="found so often in a row, every ten minutes, it is given"),
    ] = 3
    switch_seconds: Annotated[
        float,
        Meta(ge=0, le=86400, description="the old and the new GPU are both paid for so long"),
    ] = 600.0
    snapshot_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="state of a slot that outlives a restart, 0.7 KB a GPU with 24 hours; "
            "further ones begin their history anew",
        ),
    ] = 256 * 1024
    right_size: Annotated[RightSizeSettings, Meta(description="a cheaper model")] = (
        RightSizeSettings()
    )
    consolidate: Annotated[ConsolidateSettings, Meta(description="fewer nodes")] = (
        ConsolidateSettings()
    )


class QuerySettings(Table, frozen=True, kw_only=True):
    """The query endpoints."""

    forget_seconds: Annotated[
        float, Meta(gt=0, description="last values older than this are forgotten")
    ] = 3600.0
    history_scan_bytes: Annotated[
        int, Meta(gt=0, description="read at most this much of a stream for one answer")
    ] = 32 * 1024 * 1024
    history_timeout_seconds: Annotated[
        float, Meta(gt=0, description="give up reading a stream after this long")
    ] = 5.0
    run_step_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="give up a step of a whole run after this long; an insight may take "
            "`insights.deadline_seconds`, and wait for another",
        ),
    ] = 45.0


class HandlersSettings(Table, frozen=True, kw_only=True):
    """Everything the handlers service can be told."""

    slots: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="shares of the keys that processes own by lease; the same everywhere, "
            "and for good: another number starts all windows anew",
        ),
    ] = 8
    max_nodes: Annotated[
        int, Meta(ge=1, description="nodes followed at once; messages of further ones are refused")
    ] = 20_000
    max_pools: Annotated[
        int, Meta(ge=1, description="pools followed at once; messages of further ones are refused")
    ] = 2_000
    utilization: Annotated[
        UtilizationSettings, Meta(description="levels, bottlenecks, GPU states")
    ] = UtilizationSettings()
    rollup: Annotated[RollupSettings, Meta(description="minutes")] = RollupSettings()
    alerts: Annotated[AlertSettings, Meta(description="alert rules")] = AlertSettings()
    scaling: Annotated[ScalingSettings, Meta(description="scaling advice")] = ScalingSettings()
    forecast: Annotated[ForecastSettings, Meta(description="forecasts")] = ForecastSettings()
    prices: Annotated[PriceSettings, Meta(description="of GPUs and energy")] = PriceSettings()
    waste: Annotated[WasteSettings, Meta(description="waste and savings")] = WasteSettings()
    gpu_models: Annotated[GpuModelSettings, Meta(description="what models of GPU can do")] = (
        GpuModelSettings()
    )
    gpu_advice: Annotated[GpuAdviceSettings, Meta(description="advice on the GPUs of pools")] = (
        GpuAdviceSettings()
    )
    tune_cache: Annotated[TuneCacheSettings, Meta(description="advice on caches")] = (
        TuneCacheSettings()
    )
    queries: Annotated[QuerySettings, Meta(description="query endpoints")] = QuerySettings()
