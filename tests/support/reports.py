"""Reports as the handlers would make them of a recorded fleet, without a bus."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from handlers.prices import PriceRule, PriceSettings
from handlers.settings import HandlersSettings
from handlers.spending.trend import point, trend_lines
from handlers.spending.usage import figures
from schemas.report import Report, ReportGroup, ReportModel, ReportSaving, ReportStep
from schemas.spending import Opportunity, Usage
from tests.support.fleets import busy, idle, recorded, said

SETTINGS = HandlersSettings(
    prices=PriceSettings(rules=(PriceRule(gpu="H100", usd_per_gpu_hour=4.0),))
)


def made(what: Callable[[int], Sequence[dict[str, Any]]], hours: int = 4) -> Report:
    """A report of the pool `chat`, compared with a period that cost half as much."""
    emits = said(recorded(range(hours * 60), what), SETTINGS)
    usages = [
        emit.message
        for emit in emits
        if isinstance(emit.message, Usage) and emit.message.scope == "pool"
    ]
    told = [emit.message for emit in emits if isinstance(emit.message, Opportunity)]
    savings = [
        ReportSaving(scope="pool", id="chat", saving=saving)
        for message in told[-1:]
        for saving in message.savings
    ]
    whole = figures(usages)
    half = msgspec.structs.replace(whole, usd=32.0, waste_usd=40.0, utilization_ratio=0.1)
    return Report(
        answered_at=usages[-1].hour_at,
        scope="pool",
        id="chat",
        start=usages[0].hour_at,
        end=usages[-1].hour_at,
        text="In short.",
        figures=whole,
        before=half,
        measured_ratio=0.5,
        steps=[ReportStep(at=usage.hour_at, figures=figures([usage])) for usage in usages],
        step_seconds=3600.0,
        pools=[],
        nodes=[ReportGroup(id="n1", figures=whole)],
        models=[
            ReportModel(
                name=name,
                gpu_hours=use.gpu_hours,
                usd=use.usd,
                waste_usd=use.waste_usd,
                usd_per_gpu_hour=4.0,
                price_source="contract",
                price_as_of=None,
            )
            for name, use in usages[-1].models.items()
        ],
        savings=savings,
        trends=trend_lines([point([usage]) for usage in usages]),
        notes=["a note"],
    )


def day_of_usages() -> list[Usage]:
    """The hours of a day of that pool."""
    emits = said(recorded(range(0, 25 * 60, 20), fleet), SETTINGS)
    usages = [emit.message for emit in emits if isinstance(emit.message, Usage)]
    return [usage for usage in usages if usage.scope == "pool"]


def fleet(minute: int) -> list[dict[str, Any]]:
    """One GPU at half of the target, one idle."""
    return [busy("a", 0.35), idle("b")]
