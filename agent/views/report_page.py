"""A report as one HTML page that needs nothing else: to be read, printed and sent on."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from html import escape as escaped

from agent import human
from agent.views import report_tables
from agent.views.charts import Axis, Series, bar_chart, line_chart
from agent.views.report_tables import PARTS, Card
from schemas.report import Report, ReportStep

COLOURS = ("var(--used)", "var(--under)", "var(--held)", "var(--idle)", "var(--unknown)")
DAILY_FROM_SECONDS = 3 * 86_400
MAX_LABELS = 10
WIDE, NARROW = 1060, 640
"""Of the chart of a page, and of one on a telephone, whose letters are as large as it can show."""
# Whole charts of nothing are no news.
_LINES = (
    ("utilization_ratio", "Utilization", report_tables.percent),
    ("tokens_per_second", "Tokens a second", report_tables.few_digits),
    ("usd_per_million_tokens", "Dollars per million tokens", report_tables.usd),
    ("joules_per_token", "Joules per token", report_tables.few_digits),
)

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; --page: #fff; --ink: #1f2328; --soft: #59636e; --line: #d8dee4;
  --card: #f6f8fa; --good: #1a7f37; --bad: #b3261e; --used: #2f6fd0; --under: #e2b93b;
  --held: #ec8a3a; --idle: #d1453b; --unknown: #9aa4af; }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --page: #0f141a; --ink: #e6edf3;
  --soft: #9aa7b4; --line: #2d3640; --card: #171e26; --good: #57c26f; --bad: #ff8078;
  --used: #5b97ec; --under: #d9b74a; --held: #e6944f; --idle: #e5655c; --unknown: #6e7883; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--page); max-width: 1080px; margin: 2.5rem auto; padding: 0 1.5rem; }}
header p.kind {{ color: var(--soft); margin: 0; letter-spacing: .06em; font-size: .8rem;
  text-transform: uppercase; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: .1rem 0 .6rem; }}
h2 {{ font-size: 1.1rem; margin: 2.2rem 0 .6rem; }}
.lead {{ font-size: 1.08rem; max-width: 46rem; }}
.cards {{ display: grid; grid-template-columns: repeat(5, 1fr); gap: .7rem; margin: 1.4rem 0; }}
.card {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem .9rem; }}
.card b {{ display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }}
.card span {{ color: var(--soft); font-size: .82rem; display: block; }}
.good {{ color: var(--good) !important; }} .bad {{ color: var(--bad) !important; }}
.bar {{ display: flex; height: 30px; border-radius: 8px; overflow: hidden; gap: 2px; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: .6rem 0 0; padding: 0;
  list-style: none; }}
.legend i {{ display: inline-block; width: .75rem; height: .75rem; border-radius: 3px;
  margin-right: .45rem; }}
.todo {{ display: grid; grid-template-columns: 11rem 1fr; gap: .2rem 1.2rem; padding: .8rem 0;
  border-top: 1px solid var(--line); }}
.todo b {{ font-size: 1.2rem; }} .todo small {{ color: var(--soft); display: block; }}
.scroll {{ overflow-x: auto; }} .narrow {{ display: none; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .38rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }}
th {{ color: var(--soft); font-weight: 500; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(430px, 1fr));
  gap: 1.5rem 1rem; }}
figure {{ margin: 0; }}
ul.notes {{ padding-left: 1.1rem; }} ul.notes, footer {{ color: var(--soft); }}
footer {{ margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .8rem;
  font-size: .85rem; }}
@media screen and (max-width: 760px) {{ .cards {{ grid-template-columns: repeat(2, 1fr); }}
  .charts, .todo {{ grid-template-columns: 1fr; }} .wide {{ display: none; }}
  .narrow {{ display: block; }} th, td {{ padding: .38rem .45rem; }}
  td:first-child, th:first-child {{ position: sticky; left: 0; background: var(--page);
    min-width: 7.5rem; white-space: normal; overflow-wrap: anywhere; }} }}
@media screen and (max-width: 520px) {{ body {{ margin: 1.2rem auto; padding: 0 1rem; }}
  figure .chart {{ font-size: 20px; }} figure .chart .title {{ font-size: 24px; }}
  figure .chart .below {{ transform: translateY(8px); }}
  .narrow .chart .legend {{ display: none; }} table {{ font-size: .86rem; }} }}
@media print {{ :root {{ color-scheme: light; font-size: 11px; }} @page {{ margin: 14mm; }}
  body {{ margin: 0; max-width: none; font-size: 11px; padding: 0; }}
  .bar, .bar div, .card, .legend i, rect {{ -webkit-print-color-adjust: exact;
    print-color-adjust: exact; }}
  .bar {{ height: 20px; }} .scroll {{ overflow: visible; }}
  .card, .todo, figure, tr {{ break-inside: avoid; }} h2 {{ break-after: avoid; }}
  .charts {{ grid-template-columns: 1fr 1fr; }} }}
</style></head><body>
<header><p class="kind">GPU spending report{simulated} · {period}</p><h1>{title}</h1>
<p class="lead">{text}</p></header>
{cards}
{body}
<footer>{footer}</footer>
</body></html>
"""


def as_html(report: Report) -> str:
    """The whole page; names from the bus are escaped."""
    title = report_tables.title(report)
    cards = "".join(map(_card, report_tables.cards(report)))
    body = [
        *_whole(report),
        *_to_do(report),
        *_charts(report),
        *_tables(report),
    ]
    if report.notes:
        notes = "".join(f"<li>{_shown(note)}</li>" for note in report.notes)
        body.append(f'<h2>Notes</h2><ul class="notes">{notes}</ul>')
    return _PAGE.format(
        title=_shown(title),
        simulated=" of simulated GPUs" if report.simulated else "",
        period=report_tables.period(report),
        text=_shown(report.text),
        cards=f'<section class="cards">{cards}</section>' if cards else "",
        body="\n".join(body),
        footer=(
            f"Made by resource-agent on {report.answered_at:%Y-%m-%d %H:%M} UTC from "
            f"{report_tables.measured(report)} of the period's minutes. Each minute of each GPU is "
            "in exactly one state; what was not measured is in no sum. Changes are against the "
            "period of the same length before. The formulas are in docs/analysis.md "
            "and docs/archive_costs.md."
        ),
    )


def _shown(text: str) -> str:
    """`text` fit for HTML: names in it come from the bus."""
    return escaped(human.printable(text))


def _card(card: Card) -> str:
    moved = f"<span>{_shown(card.unknown)}</span>" if card.unknown else ""
    if card.change is not None:
        kind = ""
        if card.is_good_when_lower is not None and abs(card.change) >= 0.005:
            kind = "good" if (card.change < 0) == card.is_good_when_lower else "bad"
        moved = f'<span class="{kind}">{report_tables.changed(card)}</span>'
    return (
        f'<div class="card"><span>{_shown(card.label)}</span><b>{_shown(card.value)}</b>'
        f"{moved}</div>"
    )


def _whole(report: Report) -> Iterator[str]:
    """One bar of all that the period cost."""
    unit, of_whole = report_tables.parts(report.figures)
    whole = sum(value for _, value in of_whole)
    if not whole:
        return
    text = report_tables.usd if unit == "usd" else "{:,.1f} GPU-hours".format
    bars, names = [], []
    for (label, value), colour in zip(of_whole, COLOURS, strict=True):
        if value > 0:
            bars.append(f'<div style="flex:{value / whole:.4f};background:{colour}"></div>')
            names.append(
                f'<li><i style="background:{colour}"></i>{label} <b>{text(value)}</b> '
                f"({report_tables.percent(value / whole)})</li>"
            )
    title = "Where the money went" if unit == "usd" else "Where the time went"
    yield f'<h2>{title}</h2><div class="bar">{"".join(bars)}</div>'
    yield f'<ul class="legend">{"".join(names)}</ul>'


def _to_do(report: Report) -> Iterator[str]:
    found = report_tables.to_do(report)
    if found:
        yield "<h2>What to do</h2>"
    for one in found:
        yield (
            f'<div class="todo"><div><b>{_shown(one.gain)}</b><small>effort '
            f"{one.effort}</small></div><div>{_shown(one.text)}<small>{_shown(one.where)}: "
            f"{_shown(one.evidence)}</small></div></div>"
        )


def _tables(report: Report) -> Iterator[str]:
    for table in report_tables.tables(report):
        if table.title == report_tables.WHERE:
            continue  # it is the bar
        head = "".join(f"<th>{_shown(column)}</th>" for column in table.columns)
        rows = "".join(
            f"<tr>{''.join(f'<td>{_shown(cell)}</td>' for cell in row)}</tr>" for row in table.rows
        )
        yield (
            f'<h2>{table.title}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )


def _charts(report: Report) -> Iterator[str]:
    if not report.steps:
        return
    charts, lines = "", "".join(_lines(report))
    if report.figures.gpus is not None:
        charts = f'<figure class="wide">{_spending(report, WIDE, MAX_LABELS)}</figure>'
        charts += f'<figure class="narrow">{_spending(report, NARROW, MAX_LABELS // 2)}</figure>'
    if lines:
        charts += f'<section class="charts">{lines}</section>'
    if charts:
        yield f"<h2>Over time</h2>{charts}"


def _lines(report: Report) -> Iterator[str]:
    begin, step = report.start, timedelta(seconds=report.step_seconds)
    days = (report.end - begin) / timedelta(days=1)
    first = datetime(begin.year, begin.month, begin.day, tzinfo=begin.tzinfo)
    each = max(1, round(days / 6))
    midnights = [first + timedelta(days=n) for n in range(1, int(days) + 2, each)]
    ticks = [(day - begin) / timedelta(days=1) for day in midnights if day <= report.end]

    def when(value: float) -> str:
        moment = begin + timedelta(days=value)
        return f"{moment:%-d %b}" if len(ticks) > 1 else f"{moment:%H:%M}"

    axis = Axis("", text=when, ticks=ticks if len(ticks) > 1 else [0.0, days / 2, days])
    for field, title, text in _LINES:
        values = [getattr(one.figures, field) for one in report.steps]
        if sum(value is not None for value in values) < 2:
            continue
        points: list[tuple[float, float | None]] = []
        after = begin
        for one, value in zip(report.steps, values, strict=True):
            if one.at > after:  # a gap
                points.append(((after - begin) / timedelta(days=1), None))
            points.append(((one.at + step / 2 - begin) / timedelta(days=1), value))
            after = one.at + step
        chart = line_chart(title, [Series(title, points)], axis, Axis("", text=text))
        yield f"<figure>{chart}</figure>"


def _spending(report: Report, width: int, labels: int) -> str:
    """Stacked bars by the day, of a short period by its steps; none where nothing was measured."""
    unit, _ = report_tables.parts(report.figures)
    is_daily = (report.end - report.start).total_seconds() > DAILY_FROM_SECONDS
    at = report.start.replace(hour=0) if is_daily else report.start
    bars: dict[datetime, list[ReportStep]] = {}
    while at < report.end:
        bars[at] = []
        at += timedelta(days=1) if is_daily else timedelta(seconds=report.step_seconds)
    for one in report.steps:
        bars.setdefault(one.at.replace(hour=0) if is_daily else one.at, []).append(one)
    every = -(-len(bars) // labels)
    text = report_tables.usd if unit == "usd" else report_tables.few_digits
    drawn = []
    for number, (at, steps) in enumerate(sorted(bars.items())):
        label = f"{at:%-d %b}" if is_daily else f"{at:%H:%M}"
        values = [
            sum(getattr(one.figures, f"{name}_{unit}") or 0.0 for one in steps) for name, _ in PARTS
        ]
        shown = ", ".join(
            f"{name} {text(value)}" for (_, name), value in zip(PARTS, values, strict=True) if value
        )
        shown = f"{label}: {shown or 'nothing measured'}"
        drawn.append((label if number % every == 0 else "", shown, values))
    length = "day" if is_daily else "hour" if report.step_seconds == 3600 else "step"
    what = "Dollars" if unit == "usd" else "GPU-hours"
    names = [(name, colour) for (_, name), colour in zip(PARTS, COLOURS, strict=True)]
    return bar_chart(
        f"{what} by the {length} (UTC)", names, drawn, Axis("", text=text), width=width
    )
