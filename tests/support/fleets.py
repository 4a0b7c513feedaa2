"""Recorded streams of GPUs and engines, minute by minute, for what they cost."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from handlers import default_handlers
from handlers.settings import HandlersSettings
from handlers.slots import TICK_NS, Routed, Slot, Watermark
from handlers.spending.handler import MINUTE_NS, WasteHandler
from schemas.message import Message
from schemas.protocols import Emit, Handler, Moment
from schemas.units import SECOND_NS, instant
from tests.support.samples import START_NS, engine, gpu

H100 = "NVIDIA H100 80GB HBM3"
SAMPLES_A_MINUTE = 3

Minute = Callable[[int], Sequence[dict[str, Any]]]
"""The GPUs of a minute, by `fields`; with `engine` set, an engine."""


def busy(gpu_id: str, ratio: float | None = 0.7, **fields: Any) -> dict[str, Any]:
    """A GPU at work."""
    return {
        "gpu_id": gpu_id,
        "name": H100,
        "pool": "chat",
        "utilization_ratio": ratio,
        "memory_utilization_ratio": 0.9,
        "power_watts": 560.0,
        "power_limit_watts": 700.0,
        **fields,
    }


def held(gpu_id: str, **fields: Any) -> dict[str, Any]:
    """A GPU whose memory is held, and nothing runs."""
    return busy(gpu_id, 0.0, **{"power_watts": 70.0, **fields})


def idle(gpu_id: str, **fields: Any) -> dict[str, Any]:
    """A GPU at rest."""
    return held(gpu_id, **{"memory_utilization_ratio": 0.0, **fields})


def recorded(minutes: Iterable[int], what: Minute, *, start_ns: int = START_NS) -> list[Routed]:
    """The stream of these minutes: each part three times, evenly."""
    stream: list[Routed] = []
    for minute in minutes:
        for sample in range(SAMPLES_A_MINUTE):
            seconds = minute * 60 + sample * 60 / SAMPLES_A_MINUTE + 1
            now = Moment(start_ns + round(seconds * SECOND_NS), len(stream) + 1)
            for fields in what(minute):
                message = _message(fields, seconds, now)
                stream.append(Routed(message, Moment(now.ns, len(stream) + 1)))
    return stream


def _message(fields: dict[str, Any], seconds: float, now: Moment) -> Message:
    values = dict(fields)
    observed_at = instant(now.ns)
    if values.pop("engine", None):
        per_second = values.pop("tokens_per_second")
        return engine(
            observed_at=observed_at,
            prompt_tokens_total=int(seconds * per_second * 3 / 4),
            generation_tokens_total=int(seconds * per_second / 4),
            **values,
        )
    if values.get("power_watts") is not None and "energy_joules_total" not in values:
        values["energy_joules_total"] = values["power_watts"] * (seconds + 1e6)
    return gpu(observed_at=observed_at, **values)


def handlers(settings: HandlersSettings | None = None) -> Sequence[Handler]:
    """Those that count money, alone."""
    every = default_handlers(settings or HandlersSettings())
    return [one for one in every if isinstance(one, WasteHandler)]


def said(stream: Sequence[Routed], settings: HandlersSettings | None = None) -> list[Emit]:
    """What the handlers say to it, up to the end of its last minute."""
    slot = Slot(0, 1, handlers(settings), Watermark(sequence=0, ns=0))
    emits = [emit for routed in stream for emit in slot.feed(routed)]
    return [*emits, *slot.advance(minute_end(stream))]


def minute_end(stream: Sequence[Routed]) -> int:
    """When the last minute of a stream is over, and every group had its turn, in ns."""
    return (stream[-1].now.ns // MINUTE_NS + 1) * MINUTE_NS + TICK_NS
