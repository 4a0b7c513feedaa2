"""How `top` and the live view of `up` look: as much as the terminal has room for."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent import human
from agent.fleet import EngineRow, FleetRows, GpuRow, NodeRow, PoolRow, Row, mean, total
from schemas.alert_api import AlertsReply
from schemas.analysis import Alert, Severity
from schemas.api import ArchiveStatus
from schemas.engines import CacheMetrics
from schemas.scaling import Recommendation

R = TypeVar("R", bound=Row)

SECTIONS = ("alerts", "pools", "engines", "gpus", "nodes", "advice")
"""From the top down."""
NO_GPUS = "no GPUs are reported (try --simulate-gpus 8xH100)"
NO_ENGINES = "no engines: scrape them with --engine URL, or try --simulate-engines 4"
NOT_KNOWN = "is not known: the handlers have not answered"
UNKNOWN = "–"
BAR_CELLS = 6
WIDE = 110
NARROW = 72
"""Below it, columns that can be spared are."""
SEVERITY_COLOURS: dict[Severity, str] = {"critical": "red", "warning": "yellow", "info": "cyan"}
_HEALTH_COLOURS = {"healthy": "green", "degraded": "yellow", "critical": "red"}
_STATES = {"active": ("active", "green"), "idle_held": ("held", "yellow"), "idle": ("idle", "dim")}


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """Everything that is drawn."""

    rows: FleetRows
    alerts: AlertsReply | None
    """None: nobody answered."""
    is_advice_told: bool
    health: str | None
    archive: ArchiveStatus | None
    messages: int
    only: str = ""
    where: str = ""
    """`of node n1`, `in pool chat`; empty: all is shown."""
    keys: str = ""
    top: int = 0
    """First row of a section that is alone."""


def draw(picture: Picture, width: int, height: int) -> Group:
    """The whole screen, at most `height` lines; alone or all, sections share what room there is."""
    is_wide = width >= WIDE
    sections = {name: _section(name, picture, width) for name in SECTIONS}
    storage = _storage(picture)
    fixed = [_headline(picture), _summary(picture)]
    room = height - len(fixed) - len(storage) - bool(picture.keys)
    if picture.only:
        chosen = {picture.only: sections[picture.only]}
    else:
        chosen = {name: one for name, one in sections.items() if one.rows or one.if_empty}
    room -= sum(1 for one in chosen.values() if one.rows)  # their headers
    shares = _shares({name: max(1, len(one.rows)) for name, one in chosen.items()}, room)
    parts: list[RenderableType] = list(fixed)
    for name, one in chosen.items():
        parts.append(_table(one, shares[name], picture.top if picture.only else 0, is_wide=is_wide))
    parts += storage
    if picture.keys:
        parts.append(_line(picture.keys, "dim"))
    return Group(*parts)


@dataclasses.dataclass(frozen=True, slots=True)
class _Section:
    columns: Sequence[tuple[str, str]]
    """Header and justification."""
    rows: Sequence[Any]
    cells: Callable[[Any], Sequence[Text]]
    """Of one row: thousands are there, and few are drawn."""
    if_empty: str = ""
    beyond: int = 0
    """Further rows that were not asked for."""


def _shares(wanted: dict[str, int], room: int) -> dict[str, int]:
    """Lines for each section: what it wants, or an equal part of what the others leave."""
    shares: dict[str, int] = {}
    left = dict(wanted)
    while left:
        part = max(1, room // len(left))
        small = [name for name, lines in left.items() if lines <= part]
        for name in small or list(left)[:1]:
            # What cannot be shared out goes to those above.
            shares[name] = min(
                left.pop(name), part if small else max(1, -(-room // (len(left) + 1)))
            )
            room -= shares[name]
    return shares


def _table(section: _Section, most: int, first: int, *, is_wide: bool) -> RenderableType:
    if not section.rows:
        return _line(section.if_empty or "none", "dim")
    table = Table(
        box=None,
        expand=True,
        pad_edge=False,
        padding=(0, 2 if is_wide else 1, 0, 0),
        header_style="on grey19",
    )
    for number, (header, justify) in enumerate(section.columns):
        table.add_column(
            Text(header, style="bold" if number == 0 else "dim"),
            justify="right" if justify == "right" else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if justify == "text" else None,
        )
    rows = section.rows[first:]
    is_cut = len(rows) > most > 1
    for row in rows[: most - 1 if is_cut else most]:
        is_stale = isinstance(row, Row) and row.is_stale
        table.add_row(*section.cells(row), style="dim" if is_stale else "")
    more_rows = section.beyond + (len(rows) - most + 1 if is_cut else 0)
    if more_rows:
        more = Text(f"… {more_rows} more", style="dim")
        table.add_row(more, *[Text()] * (len(section.columns) - 1))
    return table


def _headline(picture: Picture) -> Text:
    health = picture.health or "starting"
    rows = picture.rows
    simulated = any(row.simulated for row in (*rows.nodes, *rows.gpus, *rows.engines))
    return _join(
        ("resource-agent ", "bold"),
        (f"● {health}", _HEALTH_COLOURS.get(health, "dim")),
        ("  simulated" if simulated else "", "magenta"),
        (f"  {time.strftime('%H:%M:%S')}  {picture.messages:,} messages", "dim"),
        ("  `resource-agent health` says why" if health in ("degraded", "critical") else "", "dim"),
    )


def _summary(picture: Picture) -> Text:
    rows = picture.rows
    gpus = [gpu for gpu in rows.gpus if not gpu.is_stale]
    heat = [g.temperature_celsius for g in gpus if g.temperature_celsius is not None]
    power = total(gpu.power_watts for gpu in gpus)
    parts = [f"{_many(len(rows.nodes), 'node')}"]
    if gpus:
        busy = mean(gpu.busy_ratio for gpu in gpus)
        parts.append(f"{_many(len(gpus), 'GPU')} {_percent(busy)} busy")
    if rows.engines:
        running = total(engine.running for engine in rows.engines if not engine.is_stale)
        waiting = total(engine.waiting for engine in rows.engines if not engine.is_stale)
        parts.append(f"{_count(running)} running, {_count(waiting)} waiting")
    # Last, as a terminal of 80 columns cuts the line.
    if power is not None:
        parts.append(f"{power:,.0f} W")
    if heat:
        parts.append(f"hottest {max(heat):.0f} °C")
    text = Text(no_wrap=True, overflow="ellipsis")
    alerts = picture.alerts
    for severity, colour in SEVERITY_COLOURS.items():
        count = alerts.by_severity.get(severity) if alerts else None
        if count:
            text.append(f"{count} {severity}", style=f"bold {colour}").append(" · ")
    if alerts and alerts.silenced_total:
        text.append(f"{alerts.silenced_total} silenced · ", style="dim")
    return text.append(" · ".join(parts))


def _section(name: str, picture: Picture, width: int) -> _Section:
    make: dict[str, Callable[[Picture, int], _Section]] = {
        "nodes": _nodes,
        "gpus": _gpus,
        "engines": _engines,
        "pools": _pools,
        "alerts": _alerts,
        "advice": _advice,
    }
    return make[name](picture, width)


def _none(anywhere: str, what: str, picture: Picture) -> str:
    """Why a section is empty: there is `anywhere` none, or none where one looked."""
    return f"{what} {picture.where} is heard of" if picture.where else anywhere


def _nodes(picture: Picture, width: int) -> _Section:
    is_wide, is_narrow = width >= WIDE, width < NARROW
    columns = [("NODE", "left"), ("pool", "left"), ("GPUs", "right"), ("CPU", "left")]
    columns += [("load", "right")] if is_wide else []
    columns += [("memory", "left"), ("disk", "right")]
    columns += [] if is_narrow else [("in", "right"), ("out", "right")]
    columns += [("", "text"), ("age", "right")]

    def cells(row: NodeRow) -> list[Text]:
        load = [_plain(_number(row.load_1m))] if is_wide else []
        rates = [] if is_narrow else [row.received_bytes_per_second, row.sent_bytes_per_second]
        return [
            *(_name(row.node), _name(row.pool), _plain(row.gpus or UNKNOWN), _bar(row.cpu_ratio)),
            *load,
            *(_bar(row.memory_ratio, 0.90, 0.95), _share(row.disk_ratio, 0.90, 0.95)),
            *(_plain(_rate(rate)) for rate in rates),
            *(Text(), _age(row)),
        ]

    if_empty = _none("no node is heard of", "no node", picture)
    return _Section(columns, _troubled_first(picture, picture.rows.nodes), cells, if_empty)


def _gpus(picture: Picture, width: int) -> _Section:
    is_wide, is_narrow = width >= WIDE, width < NARROW
    columns = [("GPU", "left"), *([("model", "left")] if is_wide else []), ("state", "left")]
    columns += [("busy", "left"), ("memory", "left")]
    columns += [] if is_narrow else [("power", "right")]
    columns += [("temp.", "right"), ("note", "text"), ("age", "right")]

    def cells(row: GpuRow) -> list[Text]:
        model = [_name((row.model or "").removeprefix("NVIDIA "))] if is_wide else []
        word, colour = _STATES.get(row.state or "", (UNKNOWN, "dim"))
        if not row.is_reachable:
            word, colour = "lost", "bold red"
        limit = f" / {row.power_limit_watts:.0f}" if is_wide and row.power_limit_watts else ""
        power = UNKNOWN if row.power_watts is None else f"{row.power_watts:.0f}{limit} W"
        return [
            *(_name(f"{row.node} #{row.index}"), *model, Text(word, colour)),
            *(_bar(row.busy_ratio), _bar(row.memory_ratio)),
            *([] if is_narrow else [_plain(power)]),
            _heat(row.temperature_celsius, row.slowdown_celsius),
            *(Text(human.printable(row.note), "yellow"), _age(row)),
        ]

    if_empty = _none(NO_GPUS, "no GPU", picture)
    return _Section(columns, _troubled_first(picture, picture.rows.gpus), cells, if_empty)


def _engines(picture: Picture, width: int) -> _Section:
    is_wide, is_narrow = width >= WIDE, width < NARROW
    columns = [("ENGINE", "left"), ("pool", "left"), *([("node", "left")] if is_wide else [])]
    columns += [("run", "right"), ("wait", "right"), ("KV", "left"), ("TTFT p95", "right")]
    columns += [("ITL p95", "right")] if is_wide else []
    columns += [] if is_narrow else [("tokens/s", "right")]
    columns += [("", "text"), ("age", "right")]

    def cells(row: EngineRow) -> list[Text]:
        node = [_name(row.node)] if is_wide else []
        itl = [_plain(_time(row.itl_p95_seconds))] if is_wide else []
        tokens = [] if is_narrow else [_plain(_number(row.tokens_per_second))]
        return [
            *(_name(row.engine), _name(row.pool), *node),
            *(_plain(_count(row.running)), _waiting(row.waiting)),
            *(_bar(row.kv_ratio, 0.90, 0.98), _plain(_time(row.ttft_p95_seconds)), *itl),
            *(*tokens, Text(), _age(row)),
        ]

    if_empty = _none(NO_ENGINES, "no engine", picture)
    return _Section(columns, _troubled_first(picture, picture.rows.engines), cells, if_empty)


def _troubled_first(picture: Picture, rows: Sequence[R]) -> Sequence[R]:
    """Among all sections there is room for few: what is stale, lost or slowed down goes first."""
    if picture.only:
        return rows
    return sorted(rows, key=lambda row: not _is_troubled(row))


def _is_troubled(row: Row) -> bool:
    if isinstance(row, GpuRow):
        return row.is_stale or bool(row.note)
    return row.is_stale or (isinstance(row, EngineRow) and bool(row.waiting))


def _pools(picture: Picture, width: int) -> _Section:
    is_wide, is_narrow = width >= WIDE, width < NARROW
    columns = [("POOL", "left"), ("engines", "right"), ("GPUs", "right"), ("run", "right")]
    columns += [("wait", "right"), ("KV", "left")]
    columns += [] if is_narrow else [("GPU busy", "left")]
    columns += [("tokens/s", "right")] if is_wide else []
    columns += [("advice", "text")]

    def cells(row: PoolRow) -> list[Text]:
        tokens = [_plain(_number(row.tokens_per_second))] if is_wide else []
        busy = [] if is_narrow else [_bar(row.gpu_busy_ratio)]
        return [
            *(_name(row.pool), _plain(row.engines or UNKNOWN), _plain(row.gpus or UNKNOWN)),
            *(_plain(_count(row.running)), _waiting(row.waiting), _bar(row.kv_ratio, 0.90, 0.98)),
            *(*busy, *tokens),
            Text((row.advice or "").replace("_", " "), "cyan"),
        ]

    return _Section(columns, picture.rows.pools, cells)


def _waiting(count: int | None) -> Text:
    return Text(_count(count), "yellow" if count else "dim" if count is None else "")


def _alerts(picture: Picture, _width: int) -> _Section:
    def cells(alert: Alert) -> list[Text]:
        open_seconds = max(0.0, time.time() - alert.raised_at.timestamp())
        severity = Text(alert.severity, SEVERITY_COLOURS[alert.severity])
        return [severity, _plain(_short(open_seconds)), _said(alert.text, alert.simulated)]

    columns = [("ALERT", "left"), ("open", "right"), ("", "text")]
    alerts = picture.alerts
    if alerts is None:
        return _Section(columns, (), cells, f"what is open {NOT_KNOWN}")
    beyond = alerts.total - len(alerts.rows)
    return _Section(columns, alerts.rows, cells, "no alert is open", beyond)


def _advice(picture: Picture, _width: int) -> _Section:
    def cells(advice: Recommendation) -> list[Text]:
        age_seconds = max(0.0, time.time() - advice.decided_at.timestamp())
        action = Text(advice.action.replace("_", " "), "cyan")
        return [action, _plain(_short(age_seconds)), _said(advice.text, advice.simulated)]

    columns = [("ADVICE", "left"), ("age", "right"), ("", "text")]
    if_empty = "no advice stands" if picture.is_advice_told else f"what advice stands {NOT_KNOWN}"
    return _Section(columns, picture.rows.advice, cells, if_empty)


def _said(text: str, simulated: bool) -> Text:
    said = Text(human.printable(text))
    return said.append(" (simulated)", "dim") if simulated else said


def _storage(picture: Picture) -> list[RenderableType]:
    lines = [_line(_cache_text(cache), "") for cache in picture.rows.caches[:2]]
    archive = picture.archive
    if archive is not None:
        lines.append(
            _line(
                f"archive: {archive.entries:,} entries, {human.size(archive.stored_bytes)} stored, "
                f"{archive.restored_total:,} restored",
                "",
            )
        )
    return list(lines)


def _cache_text(cache: CacheMetrics) -> str:
    if cache.source != "resource-agent":
        found = cache.token_hit_ratio
        text = "no lookups now" if found is None else f"{found:.0%} of the tokens found"
        return f"{cache.source} {cache.instance}: {_size(cache.used_bytes)} in RAM, {text}"
    hits = "no lookups yet" if cache.hit_ratio is None else f"{cache.hit_ratio:.0%} hits"
    return (
        f"cache {cache.namespace}: {hits}, {_count(cache.entries)} entries, "
        f"{_size(cache.used_bytes)} of {_size(cache.limit_bytes)}, "
        f"{_count(cache.evictions_total)} evicted"
    )


def _bar(ratio: float | None, warning: float = 2.0, critical: float = 2.0) -> Text:
    """A line of six cells, in halves, and the share; coloured where much is bad."""
    if ratio is None:
        return Text(f"{'':{BAR_CELLS}} {UNKNOWN:>4}", "dim")
    full, half = divmod(round(min(1.0, max(0.0, ratio)) * BAR_CELLS * 2), 2)
    line = "━" * full + "╸" * half
    colour = "red" if ratio >= critical else "yellow" if ratio >= warning else "cyan"
    # A thinner line, not only a dimmer one: without colours 6 % must not look like 100 %.
    rest = "─" * (BAR_CELLS - len(line))
    return Text.assemble((line, colour), (rest, "grey23"), f" {ratio:4.0%}")


def _share(ratio: float | None, warning: float, critical: float) -> Text:
    if ratio is None:
        return Text(UNKNOWN, "dim")
    return Text(
        f"{ratio:.0%}", "red" if ratio >= critical else "yellow" if ratio >= warning else ""
    )


def _heat(celsius: float | None, slowdown: float | None) -> Text:
    if celsius is None:
        return Text(UNKNOWN, "dim")
    near = slowdown is not None and celsius >= slowdown - 5
    at = slowdown is not None and celsius >= slowdown
    return Text(f"{celsius:.0f} °C", "red" if at else "yellow" if near else "")


def _age(row: Row) -> Text:
    return Text(_short(row.age_seconds), "bold red" if row.is_stale else "dim")


def _short(seconds: float) -> str:
    """`4s`, `12m`, `3h`, `5d`."""
    for limit, unit_seconds, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_seconds:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def _name(text: str | None) -> Text:
    """What a stranger may have written: neither the terminal nor rich obeys it."""
    return Text(human.printable(text)) if text else Text(UNKNOWN, "dim")


def _plain(value: object) -> Text:
    text = str(value)
    return Text(text, "dim" if text == UNKNOWN else "")


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _join(*parts: tuple[str, str]) -> Text:
    text = Text.assemble(*parts)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _percent(ratio: float | None) -> str:
    return UNKNOWN if ratio is None else f"{ratio:.0%}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def _time(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _size(value: float | None) -> str:
    return UNKNOWN if value is None else human.size(value)


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{human.size(value)}/s"
