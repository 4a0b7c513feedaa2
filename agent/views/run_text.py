"""A whole run as lines for a terminal."""

import functools
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from agent import human
from agent.views.advice_text import change, money
from agent.views.money_text import cost_line, place, saving_lines
from agent.views.report_tables import percent
from schemas.analysis import Alert, Utilization
from schemas.insights import Insight
from schemas.run import RunReply, RunStep
from schemas.scaling import Recommendation
from schemas.spending import Trend, Waste

OLD_SECONDS = 120.0
"""Judgements are published each minute: an older one is of what is not heard any more."""
MARKS = {"done": "✓", "failed": "✗", "skipped": "-"}


def run_lines(run: RunReply) -> Iterator[str]:
    """Its steps, then what they found; of a step that failed nothing more."""
    yield f"{place(run.scope, run.id)}, {run.answered_at:%F %T}Z"
    yield f"run {run.correlation_id}: {run.state} in {human.duration(run.seconds)}"
    yield from (_step(step) for step in run.steps)
    yield from _section("In words", [run.insight] if run.insight else [], _words)
    yield from _section("Use", run.utilization, functools.partial(_use, run.answered_at))
    yield from _section("Open alerts", run.alerts, _alert)
    yield from _section("Cost", run.waste, _cost)
    yield from _section("Trends", run.trends, _trend)
    yield from _section("What can be saved", run.opportunities, saving_lines)
    yield from _section("Advice", run.recommendations, _advice)


def _step(step: RunStep) -> str:
    took = "" if step.state == "skipped" else human.duration(step.seconds)
    return f"  {MARKS[step.state]} {step.step:15} {took:>8}  {human.printable(step.text)}"


def _section(
    title: str,
    found: Any,  # noqa: ANN401 - a list, a reply with `rows`, or None
    lines: Callable[[Any], Iterator[str]],
) -> Iterator[str]:
    shown = []
    for row in getattr(found, "rows", found) or []:
        note = " (simulated)" if row.simulated else ""
        shown += [f"  {human.printable(line)}{note}" for line in lines(row)]
    if shown:
        yield from ("", title, *shown)


def _words(insight: Insight) -> Iterator[str]:
    if insight.source == "llm":
        yield insight.text
    yield from (f"{one.severity}: {one.text}" for one in insight.findings)


def _use(answered_at: datetime, use: Utilization) -> Iterator[str]:
    age_seconds = (answered_at - use.decided_at).total_seconds()
    age = f", judged {human.duration(age_seconds)} ago" if age_seconds > OLD_SECONDS else ""
    means = ", ".join(f"{one.resource} {percent(one.mean_ratio)}" for one in use.resources)
    yield (
        f"{place(use.scope, use.id)}: {use.level or 'not measured'}, "
        f"{use.health or 'health unknown'}; {means or 'nothing measured'}{age}"
    )
    for one in use.bottlenecks:
        part = f" of {one.resource_id}" if one.resource_id else ""
        yield (
            f"    {one.severity} bottleneck: {one.resource}{part} at {percent(one.value_ratio)}, "
            f"from {percent(one.threshold_ratio)} on"
        )


def _alert(alert: Alert) -> Iterator[str]:
    yield f"{alert.severity}: {alert.text}"


def _cost(waste: Waste) -> Iterator[str]:
    yield cost_line(waste)


def _trend(trend: Trend) -> Iterator[str]:
    for line in trend.lines:
        if line.direction in ("rising", "falling"):
            yield f"{place(trend.scope, trend.id)}: {line.text}"


def _advice(advice: Recommendation) -> Iterator[str]:
    yield f"{advice.recommendation_id}  {change(advice)}, {money(advice)}, {advice.risk} risk"
    yield f"    {advice.text or advice.reason}"
