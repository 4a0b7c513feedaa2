"""Alert rules and silences: what people write, in settings and in the bucket `fleet-config`."""

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.analysis import Scope, Severity
from schemas.units import Instant, Token

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
RULE_NAME = r"^[a-z0-9_]{1,40}$(?!\n)"
"""Also a part of a key of the bucket."""
_WEEK_SECONDS = 7 * 86400


class AlertRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A condition on one metric, and how bad it is.

    `metric` is a path: `host`, `gpu`, `engine`, `cache` or `stream`, then field names. A list is
    written `filesystems[mountpoint]` and gives one alert per element, named by that field; words
    are written `throttle_reasons[hw_slowdown|hw_thermal_slowdown]`, and are 1 while one of them is
    there, else 0. True is 1; of severities info is 1, warning 2, critical 3.
    """

    name: Annotated[str, Meta(pattern=RULE_NAME, description="token in the alert's subject and id")]
    metric: Annotated[str, Meta(max_length=200, description="path of the value")]
    summary: Annotated[
        str, Meta(max_length=200, description="for people: what is wrong; begins the alert's text")
    ] = ""
    scope: Annotated[
        Scope,
        Meta(
            description="node: each node, GPU, engine, list element by itself; pool, fleet: the "
            "aggregate of all of them. Caches and streams belong to the fleet"
        ),
    ] = "node"
    aggregate: Annotated[
        Literal["mean", "min", "max", "sum"] | None,
        Meta(description="over a pool or the fleet, of what was measured; null: each by itself"),
    ] = None
    comparison: Annotated[
        Literal[">=", "<="], Meta(description="which side of the threshold is bad")
    ] = ">="
    relative_to: Annotated[
        Annotated[str, Meta(max_length=200)] | None,
        Meta(
            description="path of a value of the same part of the message, by which the "
            "thresholds are meant; null: they are absolute",
        ),
    ] = None
    relative: Annotated[
        Literal["plus", "times"],
        Meta(description="the threshold is added to that value, or multiplied with it"),
    ] = "plus"
    info: Annotated[float | None, Meta(description="threshold of an info; null: none")] = None
    warning: Annotated[float | None, Meta(description="threshold of a warning; null: none")] = None
    critical: Annotated[
        float | None, Meta(description="threshold of a critical alert; null: none")
    ] = None
    clear_margin: Annotated[
        float,
        Meta(ge=0, le=1e15, description="a severity ends when the value is further back than this"),
    ] = 0.0
    for_seconds: Annotated[
        float, Meta(ge=0, le=_WEEK_SECONDS, description="the condition must have held this long")
    ] = 0.0
    clear_for_seconds: Annotated[
        float,
        Meta(ge=0, le=_WEEK_SECONDS, description="it must have been over this long, to end"),
    ] = 0.0
    enabled: Annotated[bool, Meta(description="false: never judged")] = True

    def __post_init__(self) -> None:
        limits = [limit for _, limit in self.thresholds()]
        if not limits:
            raise ValueError(f"alert rule {self.name}: give info, warning or critical")
        if not all(map(math.isfinite, (*limits, self.clear_margin))):
            raise ValueError(f"alert rule {self.name}: a threshold must be a finite number")
        if limits != sorted(limits, reverse=self.comparison == "<="):
            raise ValueError(
                f"alert rule {self.name}: with {self.comparison} info, warning and critical must "
                f"{'grow' if self.comparison == '>=' else 'fall'} in this order"
            )
        if self.aggregate is not None and self.scope == "node":
            raise ValueError(f"alert rule {self.name}: aggregate is for the scopes pool and fleet")
        if self.aggregate is not None and self.relative_to is not None:
            raise ValueError(f"alert rule {self.name}: an aggregate cannot be relative_to a value")

    def thresholds(self) -> list[tuple[Severity, float]]:
        """The severities that have one, the mildest first."""
        limits = ((severity, getattr(self, severity)) for severity in SEVERITIES)
        return [(severity, limit) for severity, limit in limits if limit is not None]


class Silence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Alerts that nobody wants to be called for, for a while: from `starts_at` to before `ends_at`.

    They are recorded all the same, and say so. A pattern is of the shell: `*`, `?`, `[abc]`.
    """

    silence_id: Annotated[Token, Meta(description="its name in `fleet-config`")]
    rule: Annotated[
        str, Meta(min_length=1, max_length=200, description="pattern of the rule's name")
    ] = "*"
    scope: Annotated[Scope | None, Meta(description="only alerts on this; null: on any")] = None
    id: Annotated[
        str,
        Meta(min_length=1, max_length=200, description="pattern of the node or pool; fleet: `all`"),
    ] = "*"
    starts_at: Annotated[Instant, Meta(description="from then on")]
    ends_at: Annotated[Instant, Meta(description="no longer from then on")]
    author: Annotated[str, Meta(min_length=1, max_length=200, description="who wants it")]
    comment: Annotated[str, Meta(max_length=1000, description="why")] = ""

    def __post_init__(self) -> None:
        if self.ends_at <= self.starts_at:
            raise ValueError("ends_at must be after starts_at")
