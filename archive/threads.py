"""Daemon threads for blocking calls."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """Runs blocking calls in at most `count` daemon threads.

    Not a ThreadPoolExecutor: the interpreter joins the threads of those when it exits, so a disk
    that hangs would keep the process alive for ever.
    """

    def __init__(self, count: int, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        self._is_closed = False

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises; cancelled while still queued, it never runs."""
        if self._is_closed:
            raise RuntimeError("the threads are closed")
        if self._threads[0].ident is None:
            for thread in self._threads:
                thread.start()
        future: Future[T] = Future()
        self._calls.put((future, call))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads once their calls are done; does not wait for that."""
        self._is_closed = True
        for _ in self._threads:
            self._calls.put(None)

    def _serve(self) -> None:
        while (queued := self._calls.get()) is not None:
            future, call = queued
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # also what would end this thread is the caller's
                future.set_exception(error)
