"""What the demo's steps are made of: a message awaited, a load published, real texts."""

import asyncio
import contextlib
import dataclasses
import sysconfig
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from agent import human
from agent.bus import Bus
from agent.collectors.simulated_engines import SimulatedEngines
from schemas.message import Message

M = TypeVar("M", bound=Message)

PUBLISH_SECONDS = 0.25
MAX_TEXT_BYTES = 200_000


class StepError(Exception):
    """A step did not see what it should; the text says what was there instead."""


@dataclasses.dataclass(frozen=True, slots=True)
class Heard(Generic[M]):
    """A message and when it came (`time.perf_counter`)."""

    message: M
    at: float


@contextlib.asynccontextmanager
async def expecting(
    bus: Bus, kind: type[M], fits: Callable[[M], bool]
) -> AsyncIterator["asyncio.Future[Heard[M]]"]:
    """Listens from here on; the future has the first message of `kind` that fits."""
    found: asyncio.Future[Heard[M]] = asyncio.get_running_loop().create_future()

    def take(_subject: str, payload: bytes) -> None:
        at = time.perf_counter()
        message = msgspec.json.decode(payload, type=kind)
        if not found.done() and fits(message):
            found.set_result(Heard(message, at))

    stop = await bus.subscribe(kind.pattern(), take)
    try:
        yield found
    finally:
        found.cancel()
        await stop()


async def publish_for_ever(
    bus: Bus, engines: SimulatedEngines, sent_at: dict[tuple[str, datetime], float]
) -> None:
    """Publish the engines' metrics, and note when each was sent."""
    while True:
        for metric in engines.sample():
            sent_at[metric.engine, metric.observed_at] = time.perf_counter()
            await bus.publish(metric)
        await asyncio.sleep(PUBLISH_SECONDS)


def real_texts(total_bytes: int) -> dict[str, bytes]:
    """Sources of Python's standard library by path, `total_bytes` or a little more together."""
    folder = Path(sysconfig.get_path("stdlib"))
    texts: dict[str, bytes] = {}
    size_bytes = 0
    for path in sorted(folder.glob("*.py")):
        text = path.read_bytes()
        if 0 < len(text) <= MAX_TEXT_BYTES:
            texts[f"stdlib/{path.name}"] = text
            size_bytes += len(text)
        if size_bytes >= total_bytes:
            return texts
    raise StepError(f"{folder} holds only {human.size(size_bytes)} of Python's sources")
