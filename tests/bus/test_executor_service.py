"""The life of an execution: requested, started, ended; once for each key, whatever fails."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from agent.decisions import execute
from agent.executors.settings import ApprovalSettings, ExecutorSettings
from schemas.decisions import ExecuteReply
from schemas.life import step_id
from schemas.protocols import RequestError
from schemas.scaling import Decision, Execution, Recommendation
from tests.support.advice import advice, decision, step, tell, told
from tests.support.executing import FOR_REAL, Pools, executing, serving
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus

ONE = "chat.scale_up.1"


@pytest.fixture
async def pools(bus: Bus) -> AsyncIterator[Pools]:
    """An executor that acts on pools `chat` and `code` of 2 replicas."""
    pools = Pools(chat=2, code=2)
    async with serving(bus), executing(bus, pools):
        yield pools


async def carried_out(bus: Bus, name: str = ONE, **asked: Any) -> ExecuteReply:
    reply = await execute(bus, name, **{"dry_run": False, "wait_seconds": 30.0, **asked})
    assert reply.has_ended
    return reply


async def accepted(bus: Bus, *given: Recommendation) -> None:
    for one in given:
        await tell(bus, one, decision(one))


async def test_accepted_advice_is_carried_out_with_the_state_before_and_after(
    bus: Bus, pools: Pools
) -> None:
    await accepted(bus, advice())

    reply = await carried_out(bus, by="operator:ann")

    steps = await told(bus, Execution)
    assert reply.execution == steps[-1]
    assert reply.is_new
    assert [one.phase for one in steps] == ["requested", "started", "succeeded"]
    assert [one.executed_by for one in steps] == ["executor", "executor:x1", "executor:x1"]
    assert {one.requested_by for one in steps} == {"operator:ann"}
    assert [one.replicas_before for one in steps] == [None, 2, 2]
    assert [one.replicas_after for one in steps] == [None, None, 3]
    assert pools.replicas["chat"] == 3


async def test_the_same_key_is_carried_out_once_however_many_ask(bus: Bus, pools: Pools) -> None:
    await accepted(bus, advice())

    replies = await asyncio.gather(*(carried_out(bus) for _ in range(5)))
    again = await carried_out(bus)

    assert sum(reply.is_new for reply in replies) == 1
    assert {reply.execution.phase for reply in (*replies, again)} == {"succeeded"}
    assert pools.scaled == [ONE]
    assert len(await told(bus, Execution)) == 3


async def test_a_key_names_one_execution(bus: Bus, pools: Pools) -> None:
    await accepted(bus, advice(1), advice(2, pool="code"))
    await carried_out(bus, idempotency_key="k", dry_run=True)

    with pytest.raises(RequestError, match=r"409 the execution with this .* is a dry run"):
        await execute(bus, ONE, dry_run=False, idempotency_key="k")
    with pytest.raises(RequestError, match=r"409 .*'k' is that of another recommendation"):
        await execute(bus, "code.scale_up.2", dry_run=False, idempotency_key="k")
    assert pools.scaled == []


async def test_a_dry_run_is_the_default_and_changes_nothing(bus: Bus, pools: Pools) -> None:
    await tell(bus, advice())

    reply = await execute(bus, ONE, wait_seconds=30)

    assert (reply.execution.phase, reply.execution.dry_run) == ("succeeded", True)
    assert reply.execution.text == "would bring chat to 3"
    assert (reply.execution.replicas_before, reply.execution.replicas_after) == (2, None)
    assert (pools.scaled, pools.replicas["chat"]) == ([], 2)
    assert [one.phase for one in await told(bus, Execution)] == ["requested", "succeeded"]


@pytest.mark.usefixtures("pools")
async def test_what_may_not_be_carried_out_is_a_conflict(bus: Bus) -> None:
    waiting, rejected = advice(1), advice(2)
    await tell(bus, waiting, rejected, decision(rejected, "rejected", reason="no"))
    await tell(bus, advice(3, stands_ns=0))

    for name, dry_run, why in (
        (waiting.recommendation_id, False, "409 nobody has accepted it; type .* approve"),
        (rejected.recommendation_id, False, "409 operator:ann rejected it: no$"),
        (rejected.recommendation_id, True, "409 operator:ann rejected it: no$"),
        ("chat.scale_up.3", True, "409 it expired at"),
        ("chat.scale_up.4", True, "404 the stream has no recommendation"),
    ):
        with pytest.raises(RequestError, match=why):
            await execute(bus, name, dry_run=dry_run)
    assert await told(bus, Execution) == []


async def test_without_an_executor_nothing_is_requested(bus: Bus) -> None:
    await accepted(bus, advice())

    async with serving(bus, executors=0):
        with pytest.raises(RequestError, match="503 no executor runs; start one"):
            await execute(bus, ONE, dry_run=False)

    assert await told(bus, Execution) == []


async def test_an_executor_that_hangs_is_ended_and_others_are_not_held_up(bus: Bus) -> None:
    pools = Pools(chat=2, code=2)
    pools.go.clear()
    settings = msgspec.structs.replace(FOR_REAL, timeout_seconds=1.0)
    await accepted(bus, advice(1), advice(1, pool="code"))

    async with serving(bus), executing(bus, pools, settings):
        replies = await asyncio.gather(carried_out(bus), carried_out(bus, "code.scale_up.1"))

    for reply in replies:
        assert reply.execution.phase == "failed"
        assert reply.execution.error == "it took longer than 1 s and was ended"
    assert sorted(pools.cut_off) == sorted(pools.scaled) == [ONE, "code.scale_up.1"]


async def test_one_pool_is_changed_by_one_execution_at_a_time(bus: Bus, pools: Pools) -> None:
    pools.go.clear()
    one = advice()
    await accepted(bus, one)
    first = asyncio.create_task(carried_out(bus))
    await asyncio.wait_for(pools.begun.wait(), 30)

    with pytest.raises(RequestError, match="409 it is being carried out"):
        await execute(bus, ONE, dry_run=False, idempotency_key="second")
    await tell(bus, step(one, idempotency_key="second"))
    second = asyncio.create_task(carried_out(bus, idempotency_key="second"))
    pools.go.set()

    assert (await first).execution.phase == "succeeded"
    assert (await second).execution.error == "refused: it was carried out already"
    assert pools.scaled == [ONE]


async def test_a_failure_that_changed_something_gives_advice_to_go_back(
    bus: Bus, pools: Pools
) -> None:
    pools.error, pools.changes_by = "quota", 2
    await accepted(bus, advice())

    reply = await carried_out(bus)

    end = reply.execution
    assert (end.phase, end.error, end.replicas_before, end.replicas_after) == (
        *("failed", "quota"),
        *(2, 4),
    )
    back = (await told(bus, Recommendation))[-1]
    assert end.rollback == back.recommendation_id == f"{ONE}.rollback"
    assert (back.action, back.replicas_from, back.replicas_to) == ("scale_down", 4, 2)

    pools.error, pools.changes_by = "", None
    await tell(bus, decision(back))
    assert (await carried_out(bus, back.recommendation_id)).execution.phase == "succeeded"
    assert pools.replicas["chat"] == 2


async def test_what_succeeds_by_word_but_not_by_sight_has_failed(bus: Bus, pools: Pools) -> None:
    pools.changes_by = 0
    await accepted(bus, advice())

    reply = await carried_out(bus)

    assert reply.execution.phase == "failed"
    assert reply.execution.error == "chat has 2 replicas afterwards, not 3"
    assert reply.execution.rollback is None


async def test_a_failed_execution_may_be_tried_again_under_another_key(
    bus: Bus, pools: Pools
) -> None:
    pools.error, pools.changes_by = "quota", 0
    await accepted(bus, advice())
    await carried_out(bus)
    pools.error, pools.changes_by = "", None

    same = await carried_out(bus)
    other = await carried_out(bus, idempotency_key="again")

    assert (same.execution.phase, other.execution.phase) == ("failed", "succeeded")
    with pytest.raises(RequestError, match="409 it was carried out already"):
        await execute(bus, ONE, dry_run=False, idempotency_key="third")


async def test_a_pool_that_cannot_be_seen_is_not_touched(bus: Bus, pools: Pools) -> None:
    pools.fails_to_look = True
    await accepted(bus, advice())

    reply = await carried_out(bus)

    assert reply.execution.error == "cannot look before: cannot see it"
    assert pools.scaled == []


async def test_what_is_reached_already_succeeds_without_an_act(bus: Bus, pools: Pools) -> None:
    pools.replicas["chat"] = 5
    await accepted(bus, advice())

    reply = await carried_out(bus)

    assert (reply.execution.phase, reply.execution.text) == ("succeeded", "chat has 5 already")
    assert pools.scaled == []


async def test_advice_for_another_number_of_replicas_is_refused(bus: Bus, pools: Pools) -> None:
    pools.replicas["chat"] = 6
    await accepted(bus, advice(action="scale_down", replicas_from=4, replicas_to=3))

    reply = await carried_out(bus, "chat.scale_down.1")

    assert reply.execution.error == "refused: chat has 6 replicas, the advice was for 4"
    assert pools.scaled == []


async def test_who_is_not_logged_in_refuses_everything(bus: Bus) -> None:
    pools = Pools(chat=2)
    await accepted(bus, advice())

    async with serving(bus), executing(bus, pools, is_authenticated=False) as executor:
        reply = await carried_out(bus)
        [component] = executor.components()

    assert (reply.execution.phase, reply.execution.replicas_before) == ("failed", None)
    assert str(reply.execution.error).startswith("refused: this executor is connected without")
    assert component.state == "degraded"
    assert pools.scaled == []


async def test_contradicting_advice_accepted_twice_is_resolved_in_the_one_order(
    bus: Bus, pools: Pools
) -> None:
    down = advice(2, action="scale_down", replicas_to=1, saving_usd_per_hour=9.0)
    await accepted(bus, advice(), down)

    lost = await carried_out(bus, down.recommendation_id)
    won = await carried_out(bus)

    assert lost.execution.error == (
        f"refused: it contradicts {ONE}, accepted too, which goes first by priority"
    )
    assert won.execution.phase == "succeeded"
    assert pools.scaled == [ONE]


def automatic(**fields: Any) -> ExecutorSettings:
    return msgspec.structs.replace(FOR_REAL, approval=ApprovalSettings(low="auto"), **fields)


@pytest.mark.parametrize("dry_run", [False, True], ids=["for-real", "dry-run"])
async def test_the_policy_accepts_low_risk_and_has_it_carried_out(bus: Bus, dry_run: bool) -> None:
    pools = Pools(chat=2)

    async with executing(bus, pools, automatic(dry_run=dry_run)):
        await tell(bus, advice(), advice(2, pool="code", risk="medium"))

        async def succeeded() -> bool:
            return any(one.phase == "succeeded" for one in await told(bus, Execution))

        await until_async(succeeded)

    [verdict] = await told(bus, Decision)
    steps = await told(bus, Execution)
    assert (verdict.verdict, verdict.decided_by, verdict.recommendation_id) == (
        *("accepted", "policy"),
        ONE,
    )
    assert [one.phase for one in steps].count("requested") == 1
    assert {(one.dry_run, one.requested_by) for one in steps} == {(dry_run, "policy")}
    assert pools.scaled == ([] if dry_run else [ONE])


async def test_what_others_asked_for_and_do_themselves_is_left_to_them(
    bus: Bus, pools: Pools
) -> None:
    theirs = advice(1)
    await accepted(bus, theirs, advice(2, pool="code"))
    await tell(bus, step(theirs, executed_by="examples/orchestrator.py"))

    await carried_out(bus, "code.scale_up.2")

    assert pools.scaled == ["code.scale_up.2"]


async def test_who_begins_second_leaves_it_to_the_first(bus: Bus, pools: Pools) -> None:
    pools.replicas["code"] = 2
    one = advice()
    elsewhere = step(one, "started", executed_by="orchestrator:other")
    await bus.publish(elsewhere, message_id=step_id(elsewhere))
    await accepted(bus, one)

    await tell(bus, step(one), *(advice(2, pool="code"), decision(advice(2, pool="code"))))
    await carried_out(bus, "code.scale_up.2")

    assert pools.scaled == ["code.scale_up.2"]


async def left_behind(bus: Bus, pools: Pools) -> Execution:
    """How an executor ends what another one had begun on 2 replicas."""
    one = advice()
    await accepted(bus, one)
    await tell(bus, step(one), step(one, "started", executed_by="executor:x0", replicas_before=2))
    async with executing(bus, pools), serving(bus):
        end = (await carried_out(bus)).execution
    assert pools.scaled == []
    return end


@pytest.mark.parametrize(
    ("replicas", "phase", "rollback"),
    [(2, "failed", None), (3, "succeeded", None), (4, "failed", f"{ONE}.rollback")],
    ids=["nothing-done", "done", "half-done"],
)
async def test_what_was_left_in_the_middle_is_never_begun_again(
    bus: Bus, replicas: int, phase: str, rollback: str | None
) -> None:
    end = await left_behind(bus, Pools(chat=replicas))

    assert (end.phase, end.rollback) == (phase, rollback)
    assert (end.replicas_before, end.replicas_after) == (2, replicas)
    assert "executor:x0 ended" in f"{end.error}{end.text}"


async def test_what_was_requested_while_no_executor_ran_is_done_by_the_next(bus: Bus) -> None:
    pools = Pools(chat=2)
    await accepted(bus, advice())
    async with serving(bus):
        first = await execute(bus, ONE, dry_run=False)
        async with executing(bus, pools):
            reply = await carried_out(bus)

    assert first.execution.phase == "requested"
    assert reply.execution.phase == "succeeded"
    assert pools.scaled == [ONE]


async def test_a_second_executor_stands_by_and_takes_over(bus: Bus) -> None:
    first, second = Pools(chat=2), Pools(chat=2)
    await accepted(bus, advice())

    async with serving(bus), executing(bus, second, name="x2") as standby:
        async with executing(bus, first, name="x1") as active:
            await until(
                lambda: any(
                    "executing" in one.text
                    for service in (active, standby)
                    for one in service.components()
                )
            )
            states = sorted(service.components()[0].text for service in (active, standby))
        await until(lambda: standby.components()[0].text == "executing")
        reply = await carried_out(bus)

    assert states == ["executing", "standby: another one executes"]
    assert reply.execution.executed_by == "executor:x2"
    assert first.scaled == []


async def test_rubbish_in_the_stream_stops_nobody(bus: Bus, pools: Pools) -> None:
    for subject in ("recommendation.scale_up.chat", "decision.accepted.chat"):
        await bus.publish_raw(subject, b"\xff{", message_id=subject)
    await bus.publish_raw("execution.requested.chat", b"[" * 9999, message_id="deep")
    await accepted(bus, advice())

    assert (await carried_out(bus)).execution.phase == "succeeded"


@pytest.mark.parametrize("key", ["a\nb: c", "", " ", "x" * 5000, "é", "a b"])
async def test_a_key_that_cannot_name_an_execution_holds_up_nobody(
    bus: Bus, pools: Pools, key: str
) -> None:
    one = advice()
    await tell(bus, one)
    odd = msgspec.json.encode(step(one, idempotency_key=key))
    await bus.publish_raw("execution.requested.chat", odd, message_id="odd")

    async def is_refused() -> bool:
        return [step.phase for step in await told(bus, Execution)][1:] == ["failed"]

    await until_async(is_refused)
    await tell(bus, decision(one))

    assert (await carried_out(bus)).execution.phase == "succeeded"
    assert pools.scaled == [ONE]


async def test_it_goes_on_after_the_server_came_back(bus: Bus, pools: Pools, nats: Any) -> None:
    nats.kill()
    await until(lambda: not bus.is_connected)
    nats.start()
    await until(lambda: bus.is_connected)
    await accepted(bus, advice())

    assert (await carried_out(bus)).execution.phase == "succeeded"
    assert pools.scaled == [ONE]


async def test_of_two_that_begin_at_once_one_acts(bus: Bus) -> None:
    one = advice()
    theirs = step(one, "started", executed_by="orchestrator:o1")

    class Raced(Pools):
        async def observe(self, pool: str) -> int | None:
            await tell(bus, theirs)
            return await super().observe(pool)

    pools = Raced(chat=2, code=2)
    await accepted(bus, one, advice(2, pool="code"))
    async with serving(bus), executing(bus, pools):
        reply = await execute(bus, ONE, dry_run=False)
        await carried_out(bus, "code.scale_up.2")
        after = await execute(bus, ONE, dry_run=False)

    assert reply.execution.phase in ("requested", "started")
    assert after.execution == theirs
    assert pools.scaled == ["code.scale_up.2"]


async def test_who_stops_cuts_off_what_is_under_way(bus: Bus) -> None:
    pools = Pools(chat=2)
    pools.go.clear()
    await accepted(bus, advice())

    async with serving(bus):
        async with executing(bus, pools), asyncio.timeout(30):
            await execute(bus, ONE, dry_run=False)
            await pools.begun.wait()
        async with executing(bus, pools):
            reply = await carried_out(bus)

    assert pools.cut_off == pools.scaled == [ONE]
    assert reply.execution.error == "executor:x1 ended in the middle"
