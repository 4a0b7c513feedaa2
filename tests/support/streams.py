"""Streams as a test wants them: with less room, or with their work taken by hand."""

import asyncio

from agent.bus import Bus
from schemas.protocols import WorkItem


async def limit_stream(bus: Bus, stream: str, max_bytes: int) -> None:
    """Let it hold no more than that; -1: as much as comes."""
    name = bus.names.stream(stream)
    config = (await bus.jetstream.stream_info(name)).config
    config.max_bytes = max_bytes
    await bus.jetstream.update_stream(config)


async def take_evictions(bus: Bus, count: int) -> list[WorkItem]:
    """So many, as an archiver takes them."""
    items: list[WorkItem] = []
    async with asyncio.timeout(10):
        while len(items) < count:
            items += await bus.take("EVICTIONS", "archiver", batch=count, wait_seconds=1)
    return items
