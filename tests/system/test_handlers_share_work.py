"""Two handlers processes on one stream, one of them killed in the middle."""

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus
from schemas.lifecycle import InstanceRecord
from tests.support.overload import advice, overloaded
from tests.support.waiting import until_async

ROOT = Path(__file__).resolve().parent.parent.parent
POOLS = [f"pool-{number}" for number in range(12)]
# Heartbeats stay as seldom as they are: who is dead is told by leases.
SETTINGS = {"RESOURCE_AGENT_HANDLERS__SCALING__UP_HOLD_SECONDS": "1"}

pytestmark = [pytest.mark.bus, pytest.mark.timeout(120)]


@contextlib.asynccontextmanager
async def handlers(
    bus: Bus, name: str, state_dir: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A `resource-agent run handlers` process that is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "run", "handlers", "--instance", name),
        *("--nats-url", bus.url, "--state-dir", str(state_dir)),
        cwd=ROOT,
        env={**os.environ, **SETTINGS},
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def is_ready() -> bool:
        found = await bus.bucket("registry").get(f"handlers.{name}")
        return found is not None and msgspec.json.decode(found[0], type=InstanceRecord).ready

    try:
        await until_async(is_ready, seconds=20)
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.wait()


async def publish_load(bus: Bus, pools: list[str]) -> None:
    """One sample of each pool's only engine: far too much waits."""
    for pool in pools:
        await bus.publish(overloaded(pool))


async def owners(bus: Bus) -> Counter[bytes]:
    """How many slots each process holds."""
    held: Counter[bytes] = Counter()
    for key, (owner, _) in (await bus.bucket("lease").items()).items():
        if key.startswith("handlers.slot."):
            held[owner.split(b"@")[0]] += 1
    return held


async def test_a_killed_process_loses_no_advice_and_none_is_given_twice(
    bus: Bus, tmp_path: Path
) -> None:
    async with (
        handlers(bus, "h1", tmp_path / "h1") as first,
        handlers(bus, "h2", tmp_path / "h2"),
    ):

        async def is_shared() -> bool:
            return await owners(bus) == {b"handlers.h1": 4, b"handlers.h2": 4}

        await until_async(is_shared, seconds=20)
        await publish_load(bus, POOLS)
        first.kill()

        async def all_advised() -> bool:
            await publish_load(bus, POOLS)
            return {one.pool for one in await advice(bus)} == set(POOLS)

        await until_async(all_advised, seconds=30)
        # Long enough for a doubled one to show: every pool is looked at a few more times.
        for _ in range(20):
            await publish_load(bus, POOLS)
        found = await advice(bus)

    assert sorted(one.pool for one in found) == sorted(POOLS)
    assert {one.action for one in found} == {"scale_up"}
    assert all(one.evidence for one in found)
