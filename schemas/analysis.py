"""What handlers conclude about nodes, pools and the fleet: utilization and alerts."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from schemas.message import Message, Simulated
from schemas.units import Count, Instant, Ratio, Seconds, Token

Scope = Literal["node", "pool", "fleet"]
Severity = Literal["info", "warning", "critical"]
Level = Literal["idle", "low", "moderate", "high", "critical"]
Health = Literal["healthy", "degraded", "critical"]
GpuState = Literal["active", "idle_held", "idle"]


class ResourceUse(msgspec.Struct, frozen=True, kw_only=True):
    """Use of one resource, averaged over the window the message names."""

    resource: Annotated[
        Literal["cpu", "memory", "gpu", "gpu_memory", "kv_cache", "disk", "network"],
        Meta(
            description="`cpu`, `memory`: of HostMetrics, and of the same `disk`, its busiest one, "
            "and `network`, its fullest interface by the speed, in the busier direction; `gpu`, "
            "`gpu_memory`: of GpuMetrics; `kv_cache`: of EngineMetrics"
        ),
    ]
    mean_ratio: Annotated[
        Ratio,
        Meta(
            description="mean over the window; of several GPUs, engines or nodes the mean of "
            "their means"
        ),
    ]
    peak_ratio: Annotated[Ratio, Meta(description="highest single sample in the window")]
    level: Annotated[
        Level,
        Meta(
            description="of the mean: low from 0.2, moderate 0.5, high 0.7, critical 0.9; "
            "falls a margin below that"
        ),
    ]
    efficiency_ratio: Annotated[
        Ratio | None,
        Meta(
            description="1: well used, `cpu` and `memory` at 0.6 to 0.8, `gpu` at 0.7 to 0.9 (by "
            "`handlers.utilization`); null: of another resource"
        ),
    ] = None


class Bottleneck(msgspec.Struct, frozen=True, kw_only=True):
    """A resource above its threshold; `resource_id` names the GPU or engine, where several."""

    resource: Annotated[str, Meta(description="as in ResourceUse")]
    resource_id: Annotated[
        str | None,
        Meta(
            description="GPU or engine; of a pool or the fleet `<node>`, `<node>-<gpu>`, "
            "`<node>-<engine>`; null: the node itself, or the mean over all"
        ),
    ] = None
    severity: Annotated[
        Severity,
        Meta(description="the highest threshold that the mean reached: warning or critical"),
    ]
    value_ratio: Annotated[Ratio, Meta(description="mean over the window")]
    threshold_ratio: Annotated[
        Ratio, Meta(description="that of the severity, of `handlers.utilization`")
    ]


class GpuUse(msgspec.Struct, frozen=True, kw_only=True):
    """State of one GPU: active, idle but holding memory, or truly idle; with the evidence used.

    `state` is null where too little was measured to tell.
    """

    gpu: Annotated[Token, Meta(description="`gpu` of GpuMetrics")]
    node: Annotated[Token, Meta(description="its machine")]
    state: Annotated[
        GpuState | None,
        Meta(
            description="active: a sign of work; idle_held: none, but memory held; idle: neither; "
            "null: too little measured"
        ),
    ]
    utilization_ratio: Annotated[
        Ratio | None, Meta(description="how busy, mean over the window; null: not measured in it")
    ]
    memory_utilization_ratio: Annotated[
        Ratio | None,
        Meta(description="memory used by total, mean over the window; null: not measured in it"),
    ]
    evidence: Annotated[
        list[str],
        Meta(description="activity, power and memory against their thresholds, in words"),
    ]
    source: Annotated[
        str | None,
        Meta(
            description="what told the state: `sm_activity`, `tensor_activity`, `dram_activity`, "
            "without these `utilization_source` of GpuMetrics; `power`; `engine`; null: nothing"
        ),
    ] = None
    power_efficiency_ratio: Annotated[
        Ratio | None,
        Meta(
            description="utilization by share of the power limit drawn, at most 1; null: one of "
            "them was not measured"
        ),
    ] = None


class Utilization(Message, frozen=True, kw_only=True):
    """How busy a node, a pool or the fleet is, efficiency apart from health.

    Published on a change of level, bottleneck or health, of a node also of the state of a GPU, else
    at most once a minute.
    `efficiency_ratio` is that of the scarce resource, the GPU where there is one (1 at 0.7 to
    0.9), else the CPU (0.6 to 0.8); lower when idle or saturated; null when it was not measured.
    `gpus` is filled for nodes only; `bottlenecks` is cut to the worst 32 (a setting).
    """

    SUBJECT: ClassVar[str] = "analysis.utilization.{scope}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "EVENTS"

    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    decided_at: Annotated[Instant, Meta(description="when it was judged, by the server's clock")]
    window_seconds: Annotated[
        Seconds, Meta(description="samples this old count: `handlers.utilization.window_seconds`")
    ]
    level: Annotated[
        Level | None,
        Meta(
            description="of `gpu` in `resources` where there is a GPU, else of `cpu`; null: "
            "that was not measured"
        ),
    ]
    health: Annotated[
        Health | None,
        Meta(
            description="by the worst bottleneck; of a pool or the fleet only their means are "
            "critical; null: no resource was measured"
        ),
    ]
    efficiency_ratio: Annotated[
        Ratio | None,
        Meta(description="1: well used; from the mean that `level` is of, null where that is"),
    ]
    resources: Annotated[
        list[ResourceUse], Meta(description="those that were measured in the window")
    ]
    bottlenecks: Annotated[
        list[Bottleneck],
        Meta(
            description="critical ones first, then the highest; at most 32 "
            "(`handlers.utilization.bottlenecks_max`)"
        ),
    ]
    gpus: Annotated[
        list[GpuUse], Meta(description="of a node, by name; of a pool or the fleet empty")
    ] = []
    nodes: Annotated[Count, Meta(description="how many sent metrics in the window")] = 1
    simulated: Simulated = False
    balance_ratio: Annotated[
        Ratio | None,
        Meta(
            description="of the GPUs' utilizations mean by maximum, 1: evenly spread; null: under "
            "two GPUs, or none reaches 0.05"
        ),
    ] = None


class Alert(Message, frozen=True, kw_only=True):
    """A rule that holds, and that it stopped holding.

    `raised` once when the condition has held for `for_seconds`, `updated` when the severity
    changes or a silence begins or ends, `cleared` once when the value is back past
    `clear_threshold`, or for another reason that it names. All three carry the same `alert_id`:
    `<scope>.<id>.<rule>.<raised at, ns>`. A rule on the parts of a node has the part in its
    token, `<name>-<part>` (`gpu_temperature-GPU-5d1a`), so that each part has a subject of its
    own; `part` is the part's own name (`/var/lib`).
    """

    SUBJECT: ClassVar[str] = "alert.{transition}.{severity}.{scope}.{id}.{rule}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "ALERTS"

    transition: Annotated[
        Literal["raised", "updated", "cleared"],
        Meta(
            description="`raised`, then `updated` at each change of severity or silence, "
            "`cleared` at the end"
        ),
    ]
    severity: Annotated[
        Severity, Meta(description="from now on; a cleared alert keeps its last one")
    ]
    scope: Annotated[Scope, Meta(description="what `id` names")]
    id: Annotated[Token, Meta(description="node or pool; `all`: the fleet")]
    rule: Annotated[
        Token,
        Meta(description="the name of an AlertRule, for a part with `-<part>`"),
    ]
    part: Annotated[
        str | None,
        Meta(description="the part's own name, like `/var/lib`; null: the rule is not about parts"),
    ] = None
    alert_id: Annotated[str, Meta(description="the same in all transitions of one alert")]
    text: Annotated[str, Meta(description="for people: what, where, value and threshold")]
    metric: Annotated[
        str, Meta(description="what is compared: message and field, like `gpu.temperature_celsius`")
    ]
    value: Annotated[
        float | None,
        Meta(
            description="what it was, in the unit of `metric`; null: the alert is cleared because "
            "there is no such value any more"
        ),
    ]
    threshold: Annotated[float, Meta(description="that of `severity`, in the unit of `metric`")]
    clear_threshold: Annotated[
        float, Meta(description="past it the alert clears; in the unit of `metric`")
    ]
    for_seconds: Annotated[
        Seconds, Meta(description="how long the condition must hold, by the rule")
    ]
    raised_at: Annotated[
        Instant, Meta(description="when the alert was raised, by the server's clock")
    ]
    decided_at: Annotated[
        Instant, Meta(description="when this transition was, by the server's clock")
    ]
    pool: Annotated[Token | None, Meta(description="that of the metrics; null: in none")] = None
    simulated: Simulated = False
    rule_version: Annotated[
        Count,
        Meta(description="revision in `fleet-config` of the rule that was judged by; 0: settings"),
    ] = 0
    silenced_by: Annotated[
        Token | None, Meta(description="`silence_id` of the silence upon it; null: nobody's")
    ] = None
    cleared_because: Annotated[
        Literal["recovered", "gone", "no_news", "rule_changed", "rule_removed"] | None,
        Meta(
            description="recovered: the value is fine; gone: no longer reported, while its node "
            "is; no_news: for `handlers.alerts.forget_seconds`; null: not cleared, or not told"
        ),
    ] = None
