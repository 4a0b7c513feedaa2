"""Answers `api.gpu.history`, `api.engine.history` and `api.system.history` from the streams."""

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from handlers.foreign import ForeignMessages
from handlers.rollup import MINUTE_NS
from handlers.settings import QuerySettings
from schemas.api import HistoryReply, HistoryRequest, HistorySample
from schemas.engines import EngineMetrics
from schemas.message import UNDECODABLE, Message
from schemas.metrics import GpuMetrics, HostMetrics, Rollup
from schemas.protocols import Call, Clock, Delivery, PublishError, RequestError, Subscriber
from schemas.units import SECOND_NS, instant, to_ns
from schemas.views import engine_numbers, gpu_numbers, host_numbers

T = TypeVar("T")

DEFAULT_SECONDS = 600.0
SCANS = 2
"""Scans at a time, of each kind; the others wait. Bounds the memory they take."""

_SKEW_NS = 5 * SECOND_NS
# A rollup is stored after its minute; handlers that catch up store it later still.
_ROLLUP_DELAY_NS = 10 * MINUTE_NS

Kind = Literal["gpu", "engine", "host"]
_TYPES: Mapping[Kind, type[Message]] = {
    "gpu": GpuMetrics,
    "engine": EngineMetrics,
    "host": HostMetrics,
}
_NUMBERS: Mapping[Kind, Callable[[Any], Mapping[str, float]]] = {
    "gpu": gpu_numbers,
    "engine": engine_numbers,
    "host": host_numbers,
}
PARTS: tuple[Kind, ...] = ("gpu", "engine")
"""Parts of a node, by the field that names them in metrics, requests and samples."""


class History:
    """Reads a time range of one kind of metrics.

    From the raw metrics where they reach back to its start, else (or when they are more than
    `history_scan_bytes`) from the rollups, whose values are summaries of a minute. Thinned to
    the request's limit, each node, GPU or engine evenly.
    """

    def __init__(
        self,
        kind: Kind,
        subscriber: Subscriber,
        settings: QuerySettings,
        clock: Clock,
        foreign: ForeignMessages,
    ) -> None:
        self._kind = kind
        self._foreign = foreign
        self._subscriber = subscriber
        self._settings = settings
        self._clock = clock
        self._scans = asyncio.Semaphore(SCANS)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_TYPES[kind])
        self._numbers = _NUMBERS[kind]
        self._rollup_decoder = msgspec.json.Decoder(Rollup)

    async def answer(self, request: HistoryRequest, call: Call) -> HistoryReply:
        """The samples of the range; the node may stand at the end of the subject.

        Raises:
            RequestError: 400 a bad range, 413 too much to read, 503 no answer from the stream.
        """
        for part in PARTS:
            if part != self._kind and getattr(request, part) is not None:
                raise RequestError(400, f"{part}: not known here, ask api.{part}.history")
        node = _node(request, call)
        start_ns, end_ns = _range(request, self._clock())
        try:
            async with asyncio.timeout(self._settings.history_timeout_seconds), self._scans:
                return await self._read(node, request, start_ns, end_ns)
        except TimeoutError as error:
            raise RequestError(503, "the history could not be read in time") from error
        except PublishError as error:
            raise RequestError(503, "the history cannot be read now") from error

    async def _read(
        self, node: str | None, request: HistoryRequest, start_ns: int, end_ns: int
    ) -> HistoryReply:
        part: str | None = getattr(request, self._kind, None)
        source: Literal["metrics", "rollups"] = "metrics"
        samples: Sequence[HistorySample] = ()
        if await self._raw_reaches(start_ns):
            subject = f"metrics.{self._kind}.{node or '*'}"
            if self._kind in PARTS:
                subject += f".{part or '*'}"
            raw = await self._scan("METRICS", subject, start_ns, end_ns)
            if raw is not None:
                matched = len(raw)
                thinned = _thinned(raw, request.limit, lambda delivery: delivery.subject)
                samples = self._decoded(thinned, self._raw_sample)
                return _reply(source, start_ns, end_ns, samples, matched)
        source = "rollups"
        subject = f"rollup.{self._kind}.{node if node and self._kind == 'host' else '*'}"
        if node and part:
            subject = f"rollup.{self._kind}.{node}-{part}"
        rollups = await self._scan("ROLLUPS", subject, start_ns, end_ns + _ROLLUP_DELAY_NS)
        if rollups is None:
            raise RequestError(
                413,
                f"this range holds more than {self._settings.history_scan_bytes} bytes: name a "
                "node and its part, or ask for less time",
            )
        samples = [
            sample
            for sample in self._decoded(rollups, self._rollup_sample)
            if start_ns <= to_ns(sample.at) < end_ns
            and node in {None, sample.node}
            and part in {None, getattr(sample, self._kind, None)}
        ]
        kept = _thinned(
            samples, request.limit, lambda sample: (sample.node, sample.gpu, sample.engine)
        )
        return _reply(source, start_ns, end_ns, kept, len(samples))

    async def _raw_reaches(self, start_ns: int) -> bool:
        """Whether the raw metrics go back to `start_ns`, or as far as the rollups do."""
        raw_ns = await self._first_ns("METRICS")
        if raw_ns is None or raw_ns <= start_ns:
            return raw_ns is not None
        rollup_ns = await self._first_ns("ROLLUPS")
        return rollup_ns is None or raw_ns <= rollup_ns

    async def _first_ns(self, stream: str) -> int | None:
        async with contextlib.aclosing(self._subscriber.read(stream)) as deliveries:
            async for delivery in deliveries:
                return delivery.stored_ns
        return None

    async def _scan(
        self, stream: str, subject: str, start_ns: int, end_ns: int
    ) -> list[Delivery] | None:
        """What the stream holds in the range; None when that is more than we may read."""
        found: list[Delivery] = []
        scanned_bytes = 0
        deliveries = self._subscriber.read(
            stream, subject=subject, start_ns=start_ns, end_ns=end_ns
        )
        async with contextlib.aclosing(deliveries):
            async for delivery in deliveries:
                scanned_bytes += len(delivery.payload)
                if scanned_bytes > self._settings.history_scan_bytes:
                    return None
                found.append(delivery)
        return found

    def _decoded(
        self, deliveries: Sequence[Delivery], decode: Callable[[bytes], HistorySample]
    ) -> list[HistorySample]:
        """The samples that decode. A foreign message in the stream must not hide the others."""
        samples = []
        for delivery in deliveries:
            try:
                samples.append(decode(delivery.payload))
            except UNDECODABLE as error:
                self._foreign.pass_over(delivery, error)
        return samples

    def _raw_sample(self, payload: bytes) -> HistorySample:
        metrics = self._decoder.decode(payload)
        return HistorySample(
            at=metrics.observed_at,
            node=metrics.node,
            simulated=metrics.simulated,
            values=dict(self._numbers(metrics)),
            **self._part(getattr(metrics, self._kind, None)),
        )

    def _rollup_sample(self, payload: bytes) -> HistorySample:
        rollup = self._rollup_decoder.decode(payload)
        node = rollup.node or rollup.id
        values: dict[str, object] = dict(rollup.metrics)
        if rollup.energy_joules is not None:
            values["energy_joules"] = rollup.energy_joules
        return HistorySample(
            at=rollup.minute_at,
            node=node,
            simulated=rollup.simulated,
            values=values,
            **self._part(rollup.id.removeprefix(f"{node}-")),
        )

    def _part(self, name: str | None) -> dict[str, str | None]:
        """The field of a sample that names the part, if it is of one."""
        return {self._kind: name} if self._kind in PARTS else {}


def _node(request: HistoryRequest, call: Call) -> str | None:
    """The node of the request or of the subject `api.<group>.history.<node>`."""
    tokens = call.subject.split(".")
    if len(tokens) < 4:
        return request.node
    if request.node not in {None, tokens[3]}:
        raise RequestError(400, f"node: {request.node!r}, but the subject names {tokens[3]!r}")
    return tokens[3]


def _range(request: HistoryRequest, now_ns: int) -> tuple[int, int]:
    """Start and end of the request in ns."""
    if request.start is not None and request.seconds is not None:
        raise RequestError(400, "seconds: give either start or seconds, not both")
    end_ns = now_ns if request.end is None else to_ns(request.end)
    if end_ns > now_ns + _SKEW_NS:
        raise RequestError(400, "end: lies in the future")
    if request.start is None:
        seconds = request.seconds if request.seconds is not None else DEFAULT_SECONDS
        return max(0, end_ns - int(seconds * SECOND_NS)), end_ns
    start_ns = to_ns(request.start)
    if start_ns > now_ns:
        raise RequestError(400, "start: lies in the future")
    if start_ns >= end_ns:
        raise RequestError(400, "start: must be before end")
    return max(0, start_ns), end_ns


def _thinned(items: Sequence[T], limit: int, series_of: Callable[[T], Hashable]) -> Sequence[T]:
    """At most `limit` items, in order: of each series its share, evenly spaced.

    The first and the last of a series stay; of a share of one, the last. Where there are more
    series than the limit, only the first ones have a share.
    """
    if len(items) <= limit:
        return items
    series: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        series.setdefault(series_of(item), []).append(index)
    share, more = divmod(limit, len(series))
    kept: list[int] = []
    for number, indexes in enumerate(series.values()):
        kept += _spaced(indexes, share + (number < more))
    return [items[index] for index in sorted(kept)]


def _spaced(items: Sequence[T], count: int) -> Sequence[T]:
    if len(items) <= count:
        return items
    if count <= 1:
        return items[len(items) - count :]
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def _reply(
    source: Literal["metrics", "rollups"],
    start_ns: int,
    end_ns: int,
    samples: Sequence[HistorySample],
    matched: int,
) -> HistoryReply:
    return HistoryReply(
        source=source,
        start=instant(start_ns),
        end=instant(end_ns),
        samples=list(samples),
        matched=matched,
    )
