"""Tells how full the streams are that refuse what is new when they are full."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from schemas.protocols import Publisher, PublishError, StreamStates
from schemas.streams import StreamMetrics
from schemas.units import instant

log = structlog.get_logger()

WATCH_SECONDS = 30.0
REFUSING = ("DEAD", "EVICTIONS", "EVICTION_PARTS")


class StreamWatch:
    """Publishes StreamMetrics while `is_ours` says so; an async context manager."""

    def __init__(
        self,
        streams: StreamStates,
        publisher: Publisher,
        name_of: Callable[[str], str],
        is_ours: Callable[[], bool],
        clock: Callable[[], int],
    ) -> None:
        self._streams = streams
        self._publisher = publisher
        self._name_of = name_of
        self._is_ours = is_ours
        self._clock = clock

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="stream_watch")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            if self._is_ours():
                try:
                    await self.publish()
                except PublishError as error:
                    log.warning("streams_not_watched", error=str(error))
            await asyncio.sleep(WATCH_SECONDS)

    async def publish(self) -> None:
        """Publish the state of each.

        Raises:
            PublishError: the server does not answer.
        """
        for stream in REFUSING:
            state = await self._streams.stream_state(stream)
            limit = state.max_bytes if state.max_bytes > 0 else None
            await self._publisher.publish(
                StreamMetrics(
                    stream=self._name_of(stream),
                    observed_at=instant(self._clock()),
                    messages=state.messages,
                    used_bytes=state.bytes,
                    limit_bytes=limit,
                    usage_ratio=None if limit is None else min(1.0, state.bytes / limit),
                )
            )
