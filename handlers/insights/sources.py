"""What insights are made from, and those that were written, read from the streams."""

import dataclasses
from collections.abc import Sequence

from handlers.settings import QuerySettings
from handlers.standing import Standing
from handlers.stream_reader import StreamReader
from schemas.analysis import Alert, Scope, Utilization
from schemas.api import Filter
from schemas.insights import Insight
from schemas.message import Message
from schemas.protocols import Call, Clock
from schemas.scaling import Recommendation
from schemas.units import SECOND_NS, to_ns

HOUR_NS = 3600 * SECOND_NS
_ALL_ADVICE = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """What is known now of the fleet and its pools, and of one node where it was asked for."""

    utilization: Sequence[Utilization]
    alerts: Sequence[Alert]
    advice: Sequence[Recommendation]

    def pools(self) -> list[str]:
        """The pools of which there is more to say than how much they are used."""
        told = {alert.pool for alert in self.alerts if alert.pool is not None}
        told |= {alert.id for alert in self.alerts if alert.scope == "pool"}
        told |= {advice.pool for advice in self.advice}
        told |= {one.id for one in self.utilization if one.scope == "pool" and one.bottlenecks}
        return sorted(told)

    def of(self, scope: Scope, name: str) -> list[Message]:
        """What is about a node, a pool, or, of all of them, the fleet."""
        use = [one for one in self.utilization if (one.scope, one.id) == (scope, name)]
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
        return [*use, *alerts, *advice]


class Sources:
    """Reads alerts, utilization and advice, and the insights of all processes.

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
        subjects = ["analysis.utilization.fleet.*", "analysis.utilization.pool.*"]
        subjects += [] if node is None else [f"analysis.utilization.node.{node}"]
        oldest_ns = self._clock() - self._forget_ns
        utilization = [
            use
            for subject in subjects
            for use in await self._reader.last("EVENTS", Utilization, subject)
            if to_ns(use.decided_at) >= oldest_ns
        ]
        alerts: dict[tuple[str, str, str], Alert] = {}
        # In the order of the stream, so that the last transition of each is the one that counts.
        for alert in await self._reader.last("ALERTS", Alert):
            key = (alert.scope, alert.id, alert.rule)
            alerts.pop(key, None)
            if alert.transition != "cleared" and alert.silenced_by is None:
                alerts[key] = alert
        everything = Filter(limit=_ALL_ADVICE)
        advice = await self._standing.recommendations(everything, Call("", b"", {}))
        return Evidence(utilization, list(alerts.values()), advice.rows)

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
