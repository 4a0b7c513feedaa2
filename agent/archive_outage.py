"""Why the archive does not answer: who is there, what it lacks, how much waits meanwhile."""

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta

from agent import human
from agent.bus import Bus
from schemas.api import HealthReply
from schemas.lifecycle import ComponentState
from schemas.protocols import PublishError, RequestError
from schemas.units import Bytes, Count

STREAMS = ("EVICTIONS", "EVICTION_PARTS")
ASK_SECONDS = 3.0
PARTS = ("lease", "store", "backlog")


class Archiver(msgspec.Struct, frozen=True, kw_only=True):
    """One archiver that is registered, as it was last heard."""

    instance: Annotated[str, Meta(description="its name")]
    state: Annotated[ComponentState, Meta(description="its worst part's; failed: or it is silent")]
    age_seconds: Annotated[float, Meta(description="since it was last heard")]
    troubles: Annotated[list[str], Meta(description="what is wrong with its parts")]


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A stream in which evictions wait."""

    stream: Annotated[str, Meta(description="its name")]
    messages: Annotated[Count, Meta(description="that wait")]
    size_bytes: Annotated[Bytes, Meta(description="of them")]
    max_bytes: Annotated[Bytes | None, Meta(description="room of the stream; null: no limit")]


class ArchiveOutage(msgspec.Struct, frozen=True, kw_only=True):
    """What is known while the archive cannot be asked."""

    error: str
    archivers: list[Archiver] | None
    """None: not known, health does not answer this user."""
    waiting: list[Waiting]
    """Without those that this user may not look at."""

    def text(self) -> str:
        """In one line, what was refused first."""
        said = [self.error]
        if self.archivers == []:
            said.append("no archiver is there: start `resource-agent up`, or `run archive`")
        for one in self.archivers or ():
            heard = f"heard {human.duration(one.age_seconds)} ago"
            said.append(
                f"archiver {one.instance}, {heard}: {', '.join(one.troubles) or 'all well'}"
            )
        for stream in self.waiting:
            of = "" if stream.max_bytes is None else f" of {human.size(stream.max_bytes)}"
            held = f"{stream.messages} messages, {human.size(stream.size_bytes)}{of}"
            said.append(f"{stream.stream} holds {held}")
        return "; ".join(said)


async def outage(bus: Bus, error: str) -> ArchiveOutage:
    """What can be learnt about an archive that answered with `error`, or did not; never raises."""
    archivers, waiting = await asyncio.gather(
        _archivers(bus), asyncio.gather(*(_waiting(bus, stream) for stream in STREAMS))
    )
    return ArchiveOutage(
        error=error, archivers=archivers, waiting=[one for one in waiting if one is not None]
    )


async def store_trouble(bus: Bus) -> str:
    """What the archivers say of a store that fails; empty where none says so."""
    return "; ".join(
        trouble
        for one in await _archivers(bus) or ()
        for trouble in one.troubles
        if trouble.startswith("store ")
    )


async def _archivers(bus: Bus) -> list[Archiver] | None:
    try:
        answer = await bus.request("api.health.detailed", timeout_seconds=ASK_SECONDS)
    except RequestError:
        return None
    health = msgspec.json.decode(answer.payload, type=HealthReply)
    return [
        Archiver(
            instance=one.instance,
            state=one.state,
            age_seconds=one.age_seconds,
            troubles=[
                f"{part.name} {part.state} ({part.text})"
                for part in one.record.components
                if part.name in PARTS and part.state in ("degraded", "failed")
            ],
        )
        for one in health.instances
        if one.role == "archive"
    ]


async def _waiting(bus: Bus, stream: str) -> Waiting | None:
    try:
        async with asyncio.timeout(ASK_SECONDS):
            state = await bus.stream_state(stream)
    except (PublishError, TimeoutError):
        return None
    return Waiting(
        stream=bus.names.stream(stream),
        messages=state.messages,
        size_bytes=state.bytes,
        max_bytes=None if state.max_bytes < 0 else state.max_bytes,
    )
