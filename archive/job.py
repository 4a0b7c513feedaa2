"""Long work on the whole archive that somebody asked for: begun once, asked about until done."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import structlog

from archive.store import StoreError
from schemas.api import ArchiveJob, ArchiveJobRequest
from schemas.protocols import Call, Endpoint, json_endpoint

log = structlog.get_logger()

OnProgress = Callable[[int, int | None], None]
"""Takes how much is done, and of how much, where that is known."""
Done = tuple[Mapping[str, int], Mapping[str, str]]
"""What was done, by kind, and the objects that were put aside or left alone, and why."""
Work = Callable[[OnProgress, ArchiveJobRequest], Awaitable[Done]]
"""Does it; may raise StoreError."""
NAMED = 20


class Job:
    """`api.archive.<name>`: at most one run at a time; it goes on when its asker is gone."""

    def __init__(self, name: str, instance: str, work: Work) -> None:
        self._name = name
        self._instance = instance
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self._began = self._ended = 0.0
        self._done = 0
        self._total: int | None = None
        self._counts: Mapping[str, int] = {}
        self._put_aside: Mapping[str, str] = {}
        self._error = ""

    def endpoint(self) -> Endpoint:
        """JSON; answers at once with how far it is."""
        return json_endpoint(
            f"archive_{self._name}",
            f"api.archive.{self._name}",
            ArchiveJobRequest,
            self.ask,
            reply_type=ArchiveJob,
        )

    def ask(self, request: ArchiveJobRequest, _call: Call) -> ArchiveJob:
        """Begin a run unless one is under way or only news are wanted."""
        if request.start and not self._is_running:
            self._done, self._total, self._counts, self._error = 0, None, {}, ""
            self._put_aside = {}
            self._began = time.monotonic()
            self._task = asyncio.create_task(self._run(request))
        until = time.monotonic() if self._is_running else self._ended
        return ArchiveJob(
            instance=self._instance,
            state=self._state(),
            done=self._done,
            total=self._total,
            seconds=max(0.0, until - self._began),
            counts=dict(self._counts),
            put_aside=dict(list(self._put_aside.items())[:NAMED]),
            error=self._error,
        )

    async def stop(self) -> None:
        """Give up what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    @property
    def _is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def _state(self) -> Literal["never", "running", "done", "failed"]:
        if self._task is None:
            return "never"
        if self._is_running:
            return "running"
        return "failed" if self._error else "done"

    async def _run(self, request: ArchiveJobRequest) -> None:
        def on_progress(done: int, total: int | None) -> None:
            self._done, self._total = done, total

        try:
            self._counts, self._put_aside = await self._work(on_progress, request)
        except StoreError as error:
            self._error = str(error)
            log.error("archive_job_failed", job=self._name, error=str(error))
        finally:
            self._ended = time.monotonic()
