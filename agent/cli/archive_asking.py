"""Asks the archive for a command, and says all that is known where it cannot be asked."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from agent.archive_outage import ArchiveOutage, outage
from agent.bus import Bus
from agent.cli.output import print_json
from agent.cli.start import Where, ask, fail
from schemas.protocols import RequestError

T = TypeVar("T")

LIMIT_SECONDS = 300.0
UNAVAILABLE = (503, 408)
"""Nobody serves, the store cannot be read, or no answer came in time."""


def ask_archive(
    where: Where,
    work: Callable[[Bus], Awaitable[T]],
    *,
    as_json: bool,
    limit_seconds: float | None = LIMIT_SECONDS,
) -> T:
    """Run `work`; where the archive cannot be asked now, say all that is known of it instead."""

    async def explained(bus: Bus) -> T | ArchiveOutage:
        try:
            return await work(bus)
        except RequestError as error:
            if error.code not in UNAVAILABLE:
                raise
            return await outage(bus, error.text)

    found = ask(where, explained, quiet=as_json, limit_seconds=limit_seconds)
    if isinstance(found, ArchiveOutage):
        if as_json:
            print_json(found)
        fail(RequestError(UNAVAILABLE[0], found.text()))
    return found
