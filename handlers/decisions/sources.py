"""Reads the messages that a piece of evidence names by subject."""

import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec

from handlers.queries.reading import Reading
from schemas.decisions import MetricSource
from schemas.metrics import Rollup
from schemas.protocols import Delivery
from schemas.scaling import Evidence
from schemas.units import SECOND_NS, instant, to_ns

MINUTE_NS = 60 * SECOND_NS
ROLLUPS_LATER_NS = 900 * SECOND_NS
"""A minute is stored after its end, and handlers may have been behind."""

_TREE = msgspec.json.Decoder(dict[str, Any])
_ROLLUP = msgspec.json.Decoder(Rollup)


class MetricSources:
    """The first and the last message behind each piece of evidence, by the fields that count."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def read(self, evidence: Sequence[Evidence], missing: list[str]) -> list[MetricSource]:
        """Those that are still there; what is not is told in `missing`.

        Raises:
            RequestError: 503 a stream could not be read now.
        """
        found = []
        for one in evidence:
            source = await self._of(one, one.subject) if one.subject is not None else None
            if source is not None:
                found.append(source)
            else:
                missing.append(f"the messages of {one.subject} behind {one.signal} are gone")
        return found

    async def _of(self, one: Evidence, subject: str) -> MetricSource | None:
        """In the metrics by the numbers of the evidence, in the rollups by its minutes."""
        part: dict[str, Any] = {"start_sequence": one.stream_from}
        minutes = None
        if one.measured_from is not None and one.measured_to is not None:
            minutes = to_ns(one.measured_from), to_ns(one.measured_to)
            part = {"start_ns": minutes[0], "end_ns": minutes[1] + ROLLUPS_LATER_NS}
        stream = "METRICS" if minutes is None else "ROLLUPS"
        messages = self._reading.messages(stream, _decode, subject=subject, **part)
        found: list[tuple[int, dict[str, float | None]]] = []
        async with contextlib.aclosing(messages):
            async for delivery, (minute_ns, values) in messages:
                if one.stream_to is not None and delivery.sequence > one.stream_to:
                    break
                if minutes is None or minutes[0] - MINUTE_NS < minute_ns < minutes[1]:
                    known = {name: values.get(name) for name in one.fields}
                    found.append((delivery.stored_ns, known))
        if not found:
            return None
        return MetricSource(
            subject=subject,
            messages=len(found),
            first_at=instant(found[0][0]),
            last_at=instant(found[-1][0]),
            first=found[0][1],
            last=found[-1][1],
            highest={
                name: max((v for _, of in found if (v := of[name]) is not None), default=None)
                for name in one.fields
            },
        )


def _decode(delivery: Delivery) -> tuple[int, dict[str, float | None]]:
    """The minute of a rollup, else 0, and the numbers."""
    if not delivery.subject.startswith("rollup."):
        tree = _TREE.decode(delivery.payload)
        return 0, {name: float(v) for name, v in tree.items() if isinstance(v, int | float)}
    rollup = _ROLLUP.decode(delivery.payload)
    return to_ns(rollup.minute_at), {
        name: one.max if name.startswith("memory_") else one.mean
        for name, one in rollup.metrics.items()
    }
