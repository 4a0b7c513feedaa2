"""A whole run by the handlers: every step told, failures apart, one correlation id."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import structlog
from nats.aio.msg import Msg

from agent import whole_run
from agent.assembly import Place, run_handlers
from agent.bus import Bus, connect, serving
from agent.client import ResourceAgent
from agent.identity import Identity
from agent.settings import Settings
from agent.views.run_text import run_lines
from handlers.insights.settings import InsightsSettings
from handlers.queries.run_steps import Found, Run
from handlers.settings import HandlersSettings
from schemas.analysis import Scope
from schemas.insights import Insight
from schemas.message import Message
from schemas.protocols import Call, RequestError, json_endpoint
from schemas.run import RunReply, RunRequest, RunStep, StepName
from schemas.units import instant
from tests.support.insights import WIRE, ModelEndpoint, advice, alert, use
from tests.support.program import resource_agent
from tests.support.samples import engine, gpu, host
from tests.support.spending import record
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus

STEPS = get_args(StepName)


def place(tmp_path: Path, **insights: Any) -> Place:
    settings = Settings(
        state_dir=str(tmp_path / "state"),
        node="n1",
        handlers=HandlersSettings(slots=1),
        insights=InsightsSettings(**insights),
    )
    identity = Identity(machine="m", folder="f", boot="b", pid=1)
    return Place(settings=settings, identity=identity, instance="h1")


@contextlib.asynccontextmanager
async def handlers(bus: Bus, tmp_path: Path, **insights: Any) -> AsyncIterator[ResourceAgent]:
    """A handlers process on a connection of its own, and a client of it."""
    async with (
        await connect(bus.url, name="handlers") as own,
        run_handlers(own, place(tmp_path, **insights)),
    ):
        yield ResourceAgent(bus)


async def say(bus: Bus, *messages: Message) -> None:
    """Publish what handlers would have said before."""
    for message in messages:
        await bus.publish(message, message_id=f"test.{message.subject()}")


async def measured(bus: Bus, client: ResourceAgent, pool: str = "live") -> None:
    """A node with a GPU and an engine, simulated; of another pool one more.

    The handlers judge them, and the fleet, whenever they do.
    """
    now = instant(time.time_ns())
    for one in (
        host("n1", cpu=0.3, pool=pool, observed_at=now),
        gpu("g0", "n1", pool=pool, observed_at=now, simulated=True),
        engine("e0", "n1", pool=pool, observed_at=now),
        host("n2", cpu=0.3, pool="batch", observed_at=now),
    ):
        await bus.publish(one)

    async def are_heard() -> bool:
        rows = [*(await client.system()).rows, *(await client.gpu()).rows]
        return len(rows) == 3

    await until_async(are_heard)


async def steps_in_stream(bus: Bus) -> list[RunStep]:
    read = bus.read("EVENTS", subject=RunStep.pattern())
    return [msgspec.json.decode(one.payload, type=RunStep) async for one in read]


def states(run: RunReply) -> dict[str, str]:
    """Of the steps that are not done."""
    return {step.step: step.state for step in run.steps if step.state != "done"}


async def test_a_run_of_the_fleet_gives_what_each_endpoint_would(bus: Bus, tmp_path: Path) -> None:
    await record(bus, 1, every=1)
    one = advice(decided_ns=time.time_ns())
    await say(bus, alert(), one, use("fleet", "all", decided_ns=time.time_ns()))
    await say(bus, use(decided_ns=time.time_ns()), use("node", "n1", decided_ns=time.time_ns()))
    async with handlers(bus, tmp_path) as client:
        await measured(bus, client)
        await until_async(lambda: is_open(client))

        run = await client.analyze()

        assert [step.step for step in run.steps] == list(STEPS)
        assert (run.state, states(run)) == ("complete", {})
        assert (run.scope, run.id) == ("fleet", "all")
        assert run.collected is not None
        assert (run.collected.nodes, run.collected.gpus, run.collected.engines) == (2, 1, 1)
        assert run.collected.simulated
        assert 0 <= run.collected.newest_age_seconds <= run.collected.oldest_age_seconds < 60
        assert run.utilization is not None
        assert {(row.scope, row.id) for row in run.utilization.rows} >= {
            ("fleet", "all"),
            ("pool", "chat"),
        }
        assert not [row for row in run.utilization.rows if row.scope == "node"]
        assert run.alerts is not None
        assert alert().alert_id in {row.alert_id for row in run.alerts.rows}
        assert run.waste is not None
        assert run.trends is not None
        assert run.opportunities is not None
        for replies in (
            (run.waste, await client.get_waste()),
            (run.trends, await client.get_trends()),
            (run.opportunities, await client.get_opportunities()),
        ):
            mine, theirs = ([row for row in reply.rows if row.id == "chat"] for reply in replies)
            assert mine == theirs != []
        assert run.insight is not None
        assert run.insight.scope == "fleet"
        assert run.recommendations is not None
        assert [row.recommendation_id for row in run.recommendations.rows] == [
            one.recommendation_id
        ]
        assert (await client.get_scaling_recommendations(action="scale_up")).rows == [one]
        assert (await client.get_scaling_recommendations(action="scale_down")).rows == []
        by_name = {step.step: step for step in run.steps}
        assert by_name["insight"].ids == [run.insight.insight_id]
        assert by_name["recommendations"].ids == [one.recommendation_id]


async def is_open(client: ResourceAgent) -> bool:
    return bool((await client.alerts()).rows)


async def test_each_step_is_told_as_it_ends_and_kept(bus: Bus, tmp_path: Path) -> None:
    heard: list[RunStep] = []
    async with handlers(bus, tmp_path) as client:
        await measured(bus, client, pool="chat")
        run = await client.analyze(
            pool="chat", insight=False, correlation_id="mine.1", on_step=heard.append
        )
        other = await client.analyze(pool="chat", insight=False)

    kept = await steps_in_stream(bus)
    assert run.correlation_id == "mine.1" != other.correlation_id
    assert sorted(heard, key=lambda step: STEPS.index(step.step)) == run.steps
    assert heard[0].step == "collect"
    assert heard[-1].step == "recommendations"
    assert [step for step in kept if step.correlation_id == "mine.1"] == heard
    assert len(kept) == 2 * len(STEPS)
    assert {step.subject() for step in kept} == {"analysis.run.pool.chat"}
    assert states(run) == {"insight": "skipped"}
    assert run.state == "complete"


async def test_who_listens_is_told_the_steps_of_the_own_run_alone(bus: Bus, tmp_path: Path) -> None:
    heard: dict[str, list[RunStep]] = {"a": [], "b": []}
    async with handlers(bus, tmp_path) as client:
        runs = await asyncio.gather(
            *(
                client.analyze(insight=False, correlation_id=name, on_step=steps.append)
                for name, steps in heard.items()
            )
        )

    for run in runs:
        steps = heard[run.correlation_id]
        assert sorted(steps, key=lambda step: STEPS.index(step.step)) == run.steps


async def test_steps_that_were_not_heard_in_time_are_told_from_the_reply(
    bus: Bus, tmp_path: Path
) -> None:
    async with handlers(bus, tmp_path) as client:
        run = await client.analyze(insight=False)
    again = json_endpoint("run", "api.analysis.run", RunRequest, lambda _request, _call: run)
    await bus.serve("svc", [again], description="tells no steps")
    heard: list[RunStep] = []

    await ResourceAgent(bus).analyze(
        correlation_id=run.correlation_id, insight=False, on_step=heard.append
    )

    assert heard == run.steps


async def test_what_on_step_raises_ends_the_call(bus: Bus, tmp_path: Path) -> None:
    def fail(step: RunStep) -> None:
        raise ZeroDivisionError(step.step)

    async with handlers(bus, tmp_path) as client:
        with pytest.raises(ZeroDivisionError, match="collect"):
            await client.analyze(insight=False, on_step=fail)


async def test_a_step_that_fails_leaves_the_others_results(bus: Bus, tmp_path: Path) -> None:
    one = advice(decided_ns=time.time_ns())
    await say(bus, one, alert())
    async with handlers(bus, tmp_path) as client:
        await measured(bus, client)
        await bus.jetstream.delete_stream("FLEET_EVENTS")

        run = await client.analyze()

    broken = dict.fromkeys(("utilization", "waste", "trends", "opportunities", "insight"), "failed")
    assert (run.state, states(run)) == ("partial", broken)
    assert [run.utilization, run.waste, run.trends, run.opportunities, run.insight] == [None] * 5
    assert {step.text for step in run.steps if step.state == "failed"} == {
        "the stream could not be read now"
    }
    assert run.collected is not None
    assert run.recommendations is not None
    assert [row.recommendation_id for row in run.recommendations.rows] == [one.recommendation_id]
    assert run.recommendations.held is None
    assert any("✗ waste" in line for line in run_lines(run))


async def never() -> Found[str]:
    await asyncio.Event().wait()
    raise AssertionError


async def refused() -> Found[str]:
    raise RequestError(404, "nothing is known")


async def broken() -> Found[str]:
    raise ZeroDivisionError("secret")


@pytest.mark.parametrize(
    ("work", "step_seconds", "text"),
    [
        pytest.param(
            never, 0.01, "not done within 0.01 s (handlers.queries.run_step_seconds)", id="late"
        ),
        pytest.param(refused, 20.0, "nothing is known", id="refused"),
        pytest.param(broken, 20.0, "internal error; the service's log says more", id="broken"),
    ],
)
async def test_a_step_without_a_result_says_why(
    bus: Bus, work: Callable[[], Awaitable[Found[str]]], step_seconds: float, text: str
) -> None:
    run = Run(RunRequest(), bus, time.time_ns, step_seconds)

    with structlog.testing.capture_logs() as logged:
        result = await run.step("waste", work())

    (step,) = await steps_in_stream(bus)
    assert result is None
    assert (step.step, step.state, step.text) == ("waste", "failed", text)
    assert [line["event"] for line in logged] == ["run_step_failed"] * (work is broken)


async def test_a_step_that_cannot_be_published_is_told_in_the_reply(bus: Bus) -> None:
    async def work() -> Found[int]:
        return Found(7, "seven")

    await bus.jetstream.delete_stream("FLEET_EVENTS")
    run = Run(RunRequest(), bus, time.time_ns, 20.0)

    result = await run.step("waste", work())

    assert result == 7
    assert run.steps["waste"].state == "done"


async def test_the_last_insight_stands_in_where_the_hour_has_no_room_for_another(
    bus: Bus, tmp_path: Path
) -> None:
    of_fleet, of_pool = insight("fleet", "all"), insight("pool", "chat")
    await say(bus, alert(), of_fleet, of_pool)
    async with handlers(bus, tmp_path, per_hour=1) as client:
        await measured(bus, client)
        run = await client.analyze()
        nothing = await client.analyze(pool="live")

    assert run.insight == of_fleet  # not the pool's, which is newer
    (step,) = (step for step in run.steps if step.step == "insight")
    assert "not a new one: 2 insights were written in the last hour" in step.text
    assert states(nothing) == {"insight": "failed"}


def insight(scope: Scope, name: str) -> Insight:
    """One written now, from other evidence than there is."""
    said = msgspec.json.decode((WIRE / "insight.json").read_bytes(), type=Insight)
    return msgspec.structs.replace(
        said, scope=scope, id=name, decided_at=instant(time.time_ns()), insight_id=f"{scope}.{name}"
    )


async def test_a_node_has_no_advice_and_switched_off_insights_are_no_failure(
    bus: Bus, tmp_path: Path
) -> None:
    async with handlers(bus, tmp_path, enabled="off") as client:
        await measured(bus, client)
        run = await client.analyze(node="n2")

    assert states(run) == {"insight": "skipped", "recommendations": "skipped"}
    assert (run.scope, run.id, run.state) == ("node", "n2", "complete")
    assert run.collected is not None
    assert (run.collected.nodes, run.collected.gpus, run.collected.simulated) == (1, 0, False)


async def test_who_asks_for_the_unknown_is_told(bus: Bus, tmp_path: Path) -> None:
    async with handlers(bus, tmp_path) as client:
        run = await client.analyze(pool="nobody")
        with pytest.raises(RequestError) as both:
            await client.analyze(pool="p", node="n")
        with pytest.raises(RequestError) as spaced:
            await client.analyze(correlation_id="a b")

    assert states(run) == {"collect": "failed", "insight": "failed"}
    assert run.steps[0].text == "no metrics have come from there of late"
    assert (both.value.code, spaced.value.code) == (400, 400)
    assert "correlation_id" in spaced.value.text


async def test_many_rows_are_cut_to_the_limit(bus: Bus, tmp_path: Path) -> None:
    now_ns = time.time_ns()
    await say(bus, *(use("node", f"n{i}", decided_ns=now_ns) for i in range(20)))
    await say(bus, *(use("pool", f"p{i}", decided_ns=now_ns) for i in range(5)))
    async with handlers(bus, tmp_path) as client:
        run = await client.analyze(insight=False, limit=3)

    assert run.utilization is not None
    assert [row.id for row in run.utilization.rows] == ["p0", "p1", "p2"]
    assert run.utilization.total == 5


async def test_what_a_run_that_dies_has_told_stands(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(whole_run, "LOOK_SECONDS", 0.1)
    one = advice(decided_ns=time.time_ns())
    await say(bus, one)
    told: list[RunStep] = []
    client = ResourceAgent(bus)

    async def hold(_: int) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with (
        ModelEndpoint(hold) as model,
        await connect(bus.url, name="handlers") as own,
        run_handlers(own, place(tmp_path, base_url=model.url)),
    ):
        await measured(bus, client)
        run = asyncio.create_task(client.analyze(correlation_id="cut", on_step=told.append))
        await until(lambda: len(told) == len(STEPS) - 2)
        await own.abandon()
        with pytest.raises(RequestError, match="died; steps that had ended: collect, ") as died:
            async with asyncio.timeout(20):
                await run
    async with handlers(bus, tmp_path, enabled="off") as anew:
        again = await anew.analyze(correlation_id="cut")

    kept = [step for step in await steps_in_stream(bus) if step.state != "skipped"]
    assert died.value.code == 503
    assert {step.step for step in told} == set(STEPS) - {"insight", "recommendations"}
    assert kept[: len(told)] == told
    # The second run has the same correlation id, and steps of its own.
    assert {step.step for step in kept[len(told) :]} == set(STEPS) - {"insight"}
    assert again.recommendations is not None
    assert again.recommendations.rows == [one]


@pytest.mark.parametrize("is_busy", [False, True], ids=["answers", "busy"])
async def test_who_runs_it_is_given_time_while_it_is_there(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_busy: bool
) -> None:
    monkeypatch.setattr(whole_run, "LOOK_SECONDS", 0.02)
    async with handlers(bus, tmp_path) as client:
        run = await client.analyze(insight=False, correlation_id="slow")
    step = msgspec.structs.replace(run.steps[0], service_id="me")
    looked = asyncio.Semaphore(0)

    async def ping(message: Msg) -> None:
        looked.release()
        if not is_busy:
            await message.respond(b"{}")

    async def answer(_request: RunRequest, _call: Call) -> RunReply:
        await bus.publish(step, message_id="step")
        for _ in range(2 * whole_run.MISSES):
            await looked.acquire()
        return run

    await bus._client.subscribe("$SRV.PING.fleet-handlers.me", cb=ping)
    await bus.serve(
        "svc",
        [json_endpoint("run", "api.analysis.run", RunRequest, answer)],
        description="takes its time",
    )

    async with asyncio.timeout(20):
        again = await ResourceAgent(bus).analyze(correlation_id="slow", insight=False)

    assert again == run


async def test_an_insight_written_for_a_run_carries_its_correlation_id(
    bus: Bus, tmp_path: Path
) -> None:
    await say(bus, use("node", "n1", decided_ns=time.time_ns()))
    async with handlers(bus, tmp_path) as client:
        run = await client.analyze(node="n1")

    assert run.insight is not None
    assert run.insight.correlation_id == run.correlation_id
    (step,) = (step for step in run.steps if step.step == "insight")
    assert step.ids == [run.insight.insight_id]


@pytest.mark.timeout(180)
async def test_the_command_shows_steps_and_findings_and_fails_where_one_did(
    bus: Bus, tmp_path: Path
) -> None:
    await record(bus, 1, every=1)
    one = advice(decided_ns=time.time_ns())
    hot = use(bottlenecks=("n1-g0",), decided_ns=time.time_ns())
    await say(bus, alert(), one, hot)
    here = ["--nats-url", bus.url]
    async with handlers(bus, tmp_path) as client:
        await measured(bus, client)
        told = await asyncio.to_thread(resource_agent, "analyze", *here)
        as_json = await asyncio.to_thread(
            resource_agent, "analyze", "--pool", "nobody", "--no-insight", "--json", *here
        )
    both = resource_agent("analyze", "--node", "a", "--pool", "b")

    assert told.returncode == 0, told.stderr
    lines = told.stdout.decode().splitlines()
    assert lines[0].startswith("fleet, ")
    assert [line.split()[1] for line in lines[2:10]] == list(STEPS)
    titles = [line for line in lines[10:] if line and not line.startswith(" ")]
    assert titles == ["In words", "Use", "Open alerts", "Cost", "What can be saved", "Advice"]
    for text in (
        "pool chat: high, healthy; gpu 85 %",
        "critical bottleneck: gpu of n1-g0 at 98 %, from 98 % on",
        "critical: gpu.temperature_celsius of gpu-node-17 is 91",
        "pool chat: $8.00 an hour for 2.0 GPUs, wasted $6.00 an hour, $4,380 a month (75 %)",
        "a month, effort low, pool chat: Release 1 GPU",
        f"{one.recommendation_id}  scale_up chat 4 → 6, costs $5.50/h, low risk",
    ):
        assert text in told.stdout.decode()
    run = msgspec.json.decode(as_json.stdout, type=RunReply)
    assert as_json.returncode == 1
    assert (run.state, states(run)) == ("partial", {"collect": "failed", "insight": "skipped"})
    assert (both.returncode, b"give one of them" in both.stderr) == (2, True)
