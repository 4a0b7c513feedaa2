"""The requests of one call to a namespace of the cache: they end together, at its deadline."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from agent.bus import Bus
from schemas.protocols import Answer, RequestError

T = TypeVar("T")

REQUEST_SECONDS = 5.0
DEADLINE_SECONDS = 60.0
TRIES = 3
PAUSE_SECONDS = 0.1
ABORT_SECONDS = 0.5
TIMER_SECONDS = 0.01
"""Timers may be so early."""
BUSY, UNANSWERED = 429, 408


class Deadline:
    """When a call ends: `seconds` after it began, which is now."""

    __slots__ = ("_ends_at", "seconds")

    def __init__(self, seconds: float = DEADLINE_SECONDS) -> None:
        self.seconds = seconds
        self._ends_at = time.monotonic() + seconds

    @property
    def left_seconds(self) -> float:
        """Until then; negative afterwards."""
        return self._ends_at - time.monotonic()

    @property
    def error(self) -> RequestError:
        """What a call that is not done by then raises."""
        return RequestError(UNANSWERED, f"not done within {self.seconds:g} s (deadline_seconds)")


class Asking:
    """Asks until the deadline; every request carries the headers `who`.

    Where the cache is busy (429) and says when to ask again, that is done unless it would be after
    the deadline, or not `patient`: then the 429 is raised.
    """

    def __init__(
        self,
        bus: Bus,
        namespace: str,
        who: Mapping[str, str],
        deadline: Deadline | None = None,
        *,
        request_seconds: float = REQUEST_SECONDS,
        answer_seconds: float | None = None,
        patient: bool = True,
    ) -> None:
        """`request_seconds`: how long one request is waited for, within the deadline.

        The first answer is waited for `answer_seconds`, where that is said.
        """
        self._bus = bus
        self._subject = f"cache.{namespace}"
        self._who = who
        self._deadline = deadline or Deadline()
        self._request_seconds = request_seconds
        self._answer_seconds = request_seconds if answer_seconds is None else answer_seconds
        self._patient = patient

    async def ask(
        self,
        operation: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        again: tuple[int, ...] = (),
    ) -> Answer:
        """The answer; `again`: codes for which it is asked three times.

        Raises:
            RequestError: it was refused; 408 it was not answered in time.
        """
        failures = 0
        while True:
            left_seconds = self._deadline.left_seconds
            if left_seconds <= 0:
                raise self._deadline.error
            try:
                answer = await self._bus.request(
                    f"{self._subject}.{operation}",
                    payload,
                    {**self._who, **(headers or {})},
                    timeout_seconds=min(self._answer_seconds, left_seconds),
                )
            except RequestError as error:
                if error.code != UNANSWERED:
                    self._answer_seconds = self._request_seconds
                elif self._deadline.left_seconds <= TIMER_SECONDS:
                    raise RequestError(
                        UNANSWERED, f"{self._deadline.error.text}: {error.text}"
                    ) from None
                pause_seconds = error.retry_after_seconds if self._patient else None
                if error.code != BUSY or pause_seconds is None:
                    failures += 1
                    if error.code not in again or failures >= TRIES:
                        raise
                    pause_seconds = PAUSE_SECONDS * failures
                if not await self._pause(pause_seconds):
                    raise
            else:
                self._answer_seconds = self._request_seconds
                return answer

    async def abort(self, operation: str, headers: Mapping[str, str]) -> None:
        """Have the cache forget what was begun, also after the deadline; half a second at most."""
        with contextlib.suppress(RequestError):
            await self._bus.request(
                f"{self._subject}.{operation}",
                b"",
                {**self._who, **headers, "Fleet-Abort": "1"},
                timeout_seconds=ABORT_SECONDS,
            )

    async def may_ask_again(self, retry_after_seconds: float) -> bool:
        """Wait as long as the busy cache said; False, at once: what it said stands."""
        return self._patient and await self._pause(retry_after_seconds)

    async def _pause(self, seconds: float) -> bool:
        """Wait about so long; False, at once, where that would be after the deadline."""
        seconds *= random.uniform(0.5, 1.5)  # noqa: S311 - many may have been told the same
        if seconds >= self._deadline.left_seconds:
            return False
        await asyncio.sleep(seconds)
        return True

    async def in_time(self, work: Awaitable[T]) -> T:
        """The result of work that does more than ask.

        Raises:
            RequestError: 408, it was not done by the deadline.
        """
        try:
            async with asyncio.timeout(self._deadline.left_seconds) as limit:
                return await work
        except TimeoutError:
            if not limit.expired():  # the work's own: of the source that it reads, say
                raise
            raise self._deadline.error from None
