"""An event loop in a thread of its own, for callers that have none, or one that must not wait."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

CLOSE_SECONDS = 10.0


class LoopClosedError(RuntimeError):
    """The loop is closed, or was while this was waited for."""


class LoopThread:
    """Runs coroutines for any thread, also for one that has an event loop running (Jupyter's).

    Many threads may call at once: their coroutines run beside each other. The thread is a daemon:
    a program that forgets to close this ends all the same.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._waited_for: set[concurrent.futures.Future[Any]] = set()
        started: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]
        started = concurrent.futures.Future()

        async def live() -> None:
            stop = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(live()), name=name, daemon=True)
        self._thread.start()
        self._loop, self._stop = started.result()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises; who is interrupted while waiting (Ctrl-C) cancels it.

        Raises:
            LoopClosedError: this is closed, or was meanwhile.
            RuntimeError: called in the loop's own thread, which would wait for itself.
        """
        future: concurrent.futures.Future[T] | None = None
        try:
            self._refuse_own_thread()
            with self._lock:
                if self._is_closed:
                    raise LoopClosedError("it is closed")
                future = asyncio.run_coroutine_threadsafe(work, self._loop)
                self._waited_for.add(future)
            return future.result()
        except concurrent.futures.CancelledError:
            raise LoopClosedError("it was closed meanwhile") from None
        finally:
            if future is None:
                work.close()
            else:
                future.cancel()
                self._waited_for.discard(future)

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what is waited for, run `last`, end the thread. Safe to call twice.

        Raises:
            RuntimeError: called in the loop's own thread.
        """
        self._refuse_own_thread()
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for future in list(self._waited_for):
                future.cancel()
        try:
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(last(), self._loop).result(CLOSE_SECONDS)
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(CLOSE_SECONDS)

    def _refuse_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("called in a callback of the same client: it would wait for itself")
