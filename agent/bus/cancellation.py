"""Cancellation that Python 3.11 loses.

Before 3.12 `asyncio.wait_for`, on which every nats-py request rests, swallows a cancellation that
arrives together with the result; the task then runs on as if nobody had cancelled it.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

AGAIN_SECONDS = 0.1
T = TypeVar("T")


async def heed(awaitable: Awaitable[T]) -> T:
    """`await awaitable`, and raise CancelledError if this task was cancelled meanwhile."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        return await awaitable
    finally:
        # Also where the answer that came together with the cancellation is an error.
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Return once the tasks have ended, cancelled as often as that takes."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)
