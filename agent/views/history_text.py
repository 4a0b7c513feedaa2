"""A time range for a terminal: a line a metric, with small bars, lowest, mean, highest and last."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from agent import human
from agent.views.history_points import Point, Reply, points_of
from agent.views.report_tables import percent, usd
from schemas.history import AdviceHistoryReply, AnalysisHistoryReply

BARS = "▁▂▃▄▅▆▇█"
LEAST_BARS, MOST_BARS = 8, 60
MOST_PLACES = 12
SAME_RATIO = 1e-6
"""What differs less by its size is drawn as the same: sums of floats differ in their last bits."""
LONGEST_STEP = 2.5
"""A gap is what is longer than so many of the usual steps (at most which three in four are)."""
_ORDER = {"fleet": 0, "pool": 1, "node": 2}
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_UNITS = {"_watts": "W", "_celsius": "°C", "_hertz": "Hz", "_joules": "J"}


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    """One metric of one place; its words, where it is no number."""

    name: str
    known: Sequence[tuple[datetime, float]]
    low: float
    high: float
    words: Sequence[str] = ()


class NoSuchMetricError(ValueError):
    """A metric was asked for that the reply does not have; names those that it has."""


def history_lines(
    title: str, reply: Reply, metrics: Sequence[str], columns: int, *, all_of_them: bool = False
) -> list[str]:
    """The reply within `columns`; of what there is the `metrics`, or all of them.

    Raises:
        NoSuchMetricError: none of `metrics` is in the reply.
    """
    points = points_of(reply)
    by_place: dict[str, list[Point]] = {}
    for point in points:
        by_place.setdefault(point.place, []).append(point)
    there = dict.fromkeys(name for point in points for name in point.values)
    shown = list(there) if all_of_them else [name for name in metrics if name in there]
    if points and not shown:
        raise NoSuchMetricError(
            f"--metric {', '.join(metrics)}: not in this range; there is {', '.join(sorted(there))}"
        )
    lines = [_heading(title, reply.start, reply.end), _found(reply, points)]
    if not points:
        return lines
    places = sorted(by_place, key=lambda place: (_ORDER.get(place.split(" ")[0], 3), place))
    tables = {
        place: [line for name in shown if (line := _line(name, by_place[place])) is not None]
        for place in places[:MOST_PLACES]
    }
    cells = {(place, line.name): _cells(line) for place, table in tables.items() for line in table}
    widths = [max(map(len, column)) for column in zip(*cells.values(), _HEADS, strict=True)]
    name_width = max((len(_label(name)) for _, name in cells), default=0)
    left = columns - 2 - name_width
    gap = 2 if left - 2 - sum(width + 2 for width in widths) >= LEAST_BARS else 1
    bars = left - gap - sum(width + gap for width in widths)
    bars = max(LEAST_BARS, min(MOST_BARS, bars))
    between = " " * gap
    seconds = (reply.end - reply.start).total_seconds() / bars
    head = _row(_HEADS, widths, between)
    lines[-1] += f"; a bar is {human.duration(seconds)}"
    for number, (place, table) in enumerate(tables.items()):
        simulated = " (simulated)" if any(one.simulated for one in by_place[place]) else ""
        name = human.printable(place) + simulated
        left = 2 + name_width + gap + bars
        if number:
            lines += ["", name]
        elif len(name) <= left:
            lines += ["", f"{name:{left}}{head}"]
        else:
            lines += ["", name, f"{'':{left}}{head}"]
        for line in table:
            drawn = _drawn(line, bars, reply.start, reply.end)
            numbers = _row(cells[place, line.name], widths, between)
            lines.append(f"  {_label(line.name):{name_width}}{between}{drawn:{bars}}{numbers}")
        if not table:
            lines.append("  none of these was measured")
    if len(places) > MOST_PLACES:
        lines += ["", f"and {len(places) - MOST_PLACES} more: name one, or take --csv or --json"]
    return lines


def advice_lines(reply: AdviceHistoryReply) -> list[str]:
    """Two lines a recommendation: when, what, what became of it; and its text."""
    lines = [_heading("advice", reply.start, reply.end)]
    if not reply.rows:
        return [*lines, reply.text]
    of_all = "" if len(reply.rows) == reply.matched else f", the newest of {reply.matched:,}"
    lines.append(f"{_count(len(reply.rows), 'recommendation')}{of_all}, from FLEET_RECOMMENDATIONS")
    for row in reply.rows:
        advice = row.life.advice
        change = ""
        if advice.replicas_from is not None and advice.replicas_to is not None:
            change = f" {advice.replicas_from} → {advice.replicas_to}"
        lines += [
            "",
            f"{row.at:%m-%d %H:%M:%S}  {advice.pool}: {advice.action.replace('_', ' ')}{change}"
            f"  {row.state}",
            f"  {human.printable(advice.text)}",
        ]
        if row.closed and row.state not in ("expired",):
            lines.append(f"  {human.printable(row.closed)}")
    return lines


def _heading(title: str, start: datetime, end: datetime) -> str:
    until = f"{end:%H:%M}" if start.date() == end.date() else f"{end:%Y-%m-%d %H:%M}"
    span = human.duration((end - start).total_seconds())
    return f"{title}, {start:%Y-%m-%d %H:%M} to {until} UTC ({span})"


def _found(reply: Reply, points: Sequence[Point]) -> str:
    """How much there is, and from where; or why there is nothing."""
    if not reply.matched:
        return reply.text
    is_analysis = isinstance(reply, AnalysisHistoryReply)
    rows = len(points)
    kept = "" if rows == reply.matched else f" of {reply.matched:,}, thinned evenly"
    return (
        f"{_count(rows, 'row' if is_analysis else 'sample')}{kept}, from {_SOURCES[reply.source]}"
    )


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


_HEADS = ("low", "mean", "high", "last")
_SOURCES = {
    "metrics": "metrics",
    "events": "events",
    "rollups": "rollups",
    "both": "events and rollups",
}


def _row(cells: Sequence[str], widths: Sequence[int], between: str) -> str:
    return "".join(f"{between}{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _line(name: str, points: Sequence[Point]) -> _Line | None:
    found = [(point.at, point.values[name]) for point in points if name in point.values]
    if not found:
        return None
    if isinstance(found[-1][1], str):
        return _Line(name, (), 0.0, 0.0, [str(value) for _, value in found])
    if name.endswith("_total"):
        known = _rates([(at, _part(value, "max")) for at, value in found])
        numbers = [rate for _, rate in known]
        return _Line(name, known, min(numbers), max(numbers)) if known else None
    return _Line(
        name,
        [(at, _part(value, "mean")) for at, value in found],
        min(_part(value, "min") for _, value in found),
        max(_part(value, "max") for _, value in found),
    )


def _part(value: Any, part: str) -> float:  # noqa: ANN401 - a number or a Summary
    return float(value[part] if isinstance(value, Mapping) else value)


def _rates(counter: Sequence[tuple[datetime, float]]) -> list[tuple[datetime, float]]:
    """Growth a second from one to the next; none where the counter began anew."""
    rates = []
    for (before_at, before), (at, value) in itertools.pairwise(counter):
        seconds = (at - before_at).total_seconds()
        if seconds > 0 and value >= before:
            rates.append((at, (value - before) / seconds))
    return rates


def _label(name: str) -> str:
    return f"{name}/s" if name.endswith("_total") else name


def _cells(line: _Line) -> tuple[str, str, str, str]:
    if line.words:
        return "", "", "", line.words[-1]
    numbers = [value for _, value in line.known]
    mean = math.fsum(numbers) / len(numbers)
    low, middle, high, last = (
        _text(line.name, value) for value in (line.low, mean, line.high, numbers[-1])
    )
    return low, middle, high, last


def _text(name: str, value: float) -> str:
    if "usd_per" in name or name.endswith("_usd"):
        return usd(value)
    if name.endswith("_ratio"):
        return percent(value)
    if name.endswith("_total"):
        return human.amount(value, 3)
    if "_bytes" in name:
        return _size(value)
    if name.endswith("_seconds"):
        return human.duration(value)
    unit = next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")
    return f"{human.amount(value, 3)} {unit}".rstrip()


def _size(count_bytes: float) -> str:
    """`0 B`, `992 MiB`, `1.2 GiB`: short, for columns."""
    unit = 0
    while abs(count_bytes) >= 999.5 and unit < len(_SIZES) - 1:
        count_bytes /= 1024
        unit += 1
    digits = 1 if unit and abs(count_bytes) < 9.95 else 0
    return f"{count_bytes:.{digits}f} {_SIZES[unit]}"


def _drawn(line: _Line, bars: int, start: datetime, end: datetime) -> str:
    """A bar for each stretch of time, the mean of what is in it.

    From the lowest to the highest, of a ratio from 0 to 1. Where samples come more rarely than
    bars, a bar stands until the next one; what is much longer is a gap. Of words how often each
    was said.
    """
    if line.words:
        said = Counter(line.words).most_common()
        text = ", ".join(f"{word} {percent(count / len(line.words))}" for word, count in said)
        return text if len(text) <= bars else f"{text[: bars - 1]}…"
    stretches: list[list[float]] = [[] for _ in range(bars)]
    whole = (end - start).total_seconds()
    places = [
        min(max(int((at - start).total_seconds() / whole * bars), 0), bars - 1)
        for at, _ in line.known
    ]
    for place, (_, value) in zip(places, line.known, strict=True):
        stretches[place].append(value)
    means = [math.fsum(values) / len(values) if values else None for values in stretches]
    steps = [
        (at - before).total_seconds() for (before, _), (at, _) in itertools.pairwise(line.known)
    ]
    usual = sorted(steps)[3 * len(steps) // 4] if steps else 0.0
    for step, (place, next_place) in zip(steps, itertools.pairwise(places), strict=True):
        if step <= LONGEST_STEP * usual and next_place > place:
            means[place + 1 : next_place] = [means[place]] * (next_place - place - 1)
    known = [mean for mean in means if mean is not None]
    low, high = (0.0, 1.0) if line.name.endswith("_ratio") else (min(known), max(known))
    low, high = min(low, *known), max(high, *known)
    return "".join(
        " " if mean is None else BARS[_height(mean, low, high)] for mean in means
    ).rstrip()


def _height(value: float, low: float, high: float) -> int:
    if high - low <= SAME_RATIO * max(abs(low), abs(high)):
        return 0 if not value else len(BARS) // 2 - 1
    return min(len(BARS) - 1, int((value - low) / (high - low) * len(BARS)))
