"""Waiting for what has no event of its own: a condition, looked at often, under a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from agent.client import CacheClient

LOOK_SECONDS = 0.01


async def until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Return once `condition()` holds; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(LOOK_SECONDS)


def until_in_thread(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """As `until`, where no event loop runs."""
    ends_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends_at:
            raise TimeoutError
        time.sleep(LOOK_SECONDS)


async def until_async(condition: Callable[[], Awaitable[bool]], *, seconds: float = 30.0) -> None:
    """Return once `await condition()` holds; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(LOOK_SECONDS)


async def brought_back(client: CacheClient, key: str) -> bytes | None:
    """Its value, once it is no miss: that is what a slow S3, or an eviction in work, look like."""
    found: list[bytes | None] = []

    async def comes_back() -> bool:
        found[:] = [await client.get(key)]
        return found != [None]

    await until_async(comes_back)
    return found[0]
