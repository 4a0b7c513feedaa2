"""What GPUs cost and what could be saved, as lines for a terminal."""

from collections.abc import Iterator

from agent.views.report_tables import percent, usd
from schemas.spending import Opportunity, Waste


def place(scope: str, name: str) -> str:
    """`fleet`, `pool chat`."""
    return "fleet" if scope == "fleet" else f"{scope} {name}"


def cost_line(waste: Waste) -> str:
    """What they cost, and what of it is wasted; dashes where there is no price."""
    figures = waste.figures
    if figures.gpus is None:
        return f"{place(waste.scope, waste.id)}: no GPU was measured"
    return (
        f"{place(waste.scope, waste.id)}: {usd(figures.usd_per_hour)} an hour for "
        f"{figures.gpus:.1f} GPUs, wasted {usd(figures.waste_usd_per_hour)} an hour, "
        f"{usd(figures.waste_usd_per_month)} a month ({percent(figures.waste_ratio)})"
    )


def saving_lines(opportunity: Opportunity) -> Iterator[str]:
    """What to do, the best first, and what that saves."""
    for one in opportunity.savings:
        yield (
            f"{usd(one.saving_usd_per_month)} a month, effort {one.effort}, "
            f"{place(opportunity.scope, opportunity.id)}: {one.text}"
        )
