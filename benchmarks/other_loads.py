"""Loads that no target names, to see what a change of the scaling policy does elsewhere.

Each of the five largest clients of two services of `servegen`, and all but the largest, as a
service of its own; the services themselves after a single day of warm-up; and made-up loads.
"""

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.traces import drawn, drawn_minutes, servegen

DAY = 1440
SERVICES = ("m_large", "m_small")


def other_loads(data: Path) -> Iterator[tuple[str, list[float], int]]:
    """The name of each, its minutes, and how many of these warm up."""
    for service in SERVICES:
        whole, spread = servegen(data, service, "rate_rps", "cv2_weighted")
        for place in range(1, 6):
            (rates,) = servegen(data, service, f"top{place}_rps")
            yield f"{service}, client {place}", drawn_minutes(rates, spread, place), 4 * DAY
            if place == 1:
                rest = [max(0.0, rate - one) for rate, one in zip(whole, rates, strict=True)]
                yield f"{service}, all but client 1", drawn_minutes(rest, spread, 21), 4 * DAY
        minutes = drawn_minutes(whole, spread, 13)
        yield f"{service}, days 1 to 5", minutes[: 6 * DAY], DAY
        yield f"{service}, days 8 and 9", minutes[7 * DAY :], DAY
    for name, (rate_of, days) in MADE_UP.items():
        yield name, _made_up(rate_of, days), 4 * DAY


def _made_up(rate_of: Callable[[random.Random], Callable[[int], float]], days: int) -> list[float]:
    dice = random.Random(101)  # noqa: S311 - no secret
    rate = rate_of(dice)
    return [drawn(dice, rate(minute), 3.0) for minute in range(days * DAY)]


def _day(minute: int, swing: float) -> float:
    return 1.0 + swing * math.sin(2.0 * math.pi * minute / DAY)


def _daily(_dice: random.Random) -> Callable[[int], float]:
    return lambda minute: 600.0 * _day(minute, 0.5)


def _weekly(_dice: random.Random) -> Callable[[int], float]:
    """Two quiet days in seven."""
    return lambda minute: 600.0 * _day(minute, 0.4) * (1.0 if minute // DAY % 7 < 5 else 0.4)


def _one_step(_dice: random.Random) -> Callable[[int], float]:
    """Two and a half times the load from day 6 on."""
    return lambda minute: 400.0 if minute < 6 * DAY else 1000.0


def _hourly_job(_dice: random.Random) -> Callable[[int], float]:
    """Six minutes of each hour with 2.2 times the load."""
    return lambda minute: 300.0 * _day(minute, 0.4) * (2.2 if minute % 60 < 6 else 1.0)


def _bursts(dice: random.Random) -> Callable[[int], float]:
    """Every four hours a burst that fades with a half-life of 14 minutes."""
    burst = 0.0

    def rate(minute: int) -> float:
        nonlocal burst
        if dice.random() < 1.0 / 240.0:
            burst += dice.expovariate(1.0 / 0.6)
        burst *= 0.95
        return 500.0 * _day(minute, 0.3) * (1.0 + burst)

    return rate


def _steps(dice: random.Random) -> Callable[[int], float]:
    """Every six hours another level."""
    level = 1.0

    def rate(_minute: int) -> float:
        nonlocal level
        if dice.random() < 1.0 / 360.0:
            level = math.exp(dice.gauss(0.0, 0.4))
        return 500.0 * level

    return rate


def _wilder(dice: random.Random) -> Callable[[int], float]:
    """A walk that returns to its mean, with three times the steps from day 6 on."""
    place = 0.0

    def rate(minute: int) -> float:
        nonlocal place
        place = 0.998 * place + (0.06 if minute > 6 * DAY else 0.02) * dice.gauss(0.0, 1.0)
        return 600.0 * math.exp(place)

    return rate


MADE_UP: dict[str, tuple[Callable[[random.Random], Callable[[int], float]], int]] = {
    "made up: by day": (_daily, 10),
    "made up: by week": (_weekly, 21),
    "made up: bursts": (_bursts, 10),
    "made up: steps": (_steps, 10),
    "made up: one step": (_one_step, 10),
    "made up: wilder": (_wilder, 10),
    "made up: hourly job": (_hourly_job, 10),
}
