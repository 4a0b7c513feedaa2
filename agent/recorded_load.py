"""Reads the load of a pool of engines from the recorded rollups, for a back-test."""

import contextlib
import re
import time

import msgspec

from agent.bus import Bus
from agent.series_file import SeriesFile
from schemas.message import UNDECODABLE
from schemas.metrics import Rollup
from schemas.units import SECOND_NS, instant, to_ns

STEP_SECONDS = 60.0
MINUTE_NS = 60 * SECOND_NS
_UNITS = {"m": 60, "h": 3600, "d": 86_400}


class NoRecordError(ValueError):
    """The stream holds no load of such a pool; says what it does hold."""


def seconds_of(text: str) -> float:
    """`90m`, `12h` or `7d` in seconds.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text)
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r}: write a time like 90m, 12h or 7d")
    return float(match[1]) * _UNITS[match[2]]


async def read_pool(bus: Bus, pool: str, seconds: float) -> SeriesFile:
    """The requests in flight of `pool` in the last `seconds`, from its one-minute rollups.

    The means of running and waiting over all samples, times the engines that reported; None for
    a minute that was not recorded, or without one of the three.

    Raises:
        NoRecordError: fewer than two minutes of it are recorded.
    """
    decoder = msgspec.json.Decoder(Rollup)
    minutes: dict[int, float | None] = {}
    deliveries = bus.read(
        "ROLLUPS", subject=f"rollup.pool.{pool}", start_ns=time.time_ns() - int(seconds * SECOND_NS)
    )
    async with contextlib.aclosing(deliveries):
        async for delivery in deliveries:
            try:
                rollup = decoder.decode(delivery.payload)
            except UNDECODABLE:
                continue  # a foreign message
            minutes[to_ns(rollup.minute_at) // MINUTE_NS] = _in_flight(rollup)
    if sum(load is not None for load in minutes.values()) < 2:
        raise NoRecordError(
            f"pool {pool}: {len(minutes)} minutes are recorded since then, and fewer than two say "
            "how many requests ran and waited"
        )
    first, last = min(minutes), max(minutes)
    span = range(first, last + 1)
    return SeriesFile(
        values=[minutes.get(minute) for minute in span],
        times=[instant(minute * MINUTE_NS).isoformat() for minute in span],
    )


def _in_flight(rollup: Rollup) -> float | None:
    engines = rollup.metrics.get("engines")
    running = rollup.metrics.get("engine_requests_running")
    waiting = rollup.metrics.get("engine_requests_waiting")
    if engines is None or running is None or waiting is None:
        return None
    return engines.mean * (running.mean + waiting.mean)
