"""What the handlers last concluded, read back from the streams, so that every process says it."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from handlers.queries.stream_reader import StreamReader
from handlers.settings import QuerySettings
from handlers.spending.recorded_usage import recorded_hours
from handlers.spending.trend import HISTORY_HOURS, point, trend_lines
from handlers.spending.usage import HOUR_NS
from schemas.analysis import Utilization
from schemas.api import Filter, RecommendationsReply, UtilizationReply
from schemas.consolidation import Consolidation, ConsolidationsReply
from schemas.protocols import Call, Clock, RequestError
from schemas.report import OpportunitiesReply, TrendsReply, WasteReply
from schemas.scaling import ROLLBACK, Action, Decision, Execution, HeldAdvice, Recommendation
from schemas.spending import Opportunity, Trend, Waste
from schemas.units import SECOND_NS, instant, to_ns

Judgement = TypeVar("Judgement", Utilization, Waste, Trend, Opportunity, Consolidation)

Place = tuple[str, str]
"""Scope and id; `*` stands for any."""

_EVERY_ROW = 1_000_000
_MINUTE_NS = 60 * SECOND_NS
_LONG_NS = 15 * _MINUTE_NS
_FEW = 20
_HELD_NS = 20 * _MINUTE_NS
_STANDS_NS = 24 * 60 * _MINUTE_NS
"""Longer stands no advice."""
_CLOSING = frozenset({"rejected", "superseded", "expired"})
# A trend is of whole hours, and told after each of them.
_TREND_SECONDS = 2 * 3600.0


class Standing:
    """Answers `api.analysis.*`, what advice stands, and how to do with fewer nodes.

    From the last message of each subject, so every process answers the same, after a restart
    too. A filter by node or pool leaves only the judgement of that node or pool; `places`, where
    given, stands instead of it.
    """

    def __init__(self, reader: StreamReader, settings: QuerySettings, clock: Clock) -> None:
        self._reader = reader
        self._settings = settings
        self._clock = clock

    async def utilization(
        self, request: Filter, _call: Call, places: Sequence[Place] = ()
    ) -> UtilizationReply:
        """The last judgement of each node, pool and the fleet that is not outdated."""
        rows = await self.judgements(Utilization, places or _places(request))
        return UtilizationReply(
            answered_at=instant(self._clock()),
            rows=rows[: request.limit],
            total=len(rows),
            text="" if rows else "no utilization has been judged yet",
        )

    async def waste(self, request: Filter, _call: Call, places: Sequence[Place] = ()) -> WasteReply:
        """What each node, pool and the fleet costs and wastes."""
        rows = await self.judgements(Waste, places or _places(request))
        return WasteReply(
            answered_at=instant(self._clock()),
            rows=rows[: request.limit],
            total=len(rows),
            text="" if rows else "no GPU has been measured for a whole minute of late",
        )

    async def trends(self, request: Filter, _call: Call) -> TrendsReply:
        """Where each pool and the fleet goes; of a node, worked out now."""
        if request.node is not None:
            rows = await self._trend_of_node(request.node)
        else:
            rows = await self.judgements(Trend, _places(request), _TREND_SECONDS)
        return TrendsReply(
            answered_at=instant(self._clock()),
            rows=rows[: request.limit],
            total=len(rows),
            text="" if rows else "no hour of GPUs is complete yet",
        )

    async def opportunities(self, request: Filter, _call: Call) -> OpportunitiesReply:
        """What can be saved, the best first."""
        found = await self.judgements(Opportunity, _places(request))
        rows = [row for row in found if row.savings]
        rows.sort(key=lambda row: (-(row.savings[0].score or 0.0), row.scope, row.id))
        return OpportunitiesReply(
            answered_at=instant(self._clock()),
            rows=rows[: request.limit],
            total=len(rows),
            text="" if rows else "nothing is worth changing, or not for long enough yet",
        )

    async def consolidations(self, request: Filter, _call: Call) -> ConsolidationsReply:
        """How each pool could do with fewer nodes, what saves most first."""
        if request.node is not None:
            raise RequestError(400, "node: plans are about pools")
        rows = await self.judgements(Consolidation, _places(request))
        rows.sort(key=lambda row: (-(row.saving_usd_per_hour or 0.0), -len(row.moves), row.id))
        return ConsolidationsReply(
            answered_at=instant(self._clock()),
            rows=rows[: request.limit],
            total=len(rows),
            text="" if rows else "no pool with GPUs on two nodes and more has been measured",
        )

    async def recommendations(self, request: Filter, _call: Call) -> RecommendationsReply:
        """The advice that stands, newest first."""
        if request.node is not None:
            raise RequestError(400, "node: recommendations are about pools")
        now_ns = self._clock()
        advice = await self._reader.last("RECOMMENDATIONS", Recommendation)
        advice += await self._beside_rollbacks(advice, now_ns)
        advice = list({one.recommendation_id: one for one in advice}.values())
        superseded = {row.supersedes for row in advice}
        rows = [
            row
            for row in advice
            if row.recommendation_id not in superseded
            and to_ns(row.expires_at) > now_ns
            and request.pool in {None, row.pool}
        ]
        closed = await self._closed(rows, now_ns)
        rows = [row for row in rows if row.recommendation_id not in closed]
        rows.sort(key=lambda row: (row.decided_at, row.recommendation_id), reverse=True)
        return RecommendationsReply(
            answered_at=instant(now_ns),
            rows=rows[: request.limit],
            total=len(rows),
            text="" if rows else "no advice stands",
            held=await self._held(request.pool, request.limit, now_ns),
        )

    async def _beside_rollbacks(
        self, advice: list[Recommendation], now_ns: int
    ) -> list[Recommendation]:
        """What advice to go back hides, and what hides it: both are on the subject of their action.

        Of a rollback that is the last of its subject, the advice before it; of a failed execution
        the rollback that it names, where newer advice is the last.
        """
        last = {one.recommendation_id for one in advice}
        found: list[Recommendation] = []
        for one in advice:
            if one.reason == ROLLBACK and to_ns(one.expires_at) > now_ns:
                span = now_ns - _STANDS_NS, to_ns(one.decided_at) + _MINUTE_NS
                before = await self._between(one.pool, one.action, span)
                found += [other for other in before if other.reason != ROLLBACK][-1:]
        span = now_ns - _STANDS_NS, now_ns + _MINUTE_NS
        failed = await self._reader.between(
            "RECOMMENDATIONS", Execution, "execution.failed.*", *span
        )
        for step in failed:
            if step.rollback is not None and step.rollback not in last:
                told_ns = to_ns(step.observed_at)
                told = await self._between(
                    step.pool, "*", (told_ns - _MINUTE_NS, told_ns + _MINUTE_NS)
                )
                found += [one for one in told if one.recommendation_id == step.rollback]
        return found

    async def _between(self, pool: str, action: str, span: tuple[int, int]) -> list[Recommendation]:
        subject = f"recommendation.{action}.{pool}"
        return await self._reader.between("RECOMMENDATIONS", Recommendation, subject, *span)

    async def _closed(self, rows: list[Recommendation], now_ns: int) -> set[str]:
        """Which of these were rejected, ended or carried out, by their ids.

        All that was said since the oldest of them, a minute more as clocks differ; of a few that
        stand for long only what was said of their pools.
        """
        long_ago = now_ns - _LONG_NS
        are_few = sum(to_ns(row.decided_at) < long_ago for row in rows) <= _FEW
        spans: dict[str, int] = {}
        for row in rows:
            decided_ns = to_ns(row.decided_at)
            pool = row.pool if are_few and decided_ns < long_ago else "*"
            spans[pool] = min(decided_ns - _MINUTE_NS, spans.get(pool, decided_ns))
        closed: set[str] = set()
        for pool, begin in spans.items():
            span = max(1, begin), now_ns + _MINUTE_NS
            for decision in await self._reader.between(
                "RECOMMENDATIONS", Decision, f"decision.*.{pool}", *span
            ):
                if decision.verdict in _CLOSING:
                    closed.add(decision.recommendation_id)
            for execution in await self._reader.between(
                "RECOMMENDATIONS", Execution, f"execution.*.{pool}", *span
            ):
                if execution.phase == "succeeded" and not execution.dry_run:
                    closed.add(execution.recommendation_id)
        return closed

    async def scale_up(self, request: Filter, call: Call) -> RecommendationsReply:
        """Of the advice that stands that for more replicas."""
        return await self._advice("scale_up", request, call)

    async def scale_down(self, request: Filter, call: Call) -> RecommendationsReply:
        """Of the advice that stands that for fewer replicas."""
        return await self._advice("scale_down", request, call)

    async def _advice(self, action: Action, request: Filter, call: Call) -> RecommendationsReply:
        everything = msgspec.structs.replace(request, limit=_EVERY_ROW)
        reply = await self.recommendations(everything, call)
        rows = [row for row in reply.rows if row.action == action]
        return msgspec.structs.replace(
            reply,
            rows=rows[: request.limit],
            held=None
            if reply.held is None
            else [row for row in reply.held if row.action == action][: request.limit],
            total=len(rows),
            text="" if rows else f"no advice to {action.replace('_', ' ')} stands",
        )

    async def _held(self, pool: str | None, limit: int, now_ns: int) -> list[HeldAdvice] | None:
        """What is held of late: it is told every ten minutes while it lasts."""
        try:
            told = await self._reader.last("EVENTS", HeldAdvice)
        except RequestError:
            return None  # advice stands without it
        rows = [
            row
            for row in told
            if row.reason is not None
            and to_ns(row.decided_at) >= now_ns - _HELD_NS
            and pool in {None, row.pool}
        ]
        return sorted(rows, key=lambda row: row.pool)[:limit]

    async def judgements(
        self, kind: type[Judgement], places: Sequence[Place], more_seconds: float = 0.0
    ) -> list[Judgement]:
        """The last one of each scope and id among `places` that is not outdated."""
        keep_seconds = self._settings.forget_seconds + more_seconds
        oldest_ns = self._clock() - int(keep_seconds * SECOND_NS)
        rows = [
            row
            for scope, name in places
            for row in await self._reader.last(
                "EVENTS", kind, kind.SUBJECT.format(scope=scope, id=name)
            )
            if to_ns(row.decided_at) >= oldest_ns
        ]
        return sorted(rows, key=lambda row: (row.scope, row.id))

    async def _trend_of_node(self, node: str) -> list[Trend]:
        """From its recorded hours; those of real GPUs where there are any."""
        end_ns = self._clock() // HOUR_NS * HOUR_NS
        start_ns = end_ns - HISTORY_HOURS * HOUR_NS
        hours = await recorded_hours(self._reader, "node", node, start_ns, end_ns, simulated=True)
        hours = [hour for hour in hours if not hour.simulated] or hours
        if not hours:
            return []
        return [
            Trend(
                scope="node",
                id=node,
                decided_at=instant(to_ns(hours[-1].hour_at) + HOUR_NS),
                since=hours[0].hour_at,
                lines=trend_lines([point([hour]) for hour in hours]),
                simulated=hours[-1].simulated,
            )
        ]


def _places(request: Filter) -> Sequence[Place]:
    named = (("node", request.node), ("pool", request.pool))
    return [(scope, name) for scope, name in named if name is not None] or [("*", "*")]
