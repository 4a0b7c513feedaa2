"""Answers `api.analysis.history`: what was judged in a time range, from events or rollups."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from handlers.foreign import ForeignMessages
from handlers.queries.analysis_values import TYPES, Judgement, values_of
from handlers.queries.range_reader import RangeReader
from handlers.queries.recorded import NARROWER, TOLD_NS, Place, Recorded, recorded
from handlers.queries.thinning import fitting, gently, shared_out
from handlers.queries.time_range import time_range
from handlers.settings import QuerySettings
from schemas.analysis import Scope
from schemas.history import (
    AnalysisHistoryReply,
    AnalysisHistoryRequest,
    AnalysisKind,
    AnalysisRow,
    AnalysisSources,
)
from schemas.protocols import Call, Clock, Delivery, RequestError, Subscriber
from schemas.units import SECOND_NS, instant

DEFAULT_SECONDS = 21_600.0
LACKING_RATIO = 0.1
"""Where the events lack less of the range, they tell it better than hours and minutes do."""

Events: TypeAlias = dict[Place, list[Delivery]]
Chosen: TypeAlias = dict[Place, Sequence[Delivery | Recorded]]

_SCOPES: Mapping[str, Scope] = {"fleet": "fleet", "pool": "pool", "node": "node"}
"""In the order in which a limit is shared out where there are more places than rows."""


class AnalysisHistory:
    """Reads what was judged, of each place (node, pool, fleet) from one source.

    From the events, unless they lack more than a tenth of the range, its begin, and the rollups
    do not: FLEET_EVENTS keeps 7 days, and the last 1,000 of each kind and place; the rollups 90
    days of hours of money and use, and minutes of machines and pools. Thinned to the request's
    limit, and to what fits into an answer, each place evenly. What is thinned out is not decoded.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        settings: QuerySettings,
        clock: Clock,
        foreign: ForeignMessages,
    ) -> None:
        self._reader = RangeReader(subscriber, settings, foreign)
        self._clock = clock
        self._foreign = foreign
        self._decoders: Mapping[AnalysisKind, msgspec.json.Decoder[Judgement]] = {
            kind: msgspec.json.Decoder(of) for kind, of in TYPES.items()
        }

    async def answer(self, request: AnalysisHistoryRequest, _call: Call) -> AnalysisHistoryReply:
        """The judgements of the range.

        Raises:
            RequestError: 400 a bad range or place, 413 too much to read, 503 no answer from the
                stream.
        """
        scope, name = _place(request)
        start_ns, end_ns = time_range(
            request.start,
            request.end,
            request.seconds,
            self._clock(),
            default_seconds=DEFAULT_SECONDS,
        )
        async with self._reader.turn():
            chosen = await self._chosen(request.kind, scope, name, start_ns, end_ns)
            rows = await self._rows(request, chosen)
            is_empty = not chosen
            return AnalysisHistoryReply(
                kind=request.kind,
                source=_source(rows),
                start=instant(start_ns),
                end=instant(end_ns),
                rows=list(rows),
                matched=sum(map(len, chosen.values())),
                text=await self._why_nothing(request.kind, scope, name) if is_empty else "",
            )

    async def _chosen(
        self, kind: AnalysisKind, scope: str, name: str, start_ns: int, end_ns: int
    ) -> Chosen:
        """Of each place its events, or what is recorded where that tells of a time before."""
        events = await self._events(f"analysis.{kind}.{scope}.{name}", start_ns, end_ns)
        older: dict[Place, list[Recorded]] = {}
        lacking_ns = max(TOLD_NS.get(kind, 0), int((end_ns - start_ns) * LACKING_RATIO))
        if kind in TOLD_NS and not _reach_back(events, start_ns + lacking_ns):
            older = await recorded(self._reader, kind, scope, name, start_ns, end_ns)
        if events is None:
            if not older:
                raise self._reader.too_much(NARROWER)
            events = {}
        chosen: Chosen = {}
        for place in sorted({*events, *older}, key=lambda at: (list(_SCOPES).index(at[0]), at[1])):
            told, before = events.get(place, []), older.get(place, [])
            is_older = before and (
                not told
                or before[0].begin_ns + before[0].period_ns + lacking_ns <= told[0].stored_ns
            )
            chosen[place] = before if is_older else told
        return chosen

    async def _events(self, subject: str, start_ns: int, end_ns: int) -> Events | None:
        """The events of each place; None where they are more than we may read."""
        deliveries = await self._reader.scan("EVENTS", subject, start_ns, end_ns)
        if deliveries is None:
            return None
        events: Events = {}
        for delivery in deliveries:
            _, _, scope, name = delivery.subject.split(".")
            if scope not in _SCOPES:
                self._foreign.pass_over(delivery, ValueError(f"no scope {scope!r}"))
            else:
                events.setdefault((_SCOPES[scope], name), []).append(delivery)
        return events

    async def _rows(self, request: AnalysisHistoryRequest, chosen: Chosen) -> Sequence[AnalysisRow]:
        kept = [
            (place, one)
            for place, items in shared_out(chosen, request.limit).items()
            for one in items
        ]
        found = await gently(kept, lambda pair: self._row(request, *pair))
        rows = [row for row in found if row is not None]
        rows.sort(key=lambda row: row.at)
        return await fitting(rows, lambda row: (row.scope, row.id))

    def _row(
        self, request: AnalysisHistoryRequest, place: Place, one: Delivery | Recorded
    ) -> AnalysisRow | None:
        scope, name = place
        if isinstance(one, Recorded):
            return AnalysisRow(
                at=instant(one.begin_ns),
                scope=scope,
                id=name,
                source="rollups",
                simulated=one.simulated,
                period_seconds=one.period_ns / SECOND_NS,
                values=one.values(),
            )
        decode: Callable[[bytes], Judgement] = self._decoders[request.kind].decode
        message = self._reader.decoded(one, decode)
        if message is None:
            return None
        return AnalysisRow(
            at=instant(one.stored_ns),
            scope=scope,
            id=name,
            source="events",
            simulated=message.simulated,
            values=values_of(message),
            message=msgspec.json.decode(one.payload) if request.messages else None,
        )

    async def _why_nothing(self, kind: AnalysisKind, scope: str, name: str) -> str:
        where = "" if scope == "*" else f" of {scope}{'' if name == '*' else f' {name!r}'}"
        places = [("EVENTS", f"analysis.{kind}.{scope}.{name}")]
        if kind in TOLD_NS:
            places.append(("ROLLUPS", f"rollup.usage.{scope}.{name}"))
        return await self._reader.why_nothing(f"{kind}{where}", *places)


def _place(request: AnalysisHistoryRequest) -> tuple[str, str]:
    """Scope and id asked for; `*`: any."""
    if request.node is not None and request.pool is not None:
        raise RequestError(400, "node and pool: give one of them")
    for scope, name in (("node", request.node), ("pool", request.pool)):
        if name is not None:
            if request.scope not in {None, scope}:
                raise RequestError(400, f"scope: {request.scope!r}, but a {scope} is named")
            return scope, name
    return request.scope or "*", "*"


def _reach_back(events: Events | None, until_ns: int) -> bool:
    """Whether each place that has events has had one by then."""
    if not events:
        return False
    return all(told[0].stored_ns <= until_ns for told in events.values())


def _source(rows: Sequence[AnalysisRow]) -> AnalysisSources:
    sources = {row.source for row in rows}
    return "both" if len(sources) > 1 else next(iter(sources), "events")
