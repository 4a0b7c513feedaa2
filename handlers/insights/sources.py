"""What insights are made from, and those that were written, read from the streams."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from handlers.queries.standing import Place, Standing
from handlers.queries.stream_reader import StreamReader
from schemas.analysis import Alert, Scope, Utilization
from schemas.api import Filter
from schemas.insights import Insight
from schemas.message import Message
from schemas.protocols import Call, Clock
from schemas.scaling import Recommendation
from schemas.spending import Opportunity, Waste
from schemas.units import SECOND_NS

FLEET: Place = ("fleet", "all")
HOUR_NS = 3600 * SECOND_NS
_EVERY_ROW = 10_000


class Evidence:
    """What is known now of the fleet and its pools, and of one node where it was asked for."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self._about: dict[Place, list[Message]] = defaultdict(list)
        for message in messages:
            for place in _places(message):
                self._about[place].append(message)

    def pools(self) -> list[str]:
        """The pools of which there is more to say than how much they are used, and cost."""
        return sorted(
            name
            for (scope, name), messages in self._about.items()
            if scope == "pool" and any(map(_is_more, messages))
        )

    def of(self, scope: Scope, name: str) -> Sequence[Message]:
        """What is about a node, a pool, or, of all of them, the fleet."""
        return self._about.get((scope, name), ())


def _places(message: Message) -> set[Place]:
    """Whom it is about: what is to be done or wrong somewhere is of the fleet, too."""
    match message:
        case Recommendation():
            return {("pool", message.pool), FLEET}
        case Alert():
            pools = set() if message.pool is None else {("pool", message.pool)}
            return {(message.scope, message.id), FLEET, *pools}
        case Opportunity():
            return {(message.scope, message.id), FLEET}
        case Utilization() | Waste():
            return {(message.scope, message.id)}
    return set()


def _is_more(message: Message) -> bool:
    if isinstance(message, Utilization):
        return bool(message.bottlenecks)
    return not isinstance(message, Waste)


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
        places = [FLEET, ("pool", "*")]
        if node is not None:
            places.append(("node", node))
        utilization = await self._standing.judgements(Utilization, places)
        waste = await self._standing.judgements(Waste, places)
        alerts = [alert for alert in self._open_alerts() if alert.silenced_by is None]
        everything, call = Filter(limit=_EVERY_ROW), Call("", b"", {})
        advice = await self._standing.recommendations(everything, call)
        savings = await self._standing.opportunities(everything, call)
        return Evidence([*utilization, *waste, *alerts, *advice.rows, *savings.rows])

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
