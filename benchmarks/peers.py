"""Caches to compare ours with, each behind its usual asyncio client and with its process id."""

import asyncio
import contextlib
import dataclasses
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import nats.js.api

from agent.bus import Bus
from agent.client import CacheClient
from benchmarks.installation import python, service

READY_SECONDS = 10.0
MAX_MEMORY_MB = 512
MAX_CONNECTIONS = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """Something that keeps values under keys; `pid` is the process that answers."""

    name: str
    pid: int
    get: Callable[[str], Awaitable[bytes | None]]
    put: Callable[[str, bytes], Awaitable[object]]


class MissingError(Exception):
    """This peer cannot be compared with here; the text says why and what to do."""


BARE_RESPONDER = """
import asyncio, sys
import nats

async def main():
    client = await nats.connect(sys.argv[1])
    values = {}

    async def get(message):
        await message.respond(values[message.data])

    async def put(message):
        values[message.header["Key"].encode()] = message.data
        await message.respond(b"")

    await client.subscribe("bench.get", cb=get)
    await client.subscribe("bench.put", cb=put)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def our_cache(bus: Bus) -> AsyncIterator[tuple[Peer, Peer]]:
    """The cache beside its archive: behind `CacheClient`, and asked by nats-py as it comes."""
    async with (
        service(bus, "archive"),
        service(bus, "cache", RESOURCE_AGENT_CACHE__MAX_MEMORY_MB=str(MAX_MEMORY_MB)) as pid,
    ):
        ours = CacheClient(bus)
        theirs = await nats.connect(bus.url)

        async def get(key: str) -> bytes:
            subject = bus.names.absolute("cache.default.get")
            return bytes((await theirs.request(subject, key.encode(), timeout=5)).data)

        async def put(key: str, value: bytes) -> None:
            subject, headers = bus.names.absolute("cache.default.put"), {"Fleet-Key": key}
            await theirs.request(subject, value, timeout=5, headers=headers)

        yield Peer("cache", pid, ours.get, ours.put), Peer("cache by nats-py", pid, get, put)
        await theirs.close()


@contextlib.asynccontextmanager
async def bare_responder(bus: Bus) -> AsyncIterator[Peer]:
    """A nats-py responder on a dictionary, asked by nats-py: what the bus allows at best."""
    async with python("-c", BARE_RESPONDER, bus.url) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        client = await nats.connect(bus.url)

        async def get(key: str) -> bytes:
            return bytes((await client.request("bench.get", key.encode(), timeout=5)).data)

        async def put(key: str, value: bytes) -> None:
            await client.request("bench.put", value, timeout=5, headers={"Key": key})

        yield Peer("bare nats-py", process.pid, get, put)
        await client.close()


@contextlib.asynccontextmanager
async def bucket(bus: Bus, server_pid: int) -> AsyncIterator[Peer]:
    """A JetStream KV bucket in the server's memory."""
    client = await nats.connect(bus.url)
    kept = await client.jetstream().create_key_value(
        nats.js.api.KeyValueConfig(
            bucket="bench", storage=nats.js.api.StorageType.MEMORY, direct=True
        )
    )

    async def get(key: str) -> bytes | None:
        return (await kept.get(key)).value

    yield Peer("JetStream KV", server_pid, get, kept.put)
    await client.close()


@contextlib.asynccontextmanager
async def redis(program: str | None) -> AsyncIterator[Peer]:
    """redis-server without persistence, behind redis-py with hiredis."""
    try:
        import hiredis  # noqa: F401, PLC0415 - a slower parser would not be a fair comparison
        from redis.asyncio import Redis  # noqa: PLC0415 - the bench group may be absent
    except ImportError as error:
        raise MissingError(f"{error}; pip install --group bench") from None
    port = str(_free_port())
    arguments = ("--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
    async with (
        _server(program, "redis-server", "--redis-server", *arguments) as pid,
        Redis(host="127.0.0.1", port=int(port), max_connections=MAX_CONNECTIONS) as client,
    ):
        await _until(client.ping)
        get: Any = client.get  # typed for every kind of key and answer
        yield Peer("redis", pid, get, client.set)


@contextlib.asynccontextmanager
async def memcached(program: str | None) -> AsyncIterator[Peer]:
    """Memcached behind aiomcache."""
    try:
        import aiomcache  # noqa: PLC0415
    except ImportError as error:
        raise MissingError(f"{error}; pip install --group bench") from None
    port = str(_free_port())
    arguments = ("-l", "127.0.0.1", "-p", port, "-m", str(MAX_MEMORY_MB), "-u", "root")
    async with _server(program, "memcached", "--memcached", *arguments) as pid:
        client: Any = aiomcache.Client("127.0.0.1", int(port), pool_size=MAX_CONNECTIONS)
        await _until(client.version)

        async def get(key: str) -> bytes | None:
            value: bytes | None = await client.get(key.encode())
            return value

        async def put(key: str, value: bytes) -> None:
            await client.set(key.encode(), value)

        yield Peer("memcached", pid, get, put)
        await client.close()


@contextlib.asynccontextmanager
async def _server(given: str | None, name: str, option: str, *arguments: str) -> AsyncIterator[int]:
    program = shutil.which(given or name)
    if program is None:
        raise MissingError(f"no {name} on PATH; {option} FILE names one")
    with tempfile.TemporaryDirectory() as folder:
        running = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            cwd=folder,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield running.pid
        finally:
            running.terminate()
            await running.wait()


async def _until(works: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(READY_SECONDS):
        while True:
            with contextlib.suppress(Exception):  # each client has its own words for "not yet"
                await works()
                return
            await asyncio.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
