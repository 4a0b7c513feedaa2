"""A thread for calls that may never return: a driver that hangs, a dead disk."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class BlockingThread:
    """Runs calls one after the other in a daemon thread of its own.

    A call that hangs keeps this thread busy and nothing else: neither the event loop nor, unlike
    an executor's worker, the end of the process waits for it.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Any, Any] | None] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put((call, loop, future))
        return await future

    def close(self, last: Callable[[], object] = lambda: None) -> None:
        """End the thread after what it was given, and after `last`; does not wait."""
        self._calls.put((last, None, None))
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, loop, future = item
            try:
                outcome, error = call(), None
            except Exception as raised:
                outcome, error = None, raised
            if loop is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(_settle, future, outcome, error)


def _settle(future: "asyncio.Future[Any]", outcome: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(outcome)
