"""The handlers hear from the stream what became of their advice."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.assembly import Place, run_handlers
from agent.bus import Bus, connect
from agent.identity import Identity
from agent.settings import Settings
from handlers.decisions.book import DecisionReader
from handlers.settings import HandlersSettings, ScalingSettings
from schemas.message import Message
from schemas.scaling import Recommendation
from schemas.units import instant
from tests.support.advice import HOUR_NS, advice, decision, step, tell, told
from tests.support.samples import engine
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus

AT_ONCE = ScalingSettings(up_hold_seconds=0.0, startup_lead_seconds=0.0, rejected_hold_seconds=0.0)


async def test_a_reader_has_heard_what_was_kept_and_goes_on(bus: Bus) -> None:
    before, after, done = advice(1), advice(2), advice(3, pool="code")
    await tell(bus, before, decision(before, "rejected"), done, step(done, "succeeded"))
    await bus.publish_raw("decision.rejected.chat", b"garbage", message_id="garbage")
    later_ns = time.time_ns() + HOUR_NS

    async with DecisionReader(bus, time.time_ns) as reader:
        book = reader.book
        kept = book.rejected_ns(before.recommendation_id, later_ns)
        executed = book.executed("code", later_ns)
        await bus.publish_raw("execution.succeeded.chat", b"garbage", message_id="more")
        await tell(bus, after, decision(after, "rejected"), step(after, "succeeded"))
        await until(lambda: book.rejected_ns(after.recommendation_id, later_ns) is not None)
        await until(lambda: book.executed("chat", later_ns) is not None)

    assert kept is not None
    assert executed is not None
    assert executed[1] == done.recommendation_id


@contextlib.asynccontextmanager
async def handlers(bus: Bus, tmp_path: Path, name: str) -> AsyncIterator[None]:
    place = Place(
        settings=Settings(
            state_dir=str(tmp_path / name),
            node="n1",
            handlers=HandlersSettings(slots=2, scaling=AT_ONCE),
        ),
        identity=Identity(machine="m", folder=name, boot="b", pid=1),
        instance=name,
    )
    async with await connect(bus.url, name=name) as own, run_handlers(own, place):
        yield


async def advised(bus: Bus, count: int) -> list[Recommendation]:
    """An overloaded pool reports until so much advice is there."""

    async def is_there() -> bool:
        await bus.publish(engine(waiting=40, observed_at=instant(time.time_ns())))
        return len(await told(bus, Recommendation)) >= count

    await until_async(is_there)
    return await told(bus, Recommendation)


def rejected(one: Recommendation) -> Message:
    return decision(one, "rejected")


def carried_out(one: Recommendation) -> Message:
    return step(one, "succeeded")


@pytest.mark.parametrize("settle", [rejected, carried_out])
async def test_advice_that_was_decided_on_stands_no_more_also_for_the_next_process(
    bus: Bus, tmp_path: Path, settle: Callable[[Recommendation], Message]
) -> None:
    async with handlers(bus, tmp_path, "h1"):
        (first,) = await advised(bus, 1)
        await tell(bus, settle(first))
        second = (await advised(bus, 2))[1]
        await tell(bus, settle(second))
    async with handlers(bus, tmp_path, "h2"):
        third = (await advised(bus, 3))[2]

    assert second.supersedes is None
    assert third.supersedes is None
    assert len({first.recommendation_id, second.recommendation_id, third.recommendation_id}) == 3
