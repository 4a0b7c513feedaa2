"""A cache service on a real bus, and how a client uses it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec

from agent.bus import Bus
from agent.bus.lease import BucketLeases
from cache.service import CacheBus, CacheService
from cache.settings import CacheSettings
from schemas.api import ClearReply, EntryMeta, NamespaceStats
from schemas.cache import encode_header
from schemas.protocols import Answer
from tests.support.evictions import ManualClock
from tests.support.waiting import until

R = TypeVar("R", bound=msgspec.Struct)
FILLER = bytes(500 * 1024)
DEADLINE_SECONDS = 20.0


@contextlib.asynccontextmanager
async def running(
    bus: Bus,
    *,
    clock: ManualClock | None = None,
    instance: str = "c1",
    **settings: Any,
) -> AsyncIterator[CacheService]:
    """A service that is ready, with 1 MiB for each namespace, oldest out first."""
    served = await bus.serve("cache", [], description="test")
    leases = BucketLeases(bus.bucket("lease"), instance)
    service = CacheService(
        CacheBus(
            publisher=bus,
            requester=bus,
            subscriber=bus,
            state=bus.bucket("state"),
            config=bus.bucket("config"),
            config_name=bus.names.bucket("config"),
            leases=leases,
            serve=served.add,
        ),
        msgspec.convert({"max_memory_mb": 1, "eviction_policy": "lru", **settings}, CacheSettings),
        instance,
        clock or ManualClock(),
    )
    try:
        async with service:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await service.wait_ready()
            yield service
    finally:
        await leases.close()


class Client:
    """Requests to one namespace."""

    def __init__(self, bus: Bus, namespace: str = "default") -> None:
        self._bus = bus
        self._namespace = namespace

    async def ask(self, operation: str, payload: bytes = b"", **headers: str) -> Answer:
        """Header names are written with underscores: `Fleet_Key`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._bus.request(
            f"cache.{self._namespace}.{operation}", payload, named or None, timeout_seconds=10
        )

    async def get(self, key: str, **headers: str) -> bytes | None:
        answer = await self.ask("get", key.encode(), **headers)
        return None if answer.headers.get("Fleet-Status") == "miss" else answer.payload

    async def put(self, key: str, value: bytes, **headers: str) -> str:
        """The new version."""
        answer = await self.ask("put", value, Fleet_Key=encode_header(key), **headers)
        return answer.headers["Fleet-Version"]

    async def evict_all(self) -> None:
        """Push everything out of RAM with entries that are not archived."""
        for name in ("filler-1", "filler-2", "filler-3"):
            await self.put(name, FILLER, Fleet_Ttl_Seconds="0")

    async def reply(self, operation: str, kind: type[R], payload: bytes = b"") -> R:
        answer = await self.ask(operation, payload)
        return msgspec.json.decode(answer.payload, type=kind)

    async def stats(self) -> NamespaceStats:
        return await self.reply("stats", NamespaceStats)

    async def meta(self, key: str) -> EntryMeta:
        return await self.reply("meta", EntryMeta, key.encode())

    async def begin_unarchived(self) -> None:
        """Nothing is archived from here on, so no write needs a tombstone; the stream is empty."""
        await self.clear()
        await self._bus.purge("EVICTIONS", f"evicted.{self._namespace}")

    async def clear(self) -> ClearReply:
        return await self.reply("clear", ClearReply)


def component(service: CacheService, name: str) -> tuple[str, str]:
    """State and text of now."""
    return next((c.state, c.text) for c in service.components() if c.name == name)


async def synced(service: CacheService) -> None:
    """Return once the cache knows what the archive holds."""
    await until(lambda: component(service, "default.archive")[0] == "ok")
