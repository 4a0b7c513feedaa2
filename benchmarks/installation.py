"""A private nats-server and services as processes of their own, as benchmarks use them."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil

from agent.bus import Bus, connect, ensure_streams
from agent.nats_server.binary import find_server, server_version
from agent.nats_server.private import PrivateServer
from schemas.api import HealthReply
from schemas.lifecycle import Role

READY_SECONDS = 20.0


@contextlib.asynccontextmanager
async def private_bus(name: str = "bench") -> AsyncIterator[Bus]:
    """A connection to a fresh private server with all streams; prints the server's version."""
    binary = find_server()
    assert binary is not None, "no nats-server: run `make setup`"
    print(f"nats-server {'.'.join(map(str, server_version(binary)))}")
    with tempfile.TemporaryDirectory() as folder:
        async with (
            PrivateServer(Path(folder), binary=binary) as server,
            await connect(server.url, name=name) as bus,
        ):
            await ensure_streams(bus)
            yield bus


def server_pid(bus: Bus) -> int:
    """Process id of the private server behind `bus`."""
    port = urlsplit(bus.url).port
    return next(
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr[1:] == (port,) and one.pid
    )


@contextlib.asynccontextmanager
async def python(*arguments: str, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process with these arguments and settings, ended by SIGTERM."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RESOURCE_AGENT_")}
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env={**kept, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):  # a benchmark may have killed it
            running.terminate()  # whoever runs us in the background may ignore SIGINT
        await running.wait()


@contextlib.asynccontextmanager
async def service(
    bus: Bus, role: Role, instance: str = "bench", **settings: str
) -> AsyncIterator[int]:
    """`resource-agent run <role>` on the server of `bus`, ready; gives its process id.

    Raises:
        TimeoutError: it is not ready in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ("-m", "agent", "run", role, "--nats-url", bus.url, "--instance", instance)
        async with python(*command, "--state-dir", folder, **settings) as process:
            async with asyncio.timeout(READY_SECONDS):
                while not await _is_ready(bus, role):
                    await asyncio.sleep(0.05)
            yield process.pid


async def _is_ready(bus: Bus, role: Role) -> bool:
    with contextlib.suppress(Exception):
        answer = await bus.request("api.health.detailed", timeout_seconds=1)
        health = msgspec.json.decode(answer.payload, type=HealthReply)
        return any(one.role == role and one.ready for one in health.roles)
    return False
