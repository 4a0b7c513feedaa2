"""Waiting for what has no event of its own: a condition, looked at often, under a deadline."""

import asyncio
from collections.abc import Awaitable, Callable

LOOK_SECONDS = 0.01


async def until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Return once `condition()` holds; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(LOOK_SECONDS)


async def until_async(condition: Callable[[], Awaitable[bool]], *, seconds: float = 30.0) -> None:
    """Return once `await condition()` holds; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(LOOK_SECONDS)
