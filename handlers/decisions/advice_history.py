"""`api.optimize.history`: what was advised in a time range, and what became of it."""

from collections.abc import Sequence

from handlers.foreign import ForeignMessages
from handlers.queries.range_reader import RangeReader
from handlers.queries.thinning import REPLY_BYTES, gently, size_of
from handlers.queries.time_range import time_range
from handlers.settings import QuerySettings
from schemas.history import AdviceHistoryReply, AdviceHistoryRequest, AdviceRow
from schemas.life import AboutAdvice, Life, decode, earlier_advice
from schemas.protocols import Call, Clock, Delivery, Subscriber
from schemas.scaling import Decision, Execution, Recommendation
from schemas.units import SECOND_NS, instant

DEFAULT_SECONDS = 86_400.0
_LATER_NS = 72 * 3600 * SECOND_NS
"""Advice stands for a day at most, and what was requested two days ago is not taken up."""


class AdviceHistory:
    """Reads the recommendations of a range, and what was said about them until now."""

    def __init__(
        self,
        subscriber: Subscriber,
        settings: QuerySettings,
        clock: Clock,
        foreign: ForeignMessages,
    ) -> None:
        self._reader = RangeReader(subscriber, settings, foreign)
        self._foreign = foreign
        self._clock = clock

    async def answer(self, request: AdviceHistoryRequest, _call: Call) -> AdviceHistoryReply:
        """The recommendations of the range, oldest first.

        Raises:
            RequestError: 400 a bad range, 413 too much to read, 503 no answer from the stream.
        """
        now_ns = self._clock()
        start_ns, end_ns = time_range(
            request.start,
            request.end,
            request.seconds,
            now_ns,
            default_seconds=DEFAULT_SECONDS,
        )
        pool = request.pool or "*"
        async with self._reader.turn():
            told: list[Delivery] = []
            for kind in (Recommendation, Decision, Execution):  # a server of 2.9 filters by one
                subject = f"{kind.pattern().rsplit('.', 1)[0]}.{pool}"
                found = await self._reader.scan(
                    "RECOMMENDATIONS", subject, start_ns, end_ns + _LATER_NS
                )
                if found is None:
                    raise self._reader.too_much("name a pool")
                told += found
            told.sort(key=lambda delivery: delivery.sequence)
            rows = [
                AdviceRow(
                    at=instant(stored_ns),
                    state=life.state(now_ns),
                    closed=life.closed(now_ns),
                    life=life,
                )
                for stored_ns, life in await self._lives(told, end_ns)
                if request.action in {None, life.advice.action}
            ]
            text = ""
            if not rows:
                what = f"{request.action or 'recommendation'}"
                what += f" on pool {request.pool!r}" if request.pool else ""
                subject = f"recommendation.{request.action or '*'}.{pool}"
                text = await self._reader.why_nothing(what, ("RECOMMENDATIONS", subject))
            return AdviceHistoryReply(
                start=instant(start_ns),
                end=instant(end_ns),
                rows=list(await _newest(rows[-request.limit :])),
                matched=len(rows),
                text=text,
            )

    async def _lives(self, told: Sequence[Delivery], end_ns: int) -> Sequence[tuple[int, Life]]:
        """The life of each recommendation of the range, with when it was stored."""
        lives: dict[str, tuple[int, Life]] = {}

        def hear(delivery: Delivery) -> None:
            def read(_payload: bytes) -> AboutAdvice:
                return decode(delivery)

            message = self._reader.decoded(delivery, read)
            if message is None:
                return
            earlier = lives.get(earlier_advice(message) or "")
            if earlier is not None:
                earlier[1].add(message)
            if isinstance(message, Recommendation) and delivery.stored_ns < end_ns:
                # Told twice it is the same advice.
                name = message.recommendation_id
                lives.setdefault(name, (delivery.stored_ns, Life(advice=message)))

        await gently(told, hear)
        return list(lives.values())


async def _newest(rows: Sequence[AdviceRow]) -> Sequence[AdviceRow]:
    """As many of the last as fit into an answer."""
    left_bytes = REPLY_BYTES
    kept = 0
    for size_bytes in await gently(rows[::-1], size_of):
        left_bytes -= size_bytes
        if left_bytes < 0:
            break
        kept += 1
    return rows[len(rows) - kept :]
