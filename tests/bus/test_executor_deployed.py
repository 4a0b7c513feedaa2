"""The executor as a role, each user with just the rights of deploy/nats.conf."""

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.assembly import Place
from agent.bus import connect
from agent.client import ResourceAgent
from agent.executors.settings import CommandSettings, ExecutorSettings
from agent.identity import Identity
from agent.runner import StopRequest, running
from agent.settings import Settings
from schemas.lifecycle import Role
from schemas.protocols import RequestError
from tests.support.advice import advice, tell
from tests.support.deployment import DeployedServer
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus

PYTHON = (sys.executable, "-S", "-c")
WRITE = (*PYTHON, "import sys; open(sys.argv[1], 'w').write(sys.argv[2])")
READ = (*PYTHON, "import sys; print(open(sys.argv[1]).read())")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DeployedServer]:
    started = DeployedServer(tmp_path / "nats")
    started.start()
    yield started
    started.stop()


@pytest.fixture
async def installation(server: DeployedServer, tmp_path: Path) -> AsyncIterator[Path]:
    """Handlers and executor; gives the file with the replicas of pool `chat`."""
    replicas = tmp_path / "replicas"
    replicas.write_text("2")
    command = CommandSettings(
        scale=(*WRITE, str(replicas), "{replicas_to}"),
        observe=(*READ, str(replicas)),
        pools=("chat",),
    )
    executor = ExecutorSettings(kind="command", dry_run=False, command=command)

    def place(role: Role) -> Place:
        return Place(
            settings=Settings(state_dir=str(tmp_path / role), node="n1", executor=executor),
            identity=Identity(machine="m", folder=role, boot="b", pid=1),
            instance="n1",
        )

    async with contextlib.AsyncExitStack() as stack:
        roles: tuple[Role, ...] = ("handlers", "executor")
        for role in roles:
            await stack.enter_async_context(
                running(server.url_of(role), (role,), place(role), StopRequest())
            )
        yield replicas


async def is_taken(agent: ResourceAgent, name: str) -> bool:
    """Whether the handlers know that an executor runs; then a dry run is carried out."""
    with contextlib.suppress(RequestError):
        reply = await agent.execute_optimization(name, wait_seconds=30)
        assert reply.execution.phase == "succeeded", reply
        return True
    return False


async def test_people_and_programs_decide_and_the_executor_acts(
    installation: Path, server: DeployedServer
) -> None:
    one, other = advice(1), advice(2, pool="code")
    async with await connect(server.url_of("handlers"), name="test") as handlers:
        await tell(handlers, one, other)
    async with await ResourceAgent.connect(server.url_of("operator")) as operator:
        standing = await operator.get_scaling_recommendations("chat")
        await until_async(lambda: is_taken(operator, one.recommendation_id))
        rehearsed = installation.read_text()  # noqa: ASYNC240 - a few bytes
        approved = await operator.approve(one.recommendation_id, by="ann")
        done = await operator.execute_optimization(
            one.recommendation_id, dry_run=False, wait_seconds=30
        )
        story = await operator.explain(one.recommendation_id)
        changed = installation.read_text()  # noqa: ASYNC240 - a few bytes
    async with await ResourceAgent.connect(server.url_of("orchestrator")) as orchestrator:
        decided = await orchestrator.reject(other.recommendation_id, reason="no", by="o1")
        with pytest.raises(RequestError, match=r"409 operator:ann accepted it at"):
            await orchestrator.reject(one.recommendation_id, reason="too late")

    assert standing.rows == [one]
    assert rehearsed == "2"
    assert approved.state == "accepted"
    assert (done.execution.phase, done.execution.error) == ("succeeded", None)
    assert (done.execution.replicas_before, done.execution.replicas_after) == (2, 3)
    assert story.state == "executed"
    assert changed == "3"
    assert decided.life.decision is not None
    assert decided.life.decision.decided_by == "orchestrator:o1"
    assert server.refused_users() == set()
