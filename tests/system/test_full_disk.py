"""The whole installation on a disk that is full for a while (`make test-long`)."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.bus import Bus, connect
from agent.client import CacheClient
from schemas.protocols import PublishError, RequestError
from tests.support.chaos import publish_once, restored
from tests.support.program import in_thread, running_up
from tests.support.small_disk import small_disk
from tests.support.waiting import until_async

MIB = 1024 * 1024


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_full_disk_is_told_and_once_there_is_room_all_goes_on(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", mib=400) as disk,
        running_up(disk.path / "up", server__max_file_store_bytes=300 * MIB) as up,
    ):
        async with await connect(up.url, name="test") as bus:
            disk.fill(but_bytes=128 * 1024)
            acknowledged = await publish_until_refused(bus)
            doctor = await in_thread(up.command, "doctor")
            disk.make_room()

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
