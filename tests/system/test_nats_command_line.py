"""Each `nats …` line of the documentation, sent as the NATS command line sends it."""

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Literal, get_args

import msgspec
import pytest
from msgspec import Meta

from agent.bus import connect
from schemas.lifecycle import ROLES
from schemas.run import StepName
from tests.support.deployment import DeployedServer
from tests.support.nats_command_line import CommandLine
from tests.support.nats_version import guests_hear_the_whole_root
from tests.support.program import ROOT, Up, running_up

pytestmark = pytest.mark.bus

NODE = "n1"
OPTIONS_OF_UP = ("--node", NODE, "--simulate-gpus", "1xH100")
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
OPTIONS = ("--server", "--inbox-prefix")
Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]+$", min_length=1)]
Version = Annotated[str, Meta(pattern=r"^\d+\.\d+\.\d+$")]


class MicroEndpoint(msgspec.Struct, kw_only=True):
    """What the command line wants of an endpoint's statistics (ADR-32), or it says nothing."""

    name: Name
    subject: Annotated[str, Meta(min_length=1)]
    num_requests: int
    num_errors: int
    last_error: str
    processing_time: int
    average_processing_time: int
    queue_group: str = ""


class MicroStats(msgspec.Struct, kw_only=True):
    type: Literal["io.nats.micro.v1.stats_response"]
    name: Name
    id: Annotated[str, Meta(min_length=1)]
    version: Version
    started: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
    endpoints: list[MicroEndpoint]
    metadata: dict[str, str] | None = None


class MicroInfoEndpoint(msgspec.Struct, kw_only=True):
    name: Name
    subject: Annotated[str, Meta(min_length=1)]
    metadata: dict[str, str] | None = None
    queue_group: str = ""


class MicroInfo(msgspec.Struct, kw_only=True):
    type: Literal["io.nats.micro.v1.info_response"]
    name: Name
    id: Annotated[str, Meta(min_length=1)]
    version: Version
    description: str
    endpoints: list[MicroInfoEndpoint]
    metadata: dict[str, str] | None = None


Play = Callable[[CommandLine, Up], Awaitable[None]]


def sub(subject: str, example: str) -> Play:
    """What it listens to arrives: a message on the example subject, published as `local`."""

    async def play(nats: CommandLine, up: Up) -> None:
        await nats.sub(subject)
        assert await nats.settle() == ""
        async with await connect(up.url, name="test") as bus:
            await bus.send(example, b"{}")
        async with asyncio.timeout(10):
            while (await nats.next()).subject != f"fleet.v1.{example}":
                pass

    return play


def req(subject: str, body: str = "") -> Play:
    async def play(nats: CommandLine, _up: Up) -> None:
        answer = await nats.req(subject, body)
        assert "Nats-Service-Error" not in answer.headers
        assert [row["node"] for row in answer.json()["rows"]] == [NODE]

    return play


async def run(nats: CommandLine, _up: Up) -> None:
    answer = await nats.req("fleet.v1.api.analysis.run", "")
    assert "Nats-Service-Error" not in answer.headers
    assert [step["step"] for step in answer.json()["steps"]] == list(get_args(StepName))


async def micro_ls(nats: CommandLine, _up: Up) -> None:
    infos = [msgspec.json.decode(a.payload, type=MicroInfo) for a in await nats.micro_ls()]
    assert sorted(info.name for info in infos) == [f"fleet-{role}" for role in sorted(ROLES)]


async def micro_stats(nats: CommandLine, _up: Up) -> None:
    (answer,) = await nats.micro_stats("fleet-cache")
    stats = msgspec.json.decode(answer.payload, type=MicroStats)
    assert stats.name == "fleet-cache"
    data = {e["name"]: e["data"] for e in answer.json()["endpoints"]}
    assert "latency_p99_seconds" in data["cache_get_default"]


async def micro_info(nats: CommandLine, _up: Up) -> None:
    info, stats = await nats.micro_info("fleet-cache")
    assert msgspec.json.decode(info.payload, type=MicroInfo).name == "fleet-cache"
    assert msgspec.json.decode(stats.payload, type=MicroStats).name == "fleet-cache"


async def stream_ls(nats: CommandLine, _up: Up) -> None:
    answer = await nats.stream_ls()
    names = {stream["config"]["name"] for stream in answer.json()["streams"]}
    assert {"FLEET_METRICS", "FLEET_EVICTIONS", "KV_fleet-registry"} <= names


def sub_all(subject: str, example: str) -> Play:
    """What was published before comes, from the stream."""

    async def play(nats: CommandLine, up: Up) -> None:
        async with await connect(up.url, name="test") as bus:
            await bus.publish_raw(example, b'{"old": 1}', message_id=example)
        messages = await nats.sub_all(subject)
        assert [m.error for m in messages if m.error] == []
        assert [m for m in messages if m.payload == b'{"old": 1}']

    return play


async def kv_put(nats: CommandLine, _up: Up) -> None:
    """The agent takes the list over: the engine is among the parts of its health."""
    answer = await nats.kv_put("fleet-config", f"agent.engines.{NODE}", TARGETS)
    assert answer.json()["stream"] == "KV_fleet-config"
    async with asyncio.timeout(20):
        while "engine.gpu-7-8000" not in await parts_of_the_agent(nats):
            pass


def write(subject: str, body: str, field: str) -> Play:
    """A request that changes something: its answer has the field, and no error."""

    async def play(nats: CommandLine, _up: Up) -> None:
        answer = await nats.req(subject, body)
        assert "Nats-Service-Error" not in answer.headers
        assert field in answer.json()

    return play


def unknown(subject: str, body: str) -> Play:
    """A request about what is not here: its service says so."""

    async def play(nats: CommandLine, _up: Up) -> None:
        answer = await nats.req(subject, body)
        assert answer.headers["Nats-Service-Error-Code"] == "404"

    return play


async def parts_of_the_agent(nats: CommandLine) -> list[str]:
    health = (await nats.req("fleet.v1.api.health.detailed", "")).json()
    (agent,) = [one["record"] for one in health["instances"] if one["role"] == "agent"]
    return [part["name"] for part in agent["components"]]


TARGETS = '{"targets": ["http://gpu-7:8000"]}'
DELETE, BY_TAG = "fleet.v1.cache.default.delete", '{"tag": "model-7"}'
WARM, KEYS = "fleet.v1.cache.default.warm", '{"keys": ["7f3a", "91bc"]}'
SET_RULE = "fleet.v1.api.alert.set_rule"
RULE = '{"rule": {"name": "gpu_temperature", "warning": -10}}'
SILENCE = "fleet.v1.api.alert.silence"
SILENT = '{"rule": "gpu_*", "id": "node-17", "seconds": 7200, "author": "ann"}'
INSIGHTS = "fleet.v1.api.analysis.insights"
OF_POOL = '{"pool": "chat", "now": true}'
EXECUTE = "fleet.v1.api.optimize.execute"
FOR_REAL = '{"recommendation_id": "chat.scale_up.1763…", "dry_run": false}'
ALERT = "alert.raised.info.node.n1.test"
ADVICE = "recommendation.scale_up.chat"
GPU = "metrics.gpu.n9.g0"
FOR_ALL: dict[str, Play] = {
    "sub fleet.v1.alert.>": sub("fleet.v1.alert.>", ALERT),
    "sub fleet.v1.forecast.>": sub("fleet.v1.forecast.>", "forecast.requests_in_flight.chat"),
    "sub fleet.v1.insight.>": sub("fleet.v1.insight.>", "insight.pool.chat"),
    "sub fleet.v1.metrics.gpu.>": sub("fleet.v1.metrics.gpu.>", GPU),
    "req fleet.v1.api.system.memory ''": req("fleet.v1.api.system.memory"),
    "req fleet.v1.api.system.all ''": req("fleet.v1.api.system.all"),
    "req fleet.v1.api.gpu.metrics ''": req("fleet.v1.api.gpu.metrics"),
    "req fleet.v1.api.analysis.run ''": run,
    f"req {INSIGHTS} {OF_POOL}": unknown(INSIGHTS, OF_POOL),
    "micro ls": micro_ls,
    "micro info fleet-cache": micro_info,
    "micro stats fleet-cache": micro_stats,
}
EVERYTHING = "sub fleet.v1.>"
"""For guests of a server that denies reliably; for `local` on all."""
WITH_PASSWORD: dict[str, Play] = {
    "stream ls": stream_ls,
    f"kv put fleet-config agent.engines.NODE {TARGETS}": kv_put,
    f"req {DELETE} {BY_TAG}": write(DELETE, BY_TAG, "entries"),
    f"req {WARM} {KEYS}": write(WARM, KEYS, "accepted"),
    f"req {SET_RULE} {RULE}": write(SET_RULE, RULE, "rules"),
    f"req {SILENCE} {SILENT}": write(SILENCE, SILENT, "silence"),
    f"req {EXECUTE} {FOR_REAL}": unknown(EXECUTE, FOR_REAL),
    "sub SUBJECT --all": sub_all("fleet.v1.metrics.gpu.>", GPU),
    "sub fleet.v1.alert.> --all": sub_all("fleet.v1.alert.>", ALERT),
    "sub fleet.v1.recommendation.> --all": sub_all("fleet.v1.recommendation.>", ADVICE),
}


def documented() -> Iterator[str]:
    """Every command of the documentation as the tables above write it."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            for text in re.findall(r"(?:^ {4}|^\$ |`)nats ([a-z-][^`]*)", line):
                yield plain(shlex.split(text, comments=True))


def plain(words: list[str]) -> str:
    """Without the options of the connection, and only an empty body in quotes."""
    while words[0] in OPTIONS:
        words = words[2:]
    return " ".join(word or "''" for word in words)


def test_every_line_of_the_documentation_is_played() -> None:
    commands = set(documented())
    contexts = {command for command in commands if command.startswith("context save")}

    assert commands - contexts == {*FOR_ALL, EVERYTHING, *WITH_PASSWORD}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up"), *OPTIONS_OF_UP) as running:
        yield running


def guest(up: Up) -> CommandLine:
    return CommandLine(f"nats://{up.url.rpartition('@')[2]}")


def local(up: Up) -> CommandLine:
    return CommandLine(up.url, inbox_prefix="_INBOX_local")


@pytest.mark.parametrize("command", FOR_ALL)
async def test_a_guest_may(up: Up, command: str) -> None:
    async with guest(up) as nats:
        await FOR_ALL[command](nats, up)


@pytest.mark.parametrize("command", [*FOR_ALL, *WITH_PASSWORD])
async def test_local_may(up: Up, command: str) -> None:
    async with local(up) as nats:
        await (FOR_ALL | WITH_PASSWORD)[command](nats, up)


async def test_local_may_also_with_the_common_inbox(up: Up) -> None:
    async with CommandLine(up.url) as nats:
        await stream_ls(nats, up)


@pytest.mark.parametrize("command", WITH_PASSWORD)
async def test_a_guest_is_refused_by_name_and_stays_connected(up: Up, command: str) -> None:
    async with guest(up) as nats:
        if command == "stream ls":
            refused = (await nats.stream_ls()).error
        elif command.startswith("kv put"):
            refused = (await nats.kv_put("fleet-config", f"agent.engines.{NODE}", TARGETS)).error
        elif command.startswith("req"):
            _, subject, body = command.split(maxsplit=2)
            refused = (await nats.req(subject, body)).error
        else:
            (answer,) = await nats.sub_all("fleet.v1.alert.>")
            refused = answer.error
        still = await nats.req("fleet.v1.api.health.live", "")

    assert re.search(
        r'Permissions Violation for Publish to "'
        r'(\$JS\.API\.STREAM\.|fleet\.v1\.(cache|api\.(alert|optimize))\.)[\w.-]+"',
        refused,
    )
    assert still.json()["live"] is True


async def test_everything_is_heard_with_the_password(up: Up) -> None:
    async with local(up) as nats:
        await sub("fleet.v1.>", ALERT)(nats, up)


async def test_a_guest_hears_everything_or_is_told_that_it_may_not(up: Up) -> None:
    async with guest(up) as nats:
        if guests_hear_the_whole_root():
            await sub("fleet.v1.>", ALERT)(nats, up)
        else:
            await nats.sub("fleet.v1.>")
            assert 'Permissions Violation for Subscription to "fleet.v1.>"' in await nats.settle()


def test_the_welcome_names_a_line_that_is_played(up: Up) -> None:
    (line,) = [line for line in up.stdout.splitlines() if " nats " in line]

    program, *words = shlex.split(line)

    assert program == "nats"
    assert words[:2] == ["--server", f"nats://{up.url.rpartition('@')[2]}"]
    assert plain(words) in FOR_ALL


CONTEXTS = [command for command in documented() if command.startswith("context save")]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedServer]:
    server = DeployedServer(tmp_path_factory.mktemp("deployed"))
    server.start()
    yield server
    server.stop()


def in_context(command: str, server: DeployedServer, inbox: str | None = None) -> CommandLine:
    """The command line with the options that `context save` keeps; its server is here."""
    options = dict(re.findall(r"--([\w-]+) (\$\(.+?\)|\S+)", command))
    assert command.endswith(" --select")
    assert options["server"] == "nats://127.0.0.1:4222"
    password_file = options["password"].removeprefix("$(cat deploy/secrets/").removesuffix(")")
    password = (server.secrets / password_file).read_text()
    url = f"nats://{options['user']}:{password}@127.0.0.1:{server.port}"
    return CommandLine(url, inbox_prefix=options["inbox-prefix"] if inbox is None else inbox)


async def ask(nats: CommandLine) -> str:
    """What the server says against a request: nothing where it answers, or nobody serves."""
    return (await nats.req("fleet.v1.api.system.all", "")).error


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: context.split()[2])
async def test_each_context_of_the_deployment_logs_in_listens_and_is_answered(
    deployed: DeployedServer, context: str
) -> None:
    async with in_context(context, deployed) as nats:
        await nats.sub("fleet.v1.alert.>")
        refused = await nats.settle()
        asked = await ask(nats)

    assert (refused, asked) == ("", "")


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: context.split()[2])
async def test_without_its_inbox_prefix_a_context_gets_no_answer(
    deployed: DeployedServer, context: str
) -> None:
    async with in_context(context, deployed, inbox="_INBOX") as nats:
        assert 'Permissions Violation for Subscription to "_INBOX.' in await ask(nats)


async def test_only_the_operators_context_lists_streams(deployed: DeployedServer) -> None:
    found = {}
    for context in CONTEXTS:
        async with in_context(context, deployed) as nats:
            found[context.split()[2]] = (await nats.stream_ls()).error

    assert found["operator"] == ""
    assert 'Permissions Violation for Publish to "$JS.API.STREAM.LIST"' in found["observer"]
