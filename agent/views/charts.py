"""Line and bar charts as SVG: no script, nothing fetched, light and dark as the reader likes."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 36, 60, 44
_LEGEND_CHARACTER_PIXELS = 7.2
_LEGEND_ROW_PIXELS = 16

STYLE = """
.chart { font: 12px system-ui, sans-serif; --ink: #24292f; --faint: #d0d7de;
  --c0: #0969da; --c1: #bf5700; --c2: #1a7f37; --c3: #8250df; --c4: #cf222e; --c5: #57606a; }
@media screen and (prefers-color-scheme: dark) { .chart { --ink: #d0d7de; --faint: #3d444d;
  --c0: #58a6ff; --c1: #f0883e; --c2: #3fb950; --c3: #bc8cff; --c4: #ff7b72; --c5: #8b949e; } }
.chart text { fill: var(--ink); } .chart .title { font-size: 14px; font-weight: 600; }
.chart .grid { stroke: var(--faint); } .chart .line { fill: none; stroke-width: 2; }
"""
_COLOURS = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """A named line; points in rising x. A y of None interrupts it: not measured."""

    name: str
    points: Sequence[tuple[float, float | None]]


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows, on which scale, and how its numbers are written."""

    label: str
    logarithmic: bool = False
    text: Callable[[float], str] = "{:g}".format
    ticks: Sequence[float] | None = None


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """An `<svg>` element, complete with its style: for a file of its own or for a page.

    The y axis starts at 0 unless it is logarithmic, which leaves out values of 0 or less. A line
    alone goes by the title.
    """
    drawn = [Series(one.name, _drawable(one.points, x, y)) for one in series]
    legend, rows = _legend([one.name for one in drawn] if len(drawn) > 1 else [])
    top = _TOP + (rows - 1) * _LEGEND_ROW_PIXELS
    known = [(px, py) for one in drawn for px, py in one.points if py is not None]
    xs, ys = [px for px, _ in known], [py for _, py in known]
    x_scale = _Scale(x, xs, _LEFT, WIDTH - _RIGHT)
    y_scale = _Scale(y, ys if y.logarithmic else [0.0, *ys], HEIGHT - _BOTTOM, top)
    parts = [_opening(title), *legend, *_grid(y_scale, y)]
    parts += [
        _text(x.text(v), x_scale(v), HEIGHT - _BOTTOM + 18, kind="below") for v in x_scale.ticks
    ]
    parts.append(_text(x.label, (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6))
    parts.append(_text(y.label, 6, top - 10, anchor="start"))
    for number, one in enumerate(drawn):
        colour = f"var(--c{number % _COLOURS})"
        path = _path(one.points, x_scale, y_scale)
        parts.append(f'<path class="line" stroke="{colour}" d="{path}"/>')
    if not known:
        parts.append(_text("nothing measured", WIDTH / 2, HEIGHT / 2))
    return "\n".join([*parts, "</svg>"])


def bar_chart(
    title: str,
    parts: Sequence[tuple[str, str]],
    bars: Sequence[tuple[str, str, Sequence[float]]],
    y: Axis,
    *,
    width: int = WIDTH,
) -> str:
    """Stacked bars as an `<svg>` element, complete with its style.

    Each part has a name and a colour; each bar what stands below it (empty: nothing), what a
    pointer shows of it, and one value a part, stacked from below.
    """
    legend, rows = _legend([name for name, _ in parts], [colour for _, colour in parts])
    top = _TOP + (rows - 1) * _LEGEND_ROW_PIXELS
    highest = max((sum(values) for _, _, values in bars), default=0.0)
    scale = _Scale(y, [0.0, highest], HEIGHT - _BOTTOM, top)
    drawn = [_opening(title, width), *legend, *_grid(scale, y, width)]
    drawn.append(_text(y.label, 6, top - 10, anchor="start"))
    room = (width - _RIGHT - _LEFT) / max(1, len(bars))
    thick = min(56.0, room * 0.8)
    for number, (below, shown, values) in enumerate(bars):
        middle, base = _LEFT + room * (number + 0.5), 0.0
        drawn.append(f"<g><title>{escape(shown)}</title>")
        for (_, colour), value in zip(parts, values, strict=True):
            at, end = scale(base + value), scale(base)
            if value > 0:
                drawn.append(
                    f'<rect x="{middle - thick / 2:.1f}" y="{at:.1f}" width="{thick:.1f}" '
                    f'height="{end - at:.1f}" fill="{colour}"/>'
                )
            base += value
        drawn.append("</g>")
        if below:
            drawn.append(_text(below, middle, HEIGHT - _BOTTOM + 18, kind="below"))
    if not highest:
        drawn.append(_text("nothing measured", width / 2, HEIGHT / 2))
    return "\n".join([*drawn, "</svg>"])


def _opening(title: str, width: int = WIDTH) -> str:
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
        f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        + _text(title, _LEFT, 18, anchor="start", kind="title")
    )


def _grid(scale: "_Scale", axis: Axis, width: int = WIDTH) -> list[str]:
    """Lines across the chart, with the values of the y axis."""
    parts: list[str] = []
    below = None
    for value in scale.ticks:
        at, label = scale(value), axis.text(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        if label != below:  # whole numbers on a scale of fractions
            parts.append(_text(label, _LEFT - 6, at + 4, anchor="end"))
        below = label
    return parts


class _Scale:
    """Values to pixels, from `start` to `end`."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self._logarithmic = axis.logarithmic
        low, high = (min(values), max(values)) if values else (1.0, 10.0)
        if low == high:
            low, high = (low / 2, high * 2 or 1.0) if axis.logarithmic else (low, high + 1)
        self.ticks = axis.ticks or (
            _powers(low, high) if axis.logarithmic else _round_steps(low, high)
        )
        low, high = min(low, *self.ticks), max(high, *self.ticks)
        self._low, self._span = self._inner(low), self._inner(high) - self._inner(low)
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        return self._start + self._length * (self._inner(value) - self._low) / self._span

    def _inner(self, value: float) -> float:
        return math.log10(value) if self._logarithmic else value


def _round_steps(low: float, high: float) -> list[float]:
    """Four to eight multiples of 1, 2 or 5 times a power of ten that enclose `low` and `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
    return [step * n for n in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten that enclose `low` and `high`, both above 0."""
    return [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def _drawable(
    points: Sequence[tuple[float, float | None]], x: Axis, y: Axis
) -> list[tuple[float, float | None]]:
    return [
        (px, None if py is None or (y.logarithmic and py <= 0) else py)
        for px, py in points
        if px > 0 or not x.logarithmic
    ]


def _path(points: Sequence[tuple[float, float | None]], x: _Scale, y: _Scale) -> str:
    steps, pen_down = [], False
    for px, py in points:
        if py is None:
            pen_down = False
            continue
        steps.append(f"{'L' if pen_down else 'M'}{x(px):.1f} {y(py):.1f}")
        pen_down = True
    # A point alone is a line of no length, which round ends make visible.
    return " ".join(steps) + ("h.01" if len(steps) == 1 else "")


def _legend(names: Sequence[str], colours: Sequence[str] = ()) -> tuple[list[str], int]:
    """The names beside their colours, in as many rows as they need."""
    at, y, parts = float(_LEFT), 36, []
    for number, name in enumerate(names):
        width = 14 + len(name) * _LEGEND_CHARACTER_PIXELS
        if at > _LEFT and at + width > WIDTH:
            at, y = float(_LEFT), y + _LEGEND_ROW_PIXELS
        colour = colours[number] if colours else f"var(--c{number % _COLOURS})"
        parts.append(f'<rect x="{at:.0f}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(name, at + 14, y, anchor="start"))
        at += width + 16
    parts = ['<g class="legend">', *parts, "</g>"] if parts else []
    return parts, (y - 36) // _LEGEND_ROW_PIXELS + 1


def _text(text: str, x: float, y: float, *, anchor: str = "middle", kind: str = "") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text{chosen} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
