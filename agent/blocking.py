"""A thread for calls that may never return: a driver that hangs, a dead disk."""

import asyncio
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(slots=True)
class _Call:
    work: Callable[[], Any] | None
    loop: asyncio.AbstractEventLoop | None = None
    future: "asyncio.Future[Any] | None" = None


class BlockingThread:
    """Runs calls one after the other in a daemon thread of its own.

    A call that hangs keeps this thread busy and nothing else: neither the event loop nor, unlike
    an executor's worker, the end of the process waits for it.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises; given up while it still waits, it never runs."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        call = _Call(work, loop, future)
        self._calls.put(call)
        try:
            return await future
        finally:
            # Behind a call that hangs, those given up must not pile up with all they hold.
            call.work = None

    def close(self, last: Callable[[], object] = lambda: None) -> None:
        """End the thread after what it was given, and after `last`; does not wait."""
        self._calls.put(_Call(last))
        self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            work = call.work
            if work is None:
                continue
            outcome, error = None, None
            try:
                outcome = work()
            except Exception as raised:
                error = raised
            if call.loop is not None and call.future is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    call.loop.call_soon_threadsafe(_settle, call.future, outcome, error)
            # Not until the next call comes: a value may be large.
            del call, work, outcome, error


def _settle(future: "asyncio.Future[Any]", outcome: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(outcome)
