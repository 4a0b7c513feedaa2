"""One HTML page that needs nothing else: a title, tables and charts."""

from collections.abc import Iterable, Sequence
from html import escape

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1340px; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; margin-bottom: 0; }} p {{ margin: .2rem 0 1rem; opacity: .75; }}
table {{ border-collapse: collapse; margin: 1rem 0 2rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #8884; }}
th:first-child, td:first-child {{ text-align: left; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 1.5rem; }}
figure {{ margin: 0; }}
@media screen and (max-width: 520px) {{ table {{ display: block; overflow-x: auto;
  font-size: .86rem; }} th, td {{ padding: .3rem .45rem; white-space: nowrap; }}
  figure .chart {{ font-size: 15px; }} }}
</style></head><body>
<h1>{title}</h1><p>{subtitle}</p>
{tables}
<div class="charts">{charts}</div>
{notes}</body></html>
"""


def page(
    title: str,
    subtitle: str,
    tables: Iterable[str],
    charts: Iterable[str],
    notes: Iterable[str] = (),
) -> str:
    """The page; `tables` and `charts` are HTML, the rest is text."""
    return _PAGE.format(
        title=escape(title),
        subtitle=escape(subtitle),
        tables="\n".join(tables),
        charts="\n".join(f"<figure>{chart}</figure>" for chart in charts),
        notes="".join(f"<p>{escape(note)}</p>\n" for note in notes),
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text."""

    def row(kind: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"

    return f"<table>{row('th', columns)}{''.join(row('td', one) for one in rows)}</table>"
