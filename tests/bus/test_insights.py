"""Insights on a real bus, written by a model behind a real HTTP endpoint, or by the template."""

import asyncio
import contextlib
import itertools
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import structlog

from agent.bus import Bus
from agent.bus.lease import BucketLeases
from agent.client import ResourceAgent
from agent.language_model import make_model
from agent.settings import load
from handlers.foreign import ForeignMessages
from handlers.insights import service as service_module
from handlers.insights import writer as writer_module
from handlers.insights.service import InsightService
from handlers.insights.sources import Sources
from handlers.insights.writer import Writer
from handlers.queries.standing import Standing
from handlers.queries.stream_reader import StreamReader
from handlers.settings import QuerySettings
from schemas.analysis import Alert
from schemas.insights import Insight, InsightsReply, InsightsRequest
from schemas.message import Message
from schemas.protocols import Call, RequestError
from schemas.units import SECOND_NS
from tests.support.insights import (
    Give,
    ModelEndpoint,
    advice,
    alert,
    completion,
    explanation,
    opportunity,
    use,
    waste,
)
from tests.support.program import resource_agent
from tests.support.s3_double import http
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus

CALL = Call("api.analysis.insights", b"", {})
GOOD = completion(explanation("The fleet is hot.", ("NODE_A is at 91 °C.", ["A"])))


NUMBERS = itertools.count()
OPEN: dict[tuple[str, str, str], Alert] = {}
"""The alerts that are open, as handlers hear it."""


class Clock:
    """The wall clock, that can be set forward."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def __call__(self) -> int:
        return time.time_ns() + round(self.ahead_seconds * SECOND_NS)


def service(bus: Bus, clock: Clock, owner: str = "h", **fields: Any) -> InsightService:
    """One that is not running; `base_url` among `fields` gives it a model."""
    variables = {
        f"RESOURCE_AGENT_INSIGHTS__{name.upper()}": str(value) for name, value in fields.items()
    }
    settings = load(environ=variables).settings
    queries = QuerySettings(forget_seconds=86_400)
    reader = StreamReader(bus, queries, ForeignMessages(Counter(), clock))
    model, no_model = make_model(settings, {})
    return InsightService(
        bus,
        BucketLeases(bus.bucket("lease"), owner),
        Sources(reader, Standing(reader, queries, clock), OPEN.values, clock),
        Writer(model, settings.insights, no_model),
        settings.insights,
        clock,
    )


@contextlib.asynccontextmanager
async def with_model(
    bus: Bus, clock: Clock, give: Give | bytes, **fields: Any
) -> AsyncIterator[tuple[InsightService, ModelEndpoint]]:
    """A service whose model answers so; its connections are closed at the end."""
    async with ModelEndpoint(give) as endpoint:
        running = service(bus, clock, base_url=endpoint.url, **fields)
        try:
            yield running, endpoint
        finally:
            model = running._writer._model
            assert model is not None
            await model.close()


async def written(bus: Bus) -> list[Insight]:
    """All insights in the stream, in its order."""
    read = bus.read("ALERTS", subject=Insight.pattern())
    return [msgspec.json.decode(one.payload, type=Insight) async for one in read]


async def say(bus: Bus, message: Message) -> None:
    """Publish what handlers would."""
    if isinstance(message, Alert):
        key = (message.scope, message.id, message.rule)
        OPEN.pop(key, None)
        if message.transition != "cleared":
            OPEN[key] = message
    await bus.publish(message, message_id=f"test.{next(NUMBERS)}")


async def hot(bus: Bus, clock: Clock) -> None:
    """One hot node in the pool, and what is judged of the fleet."""
    await say(bus, alert())
    await say(bus, use("fleet", "all", decided_ns=clock()))


@pytest.fixture
def clock() -> Clock:
    OPEN.clear()
    return Clock()


async def test_the_model_explains_the_fleet_with_the_real_names(bus: Bus, clock: Clock) -> None:
    await hot(bus, clock)
    async with with_model(
        bus,
        clock,
        GOOD,
        usd_per_million_prompt_tokens=0.1,
        usd_per_million_completion_tokens=0.5,
    ) as (running, endpoint):
        await running.look()

    (insight,) = await written(bus)
    assert insight.text == "The fleet is hot."
    assert insight.findings[0].text == "gpu-node-17 is at 91 °C."
    assert insight.source == "llm"
    assert insight.template_reason is None
    assert insight.model == "openai/gpt-oss-20b"
    assert (insight.prompt_tokens, insight.completion_tokens) == (900, 100)
    assert insight.cost_usd == pytest.approx(900 * 0.1e-6 + 100 * 0.5e-6)
    assert insight.latency_seconds is not None
    assert not insight.simulated
    assert "gpu-node-17" not in str(endpoint.bodies)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(http(500, b"oops"), "it answered 500", id="500"),
        pytest.param(http(429, b"", {"Retry-After": "100"}), "it answered 429", id="429"),
        pytest.param(http(401, b""), "it answered 401", id="401"),
        pytest.param(http(200, b"<html>"), "no chat completion", id="no-json"),
        pytest.param(completion("hot"), "refused: not of the schema", id="schema"),
        pytest.param(completion('{"summary', finish="length"), "cut off", id="cut-off"),
        pytest.param(
            completion(explanation("It is 42 °C.")),
            "a number is not in the evidence: 42",
            id="number",
        ),
        pytest.param(completion("x" * 300_000), "larger than", id="huge"),
    ],
)
async def test_the_template_writes_where_the_model_fails_and_says_why(
    bus: Bus, clock: Clock, answer: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "FIRST_RETRY_SECONDS", 1000)
    await hot(bus, clock)
    async with with_model(bus, clock, answer) as (running, _):
        with structlog.testing.capture_logs() as logs:
            await running.look()
        component = running.component()

    (insight,) = await written(bus)
    assert insight.source == "template"
    assert insight.template_reason is not None
    assert reason in insight.template_reason
    assert insight.text.startswith("By template: Open alert (critical)")
    assert "gpu-node-17" in insight.findings[0].text
    assert insight.latency_seconds is not None
    assert component.state == "degraded"
    assert reason in component.text
    assert reason in str(logs)


async def test_a_model_that_takes_too_long_is_given_up(bus: Bus, clock: Clock) -> None:
    async def never(_: int) -> bytes:
        await asyncio.Event().wait()
        return b""

    await hot(bus, clock)
    async with with_model(bus, clock, never, deadline_seconds=0.2) as (running, _):
        await running.look()

    (insight,) = await written(bus)
    assert insight.template_reason == "no answer within 0.2 s"


async def test_a_short_failure_is_asked_again_within_the_deadline(bus: Bus, clock: Clock) -> None:
    answers = [http(503, b"", {"Retry-After": "0.01"}), GOOD]
    await hot(bus, clock)
    async with with_model(bus, clock, lambda n: answers[n]) as (running, endpoint):
        await running.look()

    (insight,) = await written(bus)
    assert insight.source == "llm"
    assert len(endpoint.paths) == 2


@pytest.mark.parametrize(
    ("answer", "least_seconds"),
    [
        pytest.param(http(429, b"", {"Retry-After": "3000"}), 2000, id="it-says-when"),
        pytest.param(http(401, b""), 3000, id="asking-again-cannot-help"),
    ],
)
async def test_one_that_says_when_to_ask_again_or_never_is_not_asked_before(
    bus: Bus, clock: Clock, answer: bytes, least_seconds: float
) -> None:
    await hot(bus, clock)
    async with with_model(bus, clock, answer) as (running, endpoint):
        await running.look()
        clock.ahead_seconds = 700
        await say(bus, alert("other"))
        await running.look()

    first, second = await written(bus)
    assert first.latency_seconds is not None
    assert second.template_reason is not None
    told = re.match(r"the model is not asked for another (\d+) s: ", second.template_reason)
    assert told is not None
    assert float(told[1]) > least_seconds
    assert second.latency_seconds is None
    assert second.model is None
    assert len(endpoint.paths) == 1


async def test_without_a_key_the_template_writes(bus: Bus, clock: Clock) -> None:
    await hot(bus, clock)

    running = service(bus, clock)
    await running.look()

    (insight,) = await written(bus)
    assert insight.source == "template"
    assert insight.template_reason == "no key: set GROQ_API_KEY or insights.api_key_file"
    assert insight.model is None
    assert insight.cost_usd is None
    assert running.component().state == "ok"


async def test_written_again_when_the_evidence_has_changed_but_not_too_soon(
    bus: Bus, clock: Clock
) -> None:
    await hot(bus, clock)
    running = service(bus, clock)
    await running.look()
    await running.look()
    clock.ahead_seconds = 700
    await running.look()
    assert [one.id for one in await written(bus)] == ["all", "chat"]

    await say(bus, alert("other"))
    await running.look()
    await running.look()

    assert [(one.scope, one.id) for one in await written(bus)][2:] == [
        ("fleet", "all"),
        ("pool", "chat"),
    ]
    await say(bus, alert("third"))
    await running.look()
    assert len(await written(bus)) == 4


async def test_figures_that_drift_are_no_change(bus: Bus, clock: Clock) -> None:
    await say(bus, use("fleet", "all", decided_ns=clock(), gpu=0.80))
    running = service(bus, clock)
    await running.look()
    await say(bus, use("fleet", "all", decided_ns=clock(), gpu=0.82))
    clock.ahead_seconds = 700

    await running.look()

    assert len(await written(bus)) == 1


async def test_cleared_alerts_and_advice_that_is_over_are_no_evidence(
    bus: Bus, clock: Clock
) -> None:
    await say(bus, alert())
    await say(bus, alert(transition="cleared"))
    await say(bus, alert("still"))
    await say(bus, advice(decided_ns=clock() - 3600 * SECOND_NS))

    await service(bus, clock).look()

    (insight,) = await written(bus)
    (finding,) = insight.findings
    assert "gpu.temperature_celsius of node still reached" in finding.text


async def test_what_it_costs_and_could_save_is_explained(bus: Bus, clock: Clock) -> None:
    now_ns = clock()
    await say(bus, waste("fleet", "all", decided_ns=now_ns))
    await say(bus, waste(decided_ns=now_ns))
    await say(bus, waste("pool", "old", decided_ns=now_ns - 2 * 86_400 * SECOND_NS))
    await say(bus, opportunity(decided_ns=now_ns))
    await say(bus, waste("node", "n9", decided_ns=now_ns))
    await say(bus, opportunity("node", "n9", decided_ns=now_ns))
    running = service(bus, clock)

    await running.look()
    await running.look()
    of_node = (await running.answer(InsightsRequest(now=True, node="n9"), CALL)).rows[0]

    fleet, pool = (one for one in await written(bus) if one.scope != "node")
    assert [one.id for one in (fleet, pool)] == ["all", "chat"]
    assert "they cost $32.00 per hour, of which $22.00 are wasted" in fleet.text
    assert [finding.text.partition(":")[0] for finding in fleet.findings] == [
        "GPUs of the fleet, 8 on average",
        *["Could be done in node n9"] * 3,
        *["Could be done in pool chat"] * 3,
    ]
    assert len(pool.findings) == len(of_node.findings) == 4


async def test_an_alert_is_no_evidence_while_it_is_silenced(bus: Bus, clock: Clock) -> None:
    await say(bus, alert())
    await say(bus, alert(transition="updated", silenced_by="s1"))
    await say(bus, alert("back", silenced_by="s1"))
    await say(bus, alert("back", transition="updated"))

    await service(bus, clock).look()

    (insight,) = await written(bus)
    (finding,) = insight.findings
    assert "gpu.temperature_celsius of node back reached" in finding.text


async def test_the_same_evidence_is_not_paid_twice(bus: Bus, clock: Clock) -> None:
    await hot(bus, clock)
    async with with_model(bus, clock, GOOD, interval_seconds=60) as (running, endpoint):
        await running.look()
        clock.ahead_seconds = 100
        await say(bus, alert("other"))
        await say(bus, alert("other", transition="cleared"))
        reply = await running.answer(InsightsRequest(now=True), CALL)
        again = reply.rows[0]

    assert len(endpoint.paths) == 1
    first = (await written(bus))[0]
    assert again.insight_id != first.insight_id
    assert (again.text, again.findings, again.model) == (first.text, first.findings, first.model)
    assert again.source == "llm"
    assert again.latency_seconds is None
    assert again.prompt_tokens is None


async def test_tokens_of_an_hour_are_kept_to_after_a_restart_too(bus: Bus, clock: Clock) -> None:
    await hot(bus, clock)
    budget = {"tokens_per_hour": 1000, "interval_seconds": 60}
    async with with_model(bus, clock, GOOD, **budget) as (running, _):
        await running.look()
    clock.ahead_seconds = 100
    await say(bus, alert("other"))
    async with with_model(bus, clock, GOOD, **budget) as (running, endpoint):
        await running.look()

        assert endpoint.paths == []
        assert (await written(bus))[-1].template_reason == (
            "1000 tokens were used in the last hour (insights.tokens_per_hour)"
        )


async def test_tokens_that_are_not_told_count_as_the_most_there_may_be(
    bus: Bus, clock: Clock
) -> None:
    await hot(bus, clock)
    silent = completion(explanation("Hot."), usage=None)
    budget = {"tokens_per_hour": 500, "max_tokens": 500, "interval_seconds": 60}
    async with with_model(bus, clock, silent, **budget) as (running, endpoint):
        await running.look()
        clock.ahead_seconds = 100
        await say(bus, alert("other"))
        await running.look()

    first, second = await written(bus)
    assert first.source == "llm"
    assert first.cost_usd is None
    assert second.source == "template"
    assert len(endpoint.paths) == 1


async def test_insights_for_which_no_model_was_asked_spend_no_tokens(
    bus: Bus, clock: Clock
) -> None:
    await hot(bus, clock)
    await service(bus, clock).look()
    clock.ahead_seconds = 700
    async with with_model(bus, clock, GOOD, tokens_per_hour=1) as (running, endpoint):
        await running.look()

    assert len(endpoint.paths) == 1
    told = [(one.id, one.source) for one in await written(bus)]
    assert told == [("all", "template"), ("all", "llm")]  # better told, though nothing changed


async def test_insights_of_an_hour_are_limited(bus: Bus, clock: Clock) -> None:
    for pool in ("a", "b", "c"):
        await say(bus, alert(f"node-{pool}", pool=pool))
    running = service(bus, clock, per_hour=2)
    for _ in range(4):
        await running.look()

    assert [one.id for one in await written(bus)] == ["all", "a"]
    with pytest.raises(RequestError, match=r"insights\.per_hour") as caught:
        await running.answer(InsightsRequest(now=True, pool="c"), CALL)
    assert caught.value.code == 429
    assert caught.value.retry_after_seconds == pytest.approx(3600, abs=120)


async def test_a_client_gets_the_last_ones_and_one_written_now(bus: Bus, clock: Clock) -> None:
    await hot(bus, clock)
    await say(bus, use("node", "gpu-node-17", decided_ns=clock()))
    running = service(bus, clock)
    await bus.serve("svc", [running.endpoint()], description="test")
    client = ResourceAgent(bus)

    nothing = await client.insights()
    of_node = await client.insights(node="gpu-node-17", now=True)
    of_fleet = await client.insights(now=True)
    of_pool = await client.insights(pool="chat", now=True)
    again = await client.insights(pool="chat", now=True)
    every = await client.insights()
    only_pool = await client.insights(pool="chat")

    assert nothing.text == "no insight has been written yet; ask with `now`"
    assert [of_node.rows[0].scope, of_node.rows[0].id] == ["node", "gpu-node-17"]
    assert again.rows == of_pool.rows == only_pool.rows
    assert every.rows == [*of_pool.rows, *of_fleet.rows, *of_node.rows]
    assert every.rows == list(reversed(await written(bus)))


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        pytest.param(InsightsRequest(node="n", pool="p"), 400, "give one of them", id="both"),
        pytest.param(InsightsRequest(node="n", now=True), 404, "nothing is known", id="unknown"),
    ],
)
async def test_what_cannot_be_answered_is_refused(
    bus: Bus, clock: Clock, asked: InsightsRequest, code: int, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        await service(bus, clock).answer(asked, CALL)

    assert caught.value.code == code


async def test_switched_off_nothing_is_written(bus: Bus, clock: Clock) -> None:
    running = service(bus, clock, enabled="off")

    async with running:
        assert running.component().state == "off"
        with pytest.raises(RequestError, match="switched off"):
            await running.answer(InsightsRequest(), CALL)


async def test_one_process_writes_and_another_takes_over(
    bus: Bus, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.02)
    await hot(bus, clock)

    async def has_written(count: int) -> bool:
        return len(await written(bus)) == count

    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(service(bus, clock, "a"))
        await until_async(lambda: has_written(2))
        async with service(bus, clock, "b") as second:
            assert first.component().state == second.component().state == "ok"
            await stack.aclose()
            clock.ahead_seconds = 700
            await say(bus, alert("other"))
            await until_async(lambda: has_written(4))

    assert [one.id for one in await written(bus)] == ["all", "chat"] * 2


async def test_many_at_once_ask_the_model_once(bus: Bus, clock: Clock) -> None:
    await hot(bus, clock)
    async with with_model(bus, clock, GOOD) as (running, endpoint):
        replies = await asyncio.gather(
            *(running.answer(InsightsRequest(now=True), CALL) for _ in range(5))
        )

    assert len({reply.rows[0].insight_id for reply in replies}) == 1
    assert len(endpoint.paths) == 1


async def test_a_foreign_message_among_the_evidence_is_passed_over(bus: Bus, clock: Clock) -> None:
    await hot(bus, clock)
    await bus.publish_raw("analysis.waste.pool.x", b'{"hello": 1}', message_id="foreign")

    await service(bus, clock).look()

    assert len(await written(bus)) == 1


@pytest.mark.timeout(180)
async def test_the_command_shows_who_wrote_what(bus: Bus, clock: Clock, nats_url: str) -> None:
    await hot(bus, clock)
    running = service(bus, clock)
    await bus.serve("svc", [running.endpoint()], description="test")
    here = ["--nats-url", nats_url]

    told = await asyncio.to_thread(resource_agent, "insights", "--now", *here)
    as_json = await asyncio.to_thread(resource_agent, "insights", "--json", *here)

    assert told.returncode == 0, told.stderr
    first, reason, finding, *_ = told.stdout.decode().splitlines()
    assert first.startswith("fleet  ")
    assert first.endswith("by template")
    assert reason == "no key: set GROQ_API_KEY or insights.api_key_file"
    assert finding.startswith("critical Open alert (critical): GPU near its slowdown temperature: ")
    assert msgspec.json.decode(as_json.stdout, type=InsightsReply).rows == await written(bus)


def test_the_command_is_about_a_node_or_a_pool() -> None:
    done = resource_agent("insights", "--node", "a", "--pool", "b")

    assert done.returncode == 2
    assert b"give one of them" in done.stderr


async def test_a_judgement_that_is_outdated_is_no_evidence(bus: Bus, clock: Clock) -> None:
    await say(bus, use("fleet", "all", decided_ns=clock() - 2 * 86_400 * SECOND_NS))

    with pytest.raises(RequestError, match="nothing is known of fleet"):
        await service(bus, clock).answer(InsightsRequest(now=True), CALL)


async def test_a_process_without_the_lease_writes_nothing(
    bus: Bus, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.01)
    await hot(bus, clock)
    running = service(bus, clock)
    refused: list[str] = []

    async def refuse(name: str) -> None:
        refused.append(name)

    monkeypatch.setattr(running._leases, "try_acquire", refuse)
    async with running:
        await until(lambda: len(refused) >= 3)

    assert set(refused) == {"handlers.insights"}
    assert await written(bus) == []
