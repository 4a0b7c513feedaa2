"""A fleet whose hours are in the streams of a real server, as the handlers would have told them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from agent.bus import Bus
from handlers.prices import PriceRule, PriceSettings
from handlers.settings import HandlersSettings
from schemas.protocols import Emit
from schemas.spending import Usage
from tests.support.fleets import busy, idle, recorded, said

HOUR_NS = 3600 * 10**9
NOW_NS = time.time_ns() // HOUR_NS * HOUR_NS + 11 * 60 * 10**9
"""The eleventh minute of this hour: a test must not see one hour end and the next begin."""
SETTINGS = HandlersSettings(
    prices=PriceSettings(
        rules=(PriceRule(gpu="H100", usd_per_gpu_hour=4.0, source="contract", as_of="2020-01-01"),)
    )
)


def fleet(minute: int) -> list[dict[str, Any]]:
    """Two pools on three nodes, and a node in none."""
    return [
        busy("a", 0.35, node="n1"),
        idle("b", node="n1"),
        busy("c", 0.7, node="n2", pool="batch"),
        idle("d", node="n3", pool=None, name="AMD Instinct MI300X"),
        idle("s", node="n4", pool="chat", simulated=True),
        {"engine": True, "engine_id": "e", "node": "n1", "tokens_per_second": 400.0},
    ]


async def record(
    bus: Bus,
    hours: int,
    what: Callable[[int], Sequence[dict[str, Any]]] = fleet,
    *,
    every: int = 4,
    ids: str = "",
) -> int:
    """What the handlers say of the last `hours` and ten minutes of now's; gives the first hour."""
    start_ns = NOW_NS // HOUR_NS * HOUR_NS - hours * HOUR_NS
    minutes = [*range(0, hours * 60, every), *range(hours * 60, hours * 60 + 10)]
    last: dict[str, Emit] = {}
    for emit in said(recorded(minutes, what, start_ns=start_ns), SETTINGS):
        if isinstance(emit.message, Usage):
            await bus.publish(emit.message, message_id=ids + emit.message_id)
        else:
            last[emit.message.subject()] = emit
    for emit in last.values():
        await bus.publish(emit.message, message_id=ids + emit.message_id)
    return start_ns
