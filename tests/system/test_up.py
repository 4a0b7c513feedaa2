"""`resource-agent up` from outside: ready, stopped, killed, restarted, refused."""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus, connect
from agent.client import CacheClient, ResourceAgent
from schemas.api import ArchiveList, HealthReply, NamespaceStats
from schemas.lifecycle import ROLES
from schemas.protocols import PublishError, RequestError
from tests.support.program import ROOT, Up, running_up
from tests.support.waiting import brought_back, until, until_async

QUICK = {
    "agent__interval_seconds": 0.25,
    "cache__max_memory_mb": 1,
    "health__probe_seconds": 0.25,
}
VALUE = os.urandom(300_000)


@contextlib.asynccontextmanager
async def connected(up: Up) -> AsyncIterator[Bus]:
    async with await connect(up.url, name="test") as bus:
        yield bus


async def put_and_evict(bus: Bus, count: int) -> list[str]:
    """Put so many large values that most fall out of RAM; keys whose eviction is acknowledged."""
    client = CacheClient(bus)
    keys = [f"key-{number}" for number in range(count)]
    for key in keys:
        await client.put(key, key.encode() + VALUE)

    async def all_acknowledged() -> bool:
        answer = await bus.request("cache.default.stats", timeout_seconds=5)
        stats = msgspec.json.decode(answer.payload, type=NamespaceStats)
        return stats.evictions_acknowledged == stats.evictions == count - 3

    await until_async(all_acknowledged)
    return keys[: count - 3]  # RAM holds three


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_ready_file_is_there_while_up_is_ready_and_for_counts_from_then(
    tmp_path: Path,
) -> None:
    up = Up(tmp_path, "--for", 1, "--simulate-engines", 2, **QUICK)

    ready = up.ready()
    at = time.monotonic()
    mode = stat.S_IMODE(up.ready_file.stat().st_mode)
    code = up.process.wait(15)

    print(f"ready after {at - up.started:.2f} s")
    assert ready == {
        "nats_url": ready["nats_url"],
        "pid": up.process.pid,
        "state_dir": str(up.state_dir),
    }
    assert ready["nats_url"].startswith("nats://local:")
    assert mode == 0o600
    assert code == 0
    assert time.monotonic() - at > 0.9
    assert not up.ready_file.exists()
    assert not (up.state_dir / "up.json").exists()


def test_what_up_says_can_be_pasted(tmp_path: Path) -> None:
    with running_up(tmp_path, **QUICK) as up:
        pasted = [line.strip() for line in up.stdout.splitlines() if "--state-dir" in line]
        password = json.loads((up.state_dir / "up.json").read_text())["password"]
        commands = [command for line in pasted for command in line.split(" && ")]
        done = [
            subprocess.run(
                shlex.split(command),
                cwd=ROOT,
                env=up.env,
                capture_output=True,
                timeout=20,
                check=False,
            )
            for command in commands[1:]
        ]

    assert len(commands) == 3
    assert [one.returncode for one in done] == [0, 0], done
    assert done[1].stdout == b"hello fleet"
    assert "Stop with Ctrl-C" in up.stdout
    assert password not in up.stdout + up.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_a_signal_drains_and_exits_0(tmp_path: Path, number: signal.Signals) -> None:
    with running_up(tmp_path, **QUICK) as up:
        server = up.server_pid()
        at = time.monotonic()
        code = up.stop(number)

    assert code == 0, up.stderr
    assert time.monotonic() - at < 10
    assert not runs(server)
    assert [f'"role": "{role}"' in up.stderr for role in ROLES] == [True] * 4
    assert up.stderr.count("service_stopped") == 4
    assert "Traceback" not in up.stderr


def test_a_server_that_hangs_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    with running_up(tmp_path, **QUICK) as up:
        server = up.server_pid()
        os.kill(server, signal.SIGSTOP)
        at = time.monotonic()
        code = up.stop()

    assert code == 0, up.stderr
    assert time.monotonic() - at < 10
    assert not runs(server)
    assert "stop_without_drain" in up.stderr
    assert "Traceback" not in up.stderr


def test_ctrl_c_while_starting_stops_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        up = Up(tmp_path, "--nats-url", f"nats://127.0.0.1:{silent.getsockname()[1]}")
        silent.settimeout(20)
        connection, _ = silent.accept()
        at = time.monotonic()
        code = up.stop()
        connection.close()

    assert code == 0
    assert time.monotonic() - at < 3
    assert "Traceback" not in up.stderr
    assert "error" not in up.stderr


async def test_what_was_kept_is_there_after_kill_9_and_a_restart(tmp_path: Path) -> None:
    with running_up(tmp_path, "--node", "n1", **QUICK) as up:
        server = up.server_pid()
        async with connected(up) as bus:
            keys = await put_and_evict(bus, 10)
            before = (await ResourceAgent(bus).system_history(seconds=60)).matched
        up.kill()
        await until(lambda: not runs(server))
        up.ready_file.unlink()

    with running_up(tmp_path, "--node", "n1", **QUICK) as up:
        async with connected(up) as bus:
            client = CacheClient(bus)
            history = await ResourceAgent(bus).system_history(seconds=60)
            values = [await brought_back(client, key) for key in keys]

    assert history.matched > before > 0
    assert values == [key.encode() + VALUE for key in keys]


async def test_a_killed_server_comes_back_and_everybody_with_it(tmp_path: Path) -> None:
    with running_up(tmp_path, "--node", "n1", **QUICK) as up:
        async with connected(up) as bus:
            keys = await put_and_evict(bus, 40)
            heard: asyncio.Queue[float] = asyncio.Queue()
            await bus.subscribe("metrics.host.n1", lambda *_: heard.put_nowait(time.monotonic()))

            os.kill(up.server_pid(), signal.SIGKILL)
            killed = time.monotonic()
            for role in ROLES:
                await until_async(lambda role=role: answers(bus, role))  # type: ignore[misc]
            async with asyncio.timeout(5):
                while await heard.get() < killed:
                    continue
            seconds = time.monotonic() - killed

            listed: set[str] = set()
            async with asyncio.timeout(10):
                while not listed >= set(keys):
                    listed = await archived(bus)
            await CacheClient(bus).put("after", b"1")
            value = await CacheClient(bus).get("after")

    print(f"all back after {seconds:.2f} s")
    assert seconds < 5
    assert value == b"1"
    assert "server_restarted" in up.stderr
    assert "Traceback" not in up.stderr


async def answers(bus: Bus, role: str) -> bool:
    """Whether the service says of itself that it is ready and all its parts work."""
    try:
        answer = await bus.request(f"api.health.detailed.{role}.n1", timeout_seconds=0.5)
    except (RequestError, PublishError):
        return False
    health = msgspec.json.decode(answer.payload, type=HealthReply)
    return health.ready and health.status == "healthy"


async def archived(bus: Bus) -> set[str]:
    try:
        answer = await bus.request("api.archive.list.default", timeout_seconds=1)
    except RequestError:
        return set()
    return {e.key for e in msgspec.json.decode(answer.payload, type=ArchiveList).entries}


def test_where_the_usual_port_is_taken_up_says_what_to_export(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_up(tmp_path, **QUICK, server__preferred_port=port) as up:
            url = up.url

    public = "nats://" + url.rpartition("@")[2]
    assert not url.endswith(f":{port}")
    assert f"export NATS_URL={public}\n" in up.stdout
