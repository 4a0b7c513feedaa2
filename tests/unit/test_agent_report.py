"""A report in each of its forms: numbers, and what names from the bus must not do to it."""

import re
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from agent.cli.report import Format, rendered
from agent.views import report_tables
from handlers.spending.trend import point, trend_lines
from handlers.spending.usage import figures
from schemas.report import Report
from tests.support.fleets import H100, busy, idle
from tests.support.reports import day_of_usages, fleet, made

FORMATS: tuple[Format, ...] = ("text", "markdown", "html")


def nothing() -> Report:
    """A report of a period in which nothing was measured."""
    report = made(fleet)
    return msgspec.structs.replace(
        report,
        text="No GPU was measured in this period.",
        figures=figures([]),
        before=None,
        steps=[],
        nodes=[],
        models=[],
        savings=[],
        trends=[],
    )


def test_the_cards_compare_with_the_period_before() -> None:
    cards = {card.label: card for card in report_tables.cards(made(fleet))}

    assert cards["Cost"].value == "$32.00"  # 4 hours of 2 GPUs at 4 dollars
    assert cards["Cost"].change == pytest.approx(0.0)
    assert cards["Wasted"].value == "$24.00"
    assert cards["Wasted"].change == pytest.approx(-0.4)
    assert cards["Per million tokens"].value == "-"


def test_a_card_without_a_value_says_why() -> None:
    silent = {card.label: card.unknown for card in report_tables.cards(made(fleet))}
    report = made(lambda _: [busy("a", 0.35, name="X")])
    report = msgspec.structs.replace(report, savings=[])
    unpriced = {card.label: card.unknown for card in report_tables.cards(report)}
    later = msgspec.structs.replace(report, answered_at=report.end + timedelta(hours=1))
    past = {card.label: card.unknown for card in report_tables.cards(later)}

    assert silent["Per million tokens"] == "no engine told of tokens"
    assert (silent["Cost"], silent["Energy"]) == ("", "")
    assert (unpriced["Cost"], unpriced["Wasted"]) == ("no price", "no price")
    assert unpriced["Could be saved a month"] == "nothing stands out"
    assert past["Could be saved a month"] == "only told of today"


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_says_why_a_value_is_missing(form: Format) -> None:
    assert "no engine told of tokens" in rendered(made(fleet), form)


def test_a_column_that_no_row_knows_is_left_out() -> None:
    (nodes,) = [one for one in report_tables.tables(made(fleet)) if one.columns[0] == "node"]

    assert list(nodes.columns) == ["node", "GPUs", "cost", "wasted", "share", "used"]
    assert {len(row) for row in nodes.rows} == {6}


def test_the_parts_are_the_whole_in_money_or_without_a_price_in_time() -> None:
    money, of_money = report_tables.parts(made(fleet).figures)
    unpriced = made(lambda _: [busy("a", 0.35, name="X"), idle("b", name="X")])
    time, of_time = report_tables.parts(unpriced.figures)

    assert (money, time) == ("usd", "gpu_hours")
    assert sum(value for _, value in of_money) == pytest.approx(32)
    assert sum(value for _, value in of_time) == pytest.approx(8)
    assert dict(of_time)["under-used"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "$0"), (1234.5, "$1,234"), (12.345, "$12.35"), (0.0123, "$0.012")],
)
def test_money_is_written_with_the_digits_it_needs(value: float | None, text: str) -> None:
    assert report_tables.usd(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.02931, "0.0293"), (1.5, "1.5"), (1234.5, "1,234")]
)
def test_joules_are_written_with_the_digits_that_count(value: float | None, text: str) -> None:
    assert report_tables.few_digits(value) == text


def test_a_share_changes_by_points() -> None:
    shown = {card.label: report_tables.changed(card) for card in report_tables.cards(made(fleet))}

    assert shown["Utilization"] == "+8 points"  # from 10 %
    assert shown["Wasted"] == "-40 %"
    assert shown["GPUs on average"] == "±0 %"


@pytest.mark.parametrize(
    ("change", "shown"),
    [(0.01, "+1 point"), (-0.011, "-1 point"), (0.11, "+11 points"), (0.001, "±0 points")],
)
def test_one_point_is_a_point(change: float, shown: str) -> None:
    share = report_tables.Card("Share wasted", "61 %", change, None, is_share=True)

    assert report_tables.changed(share) == shown


@pytest.mark.parametrize(
    ("kind", "name", "shown"),
    [
        ("release_idle", H100, "$2,920 a month"),
        ("release_idle", "AMD Instinct MI300X", "no price known"),
        ("rebalance", H100, "serves more"),
    ],
)
def test_what_is_to_be_done_says_what_it_gains(kind: str, name: str, shown: str) -> None:
    full_beside = [busy("f", 0.95, name=name), busy("r", 0.1, name=name)]
    found = made(lambda _: full_beside if kind == "rebalance" else [idle("a", name=name)], hours=2)

    gains = [one.gain for one in report_tables.to_do(found)]

    assert gains == [shown]


def test_names_are_not_broken_at_their_hyphens() -> None:
    names = [f"gpu-node-{number}-GPU-5d1a-7f{number}" for number in range(16)]
    found = made(fleet)
    saving = msgspec.structs.replace(found.savings[0].saving, parts=names)
    of_many = msgspec.structs.replace(found.savings[0], saving=saving)

    text = rendered(msgspec.structs.replace(found, savings=[of_many]), "text")

    assert all(name in text for name in names)


def test_trends_that_are_not_known_are_left_out() -> None:
    found = made(fleet)
    known = trend_lines([point([usage]) for usage in day_of_usages()])

    titles = [table.title for table in report_tables.tables(found)]
    (trends,) = [
        table
        for table in report_tables.tables(msgspec.structs.replace(found, trends=known))
        if table.title == "Trends"
    ]

    assert "Trends" not in titles
    assert [row[1] for row in trends.rows] == ["steady"] * 3


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_says_what_was_found(form: Format) -> None:
    text = rendered(made(fleet), form).replace("\\", "")

    for words in ("Pool chat, 15 January 2027", "In short.", "$24.00", "Release 1 GPU", "a note"):
        assert words in text


@pytest.mark.parametrize("form", [*FORMATS, "json"])
def test_a_period_without_gpus_is_a_report_all_the_same(form: Format) -> None:
    text = rendered(nothing(), form)

    assert "No GPU was measured" in text
    assert "GPUs on average" not in text


def test_gpus_that_nobody_saw_are_unknown_not_none() -> None:
    assert figures([]).gpus is None
    assert msgspec.json.decode(rendered(nothing(), "json"))["figures"]["gpus"] is None


@pytest.mark.parametrize("form", FORMATS)
def test_a_name_from_the_bus_stays_a_name(form: Format) -> None:
    evil = f"{H100} | <script>alert(1)</script> [x](http://evil) \x1b[31m `\n# Title"

    text = rendered(made(lambda _: [idle("a", name=evil)]), form)

    assert "\x1b" not in text
    assert "\n# Title" not in text
    if form != "text":
        assert "<script>" not in text
        assert "[x](http" not in text or form == "html"


def test_markdown_tables_have_as_many_cells_in_every_row() -> None:
    text = rendered(made(lambda _: [idle("a", name="A|B")]), "markdown")

    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block


class _Page(HTMLParser):
    """Collects tags and attributes, and checks that tags close in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "line", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("report", [made(fleet), nothing()], ids=["full", "empty"])
def test_the_page_is_whole_and_needs_nothing_else(report: Report) -> None:
    text = rendered(report, "html")

    page = _Page()
    page.feed(text)
    assert page.open == []
    assert not page.attributes & {"src", "href", "onclick", "onload"}
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert re.findall(r"https?://[^\"]*", text.replace("http://www.w3.org/2000/svg", "")) == []


def test_the_bars_of_the_page_are_as_high_as_the_money() -> None:
    text = rendered(made(fleet), "html")

    first = re.search(r"<svg.*?</svg>", text, re.DOTALL)
    assert first is not None
    chart = ElementTree.fromstring(first[0])  # noqa: S314 - our own text
    svg = "{http://www.w3.org/2000/svg}"
    bars = [group for group in chart.iter(f"{svg}g") if group.find(f"{svg}title") is not None]
    assert len(bars) == 4
    shown = bars[0].find(f"{svg}title")
    assert shown is not None
    assert shown.text == "08:00: used $2.00, under-used $2.00, idle $4.00"
    heights = [float(rect.attrib["height"]) for rect in bars[0].iter(f"{svg}rect")]
    assert heights[0] == pytest.approx(heights[1], abs=0.2)
    assert heights[2] == pytest.approx(2 * heights[0], abs=0.3)


def test_without_a_price_the_bars_are_gpu_hours_with_their_fractions() -> None:
    text = rendered(made(lambda m: [idle("a", name="MI300X")] * (m % 10 == 0)), "html")

    assert "GPU-hours by the hour" in text
    assert "<title>08:00: idle 0.1</title>" in text


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.0, "0%"), (0.0008, "less than 1%"), (0.13, "13%"), (1.0, "100%")]
)
def test_a_page_says_how_much_was_measured(ratio: float, text: str) -> None:
    report = msgspec.structs.replace(made(fleet), measured_ratio=ratio)

    assert f"from {text} of the period's minutes" in " ".join(rendered(report, "html").split())


def test_hours_that_were_not_measured_leave_a_gap_in_the_bars() -> None:
    def with_gap(minute: int) -> list[dict[str, Any]]:
        return fleet(minute) if minute // 60 != 1 else []

    text = rendered(made(with_gap), "html")

    shown = re.findall(r"<title>(\d\d:00: .*?)</title>", text)
    hours = [
        "08:00: used",
        "09:00: nothing measured",
        "10:00: used",
        "11:00: used",
    ]
    assert [one.split(" $")[0] for one in shown] == hours * 2  # and once for a telephone
