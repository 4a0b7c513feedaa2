"""A nats-server that lost its state, and its index: what a user sees, and the one command."""

import asyncio
import contextlib
import json
import os
import shutil
from pathlib import Path

from agent.archive_client import ArchiveClient
from agent.bus import connect
from agent.client import CacheClient
from schemas.protocols import RequestError
from tests.support.archive_service import Heard
from tests.support.program import Up, running_up
from tests.support.waiting import until_async, until_in_thread

VALUES = {f"key-{number}": os.urandom(400_000) for number in range(6)}


async def fill(up: Up) -> set[str]:
    async with await connect(up.url, name="test") as bus:
        heard = await Heard.on(bus, "archived.stored.>")
        for key, value in VALUES.items():
            await CacheClient(bus).put(key, value)
        return {(await heard.stored()).key for _ in range(3)}


async def delete_index(up: Up) -> dict[str, bytes]:
    async with await connect(up.url, name="test") as bus:
        bucket = bus.bucket("archive")
        before = {key: value for key, (value, _) in (await bucket.items()).items()}
        await bus.jetstream.delete_key_value(bucket.name)
        return before


async def index(up: Up) -> dict[str, bytes]:
    async with await connect(up.url, name="test") as bus:
        return {key: value for key, (value, _) in (await bus.bucket("archive").items()).items()}


async def read(up: Up, keys: set[str]) -> dict[str, bytes | None]:
    """Once the archive serves."""
    async with await connect(up.url, name="test") as bus:

        async def serves() -> bool:
            try:
                return (await ArchiveClient(bus).status()).entries > 0
            except RequestError:
                return False

        await until_async(serves, seconds=20)
        return {key: await ArchiveClient(bus).get(key) for key in keys}


def opened(folder: Path) -> "contextlib.AbstractContextManager[Up]":
    return running_up(
        folder, "--node", "n1", "--no-live", cache__max_memory_mb=1, health__probe_seconds=0.25
    )


def store_health(up: Up) -> dict[str, str]:
    """What the archive says of its store, once it has looked at it: `up` does not wait for that."""
    found: list[dict[str, str]] = []

    def looked_at() -> bool:
        shown = json.loads(up.command("health", "--role", "archive", "--json").stdout)
        components = shown["instances"][0]["record"]["components"]
        found[:] = [one for one in components if one["name"] == "store"]
        return found != []

    until_in_thread(looked_at)
    return found[0]


def test_a_server_that_lost_its_state_gets_its_archive_back_by_one_command(tmp_path: Path) -> None:
    with opened(tmp_path / "up") as up:
        keys = asyncio.run(fill(up))
        folder = up.state_dir
    shutil.rmtree(folder / "nats")
    with opened(tmp_path / "up") as up:
        store = store_health(up)
        plain = up.command("archive reindex")
        swept = up.command("archive sweep")
        doctor = up.command("doctor")
        adopted = up.command("archive reindex", "--adopt")
        values = asyncio.run(read(up, keys))
        doctor_then = up.command("doctor")

    assert (swept.returncode, doctor.returncode) == (1, 1)
    assert "sweep failed: archive folder" in swept.stderr.decode()
    assert "belongs to installation" in swept.stderr.decode()
    assert "FAIL archive owner: archive folder" in doctor.stdout.decode()
    assert "ok   archive owner: folder" in doctor_then.stdout.decode()
    assert store["state"] == "failed"
    assert "resource-agent archive reindex --adopt" in store["text"]
    assert plain.returncode == 1
    assert "belongs to installation" in " ".join(plain.stderr.decode().split())
    assert adopted.returncode == 0
    assert values == {key: VALUES[key] for key in keys}


def test_a_deleted_index_is_made_and_restored_by_a_reindex(tmp_path: Path) -> None:
    with opened(tmp_path / "up") as up:
        keys = asyncio.run(fill(up))
        before = asyncio.run(delete_index(up))
        job = json.loads(up.command("archive reindex", "--json").stdout)
        after = asyncio.run(index(up))
        values = asyncio.run(read(up, keys))

    assert job["state"] == "done"
    assert after == before
    assert len(before) > 0
    assert values == {key: VALUES[key] for key in keys}
