"""The steps of one whole run: each within a deadline of its own, each told as it ends."""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Awaitable, Sequence
from typing import Generic, Literal, TypeVar

import structlog

from schemas.analysis import Scope
from schemas.protocols import Clock, Publisher, PublishError, RequestError
from schemas.run import RunRequest, RunStep, StepName
from schemas.units import instant

log = structlog.get_logger()

T = TypeVar("T")
Found_co = TypeVar("Found_co", covariant=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Found(Generic[Found_co]):
    """What a step found, that in a few words, and the ids in it that can be asked about."""

    result: Found_co
    text: str
    ids: Sequence[str] = ()


class Run:
    """One run: does its steps and tells each as it ends.

    A step that fails, or is not done within `step_seconds`, is told as such and gives None; what
    the others find stands.
    """

    def __init__(
        self,
        request: RunRequest,
        publisher: Publisher,
        clock: Clock,
        step_seconds: float,
        service_id: str | None = None,
    ) -> None:
        self.scope: Scope = "node" if request.node else "pool" if request.pool else "fleet"
        self.id = request.node or request.pool or "all"
        self.correlation_id = request.correlation_id or secrets.token_hex(8)
        self.began_ns = clock()
        self.steps: dict[StepName, RunStep] = {}
        self._publisher = publisher
        self._clock = clock
        self._step_seconds = step_seconds
        self._service_id = service_id

    async def step(self, name: StepName, work: Awaitable[Found[T]]) -> T | None:
        """The result of `work`."""
        began_ns, began = self._clock(), time.monotonic()
        found: Found[T] | None = None
        try:
            async with asyncio.timeout(self._step_seconds):
                found = await work
        except TimeoutError:
            error = f"not done within {self._step_seconds:g} s (handlers.queries.run_step_seconds)"
        except RequestError as refusal:
            error = refusal.text
        except Exception:
            # As the bus treats a request: one that breaks must not take the others along.
            log.exception("run_step_failed", step=name)
            error = "internal error; the service's log says more"
        seconds = time.monotonic() - began
        if found is None:
            await self._tell(name, "failed", error, began_ns, seconds)
            return None
        await self._tell(name, "done", found.text, began_ns, seconds, found.ids)
        return found.result

    async def skip(self, name: StepName, why: str) -> None:
        """Tell that there is no such step in this run."""
        await self._tell(name, "skipped", why, self._clock(), 0.0)

    async def _tell(
        self,
        name: StepName,
        state: Literal["done", "failed", "skipped"],
        text: str,
        began_ns: int,
        seconds: float,
        ids: Sequence[str] = (),
    ) -> None:
        step = self.steps[name] = RunStep(
            scope=self.scope,
            id=self.id,
            correlation_id=self.correlation_id,
            step=name,
            state=state,
            text=text,
            began_at=instant(began_ns),
            seconds=seconds,
            ids=list(ids),
            service_id=self._service_id,
        )
        try:
            await self._publisher.publish(
                step, message_id=f"run.{self.correlation_id}.{self.began_ns}.{name}"
            )
        except PublishError as error:
            # The reply tells it all the same.
            log.warning("run_step_not_published", step=name, error=str(error))
