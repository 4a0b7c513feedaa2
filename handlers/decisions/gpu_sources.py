"""Reads what a pool's GPUs reported behind advice that counts how busy they are."""

import asyncio
import contextlib
import dataclasses

import msgspec

from handlers.queries.reading import Reading
from handlers.scaling.replicas import GPU_BUSY
from schemas.decisions import MetricSource
from schemas.metrics import GpuMetrics
from schemas.protocols import Delivery, RequestError
from schemas.scaling import Recommendation
from schemas.units import instant

FIELDS = ("utilization_ratio", "memory_utilization_ratio")
"""How busy a GPU is, and whether it holds memory: else it carries no replica."""
MOST = 200
"""GPUs in one answer: a server lets 1 MiB through unless it was told otherwise."""
MOST_SECONDS = 2.0
"""The GPUs of all pools are read for those of one: who asks waits for the rest as well."""

_GPU = msgspec.json.Decoder(GpuMetrics)


@dataclasses.dataclass(slots=True)
class _Told:
    """What one GPU said."""

    messages: int
    first_ns: int
    last_ns: int
    first: dict[str, float | None]
    last: dict[str, float | None]
    highest: dict[str, float | None]


class GpuSources:
    """The first and the last message of each GPU of a pool, by the numbers of the evidence."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def read(self, advice: Recommendation, missing: list[str]) -> list[MetricSource]:
        """By subject; none where no evidence is of GPUs. What is not there is told in `missing`.

        Raises:
            RequestError: 503 the stream could not be read now.
        """
        begins, ends = [], []
        for one in advice.evidence:
            if one.signal == GPU_BUSY and one.stream_from is not None and one.stream_to is not None:
                begins.append(one.stream_from)
                ends.append(one.stream_to)
        if not begins:
            return []
        try:
            async with asyncio.timeout(MOST_SECONDS):
                found = await self._told(advice.pool, min(begins), max(ends))
        except TimeoutError as error:
            raise RequestError(503, f"its GPUs could not be read in {MOST_SECONDS:g} s") from error
        if not found:
            missing.append(f"the messages of the pool's GPUs behind {GPU_BUSY} are gone")
        if len(found) > MOST:
            missing.append(f"of {len(found)} GPUs only {MOST} are shown")
        return [_source(subject, found[subject]) for subject in sorted(found)[:MOST]]

    async def _told(self, pool: str, begin: int, end: int) -> dict[str, _Told]:
        found: dict[str, _Told] = {}
        messages = self._reading.messages(
            "METRICS", _decode, subject=GpuMetrics.pattern(), start_sequence=begin
        )
        async with contextlib.aclosing(messages):
            async for delivery, metrics in messages:
                if delivery.sequence > end:
                    break
                if metrics.pool == pool:
                    _hear(found, delivery, metrics)
        return found


def _hear(found: dict[str, _Told], delivery: Delivery, metrics: GpuMetrics) -> None:
    values: dict[str, float | None] = {name: getattr(metrics, name) for name in FIELDS}
    told = found.get(delivery.subject)
    if told is None:
        at = delivery.stored_ns
        found[delivery.subject] = _Told(1, at, at, values, values, dict(values))
        return
    told.messages += 1
    told.last_ns, told.last = delivery.stored_ns, values
    for name, value in values.items():
        highest = told.highest[name]
        if value is not None and (highest is None or value > highest):
            told.highest[name] = value


def _source(subject: str, told: _Told) -> MetricSource:
    return MetricSource(
        subject=subject,
        messages=told.messages,
        first_at=instant(told.first_ns),
        last_at=instant(told.last_ns),
        first=told.first,
        last=told.last,
        highest=told.highest,
    )


def _decode(delivery: Delivery) -> GpuMetrics:
    return _GPU.decode(delivery.payload)
