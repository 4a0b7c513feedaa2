"""Asks for a whole run, tells its steps as they end, and notices when who runs it has died."""

import asyncio
from collections.abc import Callable

import msgspec

from agent.bus import Bus
from schemas.protocols import RequestError
from schemas.run import RunReply, RunRequest, RunStep

RUN_SECONDS = 180.0
"""Of its steps three wait for another, each at most `handlers.queries.run_step_seconds`."""
LOOK_SECONDS = 2.0
MISSES = 2
"""So often in a row nobody must answer to its id: a process that only reconnects is back sooner."""
NOBODY = 503

_decode = msgspec.json.Decoder(RunStep).decode


async def whole_run(
    bus: Bus,
    request: RunRequest,
    on_step: Callable[[RunStep], None] = lambda _: None,
    *,
    timeout_seconds: float = RUN_SECONDS,
) -> RunReply:
    """What each step found; `on_step` is called with each as it ends, once.

    `request` has a correlation id of its own: its steps are known by it.

    Raises:
        RequestError: refused; 503 who ran it died meanwhile; 408 not done in time.
        BusError: the connection is closed, or may not hear steps.
    """
    heard: asyncio.Queue[RunStep] = asyncio.Queue()
    told: dict[str, RunStep] = {}

    def hear(_subject: str, payload: bytes) -> None:
        step = _decode(payload)
        if step.correlation_id == request.correlation_id:
            heard.put_nowait(step)

    def tell(step: RunStep) -> None:
        if step.step not in told:
            told[step.step] = step
            on_step(step)

    async def follow() -> None:
        """Until who runs it has died."""
        misses = 0
        while misses < MISSES:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    step = await heard.get()
            except TimeoutError:
                service_id = next((step.service_id for step in told.values()), None)
                is_dead = service_id is not None and not await _answers(bus, service_id)
                misses = misses + 1 if is_dead else 0
            else:
                tell(step)

    unsubscribe = await bus.subscribe(RunStep.pattern(), hear)
    asking = asyncio.create_task(
        bus.request(
            "api.analysis.run", msgspec.json.encode(request), timeout_seconds=timeout_seconds
        )
    )
    following = asyncio.create_task(follow())
    try:
        await asyncio.wait({asking, following}, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            following.result()  # or what `on_step` raised
            ended = ", ".join(told)
            raise RequestError(NOBODY, f"who ran it died; steps that had ended: {ended}")
        reply = msgspec.json.decode(asking.result().payload, type=RunReply)
    finally:
        asking.cancel()
        following.cancel()
        await asyncio.gather(asking, following, return_exceptions=True)
        await unsubscribe()
    while not heard.empty():
        tell(heard.get_nowait())
    for step in reply.steps:  # the last ones may have come behind the reply
        tell(step)
    return reply


async def _answers(bus: Bus, service_id: str) -> bool:
    """Whether that process is there; one that does not answer in time may be busy, and is."""
    try:
        await bus.request_absolute(
            f"$SRV.PING.fleet-handlers.{service_id}", timeout_seconds=LOOK_SECONDS
        )
    except RequestError as error:
        return error.code != NOBODY
    return True
