"""Cache, archive and restore over an S3 server that goes away, comes back, and is killed."""

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus, connect
from agent.client import CacheClient
from archive.s3 import S3Store
from archive.settings import S3Settings
from benchmarks.moto import CREDENTIALS, SECRET_KEY, MotoServer
from schemas.api import ArchiveStatus, HealthReply, NamespaceStats
from tests.support.archive_service import Heard, archiving, evict, until
from tests.support.evictions import evicted
from tests.support.program import ROOT, Up, in_thread, running_up
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import brought_back, until_async

VALUE = os.urandom(300_000)


@pytest.fixture
def moto(tmp_path: Path) -> Iterator[MotoServer]:
    server = MotoServer(tmp_path / "moto")
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def proxy(moto: MotoServer) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(moto.port) as between:
        yield between


@pytest.fixture
def store(moto: MotoServer, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    bucket = moto.make_bucket(secrets.token_hex(8))
    return S3Store(bucket, "", S3Settings(endpoint_url=proxy.url, attempts=2, deadline_seconds=3))


async def restored(bus: Bus, key: str) -> bytes:
    answer = await bus.request("api.archive.restore.default", key.encode(), timeout_seconds=5)
    return answer.payload


async def test_a_server_that_is_away_at_start_is_waited_for(
    bus: Bus, store: S3Store, proxy: TcpProxy
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    proxy.refuse()
    async with archiving(bus, store) as service:
        was_active = service.is_active
        for number in range(5):
            await evict(bus, evicted(f"k{number}"))
        await until(lambda: len(service.components()) == 3)
        lease, failed, _ = service.components()
        proxy.accept()
        stored = {(await heard.stored()).key for _ in range(5)}
        await until(lambda: service.components()[1].state == "ok")
        values = [await restored(bus, key) for key in sorted(stored)]

    assert not was_active
    assert (lease.state, failed.state) == ("degraded", "failed")
    assert "the connection broke off" in failed.text
    assert values == [b"value"] * 5


async def test_connections_cut_in_the_middle_lose_and_double_nothing(
    bus: Bus, store: S3Store, proxy: TcpProxy
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    values = {f"k{number}": os.urandom(50_000) for number in range(20)}
    async with archiving(bus, store, retry_max_seconds=0.1) as service:
        for key, value in values.items():
            await evict(bus, evicted(key, value), value)
        missing = set(values)
        while missing:
            missing.discard((await heard.stored()).key)
            proxy.cut()
        proxy.answer_limit_bytes = 30_000
        proxy.cut()
        with pytest.raises(Exception, match="503 the archive's store cannot be read now"):
            await restored(bus, "k0")
        proxy.answer_limit_bytes = None
        found = {key: await restored(bus, key) for key in values}

    assert found == values
    assert service.counters()["entries"] == 20


async def test_a_server_killed_and_restarted_loses_nothing_that_was_acknowledged(
    bus: Bus, store: S3Store, proxy: TcpProxy, moto: MotoServer
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    values = {f"k{number}": f"value {number}".encode() for number in range(40)}
    async with archiving(bus, store, retry_max_seconds=0.1) as service:
        for key, value in values.items():
            await evict(bus, evicted(key, value), value)
        missing = set(values)
        for _ in range(10):
            missing.discard((await heard.stored()).key)
        moto.kill()
        # The first ones may all be stored by now; this one can not.
        values["late"] = b"evicted while the server is down"
        missing.add("late")
        await evict(bus, evicted("late", values["late"]), values["late"])
        await until(lambda: service.counters().get("failed_total", 0) > 0)
        # While it reads its recording, nobody may take the half of it for the whole.
        proxy.refuse()
        await in_thread(moto.start)
        proxy.accept()
        while missing:
            missing.discard((await heard.stored()).key)
        found = {key: await restored(bus, key) for key in values}

    async with archiving(bus, store) as service:
        entries = service.counters()["entries"]
        again = {key: await restored(bus, key) for key in values}

    assert found == again == values
    assert entries == 41
    first, last = await bus.stream_bounds("EVICTIONS")
    assert first > last


def s3_up(folder: Path, moto: MotoServer, bucket: str) -> "contextlib.AbstractContextManager[Up]":
    return running_up(
        folder,
        agent__interval_seconds=0.25,
        cache__max_memory_mb=1,
        health__probe_seconds=0.25,
        archive__store=f"s3://{bucket}/one",
        archive__s3__endpoint_url=moto.url,
        archive__s3__attempts=1,
        archive__s3__deadline_seconds=3,
        archive__probe_interval_seconds=0.25,
        archive__retry_max_seconds=1,
    )


async def test_the_program_archives_to_s3_and_says_how_it_is(
    moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    bucket = moto.make_bucket("evictions")
    keys = [f"key-{number}" for number in range(10)]
    with s3_up(tmp_path / "up", moto, bucket) as up:
        async with await connect(up.url, name="test") as bus:
            client = CacheClient(bus)
            for key in keys:
                await client.put(key, key.encode() + VALUE)

            async def archived() -> bool:
                answer = await bus.request("cache.default.stats", timeout_seconds=5)
                evictions = msgspec.json.decode(answer.payload, type=NamespaceStats).evictions
                answer = await bus.request("api.archive.status.default", timeout_seconds=5)
                status = msgspec.json.decode(answer.payload, type=ArchiveStatus)
                return status.entries == evictions == 7

            await until_async(archived)
            doctor = await in_thread(up.command, "doctor")
            healthy = await archive_health(bus, "ok")
            moto.kill()
            failed = await archive_health(bus, "failed")
            broken_doctor = await in_thread(up.command, "doctor")
            await in_thread(moto.start)
            await archive_health(bus, "ok")
            values = [await brought_back(client, key) for key in keys]
        said = up.stderr

    with s3_up(tmp_path / "up", moto, bucket) as up:
        async with await connect(up.url, name="test") as bus:
            after = await brought_back(CacheClient(bus), keys[0])

    assert f"s3://{bucket}/one/ at {moto.url}: answers in" in doctor.stdout.decode()
    assert "answers in" in healthy
    assert f"{moto.url} cannot be reached: is the server running" in failed
    assert broken_doctor.returncode == 1
    assert "cannot be reached" in broken_doctor.stdout.decode()
    assert values == [key.encode() + VALUE for key in keys]
    assert after == keys[0].encode() + VALUE
    assert SECRET_KEY not in said
    assert "Traceback" not in said
    assert not (up.state_dir / "archive").exists()


async def archive_health(bus: Bus, state: str) -> str:
    """What the archive says of its store, once that is in this state."""
    texts: list[str] = []

    async def is_so() -> bool:
        answer = await bus.request("api.health.detailed", timeout_seconds=5)
        health = msgspec.json.decode(answer.payload, type=HealthReply)
        texts[:] = [
            component.text
            for one in health.instances
            if one.role == "archive"
            for component in one.record.components
            if (component.name, component.state) == ("store", state)
        ]
        return bool(texts)

    await until_async(is_so, seconds=15)
    return texts[0]


def test_a_setting_that_cannot_be_stops_the_start(tmp_path: Path) -> None:
    up = Up(tmp_path, archive__store="s3://bucket", archive__s3__ca_bundle="/no/ca.pem")

    code = up.process.wait(20)

    assert code == 1
    assert "there is no file /no/ca.pem" in up.stderr
    assert "Traceback" not in up.stderr


def test_a_folder_archive_imports_nothing_of_s3() -> None:
    program = (
        "import sys, agent.cli.app, agent.assembly, archive.service, archive.stores\n"
        "print([name for name in sys.modules if name.startswith(('aio', 'boto'))])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True
    )

    assert done.stdout == b"[]\n"
