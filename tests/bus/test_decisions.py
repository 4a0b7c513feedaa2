"""Who decides first has decided; everybody else is told who that was."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.bus import Bus, connect
from agent.decisions import decide, decider, explain
from schemas.message import Message
from schemas.protocols import Answer, RequestError
from schemas.scaling import Decision
from tests.support.advice import advice, decision, tell, told
from tests.support.executing import serving
from tests.support.program import resource_agent
from tests.support.server import NatsServer
from tests.support.waiting import until

pytestmark = pytest.mark.bus


@pytest.fixture
async def handlers(bus: Bus) -> AsyncIterator[None]:
    async with serving(bus):
        yield


@pytest.mark.usefixtures("handlers")
async def test_of_orchestrators_that_decide_at_once_exactly_one_wins(
    bus: Bus, nats_url: str
) -> None:
    one = advice()
    await tell(bus, one)

    async def orchestrator(number: int) -> str:
        async with await connect(nats_url, name=f"orchestrator-{number}") as own:
            by, word = f"orchestrator:{number}", "accepted" if number % 2 else "rejected"
            try:
                await decide(own, one.recommendation_id, word, by=by)  # type: ignore[arg-type]
            except RequestError as error:
                return str(error)
            return by

    said = await asyncio.gather(*(orchestrator(number) for number in range(6)))

    [kept] = await told(bus, Decision)
    losers = [text for text in said if text != kept.decided_by]
    assert len(losers) == 5
    assert all(text.startswith(f"409 {kept.decided_by} {kept.verdict} it at") for text in losers)


@pytest.mark.usefixtures("handlers")
async def test_two_of_one_name_are_two(bus: Bus) -> None:
    one = advice()
    await tell(bus, one)

    outcomes = await asyncio.gather(
        *(decide(bus, one.recommendation_id, "accepted", by="operator:ann") for _ in range(2)),
        return_exceptions=True,
    )

    assert sorted(isinstance(outcome, RequestError) for outcome in outcomes) == [False, True]


@dataclasses.dataclass
class Raced:
    """A bus on which somebody else is quicker, between the look and the decision."""

    bus: Bus
    first: Message

    async def request(self, *asked: Any, **more: Any) -> Answer:
        return await self.bus.request(*asked, **more)

    async def publish(self, message: Decision, *, message_id: str) -> None:
        await tell(self.bus, self.first)
        await self.bus.publish(message, message_id=message_id)


ONE = advice()


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("first", "why"),
    [
        pytest.param(
            decision(ONE, decided_by="orchestrator:a", reason="enough"),
            "409 orchestrator:a accepted it at .*: enough",
            id="decided",
        ),
        pytest.param(
            advice(2, supersedes=ONE.recommendation_id),
            "409 it does not stand any more: superseded by chat.scale_up.2",
            id="superseded",
        ),
        pytest.param(
            decision(ONE, pool="other"),
            "409 another decision on it was taken meanwhile, which did not count",
            id="decided on another pool's subject",
        ),
    ],
)
async def test_the_loser_of_a_race_it_could_not_see_is_told_too(
    bus: Bus, first: Message, why: str
) -> None:
    await tell(bus, advice())
    raced: Any = Raced(bus, first)

    with pytest.raises(RequestError, match=why):
        await decide(raced, ONE.recommendation_id, "rejected", by="b")

    verdicts = [one.verdict for one in await told(bus, Decision)]
    assert verdicts == (["accepted"] if isinstance(first, Decision) else ["rejected"])


@pytest.mark.usefixtures("handlers")
async def test_a_decision_holds_after_the_server_was_killed(bus: Bus, nats: NatsServer) -> None:
    one = advice()
    await tell(bus, one)
    await decide(bus, one.recommendation_id, "rejected", by="operator:ann", reason="too dear")

    nats.kill()
    await until(lambda: not bus.is_connected)
    nats.start()
    await until(lambda: bus.is_connected)

    with pytest.raises(RequestError, match=r"409 operator:ann rejected it at .*: too dear"):
        await decide(bus, one.recommendation_id, "accepted", by="operator:bob")


@pytest.mark.usefixtures("handlers")
async def test_what_does_not_stand_cannot_be_decided(bus: Bus) -> None:
    expired, replaced = advice(1, stands_ns=0), advice(2)
    successor = advice(3, supersedes=replaced.recommendation_id)
    await tell(bus, expired, replaced, successor)

    for name, why in (
        (expired.recommendation_id, "409 it does not stand any more: it expired at"),
        (replaced.recommendation_id, f"409 .*superseded by {successor.recommendation_id}"),
        ("chat.scale_up.77", "404 the stream has no recommendation 'chat.scale_up.77'"),
        ("*", "404"),
        ("chat", "404"),
    ):
        with pytest.raises(RequestError, match=why):
            await decide(bus, name, "accepted", by="operator:ann")
    assert await told(bus, Decision) == []


@pytest.mark.usefixtures("handlers")
async def test_the_story_is_told_from_its_messages_alone(bus: Bus) -> None:
    one, other = advice(1), advice(2)
    await bus.publish_raw("recommendation.scale_up.chat", b"garbage", message_id="bad")
    await tell(bus, one, other, decision(other, "rejected"), decision(one))

    story = await explain(bus, one.recommendation_id, sources=False)

    assert story.state == "accepted"
    assert story.life.advice == one
    assert [entry.subject for entry in story.trail] == [
        "recommendation.scale_up.chat",
        "decision.accepted.chat",
    ]
    assert story.trail[0].sequence < story.trail[1].sequence


async def test_without_handlers_nothing_is_decided(bus: Bus) -> None:
    one = advice()
    await tell(bus, one)

    with pytest.raises(RequestError, match="503 nobody serves"):
        await decide(bus, one.recommendation_id, "accepted", by="operator:ann")

    assert await told(bus, Decision) == []


async def test_who_is_not_logged_in_signs_as_nobody(bus: Bus) -> None:
    assert decider(bus, "ann") == "nobody:ann"


async def test_an_approval_is_told_also_where_nobody_can_carry_it_out(bus: Bus) -> None:
    one = advice()
    await tell(bus, one)
    command = ("approve", one.recommendation_id, "--execute", "--by", "ann", "--nats-url", bus.url)

    async with serving(bus, executors=0):
        done = await asyncio.to_thread(resource_agent, *command)

    assert (done.returncode, done.stdout) == (1, b"")
    assert b"accepted by nobody:ann\n" in done.stderr
    assert b"error: no executor runs" in done.stderr
    assert [found.verdict for found in await told(bus, Decision)] == ["accepted"]
