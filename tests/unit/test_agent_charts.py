"""Charts are well-formed SVG that shows what was given."""

import re
from xml.etree import ElementTree

import pytest

from agent.views.charts import WIDTH, Axis, Series, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*series: Series, x: Axis | None = None, y: Axis | None = None) -> ElementTree.Element:
    text = line_chart("A <title> & more", series, x or Axis("x"), y or Axis("y"))
    return ElementTree.fromstring(text)  # noqa: S314 - our own text


def texts(chart: ElementTree.Element) -> list[str | None]:
    return [element.text for element in chart.iter(f"{SVG}text")]


def test_each_series_is_a_line_with_its_name() -> None:
    chart = drawn(Series("a<b", [(0, 0), (1, 2)]), Series("c", [(0, 1), (1, 1)]))

    assert len(list(chart.iter(f"{SVG}path"))) == 2
    assert {"A <title> & more", "a<b", "c"} <= set(texts(chart))


def test_the_y_axis_starts_at_zero_and_reaches_the_highest_value() -> None:
    chart = drawn(Series("a", [(0, 7), (1, 9.5)]))

    (path,) = chart.iter(f"{SVG}path")
    lines = [float(line.attrib["y1"]) for line in chart.iter(f"{SVG}line")]
    heights = [float(point.split()[1]) for point in path.attrib["d"].split("L")]
    assert "0" in texts(chart)
    assert min(lines) <= min(heights) <= max(heights) < max(lines)


def test_what_was_not_measured_interrupts_the_line() -> None:
    chart = drawn(Series("a", [(0, 1), (1, None), (2, 3), (3, 4)]))

    (path,) = chart.iter(f"{SVG}path")
    assert path.attrib["d"].count("M") == 2


@pytest.mark.parametrize(
    "points",
    [[], [(1, None)], [(1, 5)], [(1, 5), (2, 5)], [(0, 0)], [(1, 0.0), (2, -3)]],
    ids=["nothing", "unknown", "one", "flat", "origin", "none-above-zero"],
)
@pytest.mark.parametrize("logarithmic", [False, True], ids=["linear", "logarithmic"])
def test_little_to_draw_is_no_failure(
    points: list[tuple[float, float | None]], logarithmic: bool
) -> None:
    axis = Axis("", logarithmic=logarithmic)

    chart = drawn(Series("a", points), x=axis, y=axis)

    assert chart.tag == f"{SVG}svg"


def test_nothing_in_it_comes_from_elsewhere() -> None:
    text = line_chart("t", [Series("a", [(0, 1), (1, 2)])], Axis("x"), Axis("y"))

    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_legend_that_is_too_long_for_a_row_goes_on_in_the_next() -> None:
    names = [f"a rather long name {number}" for number in range(6)]

    svg = line_chart("t", [Series(name, [(1, 1), (2, 2)]) for name in names], Axis("x"), Axis("y"))

    rights = [int(x) + 14 + 7 * len(names[0]) for x in re.findall(r'<rect x="(\d+)"', svg)]
    assert len(rights) == len(names)
    assert max(rights) <= WIDTH
