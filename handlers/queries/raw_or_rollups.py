"""Samples of a time range: the raw metrics where they reach back that far, else the minutes."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, Literal, TypeVar

import msgspec

from handlers.foreign import ForeignMessages
from handlers.queries.range_reader import RangeReader
from handlers.queries.thinning import fitting, gently, thinned
from handlers.rollup import MINUTE_NS
from handlers.settings import QuerySettings
from schemas.metrics import Rollup
from schemas.protocols import Delivery, Subscriber
from schemas.units import to_ns

ROLLUP_DELAY_NS = 10 * MINUTE_NS
"""A rollup is stored after its minute; handlers that catch up store it later still."""

_ROLLUP = msgspec.json.Decoder(Rollup)


S = TypeVar("S")


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted(Generic[S]):
    """What to read, and how a sample comes of it."""

    raw_subject: str
    rollup_subjects: Sequence[str]
    """That of today first; others are those of minutes recorded by older versions."""
    raw_series: Callable[[Delivery], Hashable | None]
    """Whose raw metrics they are; None: nobody's that was asked for."""
    raw_sample: Callable[[bytes], S]
    rollup_sample: Callable[[Rollup], S | None]
    """None: of nobody that was asked for."""
    series: Callable[[S], Hashable]
    narrower: str
    """What to name where it is too much."""


@dataclasses.dataclass(frozen=True, slots=True)
class Samples(Generic[S]):
    """Of one source, in time order; how many there were before thinning, and why there is none."""

    source: Literal["metrics", "rollups"]
    samples: Sequence[S]
    matched: int
    text: str = ""


class RawOrRollups:
    """Reads a range from the metrics, or from the rollups where the metrics do not reach back.

    From the rollups, too, where the metrics are more than `history_scan_bytes`.
    """

    def __init__(
        self, subscriber: Subscriber, settings: QuerySettings, foreign: ForeignMessages
    ) -> None:
        self._reader = RangeReader(subscriber, settings, foreign)

    async def read(
        self, wanted: Wanted[S], start_ns: int, end_ns: int, limit: int, *, what: str
    ) -> Samples[S]:
        """At most `limit` samples, and what fits into an answer, of each series its share.

        Raises:
            RequestError: 413 too much to read, 503 no answer from the stream.
        """
        async with self._reader.turn():
            found = await self._raw(wanted, start_ns, end_ns, limit)
            if found is None:
                found = await self._rollups(wanted, start_ns, end_ns, limit)
            if found.matched:
                return found
            places = [("ROLLUPS", subject) for subject in wanted.rollup_subjects]
            text = await self._reader.why_nothing(what, ("METRICS", wanted.raw_subject), *places)
            return dataclasses.replace(found, text=text)

    async def _raw(
        self, wanted: Wanted[S], start_ns: int, end_ns: int, limit: int
    ) -> Samples[S] | None:
        if not await self._raw_reaches(start_ns):
            return None
        raw = await self._reader.scan("METRICS", wanted.raw_subject, start_ns, end_ns)
        if raw is None:
            return None
        keys = await gently(raw, wanted.raw_series)
        theirs = [(key, one) for key, one in zip(keys, raw, strict=True) if key is not None]
        kept = thinned(theirs, limit, lambda pair: pair[0])
        samples = await self._reader.all_decoded([one for _, one in kept], wanted.raw_sample)
        return Samples("metrics", await fitting(samples, wanted.series), len(theirs))

    async def _rollups(
        self, wanted: Wanted[S], start_ns: int, end_ns: int, limit: int
    ) -> Samples[S]:
        rollups: list[Delivery] = []
        for subject in wanted.rollup_subjects:
            read = await self._reader.scan("ROLLUPS", subject, start_ns, end_ns + ROLLUP_DELAY_NS)
            if read is None:
                raise self._reader.too_much(wanted.narrower)
            rollups += read
        rollups.sort(key=lambda delivery: delivery.sequence)

        def sample(payload: bytes) -> S | None:
            rollup = _ROLLUP.decode(payload)
            if not start_ns <= to_ns(rollup.minute_at) < end_ns:
                return None
            return wanted.rollup_sample(rollup)

        samples = await self._reader.all_decoded(rollups, sample)
        kept = thinned(samples, limit, wanted.series)
        return Samples("rollups", await fitting(kept, wanted.series), len(samples))

    async def _raw_reaches(self, start_ns: int) -> bool:
        """Whether the raw metrics go back to `start_ns`, or as far as the rollups do."""
        raw_ns = await self._reader.first_ns("METRICS")
        if raw_ns is None or raw_ns <= start_ns:
            return raw_ns is not None
        rollup_ns = await self._reader.first_ns("ROLLUPS")
        return rollup_ns is None or raw_ns <= rollup_ns
