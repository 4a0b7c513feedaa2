"""Runs services in one process: start order, signals, drain order, a deadline per stage."""

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import structlog

from agent.assembly import RUN, Place
from agent.bus import Bus, BusError, connect, ensure_streams
from agent.human import reason
from agent.instance import Instance
from agent.state_folder import StateFolderError, lock
from schemas.lifecycle import Role
from schemas.protocols import PublishError

log = structlog.get_logger()

START_SECONDS = 20.0
STOP_SECONDS = 6.0  # after this the server, if it is ours, is stopped: 10 s in all
PROBE_SECONDS = 1.0
GC_THRESHOLD = 50_000
"""Containers made before Python's cycle collector looks. Its default of 700 suits programs that
make cycles; ours keep many objects for long, and handling a message took a quarter longer."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Set by SIGINT, SIGTERM, a timer, or a service that cannot go on."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.failure: str | None = None
        self._starting: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        """Stop, all is well."""
        self.event.set()
        if self._starting is not None:
            self._starting.cancel()

    @contextlib.contextmanager
    def ends_start(self) -> Iterator[Callable[[], None]]:
        """A stop cancels what is done here, and leaves it without an error.

        It does so until the function given is called: from then on `event` is watched.
        """
        self._starting = asyncio.current_task()

        def started() -> None:
            self._starting = None

        try:
            yield started
        except asyncio.CancelledError:
            if self._starting is None or not self.event.is_set():
                raise
            self._starting.uncancel()
        finally:
            self._starting = None

    def fail(self, reason: str) -> None:
        """Stop, because of `reason`."""
        self.failure = self.failure or reason
        self.event.set()


@contextlib.contextmanager
def signals(request: StopRequest) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP ask to stop; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if request.event.is_set():
            # Not an exception: that would begin another orderly stop. The guard ends the server.
            os._exit(130)
        request.stop()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def running(
    url: str, roles: Sequence[Role], place: Place, request: StopRequest
) -> AsyncIterator[dict[Role, Instance]]:
    """The services of `roles`, all ready; leaving drains them, who feeds others first.

    Raises:
        BusError: no usable server.
        NameTakenError, StateFolderError, OSError: the name or the state folder is in use.
        TimeoutError: a service did not become ready.
    """
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
    instances: dict[Role, Instance] = {}
    watchers: list[asyncio.Task[None]] = []
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(START_SECONDS):
                for role in (r for r in RUN if r in roles):
                    instances[role] = await _start(stack, url, role, place)
        except PublishError as error:
            raise BusError(f"the server stopped answering during start: {error}") from error
        except TimeoutError:
            raise BusError(f"not all services were ready within {START_SECONDS:g} s") from None
        for instance in instances.values():
            watchers.append(asyncio.create_task(_watch(instance, request)))
        try:
            yield instances
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            await _stop(stack, [instance.bus for instance in instances.values()])


async def _start(stack: contextlib.AsyncExitStack, url: str, role: Role, place: Place) -> Instance:
    name = f"{role}.{place.instance}"
    try:
        place.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = await lock(place.state_dir / f"{name}.lock", wait_seconds=3.0)
    except OSError as error:
        raise StateFolderError(
            f"cannot use state folder {place.state_dir}: {reason(error)}"
        ) from error
    stack.callback(os.close, held)
    bus = await connect(url, name=name, root=place.settings.root)
    await stack.enter_async_context(bus)
    await ensure_streams(bus, budget_bytes=place.stream_budget_bytes)
    return await stack.enter_async_context(RUN[role](bus, place))


async def _stop(stack: contextlib.AsyncExitStack, buses: Sequence[Bus]) -> None:
    """Drain; what waits for a server that does not answer is cut off."""

    async def cut_off() -> None:
        answers = await asyncio.gather(*(_answers(bus) for bus in buses))
        if all(answers):
            await asyncio.sleep(STOP_SECONDS)
        log.error("stop_without_drain", reason="the server does not answer, or not in time")
        await asyncio.gather(*(bus.abandon() for bus in buses))

    cutting = asyncio.create_task(cut_off())
    try:
        await stack.aclose()
    finally:
        cutting.cancel()


async def _answers(bus: Bus) -> bool:
    with contextlib.suppress(TimeoutError):
        await bus.round_trip_seconds(PROBE_SECONDS)
        return True
    return False


async def _watch(instance: Instance, request: StopRequest) -> None:
    closed = asyncio.create_task(instance.bus.closed.wait())
    renamed = asyncio.create_task(instance.lost_name.wait())
    try:
        await asyncio.wait({closed, renamed}, return_when=asyncio.FIRST_COMPLETED)
        if closed.done():
            request.fail(
                f"{instance.role}: the server closed the connection for good: "
                f"{instance.bus.last_error or 'no reason given'}"
            )
        else:
            request.fail(f"{instance.role}: the name {instance.name} was taken by another process")
    finally:
        closed.cancel()
        renamed.cancel()


async def until_stopped(request: StopRequest, for_seconds: float | None) -> None:
    """Wait for a stop request, at most `for_seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(for_seconds):
            await request.event.wait()
