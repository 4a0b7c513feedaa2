"""What the tests by kills and full disks publish."""

import asyncio
import random

from agent.bus import Bus
from schemas.protocols import PublishError
from tests.support.evictions import evicted, manifest_headers

NAMESPACE = "chaos"


async def publish_once(bus: Bus, number: int) -> tuple[str, bytes]:
    """Publish an eviction; returns its key and value once it is acknowledged."""
    value = f"value {number} ".encode() * random.Random(number).randrange(1, 2000)
    manifest = evicted(f"key-{number}", value, f"{number:012x}-0000000001", namespace=NAMESPACE)
    headers = manifest_headers(manifest)
    await bus.publish_raw(f"evicted.{NAMESPACE}", value, headers, message_id=f"chaos.{number}")
    return manifest.key, value


async def publish_eviction(bus: Bus, number: int) -> tuple[str, bytes]:
    """Publish until acknowledged, as the cache's outbox does."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await publish_once(bus, number)
            except PublishError:
                await asyncio.sleep(0.1)


async def restored(bus: Bus, key: str) -> bytes:
    """What the archive has of it; RequestError where it does not answer."""
    subject = f"api.archive.restore.{NAMESPACE}"
    return (await bus.request(subject, key.encode(), timeout_seconds=5)).payload
