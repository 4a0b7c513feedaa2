"""What was decided on advice, and carried out: heard from its stream, asked as of an instant."""

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import msgspec

from handlers.foreign import ForeignMessages
from handlers.window import ExpiringDict
from schemas.message import UNDECODABLE
from schemas.protocols import Clock, Delivery, Subscriber
from schemas.scaling import Decision, Execution
from schemas.units import SECOND_NS

KEEP_NS = 48 * 3600 * SECOND_NS
"""How far back it is read at the start: longer than any rejection counts."""
EXECUTIONS_KEPT = 64
"""Of a pool: more than are carried out within the windows that a rebuild reads anew."""
SUBJECTS = (Decision.SUBJECT.split(".")[0] + ".>", Execution.SUBJECT.split(".")[0] + ".>")

_decode_decision = msgspec.json.Decoder(Decision).decode
_decode_execution = msgspec.json.Decoder(Execution).decode


class DecisionBook:
    """The first decision on each recommendation, and what was carried out in each pool.

    Each is heard with the instant at which the server stored it: the clock of the metrics stream,
    whatever the clocks of those who decide say. So a rebuild that reads metrics of a minute ago
    goes by what had been decided then.
    """

    def __init__(self) -> None:
        self._decided: ExpiringDict[str, tuple[int, bool]] = ExpiringDict(KEEP_NS)
        self._executed: ExpiringDict[str, deque[tuple[int, str]]] = ExpiringDict(KEEP_NS)

    def heard(self, delivery: Delivery) -> None:
        """The next message of the stream, or one heard before; raises what msgspec does."""
        if delivery.subject.startswith("decision."):
            decision = _decode_decision(delivery.payload)
            name, ns = decision.recommendation_id, delivery.stored_ns
            if decision.verdict in ("accepted", "rejected") and not self._decided.get(name, ns):
                self._decided.put(name, (ns, decision.verdict == "rejected"), ns)
        elif delivery.subject.startswith("execution."):
            step = _decode_execution(delivery.payload)
            if step.phase == "succeeded" and not step.dry_run:
                done = self._executed.refresh(step.pool, _no_executions, delivery.stored_ns)
                if not done or delivery.stored_ns > done[-1][0]:
                    done.append((delivery.stored_ns, step.recommendation_id))

    def rejected_ns(self, recommendation_id: str, now_ns: int) -> int | None:
        """When it was rejected, up to `now_ns`; None: it was not, or accepted before."""
        ns, is_rejected = self._decided.get(recommendation_id, now_ns) or (0, False)
        return ns if is_rejected and ns <= now_ns else None

    def executed(self, pool: str, now_ns: int) -> tuple[int, str] | None:
        """When advice on a pool was last carried out, up to `now_ns`, and which."""
        done = self._executed.get(pool, now_ns)
        if done is None:  # nearly always, and each message of an engine asks
            return None
        return next((one for one in reversed(done) if one[0] <= now_ns), None)


class DecisionReader:
    """Keeps a book as `FLEET_RECOMMENDATIONS` has it; inside it, all there is has been heard."""

    def __init__(self, subscriber: Subscriber, clock: Clock) -> None:
        self.book = DecisionBook()
        self._subscriber = subscriber
        self._clock = clock
        self._foreign = ForeignMessages(Counter(), clock)
        self._unfollow: list[Callable[[], Awaitable[None]]] = []

    async def __aenter__(self) -> Self:
        start_ns = max(1, self._clock() - KEEP_NS)
        _, last = await self._subscriber.stream_bounds("RECOMMENDATIONS")
        for subject in SUBJECTS:  # a server of 2.9 filters by one alone
            read = self._subscriber.read("RECOMMENDATIONS", subject=subject, start_ns=start_ns)
            async for delivery in read:
                self._take(delivery)
            follow = self._subscriber.follow(
                "RECOMMENDATIONS", self._take, subject=subject, start_sequence=last + 1
            )
            self._unfollow.append(await follow)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for unfollow in self._unfollow:
            await unfollow()

    def _take(self, delivery: Delivery) -> None:
        try:
            self.book.heard(delivery)
        except UNDECODABLE as error:
            self._foreign.pass_over(delivery, error)


def _no_executions() -> deque[tuple[int, str]]:
    return deque(maxlen=EXECUTIONS_KEPT)
