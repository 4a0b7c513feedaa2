"""What insights are made from, and those that were written, read from the streams."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from handlers.queries.standing import Standing
from handlers.queries.stream_reader import StreamReader
from schemas.analysis import Alert, Scope, Utilization
from schemas.api import Filter
from schemas.insights import Insight
from schemas.message import Message
from schemas.protocols import Call, Clock
from schemas.scaling import Recommendation
from schemas.spending import Opportunity, Waste
from schemas.units import SECOND_NS

HOUR_NS = 3600 * SECOND_NS
_EVERY_ROW = 10_000


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
    """Reads utilization, waste, savings, advice, and the insights of all processes.

    `open_alerts` gives those that are open now. Raises RequestError (503) where a stream cannot
    be read now.
    """

    def __init__(
        self,
        reader: StreamReader,
        standing: Standing,
        open_alerts: Callable[[], Iterable[Alert]],
        clock: Clock,
    ) -> None:
        self._reader = reader
        self._standing = standing
        self._open_alerts = open_alerts
        self._clock = clock

    async def evidence(self, node: str | None = None) -> Evidence:
        """What is known now; of single nodes only `node` is read."""
        places = [("fleet", "all"), ("pool", "*")]
        if node is not None:
            places.append(("node", node))
        utilization = await self._standing.judgements(Utilization, places)
        waste = await self._standing.judgements(Waste, places)
        alerts = [alert for alert in self._open_alerts() if alert.silenced_by is None]
        everything, call = Filter(limit=_EVERY_ROW), Call("", b"", {})
        advice = await self._standing.recommendations(everything, call)
        savings = await self._standing.opportunities(everything, call)
        return Evidence(utilization, waste, savings.rows, alerts, advice.rows)

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
