"""Reads from the stream what was said about one recommendation."""

import re

import msgspec

from handlers.queries.reading import Reading
from schemas.decisions import TrailEntry
from schemas.life import AboutAdvice, Life, decode, earlier_advice
from schemas.protocols import Delivery, RequestError
from schemas.scaling import ROLLBACK, Decision, Execution, Recommendation
from schemas.units import SECOND_NS, instant

_EARLIER_NS = 60 * SECOND_NS
_ID = re.compile(r"([A-Za-z0-9_-]+)(?:\.[a-z_]+\.([0-9]{1,19})(?:\..*)?)?", re.ASCII)


class AdviceLog:
    """What `FLEET_RECOMMENDATIONS` holds about one recommendation, read anew for each question."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def read(self, recommendation_id: str) -> tuple[Life, list[TrailEntry]]:
        """Its life, and the messages that tell it.

        Raises:
            RequestError: 404 the stream holds no such advice; 503 it could not be read now.
        """
        begin = _ID.match(recommendation_id)
        if begin is None:
            raise _unknown(recommendation_id)
        told: list[tuple[Delivery, AboutAdvice]] = []
        for kind in (Recommendation, Decision, Execution):  # a server of 2.9 filters by one alone
            messages = self._reading.messages(
                "RECOMMENDATIONS",
                decode,
                subject=f"{kind.pattern().rsplit('.', 1)[0]}.{begin[1]}",
                start_ns=_start_ns(begin[2]),
            )
            told += [pair async for pair in messages]
        life: Life | None = None
        trail = []
        for delivery, message in sorted(told, key=lambda pair: pair[0].sequence):
            if isinstance(message, Recommendation) and life is None:
                if message.recommendation_id != recommendation_id:
                    continue
                life = Life(advice=message)
            elif life is not None and recommendation_id == earlier_advice(message):
                life.add(message)
            else:
                continue
            trail.append(
                TrailEntry(
                    sequence=delivery.sequence,
                    stored_at=instant(delivery.stored_ns),
                    subject=delivery.subject,
                    message=msgspec.Raw(delivery.payload),
                )
            )
        if life is None:
            raise _unknown(recommendation_id)
        return life, trail

    async def origin(self, life: Life) -> tuple[Life, list[TrailEntry]] | None:
        """Of advice to go back: the advice whose execution failed; None: it is not there.

        Raises:
            RequestError: 503 it could not be read now.
        """
        name = life.advice.recommendation_id
        begin = _ID.match(name)
        if life.advice.reason != ROLLBACK or begin is None:
            return None
        messages = self._reading.messages(
            "RECOMMENDATIONS",
            decode,
            subject=f"{Execution.pattern().rsplit('.', 1)[0]}.{life.advice.pool}",
            start_ns=_start_ns(begin[2]),
        )
        failed = [step async for _, step in messages if _gave(step, name)]
        try:
            return await self.read(failed[0].recommendation_id) if failed else None
        except RequestError as error:
            if error.code != 404:
                raise
            return None


def _gave(step: AboutAdvice, rollback: str) -> bool:
    """Whether it is the end of an execution that was followed by this advice to go back."""
    is_another = step.recommendation_id != rollback
    return isinstance(step, Execution) and step.rollback == rollback and is_another


def _start_ns(decided: str | None) -> int | None:
    """A minute before the instant in the id, as clocks differ; None: from the first message."""
    start = int(decided or 0) - _EARLIER_NS
    return start if start > 0 else None


def _unknown(recommendation_id: str) -> RequestError:
    return RequestError(
        404,
        f"the stream has no recommendation {recommendation_id!r}; `resource-agent advise` lists "
        "those that stand",
    )
