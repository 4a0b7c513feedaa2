"""What handlers conclude about nodes, pools and the fleet: utilization and alerts."""

from typing import ClassVar, Literal

import msgspec

from schemas.message import Message
from schemas.units import Count, Instant, Ratio, Seconds, Token

Scope = Literal["node", "pool", "fleet"]
Severity = Literal["info", "warning", "critical"]
Level = Literal["idle", "low", "moderate", "high", "critical"]
Health = Literal["healthy", "degraded", "critical"]
GpuState = Literal["active", "idle_held", "idle"]


class ResourceUse(msgspec.Struct, frozen=True, kw_only=True):
    """Use of one resource, averaged over the window the message names."""

    resource: Literal["cpu", "memory", "gpu", "gpu_memory", "kv_cache"]
    mean_ratio: Ratio
    peak_ratio: Ratio
    level: Level


class Bottleneck(msgspec.Struct, frozen=True, kw_only=True):
    """A resource above its threshold; `resource_id` names the GPU or engine, where several."""

    resource: str
    resource_id: str | None = None
    severity: Severity
    value_ratio: Ratio
    threshold_ratio: Ratio


class GpuUse(msgspec.Struct, frozen=True, kw_only=True):
    """State of one GPU: active, idle but holding memory, or truly idle; with the evidence used.

    `state` is null where too little was measured to tell.
    """

    gpu: Token
    node: Token
    state: GpuState | None
    utilization_ratio: Ratio | None
    memory_utilization_ratio: Ratio | None
    evidence: list[str]


class Utilization(Message, frozen=True, kw_only=True):
    """How busy a node, a pool or the fleet is, efficiency apart from health.

    Published on a change of level, bottleneck or health, else at most once a minute.
    `efficiency_ratio`: 1 when the busiest of the scarce resources (GPU where there is one, else
    CPU) runs at 0.7 to 0.9; lower when idle or saturated; null when nothing was measured.
    `gpus` is filled for nodes only; `bottlenecks` is cut to the worst 32 (a setting).
    """

    SUBJECT: ClassVar[str] = "analysis.utilization.{scope}.{id}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "EVENTS"

    scope: Scope
    id: Token
    decided_at: Instant
    window_seconds: Seconds
    level: Level | None
    health: Health | None
    efficiency_ratio: Ratio | None
    resources: list[ResourceUse]
    bottlenecks: list[Bottleneck]
    gpus: list[GpuUse] = []
    nodes: Count = 1
    simulated: bool = False


class Alert(Message, frozen=True, kw_only=True):
    """A rule that holds, and that it stopped holding.

    `raised` once when the condition has held for `for_seconds`, `updated` when the severity
    changes, `cleared` once when the value is back past `clear_threshold`. All three carry the
    same `alert_id`: `<scope>.<id>.<rule>.<raised at, ns>`. A rule on the parts of a node has the
    part in its token, `<name>-<part>` (`gpu_temperature-GPU-5d1a`), so that each part has a subject
    of its own; `part` is the part's own name (`/var/lib`).
    """

    SUBJECT: ClassVar[str] = "alert.{transition}.{severity}.{scope}.{id}.{rule}"
    PUBLISHER: ClassVar[str] = "handlers"
    STREAM: ClassVar[str | None] = "ALERTS"

    transition: Literal["raised", "updated", "cleared"]
    severity: Severity
    scope: Scope
    id: Token
    rule: Token
    part: str | None = None
    alert_id: str
    text: str
    metric: str
    value: float | None
    threshold: float
    clear_threshold: float
    for_seconds: Seconds
    raised_at: Instant
    decided_at: Instant
    pool: Token | None = None
    simulated: bool = False
