"""A report for a terminal or as Markdown."""

import textwrap

from agent import human
from agent.views import report_tables
from agent.views.report_tables import Table
from schemas.report import Report

WIDTH = 100


def as_text(report: Report) -> str:
    """Plain text, columns aligned; in brackets the change against the period before."""
    lines = [
        report_tables.title(report),
        report_tables.period(report),
        "",
        *textwrap.wrap(report.text, WIDTH),
    ]
    shown = report_tables.cards(report)
    if shown:
        lines.append("")
    width = max((len(card.label) for card in shown), default=0)
    for card in shown:
        more = report_tables.changed(card) or card.unknown
        lines.append(f"  {card.label:{width}}  {card.value}{f'  ({more})' if more else ''}")
    if report.savings:
        lines += ["", "What to do"]
    for one in report_tables.to_do(report):
        what = f"{one.gain}, effort {one.effort}, {one.where}: {one.text}"
        for text, indent in ((what, "  "), (one.evidence, "    ")):
            lines += textwrap.wrap(
                human.printable(text),
                WIDTH,
                initial_indent=indent,
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,  # names stay whole
            )
    for table in report_tables.tables(report):
        lines += ["", table.title, *_aligned(table)]
    if report.notes:
        lines += ["", "Notes", *(f"  {human.printable(note)}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def as_markdown(report: Report) -> str:
    """Markdown, with tables as GitHub and most chats show them."""
    lines = [f"# {_escaped(report_tables.title(report))}", "", report_tables.period(report), ""]
    lines.append(_escaped(report.text))
    shown = report_tables.cards(report)
    if shown:
        lines += ["", "| | | against before |", "|---|--:|--:|"]
    for card in shown:
        more = report_tables.changed(card) or card.unknown
        lines.append(f"| {card.label} | {_escaped(card.value)} | {more} |")
    if report.savings:
        lines += ["", "## What to do", ""]
    for one in report_tables.to_do(report):
        where, text, evidence = map(_escaped, (one.where, one.text, one.evidence))
        gain = f"**{_escaped(one.gain)}**"
        lines.append(f"1. {gain}, effort {one.effort}, {where}: {text} {evidence}")
    for table in report_tables.tables(report):
        lines += ["", f"## {table.title}", "", f"| {' | '.join(table.columns)} |"]
        lines.append(f"|---|{'--:|' * (len(table.columns) - 1)}")
        lines += [f"| {' | '.join(map(_escaped, row))} |" for row in table.rows]
    if report.notes:
        lines += ["", "## Notes", "", *(f"- {_escaped(note)}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def _aligned(table: Table) -> list[str]:
    rows = [table.columns, *([human.printable(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    return [
        "  "
        + "  ".join(
            f"{cell:>{width}}" if i else f"{cell:{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _escaped(text: str) -> str:
    """Names come from the bus: they must not become tables, links or HTML."""
    for char in "\\`*_[]<>|#":
        text = text.replace(char, "\\" + char)
    return human.printable(text)
