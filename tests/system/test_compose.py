"""The services of docker-compose.yml, started as processes on the committed NATS configuration."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.bus import Bus, connect
from agent.client import CacheClient
from benchmarks.moto import MotoServer
from schemas.lifecycle import ROLES
from tests.support.advice import advice, tell
from tests.support.deployment import DeployedServer, Deployment
from tests.support.examples import example
from tests.support.nats_command_line import CommandLine
from tests.support.program import resource_agent
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus

VALUE_BYTES = 400_000


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("compose")
    server = DeployedServer(folder / "nats")
    server.start()
    s3 = MotoServer(folder / "s3")
    s3.start()
    s3.make_bucket("fleet-archive")
    small_cache = {"RESOURCE_AGENT_CACHE__MAX_MEMORY_MB": "1"}
    deployment = Deployment(folder, server, s3.url, changed={"cache": small_cache})
    try:
        # In the order of `depends_on`: handlers first, then the rest at once.
        deployment.start("handlers")
        deployment.wait_healthy("handlers")
        for name in ("agent", "cache", "archive"):
            deployment.start(name)
        yield deployment
    finally:
        deployment.stop()
        server.stop()
        s3.kill()


@pytest.mark.parametrize("name", ["agent", "cache", "archive"])
def test_each_service_becomes_healthy_by_its_own_health_check(
    deployment: Deployment, name: str
) -> None:
    assert name in deployment.services

    deployment.wait_healthy(name)


async def test_the_services_work_together_and_are_refused_nothing(deployment: Deployment) -> None:
    async with await connect(deployment.server.url_of("operator"), name="test") as bus:

        async def all_are_ready() -> bool:
            return all(i["ready"] for i in await instances(bus)) and len(await instances(bus)) == 4

        await until_async(all_are_ready)
        cache = CacheClient(bus).of("default")
        keys = [f"key-{number}" for number in range(8)]
        for key in keys:
            await cache.put(key, key.encode().ljust(VALUE_BYTES), ttl_seconds=600)

        async def comes_back() -> bool:
            return await cache.get(keys[0]) is not None

        await until_async(comes_back)  # evicted, archived, restored
        await cache.delete(keys[0])
        assert await cache.get(keys[0]) is None
        assert json.loads((await bus.request("api.system.all", timeout_seconds=5)).payload)["rows"]
        denied = [
            i["record"]["counters"].get("bus_permission_denied_total") for i in await instances(bus)
        ]

    assert denied == [0.0] * len(ROLES)
    assert not deployment.server.refused_users() & {*ROLES, "operator"}


async def instances(bus: Bus) -> list[dict[str, Any]]:
    answer = await bus.request("api.health.detailed", timeout_seconds=5)
    return list(json.loads(answer.payload)["instances"])


async def test_observer_and_operator_use_the_nats_command_line(deployment: Deployment) -> None:
    url_of = deployment.server.url_of
    async with (
        CommandLine(url_of("observer"), "_INBOX_observer") as observer,
        CommandLine(url_of("operator"), "_INBOX_operator") as operator,
    ):
        await observer.sub("fleet.v1.alert.>")
        assert await observer.settle() == ""
        assert (await observer.req("fleet.v1.api.system.all", "")).json()["rows"]
        assert len(await observer.micro_ls()) == len(ROLES)
        assert "Permissions Violation" in (await observer.stream_ls()).error
        assert len((await operator.stream_ls()).json()["streams"]) > len(ROLES)
        assert [m.error for m in await operator.sub_all("fleet.v1.metrics.host.>") if m.error] == []


async def test_the_orchestrator_decides_on_what_handlers_advise(
    deployment: Deployment, tmp_path: Path
) -> None:
    one, url = advice(1), deployment.server.url_of("orchestrator")
    heard: list[str] = []
    async with (
        await connect(deployment.server.url_of("handlers"), name="test") as handlers,
        await connect(deployment.server.url_of("observer"), name="test") as observer,
    ):
        await observer.subscribe("decision.>", lambda subject, _: heard.append(subject))
        await tell(handlers, one)
        with example("orchestrator", url, tmp_path, "--for-real") as orchestrator:
            await until(lambda: heard == ["decision.accepted.chat"])
            assert orchestrator.stderr is not None
            said = await asyncio.to_thread(orchestrator.stderr.readline)

    assert said.startswith(b"chat.scale_up.1 later: 503 no executor runs")
    assert "orchestrator" not in deployment.server.refused_users()


def test_a_killed_service_is_unhealthy_and_its_next_start_takes_the_name_again(
    deployment: Deployment,
) -> None:
    deployment.wait_healthy("archive")

    deployment.kill("archive")
    dead = deployment.health("archive")
    deployment.start("archive")

    deployment.wait_healthy("archive")
    assert dead.returncode == 1
    assert "nobody serves fleet.v1.api.health.detailed.archive." in dead.stderr.decode()
    assert "name_lost" not in deployment.log("archive")


def refused(deployment: Deployment, **changed: str) -> tuple[int, str]:
    """Exit code and last line of one more agent, which cannot start."""
    state_dir = deployment.folder / "one-more"
    env = {**deployment.environment("agent"), **changed}
    done = resource_agent("run", "agent", "--state-dir", state_dir, env=env)
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stderr.decode().splitlines()[-1]


def test_a_wrong_secret_is_refused_with_the_user(deployment: Deployment) -> None:
    other = str(deployment.server.secrets / "cache")

    code, said = refused(deployment, RESOURCE_AGENT_NATS__PASSWORD_FILE=other)

    assert code == 1
    assert "refused the login (user 'agent')" in said
    assert (deployment.server.secrets / "cache").read_text() not in said


def test_a_missing_secret_is_named(deployment: Deployment) -> None:
    code, said = refused(deployment, RESOURCE_AGENT_NATS__PASSWORD_FILE="/run/secrets/nowhere")

    assert code == 2
    assert "nats.password_file = '/run/secrets/nowhere': cannot be read: No such file" in said


def test_an_agent_before_all_others_says_who_must_start_first(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("early")
    server = DeployedServer(folder / "nats")
    server.start()
    try:
        code, said = refused(Deployment(folder, server, "http://127.0.0.1:1"))
    finally:
        server.stop()

    assert code == 1
    assert "FLEET_METRICS is not there, and this user may not create it" in said
    assert "handlers" in said
