"""What the tests by many kills publish."""

import asyncio
import random

from agent.bus import Bus
from schemas.protocols import PublishError
from tests.support.evictions import evicted, manifest_headers

NAMESPACE = "chaos"


async def publish_eviction(bus: Bus, number: int) -> tuple[str, bytes]:
    """Publish until acknowledged, as the cache's outbox does."""
    value = f"value {number} ".encode() * random.Random(number).randrange(1, 2000)
    manifest = evicted(f"key-{number}", value, f"{number:012x}-0000000001", namespace=NAMESPACE)
    async with asyncio.timeout(60):
        while True:
            try:
                await bus.publish_raw(
                    f"evicted.{NAMESPACE}",
                    value,
                    manifest_headers(manifest),
                    message_id=f"chaos.{number}",
                )
            except PublishError:
                await asyncio.sleep(0.1)
            else:
                return manifest.key, value
