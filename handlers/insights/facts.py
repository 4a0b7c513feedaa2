"""What is known, as sentences with stand-ins for names: one function for each kind of message."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from handlers.alerting.defaults import DEFAULT_RULES
from handlers.alerting.metric_path import MetricPath
from handlers.alerting.stale import stale_rule
from handlers.insights.names import Names
from handlers.settings import AlertSettings
from handlers.utilization.levels import RANK
from schemas.alerts import SEVERITIES
from schemas.analysis import Alert, Bottleneck, Severity, Utilization
from schemas.message import Message
from schemas.money import usd
from schemas.scaling import SCALING, Recommendation
from schemas.spending import Opportunity, Waste

MAX_BOTTLENECKS = 5
MAX_PARTS = 3
_WORD = re.compile(r"[a-z][a-z0-9_]{0,40}(?:\.[a-z][a-z0-9_]{0,40})?")
_BRACKETS = re.compile(r"\[[^]]*\]")
_SUMMARIES = {
    (rule.name, rule.metric): rule.summary for rule in (*DEFAULT_RULES, stale_rule(AlertSettings()))
}
"""Our own words for what is wrong; those of other rules may be anybody's."""
_RESOURCES = {
    "cpu": "CPU",
    "memory": "host memory",
    "gpu": "GPU",
    "gpu_memory": "GPU memory",
    "kv_cache": "KV cache",
    "disk": "the busiest disk",
    "network": "the fullest network interface",
}
_STATES = {
    "": "of unknown state",
    "active": "active",
    "idle": "idle",
    "idle_held": "idle but with memory held",
}

_SAVINGS = {
    "release_idle": "release GPUs that are idle",
    "unload_held": "unload or share GPUs that are idle but with memory held",
    "pack_under_used": "pack the work of under-used GPUs onto fewer",
    "rebalance": "spread the work of full GPUs over others that have room",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """One sentence; `key` changes when what it says changes in kind, not with each figure."""

    key: str
    severity: Severity
    text: str


def facts_of(messages: Sequence[Message], names: Names, limit: int) -> list[Fact]:
    """What `messages` say, the worst first; beyond `limit` only how many more there are."""
    alerts = [message for message in messages if isinstance(message, Alert)]
    alerts.sort(key=_urgency)
    # There may be thousands; those behind so many worse ones are counted, not put into words.
    counted = {id(alert): alert.severity for alert in alerts[limit:]}
    facts = [
        fact
        for message in messages
        if id(message) not in counted
        for fact in _OF[type(message)](message, names)
    ]
    facts.sort(key=_urgency)
    if len(facts) + len(counted) <= limit:
        return facts
    left_out = Counter(counted.values())
    left_out.update(fact.severity for fact in facts[limit - 1 :])
    counts = ", ".join(f"{left_out[one]} {one}" for one in reversed(SEVERITIES) if left_out[one])
    rest = Fact(f"more.{counts}", "info", f"Left out here for length: {counts} facts.")
    return [*facts[: limit - 1], rest]


def _urgency(one: Fact | Alert) -> int:
    return -RANK[one.severity]


def figure(value: float | None, name: str) -> str:
    """A value as people read it, by the unit that `name` carries."""
    if value is None:
        return "not measured"
    if name.endswith("_ratio"):
        return f"{value:.1%}".replace("%", " %")
    for ending, unit in (("_bytes", " bytes"), ("_seconds", " s"), ("_celsius", " °C")):
        if name.endswith(ending):
            return _plain(value) + unit
    return _plain(value)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _utilization(use: Utilization, names: Names) -> Iterator[Fact]:
    where, key = _place(use.scope, use.id, names), f"utilization.{use.scope}.{use.id}"
    resources = ", ".join(
        f"{_RESOURCES[one.resource]} {figure(one.mean_ratio, '_ratio')} on average and "
        f"{figure(one.peak_ratio, '_ratio')} at most ({one.level})"
        for one in use.resources
    )
    yield Fact(
        f"{key}.{use.level}.{use.health}",
        "info",
        f"{where} in the last {use.window_seconds:g} s: use is {use.level or 'not measured'}, "
        f"health {use.health or 'not measured'}, efficiency "
        f"{figure(use.efficiency_ratio, '_ratio')}; nodes that reported: {use.nodes}. "
        f"{resources or 'No resource was measured'}.",
    )
    for one in use.bottlenecks[:MAX_BOTTLENECKS]:
        part = "" if one.resource_id is None else f" of {names.of('PART', one.resource_id)}"
        resource = _RESOURCES.get(one.resource) or _known(one.resource, names)
        yield Fact(
            f"bottleneck.{use.scope}.{use.id}.{one.resource}.{one.resource_id}.{one.severity}",
            one.severity,
            f"Bottleneck in {where} ({one.severity}): {resource}{part} at "
            f"{figure(one.value_ratio, '_ratio')}, {_reached(one)} "
            f"{figure(one.threshold_ratio, '_ratio')}.",
        )
    if len(use.bottlenecks) > MAX_BOTTLENECKS:
        more = len(use.bottlenecks) - MAX_BOTTLENECKS
        yield Fact(f"{key}.more", "info", f"{where} has {more} further bottlenecks.")
    if use.gpus:
        states = Counter(sorted(gpu.state or "" for gpu in use.gpus))
        text = ", ".join(f"{count} {_STATES[state]}" for state, count in states.items())
        yield Fact(f"{key}.{text}", "info", f"GPUs of {where}: {text}.")


def _reached(bottleneck: Bottleneck) -> str:
    """It ends a margin below its threshold."""
    is_below = bottleneck.value_ratio < bottleneck.threshold_ratio
    return "after it had reached" if is_below else "threshold"


def _alert(alert: Alert, names: Names) -> Iterator[Fact]:
    where = _place(alert.scope, alert.id, names)
    if alert.part is not None:
        where = f"{names.of('PART', alert.part)} in {where}"
    name, field = alert.metric, alert.metric.rpartition(".")[2]
    summary = _SUMMARIES.get((alert.rule.partition("-")[0], name))
    what = "" if summary is None else f"{summary}: "
    measured = f"{_metric(name, names)} of {where}"
    value, threshold = figure(alert.value, field), figure(alert.threshold, field)
    # The value is of when it was raised or its severity changed.
    said = f"{measured} reached {value}, threshold {threshold}, for {alert.for_seconds:g} s"
    if summary is not None and _is_converted(name):  # a 1 of yes or no tells nothing more
        said = where
    yield Fact(
        f"{alert.alert_id}.{alert.severity}",
        alert.severity,
        f"Open alert ({alert.severity}): {what}{said}.",
    )


def _waste(waste: Waste, names: Names) -> Iterator[Fact]:
    """The cost, and of GPU-time what is wasted; without prices the latter alone."""
    figures = waste.figures
    if figures.gpus is None or not figures.gpu_hours:
        return
    money = "they have no price"
    if figures.usd_per_hour is not None and figures.waste_usd_per_hour is not None:
        money = (
            f"they cost {_usd(figures.usd_per_hour)} per hour, of which "
            f"{_usd(figures.waste_usd_per_hour)} are wasted, "
            f"{_usd(figures.waste_usd_per_month)} per month at this rate"
        )
    shares = ", ".join(
        f"{figure(gpu_hours / figures.gpu_hours, '_ratio')} {what}"
        for gpu_hours, what in (
            (figures.idle_gpu_hours, "idle"),
            (figures.idle_held_gpu_hours, "idle but with memory held"),
            (figures.under_used_gpu_hours, "under-used"),
            (figures.unknown_gpu_hours, "of unknown state"),
        )
    )
    yield Fact(
        f"waste.{waste.scope}.{waste.id}",
        "info",
        f"GPUs of {_place(waste.scope, waste.id, names)}, {_plain(figures.gpus)} on average: "
        f"{money}; of their time {shares}.",
    )


def _opportunity(opportunity: Opportunity, names: Names) -> Iterator[Fact]:
    where = _place(opportunity.scope, opportunity.id, names)
    for one in opportunity.savings:
        money = "no saving in money is known"
        if one.saving_usd_per_hour is not None:
            money = (
                f"saving {_usd(one.saving_usd_per_hour)} per hour, "
                f"{_usd(one.saving_usd_per_month)} per month"
            )
        parts = [names.of("PART", part) for part in one.parts[:MAX_PARTS]]
        among = f", {', '.join(parts)} among them" if parts else ""
        yield Fact(
            f"opportunity.{opportunity.scope}.{opportunity.id}.{one.kind}",
            "info",
            f"Could be done in {where}: {_SAVINGS[one.kind]}; GPUs: {one.gpus}{among}; {money}; "
            f"effort {one.effort}.",
        )


def _usd(value: float | None) -> str:
    return "an unknown amount of money" if value is None else usd(value)


def _recommendation(advice: Recommendation, names: Names) -> Iterator[Fact]:
    change, replicas = advice.action.replace("_", " "), ""
    if advice.action in SCALING:
        replicas = f" from {advice.replicas_from} to {advice.replicas_to} replicas"
    saving = advice.saving_usd_per_hour
    money = "" if saving is None else f", saving {usd(saving)} per hour"
    if saving is not None and saving < 0:
        money = f", costing {usd(-saving)} more per hour"
    signals = "; ".join(
        f"{_known(one.signal, names)} {figure(one.value, one.signal)}"
        + ("" if one.threshold is None else f" (target {figure(one.threshold, one.signal)})")
        for one in advice.evidence
    )
    yield Fact(
        advice.recommendation_id,
        "warning" if advice.action == "scale_up" else "info",
        f"Standing advice: {change} {names.of('POOL', advice.pool)}{replicas}, because of "
        f"{_known(advice.reason, names)}; risk {advice.risk}, confidence "
        f"{figure(advice.confidence_ratio, '_ratio')}, in effect after "
        f"{advice.effective_after_seconds:g} s{money}. Measured: {signals or 'nothing'}.",
    )


def _place(scope: str, name: str, names: Names) -> str:
    return "the fleet" if scope == "fleet" else f"{scope} {names.of(scope.upper(), name)}"


def _metric(path: str, names: Names) -> str:
    """A path without what stands in brackets, which anybody may have written."""
    return _known(path, names) if _path(path) is None else _BRACKETS.sub("", path)


def _is_converted(path: str) -> bool:
    """Whether a metric of the rules that are there from the start is no number by itself."""
    found = _path(path)
    return found is not None and found.is_yes_or_no


@functools.lru_cache(maxsize=1024)
def _path(path: str) -> MetricPath | None:
    try:
        return MetricPath(path)
    except ValueError:
        return None


def _known(word: str, names: Names) -> str:
    """A field's name as it is; anything else, which a stranger may have written, stays hidden."""
    return word if _WORD.fullmatch(word) else names.of("NAME", word)


_OF: Mapping[type[Message], Callable[[Any, Names], Iterable[Fact]]] = {
    Utilization: _utilization,
    Alert: _alert,
    Recommendation: _recommendation,
    Waste: _waste,
    Opportunity: _opportunity,
}
