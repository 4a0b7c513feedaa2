"""The Prometheus text format, 0.0.4 and OpenMetrics, read by prometheus_client's parser.

That parser takes 30 to 60 µs a sample, and of a page we want a tenth: only lines of wanted metrics
reach it. Both formats go through the parser of 0.0.4. Their sample lines are the same but for
exemplars, which it passes over; the OpenMetrics parser refuses a whole page for one histogram that
was read while it grew, as engines of several processes serve it.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

MAX_SERIES = 10_000
MAX_LINE_LENGTH = 8192
"""The parser takes quadratic time for escaped label values, so lines must be short."""
_SHOWN = 160
_NAME = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*")

Names: TypeAlias = tuple[str, ...]
"""Names of one metric, newest first: the first that is on the page counts."""


class PageError(Exception):
    """A page that cannot be used; the text says why."""


class Series(NamedTuple):
    """One sample of a page."""

    labels: Mapping[str, str]
    value: float


class Page:
    """The series of a page, or of one engine on it, by metric name."""

    def __init__(self, series: Mapping[str, Sequence[Series]]) -> None:
        self.series = series

    def find(self, names: Names) -> Sequence[Series]:
        """All series of the first of `names` that is there."""
        return next((self.series[name] for name in names if name in self.series), ())

    def has(self, names: Names) -> bool:
        """Whether any of `names`, or a histogram of that name, is there."""
        return any(name in self.series or f"{name}_bucket" in self.series for name in names)

    def value(self, names: Names) -> float | None:
        """A gauge: None where it is missing, not finite, or has several different values."""
        values = {series.value for series in self.find(names)}
        return _finite(values.pop()) if len(values) == 1 else None

    def total(self, names: Names) -> float | None:
        """A counter, summed over the labels that split it (reason, worker …)."""
        found = self.find(names)
        try:
            return _finite(math.fsum(series.value for series in found)) if found else None
        except (OverflowError, ValueError):  # 1e308 twice, or infinity with its opposite
            return None

    def buckets(self, names: Names) -> dict[float, float]:
        """A histogram's counts by upper bound, summed over the labels that split it."""
        counts: dict[float, float] = {}
        for labels, value in self.find(tuple(f"{name}_bucket" for name in names)):
            bound = _bound(labels.get("le", ""))
            counts[bound] = counts.get(bound, 0.0) + value
        return {} if any(not math.isfinite(count) for count in counts.values()) else counts


def parse_page(body: bytes, wanted: frozenset[str], *, is_openmetrics: bool = False) -> Page:
    """The series of `body` whose metrics are `wanted`; types, help and timestamps are not kept.

    Raises:
        PageError: cut off, a wanted line that is not the format or not UTF-8, too many of them.
    """
    if is_openmetrics and not body.rstrip().endswith(b"# EOF"):
        raise PageError("the page ends before its # EOF")
    lines = list(_wanted_lines(body, wanted))
    series: dict[str, list[Series]] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines)):
            for sample in family.samples:
                one = Series(sample.labels, float(sample.value))
                series.setdefault(sample.name, []).append(one)
    except (ValueError, IndexError, OverflowError) as error:
        raise PageError(f"a line is not Prometheus text: {str(error)[:_SHOWN]}") from None
    return Page(series)


def _wanted_lines(body: bytes, wanted: frozenset[str]) -> Iterable[str]:
    """The lines of wanted metrics. Line by line: a split would hold the interpreter too long."""
    names = {name.encode() for name in wanted}
    count = 0
    for line in io.BytesIO(body):
        match = _NAME.match(line)
        if match is None or match[0] not in names:
            continue
        name = match[0].decode()
        count += 1
        if count > MAX_SERIES:
            raise PageError(f"more than {MAX_SERIES} series of interest")
        if len(line) > MAX_LINE_LENGTH:
            raise PageError(f"a line of {name} has {len(line)} bytes")
        try:
            yield line.decode().rstrip("\n")
        except UnicodeDecodeError:
            raise PageError(f"a line of {name} is not UTF-8") from None


def _bound(text: str) -> float:
    try:
        bound = float(text)
    except ValueError:
        raise PageError(f"a bucket ends at {text[:_SHOWN]!r}") from None
    if math.isnan(bound):
        raise PageError("a bucket ends at NaN")
    return bound


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
