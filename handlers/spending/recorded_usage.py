"""Hours of nodes, pools and the fleet, read back from the streams."""

from handlers.queries.stream_reader import StreamReader
from handlers.queries.thinning import gently
from handlers.spending.usage import HOUR_NS
from schemas.analysis import Scope
from schemas.spending import Usage, Waste
from schemas.units import to_ns

# An hour is stored after its end; handlers that catch up, as far as raw metrics are kept, later.
STORED_LATER_NS = 25 * HOUR_NS


async def recorded_hours(
    reader: StreamReader,
    scope: Scope,
    group: str,
    start_ns: int,
    end_ns: int,
    *,
    simulated: bool,
) -> list[Usage]:
    """The hours of one group (`*`: of all of that scope) from `start_ns` on, before `end_ns`.

    From the rollups, and those not over yet from the last Waste. In time order, each once; those
    of simulated GPUs only with `simulated`.

    Raises:
        RequestError: 413 that is too much to read, 503 the streams do not answer.
    """
    subject = f"rollup.usage.{scope}.{group}"
    usages = await reader.between("ROLLUPS", Usage, subject, start_ns, end_ns + STORED_LATER_NS)
    for waste in await reader.last("EVENTS", Waste, f"analysis.waste.{scope}.{group}"):
        usages += waste.hours
    # Of an hour told twice the first counts: the rollup is whole, Waste may be of its middle.
    found: dict[tuple[int, str, bool], Usage] = {}

    def take(usage: Usage) -> None:
        hour_ns = to_ns(usage.hour_at)
        if start_ns <= hour_ns < end_ns and (simulated or not usage.simulated):
            found.setdefault((hour_ns, usage.id, usage.simulated), usage)

    await gently(usages, take)  # of nodes there may be tens of thousands
    return [found[key] for key in sorted(found)]
