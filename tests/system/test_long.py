"""Chaos and soak, by `make test-long`: many kills in a row, and a day's rubbish in a minute."""

import contextlib
import functools
import os
import random
import signal
import socket
from pathlib import Path

import msgspec
import psutil
import pytest

from agent.bus import Bus, connect
from schemas.api import HealthReply
from schemas.protocols import RequestError
from tests.support.chaos import publish_eviction, restored
from tests.support.hostile import Flood
from tests.support.program import Up, in_thread, running_up
from tests.support.waiting import until_async

KILLS = 10
SEED = 2026
BACK_SECONDS = 5.0
RESTART_SECONDS = 10.0
HOSTILE_MESSAGES = 100_000
MAX_GROWTH_BYTES = 4 * 1024 * 1024

pytestmark = [pytest.mark.long, pytest.mark.bus, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def is_ready(bus: Bus) -> bool:
    with contextlib.suppress(RequestError):
        answer = await bus.request("api.health.ready", timeout_seconds=1)
        return msgspec.json.decode(answer.payload, type=HealthReply).ready
    return False


async def test_ten_random_kills_lose_no_acknowledged_eviction(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    acknowledged: dict[str, bytes] = {}
    # A port of its own: while nothing listens on 4222, another test's server could take it.
    start = functools.partial(Up, tmp_path / "up", server__preferred_port=free_port())
    up = await in_thread(start)
    url = await in_thread(lambda: up.url)
    try:
        async with await connect(url, name="chaos") as bus:
            for kill in range(KILLS):
                for number in range(kill * 50, kill * 50 + 50):
                    key, value = await publish_eviction(bus, number)
                    acknowledged[key] = value
                if chance.random() < 0.5:
                    os.kill(await in_thread(up.server_pid), signal.SIGKILL)
                    limit = BACK_SECONDS
                else:
                    await in_thread(up.kill)
                    up.ready_file.unlink(missing_ok=True)
                    up = await in_thread(start)
                    await in_thread(up.ready)
                    limit = RESTART_SECONDS
                await until_async(lambda: is_ready(bus), seconds=limit)

            async def worked_off() -> bool:
                first, last = await bus.stream_bounds("EVICTIONS")
                return first > last

            # What was in flight at a kill comes again after the 30 s it was promised to the dead.
            await until_async(worked_off, seconds=60)
            for key, value in acknowledged.items():
                assert await restored(bus, key) == value, f"{key} (seed {SEED})"
    finally:
        await in_thread(up.stop)

    assert len(acknowledged) == KILLS * 50


async def test_rubbish_and_load_leave_memory_flat(tmp_path: Path) -> None:
    flood = Flood(random.Random(SEED))
    # Few followed, so that the bounds are reached while it warms up.
    bounds = {"handlers__max_nodes": 20, "handlers__max_pools": 10}

    with running_up(tmp_path / "up", agent__interval_seconds=0.2, **bounds) as up:
        process = psutil.Process(up.process.pid)
        async with await connect(up.url, name="soak") as bus:

            async def send(messages: int) -> int:
                for number in range(messages):
                    await bus.send(*flood.message())
                    if number % 100 == 0:
                        await bus.round_trip_seconds()
                # It may be behind with the load for a moment.
                await until_async(lambda: is_ready(bus), seconds=60)
                return process.memory_info().rss

            before = await send(HOSTILE_MESSAGES // 2)
            after = await send(HOSTILE_MESSAGES)

            assert after - before < MAX_GROWTH_BYTES, f"{before} to {after} bytes"
