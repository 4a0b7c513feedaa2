"""What the handlers last concluded, read back from the streams: utilization and open advice."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec

from handlers.foreign import ForeignMessages
from handlers.settings import QuerySettings
from schemas.analysis import Utilization
from schemas.api import Filter, RecommendationsReply, UtilizationReply
from schemas.message import UNDECODABLE, Message
from schemas.protocols import Call, Clock, PublishError, RequestError, Subscriber
from schemas.scaling import Decision, Execution, Recommendation
from schemas.units import instant, to_ns

M = TypeVar("M", bound=Message)

_CLOSING = frozenset({"rejected", "superseded", "expired"})


class Standing:
    """Answers `api.analysis.utilization` and `api.optimize.recommendations`.

    From the last message of each subject, so every process answers the same, after a restart
    too.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        settings: QuerySettings,
        clock: Clock,
        foreign: ForeignMessages,
    ) -> None:
        self._subscriber = subscriber
        self._foreign = foreign
        self._settings = settings
        self._clock = clock

    async def utilization(self, request: Filter, _call: Call) -> UtilizationReply:
        """The last judgement of each node, pool and the fleet that is not outdated.

        A filter by node or pool leaves only the judgement of that node or pool.
        """
        now_ns = self._clock()
        oldest_ns = now_ns - int(self._settings.forget_seconds * 1e9)
        wanted = {("node", request.node), ("pool", request.pool)}
        is_filtered = request.node is not None or request.pool is not None
        rows = [
            row
            async for row in self._last("EVENTS", Utilization)
            if to_ns(row.decided_at) >= oldest_ns
            and (not is_filtered or (row.scope, row.id) in wanted)
        ]
        rows.sort(key=lambda row: (row.scope, row.id))
        return UtilizationReply(
            answered_at=instant(now_ns),
            rows=rows[: request.limit],
            total=len(rows),
            text="" if rows else "no utilization has been judged yet",
        )

    async def recommendations(self, request: Filter, _call: Call) -> RecommendationsReply:
        """The advice that stands, newest first."""
        if request.node is not None:
            raise RequestError(400, "node: recommendations are about pools")
        now_ns = self._clock()
        advice = [row async for row in self._last("RECOMMENDATIONS", Recommendation)]
        closed = {row.supersedes for row in advice}
        async for decision in self._last("RECOMMENDATIONS", Decision):
            if decision.verdict in _CLOSING:
                closed.add(decision.recommendation_id)
        async for execution in self._last("RECOMMENDATIONS", Execution):
            if execution.phase == "succeeded" and not execution.dry_run:
                closed.add(execution.recommendation_id)
        rows = [
            row
            for row in advice
            if row.recommendation_id not in closed
            and to_ns(row.expires_at) > now_ns
            and request.pool in {None, row.pool}
        ]
        rows.sort(key=lambda row: (row.decided_at, row.recommendation_id), reverse=True)
        return RecommendationsReply(
            answered_at=instant(now_ns),
            rows=rows[: request.limit],
            total=len(rows),
            text="" if rows else "no advice stands",
        )

    async def _last(self, stream: str, kind: type[M]) -> AsyncIterator[M]:
        """The last message on each subject of one type; what does not decode is passed over."""
        decoder = msgspec.json.Decoder(kind)
        deliveries = self._subscriber.read(stream, subject=kind.pattern(), last_per_subject=True)
        try:
            async with (
                asyncio.timeout(self._settings.history_timeout_seconds),
                contextlib.aclosing(deliveries),
            ):
                async for delivery in deliveries:
                    try:
                        row = decoder.decode(delivery.payload)
                    except UNDECODABLE as error:
                        self._foreign.pass_over(delivery, error)
                    else:
                        yield row
        except (TimeoutError, PublishError) as error:
            raise RequestError(503, "the stream could not be read now") from error
