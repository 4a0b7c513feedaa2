"""Requests and replies of `api.alert`: alerts, rules, silences."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.alerts import AlertRule, Silence
from schemas.analysis import Alert, Scope, Severity
from schemas.api import Limit, Request
from schemas.units import Count, Instant, Token


class AlertFilter(Request, frozen=True, kw_only=True):
    """Which open alerts to list."""

    severity: Annotated[
        Severity | None, Meta(description="only these and worse ones; null: all")
    ] = None
    scope: Annotated[
        Scope | None, Meta(description="only on nodes, pools, the fleet; null: all")
    ] = None
    id: Annotated[Token | None, Meta(description="only on that node or pool; null: any")] = None
    pool: Annotated[Token | None, Meta(description="only of that pool; null: of any")] = None
    rule: Annotated[str | None, Meta(description="only of that rule; null: of any")] = None
    limit: Limit = 1000


class AlertsReply(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts that are open now, those that are silenced apart."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    rows: Annotated[
        list[Alert], Meta(description="not silenced: worst first, then newest; at most `limit`")
    ]
    total: Annotated[Count, Meta(description="how many match, those beyond `limit` included")]
    silenced: Annotated[list[Alert], Meta(description="silenced now, in the same order")]
    silenced_total: Annotated[Count, Meta(description="how many of them match")]
    text: Annotated[str, Meta(description="why there are none; else empty")] = ""
    by_severity: Annotated[
        dict[Severity, Count], Meta(description="what `total` counts, by severity; without zeros")
    ] = {}


class AlertHistoryRequest(AlertFilter, frozen=True, kw_only=True):
    """A time range of transitions: `start` and `end`, or the last `seconds` (default a day)."""

    start: Annotated[
        Instant | None,
        Meta(
            description="first instant, at most 90 days before `end`; null: `seconds` before `end`"
        ),
    ] = None
    end: Annotated[Instant | None, Meta(description="last instant; null: now")] = None
    seconds: Annotated[
        Annotated[float, Meta(gt=0, le=90 * 86400)] | None,
        Meta(description="instead of `start`; null: 86,400 where `start` is null too"),
    ] = None


class AlertHistoryReply(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, in time order; of more than `limit` the newest."""

    start: Annotated[Instant, Meta(description="begin of the range")]
    end: Annotated[Instant, Meta(description="end of the range")]
    rows: Annotated[list[Alert], Meta(description="transitions, oldest first; at most `limit`")]
    matched: Annotated[Count, Meta(description="how many there are in the range")]


class RuleState(msgspec.Struct, frozen=True, kw_only=True):
    """A rule and where it comes from."""

    rule: Annotated[AlertRule, Meta(description="as it is judged; or, where removed, was")]
    version: Annotated[Count, Meta(description="revision in `fleet-config`; 0: the settings'")]
    state: Annotated[
        Literal["in_force", "off", "removed"],
        Meta(description="off: `enabled` is false; removed: of the settings, until it is reset"),
    ]


class RulesReply(msgspec.Struct, frozen=True, kw_only=True):
    """All alert rules."""

    rules: Annotated[list[RuleState], Meta(description="by name")]
    problems: Annotated[
        dict[str, str], Meta(description="keys of `fleet-config` that are refused, with why")
    ] = {}


class SetRule(Request, frozen=True, kw_only=True):
    """Add a rule or change one."""

    rule: Annotated[
        dict[str, Any],
        Meta(description="`name`, and fields of AlertRule; what is left out stays as it is"),
    ]
    expected_version: Annotated[
        Count | None, Meta(description="refuse (409) if the rule has another one; null: any")
    ] = None


class RuleName(Request, frozen=True, kw_only=True):
    """Which rule."""

    name: Annotated[str, Meta(description="of the rule")]


class SilenceRequest(Request, frozen=True, kw_only=True):
    """A silence to begin: until `ends_at`, or for `seconds`."""

    rule: Annotated[
        str, Meta(min_length=1, max_length=200, description="pattern of the rule's name")
    ] = "*"
    scope: Annotated[Scope | None, Meta(description="only alerts on this; null: on any")] = None
    id: Annotated[
        str,
        Meta(min_length=1, max_length=200, description="pattern of the node or pool; fleet: `all`"),
    ] = "*"
    starts_at: Annotated[Instant | None, Meta(description="null: now")] = None
    ends_at: Annotated[Instant | None, Meta(description="null: `seconds` after the start")] = None
    seconds: Annotated[
        Annotated[float, Meta(gt=0, le=366 * 86400)] | None,
        Meta(description="instead of `ends_at`; null where that is given"),
    ] = None
    author: Annotated[str, Meta(min_length=1, max_length=200, description="who wants it")]
    comment: Annotated[str, Meta(max_length=1000, description="why")] = ""
    future: Annotated[
        bool, Meta(description="also where no rule matches yet; false: then it is refused (404)")
    ] = False


class SilenceId(Request, frozen=True, kw_only=True):
    """Which silence."""

    silence_id: Annotated[Token, Meta(description="as listed")]


class SilenceState(msgspec.Struct, frozen=True, kw_only=True):
    """A silence and what it does now."""

    silence: Annotated[Silence, Meta(description="as it is kept")]
    state: Annotated[
        Literal["pending", "active", "expired"],
        Meta(description="by the clock of who answers; expired ones are kept for a day"),
    ]
    alerts: Annotated[Count, Meta(description="open alerts upon which it is now")]


class SilencesReply(msgspec.Struct, frozen=True, kw_only=True):
    """All silences."""

    answered_at: Annotated[Instant, Meta(description="when, by the clock of who answers")]
    rows: Annotated[list[SilenceState], Meta(description="by end, the next one first")]
