"""An executor that is killed with -9 in the middle: its execution is never begun again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.bus import connect
from agent.client import ResourceAgent
from schemas.decisions import ExecuteReply
from schemas.protocols import RequestError
from tests.support.advice import advice, decision, tell
from tests.support.program import ROOT, environment, running_up
from tests.support.waiting import until, until_async

HANG = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(600)"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """An executor whose program writes its process id to `begun`, and never ends."""
    path = tmp_path / "settings.toml"
    scale = json.dumps([sys.executable, "-S", "-c", HANG, str(tmp_path / "begun")])
    path.write_text(
        f'[executor]\nkind = "command"\ndry_run = false\ntimeout_seconds = 600\n'
        f"[executor.command]\nscale = {scale}\n"
    )
    return path


@contextlib.contextmanager
def executor(url: str, settings: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "agent", "run", "executor", "--nats-url", url),
            *("--config", str(settings), "--state-dir", str(settings.parent / "executor")),
        ],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


async def asked(agent: ResourceAgent, name: str) -> ExecuteReply:
    """Ask for the same execution until an executor is there."""
    replies: list[ExecuteReply] = []

    async def is_answered() -> bool:
        with contextlib.suppress(RequestError):
            replies.append(await agent.execute_optimization(name, dry_run=False))
        return bool(replies)

    await until_async(is_answered, seconds=60)
    return replies[0]


async def test_what_was_begun_is_ended_by_the_next_and_not_begun_again(
    tmp_path: Path, settings: Path
) -> None:
    one = advice()
    begun = tmp_path / "begun"
    with running_up(tmp_path / "up", "--node", "n1") as up:
        async with (
            await connect(up.url, name="test") as bus,
            await ResourceAgent.connect(up.url) as agent,
        ):
            await tell(bus, one, decision(one, decided_by="local:ann"))
            with executor(up.url, settings) as first:
                await asked(agent, one.recommendation_id)
                await until(lambda: begun.exists() and begun.read_text().endswith("\n"))
                first.kill()
            try:
                middle = await agent.execute_optimization(one.recommendation_id, dry_run=False)
                with executor(up.url, settings):
                    end = await agent.execute_optimization(
                        one.recommendation_id, dry_run=False, wait_seconds=60
                    )
            finally:
                pids = begun.read_text().split()
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)

    assert (middle.execution.phase, middle.is_new) == ("started", False)
    assert (end.execution.phase, end.is_new) == ("failed", False)
    assert str(end.execution.error).endswith("ended in the middle")
    assert len(pids) == 1
