"""What a report says, as rows of text: the same in a terminal, in Markdown and in HTML."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from agent import human
from schemas.money import LEAST_USD
from schemas.money import usd as as_usd
from schemas.report import ArchiveFigures, Report, ReportArchive, ReportGroup
from schemas.spending import Figures, Saving, TrendLine, TrendMetric

UNKNOWN = "-"
WHERE = "Where it went"
JOULES_PER_KWH = 3.6e6

PARTS = (
    ("used", "used"),
    ("under_used", "under-used"),
    ("idle_held", "held, nothing running"),
    ("idle", "idle"),
    ("unknown", "state unknown"),
)
"""Prefix of the fields of Figures, and its words. They add up to the whole."""


class Card(NamedTuple):
    """One number that matters; `change` against the period before, where both are known.

    Of a share the change is the difference, of the rest a share of what it was. `unknown` says
    why there is no value; empty: there is one.
    """

    label: str
    value: str
    change: float | None
    is_good_when_lower: bool | None
    is_share: bool = False
    unknown: str = ""


class Table(NamedTuple):
    """A table of text, whose first column names the rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def usd(value: float | None) -> str:
    """`$1,235`, `$12.35`, `$0.012`, `<$0.0001`, or a dash."""
    return UNKNOWN if value is None else as_usd(value)


def measured(report: Report) -> str:
    """The share of the period: `13%`; of what is little but not nothing `less than 1%`."""
    ratio = report.measured_ratio
    return "less than 1%" if 0 < ratio < 0.01 else f"{ratio:.0%}"


def percent(value: float | None) -> str:
    """`45 %`, or a dash."""
    return UNKNOWN if value is None else f"{100 * value:.0f} %"


def number(value: float | None, text: str = "{:,.1f}") -> str:
    """By `text`, or a dash."""
    return UNKNOWN if value is None else text.format(value)


def few_digits(value: float | None) -> str:
    """`0.0293`, `1.5`, `1,234`, or a dash."""
    return number(value, "{:.3g}" if value is None or value < 100 else "{:,.0f}")


def change(value: float) -> str:
    """`+12 %`, `-3 %`, `±0 %`."""
    return f"{100 * value:+.0f} %" if abs(value) >= 0.005 else "±0 %"


def changed(card: Card) -> str:
    """`+12 %`, of a share `+12 points`; empty: not known."""
    if card.change is None:
        return ""
    shown = change(card.change)
    if not card.is_share:
        return shown
    return shown.replace("%", "point" if shown[1:] == "1 %" else "points")


_TRENDS: dict[TrendMetric, tuple[str, Callable[[float], str]]] = {
    "utilization_ratio": ("utilization", lambda value: f"{100 * value:.1f} %"),
    "usd_per_hour": ("cost an hour", usd),
    "waste_usd_per_hour": ("waste an hour", usd),
    "tokens_per_second": ("tokens a second", "{:,.1f}".format),
    "usd_per_million_tokens": ("per million tokens", usd),
    "joules_per_token": ("joules per token", few_digits),
}


def title(report: Report) -> str:
    """Of whom, and which days."""
    name = "The fleet" if report.scope == "fleet" else f"{report.scope.capitalize()} {report.id}"
    first, last = report.start, report.end
    begin = f"{first:%-d %B}" if first.year == last.year else f"{first:%-d %B %Y}"
    if (first.year, first.month) == (last.year, last.month):
        begin = f"{first.day}"
    days = f"{last:%-d %B %Y}" if first.date() == last.date() else f"{begin} to {last:%-d %B %Y}"
    return f"{name}, {days}"


def period(report: Report) -> str:
    """From when to when, exactly."""
    return f"{report.start:%Y-%m-%d %H:%M} to {report.end:%Y-%m-%d %H:%M} UTC"


def cards(report: Report) -> list[Card]:
    """The numbers on top; none where no GPU was measured, which the text says."""
    if report.figures.gpus is None:
        return []
    now, before = report.figures, report.before

    def card(
        label: str,
        field: str,
        text: Callable[[float | None], str],
        *,
        lower: bool | None,
        unknown: str = "not measured",
    ) -> Card:
        value: float | None = getattr(now, field)
        earlier: float | None = None if before is None else getattr(before, field)
        is_share = text is percent
        moved = None
        if value is not None and earlier is not None and is_share:
            moved = value - earlier
        elif value is not None and earlier:
            moved = value / earlier - 1
        return Card(label, text(value), moved, lower, is_share, unknown if value is None else "")

    price = "no price" if now.usd is None else ""
    tokens = "" if now.tokens_per_second else "no engine told of tokens"
    return [
        card("Cost", "usd", usd, lower=None, unknown=price),
        card("Wasted", "waste_usd", usd, lower=True, unknown=price or "not measured"),
        card("Share wasted", "waste_ratio", percent, lower=True),
        _to_save(report),
        card("GPUs on average", "gpus", number, lower=None),
        card("Utilization", "utilization_ratio", percent, lower=False),
        card(
            "Per million tokens",
            "usd_per_million_tokens",
            usd,
            lower=True,
            unknown=tokens or price or "not all have a price",
        ),
        card("Tokens/s per GPU", "tokens_per_second_per_gpu", number, lower=False, unknown=tokens),
        card(
            "Joules per token",
            "joules_per_token",
            few_digits,
            lower=True,
            unknown=tokens or "energy not measured",
        ),
        card("Energy", "energy_joules", _kwh, lower=None),
    ]


def _to_save(report: Report) -> Card:
    saving = [s for one in report.savings if (s := one.saving.saving_usd_per_month) is not None]
    label, unknown = "Could be saved a month", ""
    if not saving:
        unknown = "no price" if report.savings else "nothing stands out"
    if not report.savings and report.end < report.answered_at:
        unknown = "only told of today"
    return Card(label, usd(sum(saving) if saving else None), None, None, unknown=unknown)


def parts(of: Figures) -> tuple[str, list[tuple[str, float]]]:
    """What the whole is made of: in `usd` where there is a price, else in `gpu_hours`."""
    unit = "gpu_hours" if of.usd is None else "usd"
    return unit, [(label, getattr(of, f"{name}_{unit}") or 0.0) for name, label in PARTS]


class ToDo(NamedTuple):
    """One thing to do."""

    text: str
    where: str
    gain: str
    """`$8,760 a month`."""
    effort: str
    evidence: str


def to_do(report: Report) -> list[ToDo]:
    """What would save something, the best first."""
    return [
        ToDo(
            text=one.saving.text,
            where=f"{one.scope} {one.id}",
            gain=_gain(one.saving),
            effort=one.saving.effort,
            evidence="; ".join([*one.saving.evidence, *_named(one.saving.parts)]),
        )
        for one in report.savings
    ]


def _gain(saving: Saving) -> str:
    if saving.kind == "rebalance":
        return "serves more"
    monthly = saving.saving_usd_per_month
    return "no price known" if monthly is None else f"{usd(monthly)} a month"


def tables(report: Report) -> list[Table]:
    """Everything below what is to be done, those without rows left out."""
    found = [
        _part_table(report.figures),
        _groups("Pools", "pool", report.pools),
        _groups("Nodes, the most waste first", "node", report.nodes),
        Table(
            "Models of GPU",
            ("model", "GPU-hours", "cost", "wasted", "a GPU-hour", "price from", "of"),
            [
                (
                    model.name,
                    number(model.gpu_hours),
                    usd(model.usd),
                    usd(model.waste_usd),
                    usd(model.usd_per_gpu_hour),
                    model.price_source or UNKNOWN,
                    model.price_as_of or UNKNOWN,
                )
                for model in report.models
            ],
        ),
        *_archive(report.archive),
        _trends(report.trends),
    ]
    return [one for one in found if one.rows]


def _archive(found: ReportArchive | None) -> Iterator[Table]:
    """What it did, and what that cost and saved: a row for each TTL class, the sum below."""
    if found is None:
        return
    rows = [
        (one.namespace, ttl_class, figures)
        for one in found.namespaces
        for ttl_class, figures in one.classes.items()
    ]
    if len(rows) > 1:
        rows.append(("all", "", found.total))
    whose = ("namespace", "TTL")
    is_asked = bool(found.total.use.requests)  # a folder is asked nothing
    kinds = ("write", "read", "list", "delete")
    did = []
    for namespace, ttl_class, figures in rows:
        asked = [_requests(figures.use.requests.get(kind, 0.0)) for kind in kinds]
        values = _held_and_restored(figures)
        did.append(
            (
                *(namespace, ttl_class),
                # Upkeep is requests alone.
                *([""] * 4 if ttl_class == "upkeep" else values[:4]),
                *(asked if is_asked else [UNKNOWN] * 4),
                "" if ttl_class == "upkeep" else values[4],
            )
        )
    columns = ("held now", "byte-hours", "stored", "restored")
    asked_of = ("writes", "reads", "lists", "deletes")
    yield Table("The archive: what it did", (*whose, *columns, *asked_of, "computing avoided"), did)
    yield Table(
        "The archive: what it cost and saved",
        (*whose, "storage", "writes", "reads", "lists", "cost", "avoided", "net"),
        [
            (
                namespace,
                ttl_class,
                *(
                    usd(None if figures.use.cost is None else getattr(figures.use.cost, field))
                    for field in ("storage_usd", "write_usd", "read_usd", "list_usd", "total_usd")
                ),
                usd(figures.avoided_usd),
                _signed_usd(figures.net_usd),
            )
            for namespace, ttl_class, figures in rows
        ],
    )


def _held_and_restored(figures: ArchiveFigures) -> list[str]:
    use, seconds = figures.use, figures.avoided_seconds
    return [
        human.size(use.held_bytes),
        f"{human.size(use.held_byte_hours)} h",
        f"{use.stored_total:,}",
        f"{use.restored_total:,}",
        UNKNOWN if seconds is None else human.duration(seconds),
    ]


def _requests(count: float) -> str:
    """A request that served several namespaces or classes is shared, so counts have fractions."""
    return f"{count:,.0f}" if count >= 10 or count == int(count) else f"{count:.1f}"


def _signed_usd(value: float | None) -> str:
    """`+$12.35`, `-$0.01`, `±$0`, or a dash."""
    if value is None:
        return UNKNOWN
    if abs(value) < LEAST_USD:
        return "±$0"
    return f"{'-' if value < 0 else '+'}{usd(abs(value))}"


def _trends(lines: Sequence[TrendLine]) -> Table:
    rows = []
    for line in lines:
        if line.slope_per_day is None and line.change_ratio is None:
            continue
        label, text = _TRENDS[line.metric]

        def signed(value: float | None, text: Callable[[float], str] = text) -> str:
            if value is None:
                return UNKNOWN
            return f"{'-' if value < 0 else '+' if value else '±'}{text(abs(value))}"

        rows.append(
            (
                label,
                line.direction
                if line.slope_per_day is not None
                else f"not known: {line.points} of 24 hours",
                signed(line.slope_per_day),
                UNKNOWN
                if line.slope_per_day is None
                else f"{signed(line.slope_low_per_day)} to {signed(line.slope_high_per_day)}",
                UNKNOWN if line.change_ratio is None else change(line.change_ratio),
            )
        )
    return Table("Trends", ("", "is", "a day", "95 % interval", "against before"), rows)


def _part_table(of: Figures) -> Table:
    unit, of_whole = parts(of)
    whole = sum(value for _, value in of_whole)
    text = usd if unit == "usd" else number
    rows = [
        (label, text(value), percent(value / whole)) for label, value in of_whole if value and whole
    ]
    return Table(WHERE, ("", "cost" if unit == "usd" else "GPU-hours", "share"), rows)


def _groups(name: str, what: str, groups: Sequence[ReportGroup]) -> Table:
    columns = (what, "GPUs", "cost", "wasted", "share", "used", "per M tokens", "J per token")
    rows = [
        (
            group.id,
            number(group.figures.gpus),
            usd(group.figures.usd),
            usd(group.figures.waste_usd),
            percent(group.figures.waste_ratio),
            percent(group.figures.utilization_ratio),
            usd(group.figures.usd_per_million_tokens),
            few_digits(group.figures.joules_per_token),
        )
        for group in groups
    ]
    # What no row knows is left out: who tells no tokens has two columns of dashes else.
    shown = [
        at
        for at in range(len(columns))
        if at == 0 or not rows or any(row[at] != UNKNOWN for row in rows)
    ]
    return Table(name, [columns[at] for at in shown], [[row[at] for at in shown] for row in rows])


def _named(names: Sequence[str]) -> list[str]:
    return [", ".join(map(human.printable, names))] if names else []


def _kwh(joules: float | None) -> str:
    return UNKNOWN if joules is None else f"{joules / JOULES_PER_KWH:,.1f} kWh"
