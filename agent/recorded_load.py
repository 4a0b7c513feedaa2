"""Reads the load of a pool of engines from the recorded rollups, for a back-test."""

import contextlib
import re
import time
from collections.abc import Mapping, Sequence

import msgspec

from agent.bus import Bus
from agent.series_file import SeriesFile
from schemas.message import UNDECODABLE
from schemas.metrics import Rollup
from schemas.units import SECOND_NS, instant, to_ns

STEP_SECONDS = 60.0
IN_FLIGHT = "requests_in_flight"
PARTS: Mapping[str, tuple[str, ...]] = {
    IN_FLIGHT: ("engine_requests_running", "engine_requests_waiting"),
    "prompt_tokens_per_second": ("engine_prompt_tokens_per_second",),
    "generation_tokens_per_second": ("engine_generation_tokens_per_second",),
}
"""The loads of a pool that its minutes tell, and what of a minute each is the sum of."""
MINUTE_NS = 60 * SECOND_NS
MOST_NAMES = 20
_SAID = {IN_FLIGHT: "how many requests ran and waited"}
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


async def read_pool(bus: Bus, pool: str, seconds: float, signal: str = IN_FLIGHT) -> SeriesFile:
    """A load of `pool`, one of `PARTS`, in the last `seconds`, from its one-minute rollups.

    The means of its parts over all samples, times the engines that reported; None for a minute
    that was not recorded, or without one of these. 2 engines with 4 running and 1 waiting: 10.

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
            minutes[to_ns(rollup.minute_at) // MINUTE_NS] = _load(rollup, PARTS[signal])
    if not minutes:
        raise NoRecordError(f"no minute of pool {pool} is recorded since then{await _pools(bus)}")
    if sum(load is not None for load in minutes.values()) < 2:
        raise NoRecordError(
            f"pool {pool}: {len(minutes)} minutes are recorded since then, and fewer than two say "
            + _SAID.get(signal, f"its {signal}")
        )
    first, last = min(minutes), max(minutes)
    span = range(first, last + 1)
    return SeriesFile(
        values=[minutes.get(minute) for minute in span],
        times=[instant(minute * MINUTE_NS).isoformat() for minute in span],
    )


async def _pools(bus: Bus) -> str:
    """Of which pools there are minutes, for people; empty: of none."""
    deliveries = bus.read("ROLLUPS", subject="rollup.pool.*", last_per_subject=True)
    async with contextlib.aclosing(deliveries):
        names = sorted([one.subject.rpartition(".")[2] async for one in deliveries])
    if not names:
        return "; there are no pools yet"
    more = f" and {len(names) - MOST_NAMES} others" if len(names) > MOST_NAMES else ""
    return f"; there are: {', '.join(names[:MOST_NAMES])}{more}"


def _load(rollup: Rollup, parts: Sequence[str]) -> float | None:
    engines = rollup.metrics.get("engines")
    found = [one.mean for name in parts if (one := rollup.metrics.get(name)) is not None]
    if engines is None or len(found) < len(parts):
        return None
    return engines.mean * sum(found)
