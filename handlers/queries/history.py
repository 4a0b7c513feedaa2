"""Answers `api.gpu.history`, `api.engine.history` and `api.system.history` from the streams."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

import msgspec

from handlers.foreign import ForeignMessages
from handlers.queries.raw_or_rollups import RawOrRollups, Wanted
from handlers.queries.time_range import time_range
from handlers.settings import QuerySettings
from schemas.api import HistoryReply, HistoryRequest, HistorySample
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics, Rollup
from schemas.protocols import Call, Clock, RequestError, Subscriber
from schemas.units import instant, paired
from schemas.views import engine_numbers, gpu_numbers, host_numbers

DEFAULT_SECONDS = 600.0

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
_WORDS: Mapping[Kind, str] = {"gpu": "GPU", "engine": "engine", "host": "machine"}


class History:
    """Reads a time range of one kind of metrics.

    From the raw metrics where they reach back to its start, else (or when they are more than
    `history_scan_bytes`) from the rollups, whose values are summaries of a minute. Thinned to
    the request's limit, and to what fits into an answer, each node, GPU or engine evenly.
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
        self._samples = RawOrRollups(subscriber, settings, foreign)
        self._clock = clock
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_TYPES[kind])
        self._numbers = _NUMBERS[kind]

    async def answer(self, request: HistoryRequest, call: Call) -> HistoryReply:
        """The samples of the range; the node may stand at the end of the subject.

        Raises:
            RequestError: 400 a bad range, 413 too much to read, 503 no answer from the stream.
        """
        for part in PARTS:
            if part != self._kind and getattr(request, part) is not None:
                raise RequestError(400, f"{part}: not known here, ask api.{part}.history")
        node = _node(request, call)
        start_ns, end_ns = time_range(
            request.start,
            request.end,
            request.seconds,
            self._clock(),
            default_seconds=DEFAULT_SECONDS,
        )
        wanted = self._wanted(node, getattr(request, self._kind, None))
        what = f"{_WORDS[self._kind]} metric{f' of node {node!r}' if node else ''}"
        found = await self._samples.read(wanted, start_ns, end_ns, request.limit, what=what)
        return HistoryReply(
            source=found.source,
            start=instant(start_ns),
            end=instant(end_ns),
            samples=list(found.samples),
            matched=found.matched,
            text=found.text,
        )

    def _wanted(self, node: str | None, part: str | None) -> Wanted[HistorySample]:
        raw = f"metrics.{self._kind}.{node or '*'}"
        if self._kind in PARTS:
            raw += f".{part or '*'}"
        ids = [node if node and self._kind == "host" else "*"]
        if node and part:
            # The latter is the id of older versions, where it is not still that of today.
            ids = [paired(node, part), f"{node}-{part}"]

        def of_rollup(rollup: Rollup) -> HistorySample | None:
            sample = self._rollup_sample(rollup)
            its_part = getattr(sample, self._kind, None)
            return sample if node in {None, sample.node} and part in {None, its_part} else None

        return Wanted(
            raw_subject=raw,
            rollup_subjects=[f"rollup.{self._kind}.{id_}" for id_ in dict.fromkeys(ids)],
            raw_series=lambda delivery: delivery.subject,
            raw_sample=self._raw_sample,
            rollup_sample=of_rollup,
            series=_series,
            narrower="name a node and its part",
        )

    def _raw_sample(self, payload: bytes) -> HistorySample:
        metrics = self._decoder.decode(payload)
        return HistorySample(
            at=metrics.observed_at,
            node=metrics.node,
            simulated=metrics.simulated,
            values=dict(self._numbers(metrics)),
            **self._part(getattr(metrics, self._kind, None)),
        )

    def _rollup_sample(self, rollup: Rollup) -> HistorySample:
        node = rollup.node or rollup.id
        values: dict[str, object] = dict(rollup.metrics)
        if rollup.energy_joules is not None:
            values["energy_joules"] = rollup.energy_joules
        return HistorySample(
            at=rollup.minute_at,
            node=node,
            simulated=rollup.simulated,
            values=values,
            # Older versions did not name the part, and had no digest in the id.
            **self._part(rollup.gpu or rollup.engine or rollup.id.removeprefix(f"{node}-")),
        )

    def _part(self, name: str | None) -> dict[str, str | None]:
        """The field of a sample that names the part, if it is of one."""
        return {self._kind: name} if self._kind in PARTS else {}


def _series(sample: HistorySample) -> Hashable:
    return sample.node, sample.gpu, sample.engine


def _node(request: HistoryRequest, call: Call) -> str | None:
    """The node of the request or of the subject `api.<group>.history.<node>`."""
    tokens = call.subject.split(".")
    if len(tokens) < 4:
        return request.node
    if request.node not in {None, tokens[3]}:
        raise RequestError(400, f"node: {request.node!r}, but the subject names {tokens[3]!r}")
    return tokens[3]
