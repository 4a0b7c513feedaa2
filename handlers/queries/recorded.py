"""What the rollups hold of judgements that FLEET_EVENTS no longer has."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import msgspec

from handlers.queries.analysis_values import Values, values_of_hour, values_of_minute
from handlers.queries.range_reader import RangeReader
from handlers.queries.raw_or_rollups import ROLLUP_DELAY_NS
from handlers.rollup import MINUTE_NS
from handlers.spending.recorded_usage import STORED_LATER_NS
from handlers.spending.usage import HOUR_NS
from schemas.analysis import Scope
from schemas.history import AnalysisKind
from schemas.metrics import Rollup
from schemas.spending import Usage
from schemas.units import to_ns

Place: TypeAlias = tuple[Scope, str]

TOLD_NS: Mapping[AnalysisKind, int] = {
    "utilization": 2 * MINUTE_NS,
    "waste": 11 * MINUTE_NS,
    "trend": HOUR_NS + 11 * MINUTE_NS,
}
"""The kinds that rollups tell of, and the longest time between two events of one place."""
NARROWER = "name a node, a pool or a scope"
"""What to do where it is too much."""
_USAGE = msgspec.json.Decoder(Usage)
_ROLLUP = msgspec.json.Decoder(Rollup)
GPU_BUSY = "gpu_utilization_ratio"
"""Of a pool's minute, what an hour tells as well."""
_MINUTES_OF: Mapping[str, Scope] = {"host": "node", "pool": "pool"}


class Recorded(msgspec.Struct, frozen=True):
    """A minute or an hour of a place. Its values are worked out once it is chosen."""

    begin_ns: int
    period_ns: int
    simulated: bool
    values: Callable[[], Values]


async def recorded(
    reader: RangeReader, kind: AnalysisKind, scope: str, name: str, start_ns: int, end_ns: int
) -> dict[Place, list[Recorded]]:
    """Of each place what begins in the range, in time order; `*`: of any scope, of any name.

    Hours of real GPUs alone where there are any, as Waste has it; of utilization minutes of
    machines and pools as well, unless they are more than may be read. An hour of a pool of which
    minutes tell how busy its GPUs were is left out: it would count twice.

    Raises:
        PublishError: no answer from the stream.
        RequestError: 413 too much to read.
    """
    found: dict[Place, list[Recorded]] = {}
    subject = f"rollup.usage.{scope}.{name}"
    deliveries = await reader.scan("ROLLUPS", subject, start_ns, end_ns + STORED_LATER_NS)
    if deliveries is None:
        raise reader.too_much(NARROWER)
    hours: dict[tuple[Place, int, bool], Usage] = {}
    for usage in await reader.all_decoded(deliveries, _USAGE.decode):
        # Of an hour that was told twice the first counts.
        key = (usage.scope, usage.id), to_ns(usage.hour_at), usage.simulated
        hours.setdefault(key, usage)
    real = {place for place, _, simulated in hours if not simulated}
    for (place, begin_ns, simulated), usage in hours.items():
        if start_ns <= begin_ns < end_ns and not (simulated and place in real):
            one = Recorded(begin_ns, HOUR_NS, simulated, partial(values_of_hour, kind, usage))
            found.setdefault(place, []).append(one)
    for rollup_kind, its_scope in _MINUTES_OF.items() if kind == "utilization" else ():
        if scope not in (its_scope, "*"):
            continue
        subject = f"rollup.{rollup_kind}.{name}"
        deliveries = await reader.scan("ROLLUPS", subject, start_ns, end_ns + ROLLUP_DELAY_NS)
        if deliveries is None and not any(place[0] == its_scope for place in found):
            raise reader.too_much(NARROWER)
        told_ns: dict[Place, list[int]] = {}
        for rollup in await reader.all_decoded(deliveries or (), _ROLLUP.decode):
            begin_ns = to_ns(rollup.minute_at)
            if start_ns <= begin_ns < end_ns:
                minute = partial(values_of_minute, rollup)
                one = Recorded(begin_ns, MINUTE_NS, rollup.simulated, minute)
                found.setdefault((its_scope, rollup.id), []).append(one)
                if GPU_BUSY in rollup.metrics:
                    told_ns.setdefault((its_scope, rollup.id), []).append(begin_ns)
        for place, instants in told_ns.items():
            instants.sort()
            found[place] = [one for one in found[place] if not _is_told(one, instants)]
    for of_place in found.values():
        of_place.sort(key=lambda one: one.begin_ns)
    return found


def _is_told(one: Recorded, minutes_ns: Sequence[int]) -> bool:
    """Whether it is an hour in which one of these minutes begins."""
    if one.period_ns != HOUR_NS:
        return False
    place = bisect_left(minutes_ns, one.begin_ns)
    return place < len(minutes_ns) and minutes_ns[place] < one.begin_ns + HOUR_NS
