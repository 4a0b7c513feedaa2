"""Disks that are read-only, too small or full, and a server that keeps nothing."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agent.bus import Bus, connect
from agent.client import CacheClient
from schemas.lifecycle import ROLES
from schemas.protocols import PublishError, RequestError
from tests.support.chaos import publish_once, restored
from tests.support.mounts import disk
from tests.support.program import in_thread, resource_agent, running_up
from tests.support.server import NatsServer
from tests.support.waiting import until_async

MIB = 1024 * 1024
OFF = "JetStream does not answer on this server (it is off); start nats-server with -js"

pytestmark = pytest.mark.bus


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[NatsServer]:
    """A server without JetStream."""
    server = NatsServer(tmp_path / "bare", jetstream=False)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_a_read_only_state_folder_is_named(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "ro") as folder:
        up = resource_agent("up", "--state-dir", folder)
        doctor = resource_agent("doctor", "--state-dir", folder)

    assert up.returncode == 1
    assert f"cannot use state folder {folder}" in up.stderr.decode()
    assert "Read-only file system" in up.stderr.decode()
    assert "Traceback" not in up.stderr.decode()
    assert doctor.returncode == 1
    assert f"FAIL state folder: {folder}: this user cannot write" in doctor.stdout.decode()
    assert "FAIL archive store" in doctor.stdout.decode()


def test_a_disk_too_small_for_the_streams_is_named(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=1m") as folder:
        up = resource_agent("up", "--state-dir", folder)

    assert up.returncode == 1
    assert "they need at least 64 MiB" in up.stderr.decode()
    assert "free disk space" in up.stderr.decode()
    assert "Traceback" not in up.stderr.decode()


@pytest.mark.parametrize("command", [["up"], *(["run", role] for role in ROLES)], ids=" ".join)
def test_a_server_that_keeps_nothing_is_named(
    bare: NatsServer, command: list[str], tmp_path: Path
) -> None:
    done = resource_agent(*command, "--nats-url", bare.url, "--state-dir", tmp_path / "state")

    assert done.returncode == 1
    assert OFF in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_doctor_names_a_server_that_keeps_nothing(bare: NatsServer, tmp_path: Path) -> None:
    done = resource_agent("doctor", "--nats-url", bare.url, "--state-dir", tmp_path / "state")

    assert done.returncode == 1
    assert OFF in done.stdout.decode()


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_full_disk_is_told_and_once_there_is_room_all_goes_on(tmp_path: Path) -> None:
    with (
        disk(tmp_path / "disk", "size=400m") as folder,
        running_up(folder / "up", server__max_file_store_bytes=300 * MIB) as up,
    ):
        filler = folder / "filler"
        async with await connect(up.url, name="test") as bus:
            filler.write_bytes(bytes(shutil.disk_usage(folder).free - 128 * 1024))
            acknowledged = await publish_until_refused(bus)
            doctor = await in_thread(up.command, "doctor")
            filler.unlink()

            await until_async(lambda: all_there(bus, acknowledged), seconds=90)
            await until_async(lambda: serves(CacheClient(bus)), seconds=30)

    assert doctor.returncode == 1
    assert f"FAIL state folder: {up.state_dir}" in doctor.stdout.decode()


async def publish_until_refused(bus: Bus) -> dict[str, bytes]:
    """What was acknowledged."""
    acknowledged = {}
    with contextlib.suppress(PublishError):
        for number in range(1000):
            key, value = await publish_once(bus, number)
            acknowledged[key] = value
    assert 0 < len(acknowledged) < 1000
    return acknowledged


async def all_there(bus: Bus, acknowledged: Mapping[str, bytes]) -> bool:
    with contextlib.suppress(RequestError):
        return all([await restored(bus, key) == value for key, value in acknowledged.items()])
    return False


async def serves(client: CacheClient) -> bool:
    with contextlib.suppress(RequestError):
        await client.put("key", b"value")
        return await client.get("key") == b"value"
    return False
