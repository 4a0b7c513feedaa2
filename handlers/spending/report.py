"""Answers `api.analysis.report`: what a period of GPUs cost, gave and wasted."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime

from handlers.prices import PriceList
from handlers.queries.stream_reader import StreamReader
from handlers.queries.thinning import gently
from handlers.queries.time_range import time_range
from handlers.settings import HandlersSettings
from handlers.spending.archive_report import (
    NO_POOL,
    archive_notes,
    archive_report,
    recorded_archive,
)
from handlers.spending.recorded_usage import recorded_hours
from handlers.spending.trend import LEAST_HOURS, Point, point, trend_lines
from handlers.spending.usage import HOUR_NS, figures, total
from schemas.analysis import Scope
from schemas.money import usd
from schemas.protocols import Call, Clock, RequestError
from schemas.report import (
    Report,
    ReportArchive,
    ReportGroup,
    ReportModel,
    ReportRequest,
    ReportSaving,
    ReportStep,
)
from schemas.spending import Figures, Opportunity, Usage
from schemas.units import SECOND_NS, instant, to_ns

DEFAULT_SECONDS = 7 * 86_400.0
MAX_STEPS = 200
_PARTS_OF_A_DAY = (1, 2, 3, 4, 6, 8, 12, 24)
MAX_NODES = 20
OLD_PRICE_DAYS = 90
_MINUTE_NS = 60 * SECOND_NS


class Reports:
    """From recorded hours alone, so it says the same after a restart, and where raw is gone."""

    def __init__(self, reader: StreamReader, settings: HandlersSettings, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock
        self._forget_ns = int(settings.queries.forget_seconds * SECOND_NS)
        self._prices = PriceList(settings.prices)
        self._archive_pools = settings.waste.archive_pools

    async def report(self, request: ReportRequest, _call: Call) -> Report:
        """The report of a period.

        Raises:
            RequestError: 400 a bad period, 413 too much to read, 503 no answer from a stream.
        """
        now_ns = self._clock()
        start_ns, end_ns = _period(request, now_ns)
        scope, group = _subject(request)
        span_ns = end_ns - start_ns
        with_before = await recorded_hours(
            self._reader, scope, group, start_ns - span_ns, end_ns, simulated=True
        )
        is_wanted = [hour for hour in with_before if request.simulated or not hour.simulated]
        hours = [hour for hour in is_wanted if to_ns(hour.hour_at) >= start_ns]
        before = [hour for hour in is_wanted if to_ns(hour.hour_at) < start_ns]
        notes: list[str] = []
        gpus: dict[str, list[Usage]] = {} if request.pool is None else {request.pool: hours}
        pools, nodes = await self._parts(request, start_ns, end_ns, notes, gpus, hours)
        whole = figures(hours)
        models = self._models(hours)
        until_ns = min(end_ns, now_ns)
        minutes: dict[datetime, int] = {}
        for hour in hours:  # of simulated GPUs there may be another one
            minutes[hour.hour_at] = max(hour.minutes, minutes.get(hour.hour_at, 0))
        measured_ratio = min(1.0, sum(minutes.values()) * _MINUTE_NS / (until_ns - start_ns))
        left_out = [h for h in with_before if h.simulated and to_ns(h.hour_at) >= start_ns]
        notes += _notes(hours, models, measured_ratio, end_ns)
        unknown = whole.gpu_hours - sum(hour.energy_gpu_hours for hour in hours)
        if self._prices.usd_per_joule is not None and unknown >= 1 / 60:
            notes.append(f"the energy of {unknown:,.1f} GPU-hours is not known, nor in the cost")
        if left_out:
            notes.append(
                "simulated GPUs are counted"
                if request.simulated
                else "simulated GPUs are left out; --simulated counts them"
            )
        if (nodes or request.node) and end_ns > now_ns:
            notes.append(
                "of the running hour, nodes are told up to ten minutes later than the rest"
            )
        trends = trend_lines(
            _points(hours), period_hours=span_ns // HOUR_NS, before=_points(before)
        )
        if trends and all(line.slope_per_day is None for line in trends):
            notes.append(f"no trends: they need {LEAST_HOURS} hours that were measured")
        step_hours = _step_hours(span_ns // HOUR_NS)
        savings = await self._savings(request, now_ns) if end_ns > now_ns else []
        archived = await self._archive(request, start_ns, end_ns, until_ns, gpus, notes)
        return Report(
            answered_at=instant(now_ns),
            scope=scope,
            id=group,
            start=instant(start_ns),
            end=instant(until_ns),
            text=_summary(whole, savings, left_out),
            figures=whole,
            before=figures(before) if before else None,
            measured_ratio=measured_ratio,
            steps=_steps(hours, start_ns, step_hours),
            step_seconds=step_hours * 3600.0,
            pools=pools,
            nodes=nodes[:MAX_NODES],
            models=models,
            savings=savings,
            trends=trends,
            notes=notes,
            simulated=any(hour.simulated for hour in hours),
            archive=archived,
        )

    async def _archive(
        self,
        request: ReportRequest,
        start_ns: int,
        end_ns: int,
        until_ns: int,
        gpus: Mapping[str, Sequence[Usage]],
        notes: list[str],
    ) -> ReportArchive | None:
        """The archive's part; of too many namespaces the report goes without it, and says so."""
        if request.node is not None:
            return None
        try:
            recorded = await recorded_archive(self._reader, start_ns, end_ns)
        except RequestError as error:
            notes.append(f"without the archive: {error.text}")
            return None
        found = archive_report(
            recorded,
            gpus,
            self._archive_pools,
            only_pool=request.pool,
            span_ns=until_ns - start_ns,
        )
        if found is not None:
            notes += archive_notes(found)
        return found

    async def _parts(
        self,
        request: ReportRequest,
        start_ns: int,
        end_ns: int,
        notes: list[str],
        gpus: dict[str, list[Usage]],
        fleet: list[Usage],
    ) -> tuple[list[ReportGroup], list[ReportGroup]]:
        """Pools and nodes; of too many the report goes without them, and says so.

        `gpus` is given the hours of each pool; of the `fleet` where there are no pools.
        """
        parts: dict[str, list[ReportGroup]] = {"pool": [], "node": []}
        wanted: list[Scope] = [] if request.node else ["node"] if request.pool else ["pool", "node"]
        for scope in wanted:
            try:
                hours = await recorded_hours(
                    self._reader, scope, "*", start_ns, end_ns, simulated=request.simulated
                )
            except RequestError as error:
                notes.append(f"without its {scope}s: {error.text}")
                continue
            by_id: defaultdict[str, list[Usage]] = defaultdict(list)
            for hour in hours:
                if request.pool in {None, hour.pool}:
                    by_id[hour.id].append(hour)
            if scope == "pool":
                gpus.update(by_id or {NO_POOL: fleet})
            groups = await gently(
                list(by_id.items()), lambda one: ReportGroup(id=one[0], figures=figures(one[1]))
            )
            parts[scope] = sorted(
                (one for one in groups if one.figures.gpu_hours),
                key=lambda one: (-(one.figures.waste_usd or 0.0), -one.figures.gpu_hours, one.id),
            )
        return parts["pool"], parts["node"]

    def _models(self, hours: Sequence[Usage]) -> list[ReportModel]:
        uses = defaultdict(list)
        for hour in hours:
            for name, use in hour.models.items():
                uses[name].append(use)
        models = []
        for name, found in uses.items():
            gpu = None if name == "unknown" else name
            differs = self._prices.differs(gpu)
            rule = None if differs else self._prices.find(gpu, "", None, ())
            models.append(
                ReportModel(
                    name=name,
                    gpu_hours=sum(use.gpu_hours for use in found),
                    usd=total([use.usd for use in found]),
                    waste_usd=total([use.waste_usd for use in found]),
                    usd_per_gpu_hour=rule.usd_per_gpu_hour if rule else None,
                    price_source="by node, pool or label"
                    if differs
                    else rule.source
                    if rule
                    else None,
                    price_as_of=rule.as_of if rule else None,
                )
            )
        return sorted(models, key=lambda model: (-model.gpu_hours, model.name))

    async def _savings(self, request: ReportRequest, now_ns: int) -> list[ReportSaving]:
        wanted = {("node", request.node), ("pool", request.pool)}
        is_filtered = request.node is not None or request.pool is not None
        found = [
            ReportSaving(scope=row.scope, id=row.id, saving=saving)
            for row in await self._reader.last("EVENTS", Opportunity)
            if to_ns(row.decided_at) >= now_ns - self._forget_ns
            and (request.simulated or not row.simulated)
            and (not is_filtered or (row.scope, row.id) in wanted)
            for saving in row.savings
        ]
        return sorted(found, key=lambda one: (-(one.saving.score or 0.0), one.id, one.saving.kind))


def _period(request: ReportRequest, now_ns: int) -> tuple[int, int]:
    """Whole hours that hold the request, in ns."""
    end = request.end
    start_ns, end_ns = time_range(
        request.start,
        # The running hour is whole in a report, so its end may be named.
        None if end is not None and to_ns(end) > now_ns else end,
        request.seconds,
        now_ns,
        default_seconds=DEFAULT_SECONDS,
    )
    return start_ns // HOUR_NS * HOUR_NS, -(-end_ns // HOUR_NS) * HOUR_NS


def _subject(request: ReportRequest) -> tuple[Scope, str]:
    if request.node is not None and request.pool is not None:
        raise RequestError(400, "pool: give either a node or a pool, not both")
    if request.node is not None:
        return "node", request.node
    return ("fleet", "all") if request.pool is None else ("pool", request.pool)


def _step_hours(hours: int) -> int:
    """The shortest step of which a day has a whole number, and a period `MAX_STEPS` at most.

    A week → 1, 30 days → 4, 90 days → 12.
    """
    return next(step for step in _PARTS_OF_A_DAY if hours // step + 2 <= MAX_STEPS)


def _steps(hours: Sequence[Usage], start_ns: int, step_hours: int) -> list[ReportStep]:
    """From midnight (UTC) on, so that each is of one day; the first from the begin on."""
    step_ns = step_hours * HOUR_NS
    by_step: defaultdict[int, list[Usage]] = defaultdict(list)
    for hour in hours:
        by_step[to_ns(hour.hour_at) // step_ns].append(hour)
    return [
        ReportStep(at=instant(max(start_ns, step * step_ns)), figures=figures(of))
        for step, of in sorted(by_step.items())
    ]


def _points(hours: Sequence[Usage]) -> list[Point]:
    """Hour by hour, simulated and real ones together."""
    by_hour: defaultdict[int, list[Usage]] = defaultdict(list)
    for hour in hours:
        by_hour[to_ns(hour.hour_at) // HOUR_NS].append(hour)
    return [point(of) for _, of in sorted(by_hour.items())]


def _usd(value: float | None) -> str:
    return usd(value or 0.0)


def _summary(whole: Figures, savings: Sequence[ReportSaving], simulated: Sequence[Usage]) -> str:
    if whole.gpus is None and simulated:
        return "Only simulated GPUs were measured in this period, and they are left out."
    if whole.gpus is None:
        return "No GPU was measured in this period."
    text = f"{whole.gpus:.1f} GPUs on average, {whole.gpu_hours:,.1f} GPU-hours"
    if whole.unknown_gpu_hours == whole.gpu_hours:
        cost = "" if whole.usd is None else f", cost {_usd(whole.usd)}"
        return f"{text}{cost}. What they did was not measured, so nothing is said of waste."
    share = "" if whole.waste_ratio is None else f"{whole.waste_ratio:.0%} "
    if whole.usd is None:
        return f"{text}; {share}of that time was wasted. They have no price, so no money is shown."
    text += (
        f", cost {_usd(whole.usd)}. {share}({_usd(whole.waste_usd)}) of it was wasted: "
        f"{_usd(whole.idle_usd)} idle, {_usd(whole.idle_held_usd)} held without work, "
        f"{_usd(whole.under_used_usd)} under-used."
    )
    saved = total([one.saving.saving_usd_per_month for one in savings])
    if saved:
        text += f" What stands out now would save {_usd(saved)} a month."
    return text


def _share(ratio: float) -> str:
    """`13%`; of what is little but not nothing `less than 1%`."""
    return "less than 1%" if 0 < ratio < 0.01 else f"{ratio:.0%}"


def _notes(
    hours: Sequence[Usage], models: Sequence[ReportModel], measured_ratio: float, end_ns: int
) -> list[str]:
    notes = []
    if 0 < measured_ratio < 0.99:  # that it was nothing the text says
        notes.append(
            f"{_share(measured_ratio)} of the period was measured; nothing is assumed of the rest"
        )
    unknown = sum(hour.unknown.gpu_hours for hour in hours)
    if unknown:
        notes.append(
            f"{unknown:,.1f} GPU-hours are of unknown state: too little was measured to call them "
            "waste"
        )
    unpriced = sum(hour.unpriced_gpu_hours for hour in hours)
    if unpriced:
        names = ", ".join(model.name for model in models if model.usd is None) or "some GPUs"
        notes.append(
            f"{unpriced:,.1f} GPU-hours have no price and are in no sum of money ({names}): "
            "handlers.prices.rules gives them one"
        )
    for model in models:
        if model.price_source is None or model.usd_per_gpu_hour is None:
            continue
        if model.price_as_of is None:
            notes.append(f"the price of {model.name} ({model.price_source}) is not dated")
            continue
        day = date.fromisoformat(model.price_as_of)
        if (instant(end_ns).date() - day).days > OLD_PRICE_DAYS:
            notes.append(
                f"the price of {model.name} ({model.price_source}) is of {model.price_as_of}, "
                f"more than {OLD_PRICE_DAYS} days old"
            )
    return notes
