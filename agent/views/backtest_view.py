"""A back-test on the terminal: a progress bar, then the table with its costs drawn."""

from typing import Literal

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agent.backtest import COLUMNS, Backtest, Result, cells
from agent.cli.commands import console
from agent.cli.start import errors
from handlers.backtest.run import DAY_SECONDS

BAR = 24
"""Characters of the longest bar."""


def run(test: Backtest, *, quiet: bool) -> None:
    """Run it, with a progress bar on a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=quiet) as progress:
        task = progress.add_task("back-test", total=test.total_steps)
        test.run(lambda step: progress.advance(task))


def show(result: Result) -> None:
    """The table, with the cost drawn as a bar."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate((*COLUMNS, "")):
        justify: Literal["left", "right"] = "left" if number in {0, len(COLUMNS)} else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    most = max(row.cost_ratio for row in result.rows)
    for row in result.rows:
        bar = "█" * max(1, round(BAR * row.cost_ratio / most))
        table.add_row(*cells(row), f"[green]{bar}[/]" if row.policy == "ours" else bar)
    console.print(table)
    scored = result.steps - result.warmup_steps
    console.print(
        f"{scored:,} of {result.steps:,} steps of {result.step_seconds:g} s scored; lead "
        f"{result.lead_seconds:g} s; at most {result.risk_ratio:.2%} of them may be short. "
        "Cost: by an oracle that always has just enough. Hindsight: the cheapest target, "
        "chosen on these data.",
        style="dim",
    )
    if result.warmup_steps * result.step_seconds < DAY_SECONDS:
        console.print(
            "Less than a day of warm-up: our policy still learns, and orders no more than HPA "
            "at 0.70 until a day is over. Live it is not offered before that.",
            style="dim",
        )
