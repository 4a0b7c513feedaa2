"""What insights are made from, and those that were written, read from the streams."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from handlers.queries.standing import Standing
from handlers.queries.stream_reader import StreamReader
from handlers.settings import QuerySettings
from schemas.analysis import Alert, Scope, Utilization
from schemas.api import Filter
from schemas.insights import Insight
from schemas.message import Message
from schemas.protocols import Call, Clock
from schemas.scaling import Recommendation
from schemas.spending import Opportunity, Waste
from schemas.units import SECOND_NS, to_ns

HOUR_NS = 3600 * SECOND_NS
_EVERY_ROW = 10_000

Judgement = TypeVar("Judgement", Utilization, Waste)


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """What is known now of the fleet and its pools, and of one node where it was asked for."""

    utilization: Sequence[Utilization]
    waste: Sequence[Waste]
    opportunities: Sequence[Opportunity]
    alerts: Sequence[Alert]
    advice: Sequence[Recommendation]

    def pools(self) -> list[str]:
        """The pools of which there is more to say than how much they are used, and cost."""
        told = {alert.pool for alert in self.alerts if alert.pool is not None}
        told |= {alert.id for alert in self.alerts if alert.scope == "pool"}
        told |= {advice.pool for advice in self.advice}
        told |= {one.id for one in self.utilization if one.scope == "pool" and one.bottlenecks}
        told |= {one.id for one in self.opportunities if one.scope == "pool"}
        return sorted(told)

    def of(self, scope: Scope, name: str) -> list[Message]:
        """What is about a node, a pool, or, of all of them, the fleet."""
        use = [one for one in self.utilization if (one.scope, one.id) == (scope, name)]
        waste = [one for one in self.waste if (one.scope, one.id) == (scope, name)]
        savings = [
            one
            for one in self.opportunities
            if scope == "fleet" or (one.scope, one.id) == (scope, name)
        ]
        alerts = [
            one
            for one in self.alerts
            if scope == "fleet"
            or (one.scope, one.id) == (scope, name)
            or (scope == "pool" and one.pool == name)
        ]
        advice = [
            one for one in self.advice if scope == "fleet" or (scope, name) == ("pool", one.pool)
        ]
        return [*use, *waste, *alerts, *advice, *savings]


class Sources:
    """Reads alerts, utilization, waste, savings, advice, and the insights of all processes.

    Raises RequestError (503) where a stream cannot be read now.
    """

    def __init__(
        self, reader: StreamReader, standing: Standing, settings: QuerySettings, clock: Clock
    ) -> None:
        self._reader = reader
        self._standing = standing
        self._forget_ns = int(settings.forget_seconds * SECOND_NS)
        self._clock = clock

    async def evidence(self, node: str | None = None) -> Evidence:
        """What is known now; of single nodes only `node` is read."""
        utilization = await self._judgements(Utilization, node)
        waste = await self._judgements(Waste, node)
        alerts: dict[tuple[str, str, str], Alert] = {}
        # In the order of the stream, so that the last transition of each is the one that counts.
        for alert in await self._reader.last("ALERTS", Alert):
            key = (alert.scope, alert.id, alert.rule)
            alerts.pop(key, None)
            if alert.transition != "cleared" and alert.silenced_by is None:
                alerts[key] = alert
        everything, call = Filter(limit=_EVERY_ROW), Call("", b"", {})
        advice = await self._standing.recommendations(everything, call)
        savings = await self._standing.opportunities(everything, call)
        return Evidence(utilization, waste, savings.rows, list(alerts.values()), advice.rows)

    async def _judgements(self, kind: type[Judgement], node: str | None) -> list[Judgement]:
        """The last ones of the fleet, its pools, and `node`, that are not outdated."""
        places = [("fleet", "*"), ("pool", "*"), *([] if node is None else [("node", node)])]
        oldest_ns = self._clock() - self._forget_ns
        return [
            one
            for scope, name in places
            for one in await self._reader.last(
                "EVENTS", kind, kind.SUBJECT.format(scope=scope, id=name)
            )
            if to_ns(one.decided_at) >= oldest_ns
        ]

    async def last(self) -> dict[tuple[Scope, str], Insight]:
        """The last insight of each node, pool and the fleet."""
        return {(one.scope, one.id): one for one in await self._reader.last("ALERTS", Insight)}

    async def of_last_hour(self) -> list[Insight]:
        """All insights of the last hour, the oldest first: what budgets are spent on."""
        now_ns = self._clock()
        # To the end, wherever that is by the server's clock.
        return await self._reader.between(
            "ALERTS", Insight, Insight.pattern(), now_ns - HOUR_NS, now_ns + HOUR_NS
        )
