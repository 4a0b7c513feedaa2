"""EngineMetrics from the page of an inference engine: one message for each rank behind it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from agent.collectors.engines.exposition import Names, Page, PageError, Series
from agent.collectors.engines.growth import Key, Totals
from agent.collectors.engines.values import count, number, ratio
from schemas.engines import EngineMetrics
from schemas.labels import NO_LABELS
from schemas.units import instant, token

MAX_ENGINES = 64
MAX_MODEL_LENGTH = 256
STARTED: Names = ("process_start_time_seconds",)
_UNKNOWN_MODEL = "unknown"


class Place(NamedTuple):
    """What the engines of one target are called on the bus; see docs/engines.md."""

    node: str
    name: str
    pool: str | None
    requests_running_max: int | None = None
    forget_seconds: float = 60.0
    labels: Mapping[str, str] = NO_LABELS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineMap:
    """Which metric of an engine is which field.

    Attributes:
        source: The engine's name.
        model_labels: Labels that hold the model's name.
        rank_label: Label that tells data-parallel ranks apart.
        gauges: Field of EngineMetrics → metric.
        counters: `x` → metric; gives `x_total` and `x_per_second`.
        histograms: `x` → metric; gives `x_p50_seconds` and `x_p95_seconds`.
        hits: Counter of prompt tokens found in the prefix cache.
        lookups: Counter of prompt tokens looked for there.
        labels: Fields that are more than a number → metric whose labels `extras` reads.
        extras: These fields, from the page of one engine.
        seldom: Fields that today's versions do not offer: no warning when they are missing.
    """

    source: str
    model_labels: Names
    rank_label: str
    gauges: Mapping[str, Names]
    counters: Mapping[str, Names]
    histograms: Mapping[str, Names]
    hits: Names
    lookups: Names
    labels: Mapping[str, Names] = dataclasses.field(default_factory=dict)
    extras: Callable[[Page], dict[str, Any]] = lambda _page: {}
    seldom: frozenset[str] = frozenset()

    def wanted(self) -> frozenset[str]:
        """All names to look for on a page."""
        plain = [*self.gauges.values(), *self.counters.values(), *self.labels.values()]
        plain += [self.hits, self.lookups, STARTED]
        names = {name for group in plain for name in group}
        buckets = {f"{name}_bucket" for group in self.histograms.values() for name in group}
        return frozenset(names | buckets)

    def missing(self, page: Page) -> dict[str, Names]:
        """Fields whose metric is not on the page under any of its names."""
        expected = {
            **self.gauges,
            **self.counters,
            **self.histograms,
            "prefix_cache_hits": self.hits,
            "prefix_cache_lookups": self.lookups,
        }
        return {
            field: names
            for field, names in expected.items()
            if field not in self.seldom and not page.has(names)
        }


class EngineReader:
    """Reads the pages of one target; remembers each engine's counters from page to page."""

    def __init__(self, names: EngineMap, place: Place) -> None:
        self._names = names
        self._place = place
        self._totals: dict[tuple[str, str], Totals] = {}
        self._restarts_gone = 0

    @property
    def restarts(self) -> int:
        """How often an engine was seen to have started anew."""
        return self._restarts_gone + sum(totals.restarts for totals in self._totals.values())

    def wanted(self) -> frozenset[str]:
        """All names to look for on a page."""
        return self._names.wanted()

    def missing(self, page: Page) -> dict[str, Names]:
        """Fields that this page cannot fill."""
        return self._names.missing(page)

    def read(self, page: Page, now_ns: int) -> list[EngineMetrics]:
        """Every engine on the page.

        Raises:
            PageError: more of them than anyone has behind one address.
        """
        engines = split(page, self._names)
        for gone in self._totals.keys() - engines.keys():
            self._restarts_gone += self._totals.pop(gone).restarts
        started = page.value(STARTED)
        models = {model for model, _ in engines}
        return [
            self._metrics(model, rank, part, started, now_ns, is_one_model=len(models) == 1)
            for (model, rank), part in sorted(engines.items())
        ]

    def _metrics(
        self,
        model: str,
        rank: str,
        page: Page,
        started: float | None,
        now_ns: int,
        *,
        is_one_model: bool,
    ) -> EngineMetrics:
        names, place = self._names, self._place
        counters = {**names.counters, "_hits": names.hits, "_lookups": names.lookups}
        counted = {field: page.total(of) for field, of in counters.items()}
        totals: dict[Key, float] = {(f, None): v for f, v in counted.items() if v is not None}
        for field, of in names.histograms.items():
            totals.update({(field, bound): v for bound, v in page.buckets(of).items()})
        known = self._totals.setdefault((model, rank), Totals(place.forget_seconds))
        growth = known.advance(now_ns, totals, started)

        fields: dict[str, Any] = {field: page.value(of) for field, of in names.gauges.items()}
        for field in names.counters:
            fields[f"{field}_total"] = counted[field]
        if growth is not None:
            fields["interval_seconds"] = growth.seconds
            fields["prefix_cache_hit_ratio"] = growth.ratio("_hits", "_lookups")
            for field in names.counters:
                fields[f"{field}_per_second"] = growth.per_second(field)
            for field in names.histograms:
                fields[f"{field}_p50_seconds"] = growth.quantile(field, 0.5)
                fields[f"{field}_p95_seconds"] = growth.quantile(field, 0.95)
        fields = {field: _fitted(field, value) for field, value in fields.items()}
        fields.update(names.extras(page))
        if fields.get("requests_running_max") is None:
            fields["requests_running_max"] = place.requests_running_max
        suffix = "" if rank in ("", "0") else f"-{rank}"
        suffix += "" if is_one_model else f"-{model}"
        return EngineMetrics(
            node=place.node,
            engine=token(place.name + suffix),
            pool=place.pool or token(model or _UNKNOWN_MODEL),
            model=model[:MAX_MODEL_LENGTH] or _UNKNOWN_MODEL,
            observed_at=instant(now_ns),
            source=names.source,
            **fields,
        )


def split(page: Page, names: EngineMap) -> dict[tuple[str, str], Page]:
    """The page of each engine, by model and rank.

    A series without one of the two labels belongs to the only model or rank there is. With several
    it belongs to the whole server and is left out: nobody knows whose share of it is whose. But
    the latencies of a server are those of each of its ranks, as near as can be told.

    Raises:
        PageError: too many engines.
    """
    every = [(name, one) for name, found in page.series.items() for one in found]
    models = {model for _, one in every if (model := _model(one, names)) is not None}
    ranks = {one.labels[names.rank_label] for _, one in every if names.rank_label in one.labels}
    if max(1, len(models)) * max(1, len(ranks)) > MAX_ENGINES:
        raise PageError(f"{len(models)} models and {len(ranks)} ranks on one page")
    only_model = next(iter(models), "") if len(models) < 2 else None
    engines: dict[tuple[str, str], dict[str, list[Series]]] = {}
    for name, one in every:
        if name in STARTED:
            continue
        model = _model(one, names)
        model = only_model if model is None else model
        rank = one.labels.get(names.rank_label)
        whose = (ranks or {""}) if rank is None else {rank}
        if model is not None and (len(whose) == 1 or name.endswith("_bucket")):
            for of in whose:
                engines.setdefault((model, of), {}).setdefault(name, []).append(one)
    return {
        key: Page({name: _of_first_worker(found) for name, found in part.items()})
        for key, part in engines.items()
    }


def _model(series: Series, names: EngineMap) -> str | None:
    return next((series.labels[k] for k in names.model_labels if k in series.labels), None)


def _of_first_worker(series: Sequence[Series]) -> Sequence[Series]:
    """Where every worker of an engine reports (tensor, pipeline parallel), what the first says."""
    workers = {(one.labels.get("pp_rank", ""), one.labels.get("tp_rank", "")) for one in series}
    if len(workers) < 2:
        return series
    pp_rank, tp_rank = min(workers, key=lambda worker: [(len(text), text) for text in worker])
    return [
        one
        for one in series
        if one.labels.get("pp_rank", "") == pp_rank and one.labels.get("tp_rank", "") == tp_rank
    ]


def _fitted(field: str, value: float | None) -> float | int | None:
    if field.endswith("_ratio"):
        return ratio(value)
    if field.endswith(("_seconds", "_per_second")):
        return number(value)
    return count(value)
