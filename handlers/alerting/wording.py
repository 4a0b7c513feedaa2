"""What an alert says to people."""

from handlers.alerting.rule import Rule
from schemas.analysis import Alert

_UNITS = {
    "_celsius": "°C",
    "_watts": "W",
    "_seconds": "s",
    "_bytes": "bytes",
    "_bytes_per_second": "bytes/s",
}


def value_text(metric: str, value: float) -> str:
    """`93 %` of a ratio, `85 °C`, `30 s`, `1,171,875,000 bytes/s`; of the rest the number."""
    field = metric.rsplit(".", 1)[-1]
    if field.endswith("_ratio"):
        return f"{value * 100:.3g} %"
    number = f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:,.5g}"
    for suffix, unit in _UNITS.items():
        if field.endswith(suffix):
            return f"{number} {unit}"
    return number


def where_text(alert: Alert) -> str:
    """`GPU-1 of n1`, `n1`, `pool chat`, `FLEET_DEAD`, `the fleet`."""
    if alert.scope == "fleet":
        return alert.part or "the fleet"
    of = alert.id if alert.scope == "node" else f"pool {alert.id}"
    return of if alert.part is None else f"{alert.part} of {of}"


def alert_text(rule: Rule, alert: Alert, detail: str | None) -> str:
    """What is wrong, where, by how much; or why it is over."""
    begin = f"{rule.settings.summary or alert.metric}: {where_text(alert)}"
    if alert.transition == "cleared":
        return f"{begin} {_end(alert)}"
    if detail:
        return f"{begin}: {detail} ({alert.severity})"
    if alert.value is None or _is_yes_or_no(rule):
        return f"{begin} ({alert.severity})"
    side = "at or above" if rule.settings.comparison == ">=" else "at or below"
    aggregate = f"{rule.settings.aggregate} " if rule.settings.aggregate else ""
    held = f" for {alert.for_seconds:g} s" if alert.for_seconds else ""
    return (
        f"{begin}: {aggregate}{value_text(alert.metric, alert.value)}, {side} "
        f"{value_text(alert.metric, alert.threshold)}{held} ({alert.severity})"
    )


def ended_text(alert: Alert) -> str:
    """The text of an alert whose rule is not there any more."""
    return f"{alert.rule.split('-', 1)[0]}: {where_text(alert)} {_end(alert)}"


def _end(alert: Alert) -> str:
    match alert.cleared_because:
        case "gone":
            return "is no longer reported"
        case "no_news":
            return "has sent nothing for long"
        case "rule_changed":
            return "is judged anew: the rule was changed"
        case "rule_removed":
            return "is not judged any more: the rule was removed or switched off"
        case _ if alert.value is None:
            return "is fine again"
        case _:
            return f"is back at {value_text(alert.metric, alert.value)}"


def _is_yes_or_no(rule: Rule) -> bool:
    return rule.metric is not None and rule.metric.is_yes_or_no
