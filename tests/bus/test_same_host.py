"""Clients on the cache's host: values read from its files, handed over as files, or else ranges."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import same_host
from agent.asking import Asking
from agent.bus import Bus
from agent.client import CacheClient
from cache.service import CacheService
from schemas.api import Read, Touched, TouchedReply
from schemas.cache import encode_header
from schemas.digest import digest_of
from schemas.protocols import Answer, Endpoint, RequestError
from tests.support.cache_service import Client, component, running
from tests.support.evictions import ManualClock
from tests.support.lmcache import Lmcache
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus
KIB = 1024
OFF: dict[str, Any] = {"archive_mode": "off", "max_memory_mb": 8, "eviction_policy": "lru"}
SIZES = [
    pytest.param(300 * KIB, id="small enough for one message"),
    pytest.param(3000 * KIB, id="larger, in a thread"),
]


def value(size_bytes: int = 300 * KIB, *, seed: int = 0) -> bytes:
    return hashlib.shake_128(str(seed).encode()).digest(size_bytes)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, what is open is trusted."""
    monkeypatch.setattr(same_host, "TRUST_SECONDS", 10_000.0)


@pytest.fixture
def raw(bus: Bus) -> Client:
    return Client(bus)


@pytest.fixture
def lmcache(bus: Bus) -> Lmcache:
    return Lmcache(bus)


@pytest.fixture
async def client(bus: Bus) -> AsyncIterator[CacheClient]:
    async with CacheClient(bus) as connected:
        yield connected


def files_of(service: CacheService) -> list[Path]:
    return [Path(path) for path in service.files.held]


def messages(service: CacheService) -> float:
    return service.counters()["hits_total"] + service.counters()["misses_total"]


@pytest.mark.parametrize("size", SIZES)
async def test_a_value_is_handed_over_and_read_back_as_one_file(
    bus: Bus, client: CacheClient, size: int
) -> None:
    buffer = bytearray(size + 1)
    async with running(bus, **OFF) as service:
        version = await client.put("key", value(size), ttl_seconds=60)
        [path] = files_of(service)
        got = await client.get("key")
        read_bytes = await client.get_into("key", buffer)
        answer = await Client(bus).ask("get", b"key", Fleet_Same_Host="1")
        left = os.listdir(path.parent / "inbox")

    assert got == bytes(buffer[:size]) == value(size)
    assert read_bytes == size
    assert answer.headers["Fleet-File"] == encode_header(str(path))
    assert (answer.headers["Fleet-Version"], answer.headers["Fleet-Size"]) == (version, str(size))
    assert answer.payload == b""
    assert left == []


@pytest.mark.parametrize("size", SIZES)
async def test_who_is_elsewhere_gets_and_puts_over_the_bus(
    bus: Bus, client: CacheClient, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = bytearray(size)
    async with running(bus, **OFF) as service:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        await client.put("key", value(size))
        client.same_host = same_host.SameHost(bus, "default")
        read_bytes = await client.get_into("key", buffer)
        got = await client.get("key")
        in_files = len(files_of(service))

    assert got == bytes(buffer) == value(size)
    assert read_bytes == size
    assert in_files == 1


async def test_who_found_the_cache_elsewhere_does_not_ask_for_files_for_a_while(
    bus: Bus, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(bus, **OFF):
        await client.put("key", value())
        monkeypatch.setattr(same_host, "OpenFile", _not_found)
        monkeypatch.setattr(os.path, "isdir", lambda _: False)
        got = await client.get("key")

    assert got == value()
    assert not client.same_host.is_possible


def _not_found(*_: object) -> None:
    raise FileNotFoundError


@pytest.mark.parametrize("size", SIZES)
async def test_others_get_ranges_and_the_digest_of_a_file_that_was_handed_over(
    bus: Bus, client: CacheClient, raw: Client, size: int
) -> None:
    async with running(bus, **OFF):
        version = await client.put("key", value(size))
        answer = await raw.ask("get", b"key")
        part = await raw.ask(
            "range.c1", b"key", Fleet_Version=version, Fleet_Range="1000-1999"
        )  # fmt: skip

    assert part.payload == value(size)[1000:2000]
    if size > 512 * KIB:
        assert answer.headers["Fleet-Digest"] == digest_of(value(size))
    else:
        assert answer.payload == value(size)


async def test_values_that_came_over_the_bus_are_files_too(bus: Bus, raw: Client) -> None:
    buffer = bytearray(300 * KIB)
    async with running(bus, **OFF) as service, CacheClient(bus) as client:
        await raw.put("key", value())
        in_files = len(files_of(service))
        await client.get_into("key", buffer)
        message_total = messages(service)
        await client.get_into("key", buffer)
        kept_total = messages(service)

    assert (in_files, bytes(buffer)) == (1, value())
    assert kept_total == message_total


async def test_many_values_are_read_into_their_buffers_at_once(
    bus: Bus, client: CacheClient
) -> None:
    sizes = [300 * KIB, 10, 600 * KIB, 0]
    buffers = [bytearray(700 * KIB) for _ in range(5)]
    async with running(bus, **OFF):
        for seed, size in enumerate(sizes):
            await client.put(f"k{seed}", value(size, seed=seed))
        read = await client.get_many_into([*(f"k{n}" for n in range(4)), "absent"], buffers)
        with pytest.raises(ValueError, match="buffer of 1 bytes"):
            await client.get_many_into(["k0", "k2"], [bytearray(700 * KIB), bytearray(1)])

    assert read == [*sizes, None]
    for seed, size in enumerate(sizes):
        assert buffers[seed][:size] == value(size, seed=seed)


async def test_reads_without_a_message_are_reported(
    bus: Bus, raw: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF) as service:
        async with CacheClient(bus) as client:
            await client.put(
                "key", value(), request_class="chat", prefix_tokens=16, cost_seconds=0.5
            )
            for _ in range(10):
                await client.get("key")
            asked_total = messages(service)
        stats, meta = await raw.stats(), await raw.meta("key")
        metrics = await lmcache.ask("metrics")

    assert asked_total == 1
    assert stats.cache_hits == 10
    assert meta.access_count == 10
    chat = stats.classes["chat"]
    assert (chat.hits_total, chat.cost_saved_seconds_total) == (10, 5.0)
    assert chat.answered_bytes_total == 10 * len(value())
    assert metrics["tokens_served"] == 160
    assert metrics["memory_saved_mb"] == 10 * len(value()) / 2**20


async def test_reads_of_a_version_that_was_replaced_are_not_counted(bus: Bus, raw: Client) -> None:
    async with running(bus, **OFF):
        old = await raw.put("key", value())
        new = await raw.put("key", value(seed=1))
        reads = [Read(key="key", version=version, hits=5) for version in (old, new)]
        counted = [
            (
                await raw.reply("touched", TouchedReply, msgspec.json.encode(Touched(reads=[read])))
            ).counted
            for read in reads
        ]
        stats = await raw.stats()

    assert counted == [0, 1]
    assert stats.cache_hits == 5


async def test_reads_without_a_message_keep_a_value_from_being_evicted(bus: Bus) -> None:
    async with running(bus, **OFF) as service, CacheClient(bus) as client:
        await client.put("old", value(seed=1))
        await client.put("other", value(seed=2))
        await client.get("old")
        await client.get("other")
        await client.get("old")
        await until(lambda: messages(service) == 3)
        for seed in range(26):
            await client.put(f"filler-{seed}", value(seed=seed))
        old, other = await client.get("old"), await client.get("other")

    assert old == value(seed=1)
    assert other is None


async def replaced(client: CacheClient, _raw: Client, _clock: ManualClock) -> bytes | None:
    await client.put("key", value(seed=9))
    return value(seed=9)


async def replaced_by_a_small_one(
    _client: CacheClient, raw: Client, _clock: ManualClock
) -> bytes | None:
    await raw.put("key", b"small")
    return b"small"


async def deleted(client: CacheClient, _raw: Client, _clock: ManualClock) -> bytes | None:
    await client.delete("key")
    return None


async def cleared(_client: CacheClient, raw: Client, _clock: ManualClock) -> bytes | None:
    await raw.clear()
    return None


async def evicted(client: CacheClient, _raw: Client, _clock: ManualClock) -> bytes | None:
    for seed in range(90):  # also if a read of the value is reported meanwhile
        await client.put(f"filler-{seed}", value(seed=seed))
    return None


async def expired(_client: CacheClient, _raw: Client, clock: ManualClock) -> bytes | None:
    clock.advance(3601)
    return None


@pytest.mark.parametrize(
    "change", [replaced, replaced_by_a_small_one, deleted, cleared, evicted, expired]
)
async def test_a_value_kept_open_is_not_read_once_it_is_no_more(
    bus: Bus, raw: Client, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(time, "time", lambda: clock() / 1e9)
    async with running(bus, clock=clock, **OFF), CacheClient(bus) as client:
        await client.put("key", value(), ttl_seconds=3600)
        await client.get("key")
        kept = client.same_host.kept(b"key")
        assert kept is not None
        wanted = await change(client, raw, clock)
        found = await client.get("key")
        old = await kept.read()

    assert found == wanted
    assert old == value()


async def test_a_value_kept_open_is_asked_for_again_when_its_owner_was_not_heard_of(
    bus: Bus, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_host, "TRUST_SECONDS", 0.0)
    async with running(bus, **OFF) as service:
        await client.put("key", value())
        await client.get("key")
        before = messages(service)
        got = await client.get("key")
        asked = messages(service) - before

    assert (got, asked) == (value(), 1)


async def test_nothing_is_read_once_the_owner_is_gone(bus: Bus, client: CacheClient) -> None:
    async with running(bus, **OFF) as service:
        await client.put("key", value())
        await client.get("key")
        folder = files_of(service)[0].parent
    with pytest.raises(RequestError, match="nobody serves"):
        await client.get("key")

    assert not folder.exists()


async def test_what_the_cache_gave_up_is_closed_soon_and_no_more_is_kept_than_allowed(
    bus: Bus, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_host, "SWEEP_SECONDS", 0.01)
    client.same_host.kept_files = 3
    before = len(os.listdir("/proc/self/fd"))
    async with running(bus, **OFF):
        for seed in range(6):
            await client.put(f"k{seed}", value(seed=seed))
            await client.get(f"k{seed}")
        kept = len(os.listdir("/proc/self/fd"))
        for seed in range(6):
            await client.delete(f"k{seed}")
        await until(lambda: len(os.listdir("/proc/self/fd")) < kept - 2)

    await client.close()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.parametrize(
    ("headers", "code", "text"),
    [
        pytest.param({"Fleet_File": "f" * 32}, 404, "send the value in parts", id="no such file"),
        pytest.param({"Fleet_Size": "5"}, 400, "the file has 307200 bytes", id="another size"),
        pytest.param({"Fleet_Size": "x"}, 400, "Fleet-Size", id="no size"),
        pytest.param({"Fleet_Size": str(10**9)}, 413, "max_size_mb", id="too large"),
        pytest.param({"Fleet_Digest": "0" * 64}, 400, "another digest", id="wrong digest"),
        pytest.param({"Fleet_Version": f"{1:012x}-{1:010x}"}, 409, "expected", id="other version"),
    ],
)
async def test_a_file_that_is_not_as_said_is_not_kept(
    bus: Bus, raw: Client, headers: dict[str, str], code: int, text: str
) -> None:
    async with running(bus, **OFF) as service:
        inbox = Path((await raw.stats()).inbox)
        (inbox / ("a" * 32)).write_bytes(value())
        asked: dict[str, Any] = {
            "Fleet_Key": "key", "Fleet_Size": str(300 * KIB), "Fleet_File": "a" * 32, **headers
        }  # fmt: skip
        with pytest.raises(RequestError, match=text) as refused:
            await raw.ask("put", **asked)
        found = await raw.get("key")

    assert refused.value.code == code
    assert found is None
    assert not service.files.held


async def test_a_file_with_its_digest_is_kept(bus: Bus, raw: Client) -> None:
    async with running(bus, **OFF):
        inbox = Path((await raw.stats()).inbox)
        (inbox / ("a" * 32)).write_bytes(value())
        digest = hashlib.sha256(value()).hexdigest()
        await raw.ask(
            "put",
            Fleet_Key="key",
            Fleet_Size=str(300 * KIB),
            Fleet_File="a" * 32,
            Fleet_Digest=digest,
        )
        found = await raw.get("key")

    assert found == value()


@pytest.mark.parametrize("size", SIZES)
async def test_a_value_whose_file_somebody_removed_is_a_miss(
    bus: Bus, client: CacheClient, size: int
) -> None:
    async with running(bus, **OFF) as service:
        await client.put("key", value(size))
        for path in files_of(service):
            path.unlink()
        found = await client.get("key")
        stats = await Client(bus).stats()
        await client.put("key", value(size, seed=2))
        again = await client.get("key")

    assert found is None
    assert stats.total_entries == 0
    assert again == value(size, seed=2)


async def test_a_range_of_a_value_whose_file_somebody_removed_is_gone(
    bus: Bus, client: CacheClient, raw: Client
) -> None:
    async with running(bus, **OFF) as service:
        version = await client.put("key", value())
        files_of(service)[0].unlink()
        with pytest.raises(RequestError, match="no longer here") as refused:
            await raw.ask("range.c1", b"key", Fleet_Version=version, Fleet_Range="0-9")

    assert refused.value.code == 409


@pytest.mark.parametrize("size", SIZES)
async def test_an_evicted_value_whose_file_somebody_removed_is_counted_as_lost(
    bus: Bus, client: CacheClient, size: int
) -> None:
    async with running(bus, max_memory_mb=4) as service:
        await client.put("key", value(size))
        files_of(service)[0].unlink()
        for seed in range(15):
            await client.put(f"filler-{seed}", value(seed=seed), ttl_seconds=0)

        async def is_lost() -> bool:
            return (await Client(bus).stats()).evictions_lost == 1

        await until_async(is_lost)
        await until(lambda: component(service, "default.outbox")[0] == "ok")


async def test_an_odd_answer_to_stats_costs_the_speed_and_nothing_else(
    bus: Bus, client: CacheClient
) -> None:
    async with running(bus, **OFF):
        await client.put("poison", b"v", request_class="poison", cost_seconds=1e6)
        for _ in range(3):
            await client.get("poison")
        cost = (await client.stats()).classes["poison"].cost_saved_seconds_total
        odd = Endpoint("stats", "cache.odd.stats", lambda _: Answer(b"{}"))
        await bus.serve("odd", [odd], description="test")
        inboxes = [
            await client.same_host._ask_inbox(Asking(bus, name, {})) for name in ("default", "odd")
        ]

    assert cost == 3e6
    assert inboxes[0]
    assert inboxes[1] is None


async def test_switched_off_values_travel_over_the_bus(bus: Bus, client: CacheClient) -> None:
    async with running(bus, same_host=False, **OFF) as service:
        await client.put("key", value())
        found = await client.get("key")
        held = dict(service.files.held)
        state = component(service, "same_host")

    assert (found, held) == (value(), {})
    assert state == ("off", "cache.same_host is off")


async def test_a_read_that_is_cancelled_leaves_the_buffer_alone_afterwards(
    bus: Bus, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3000 * KIB
    buffer, done = bytearray(size), []
    preadv = os.preadv

    def slow(fd: int, buffers: list[memoryview], offset: int) -> int:
        time.sleep(0.2)
        done.append(preadv(fd, buffers, offset))
        return size

    async with running(bus, **OFF):
        await client.put("key", value(size))
        monkeypatch.setattr(os, "preadv", slow)
        reading = asyncio.create_task(client.get_into("key", buffer))
        await until(lambda: client.same_host.kept(b"key") is not None)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        done_by_then = list(done)

    assert done_by_then == [size]


@pytest.fixture
def tiny_tmpfs() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", folder], check=False
        )
        if mounted.returncode:
            pytest.skip("this container cannot mount")
        yield Path(folder)
        subprocess.run(["umount", "-l", folder], check=True)


async def test_a_full_tmpfs_costs_the_speed_and_nothing_else(
    bus: Bus, client: CacheClient, tiny_tmpfs: Path
) -> None:
    async with running(bus, same_host_folder=str(tiny_tmpfs), **OFF) as service:
        for seed in range(12):
            await client.put(f"k{seed}", value(seed=seed))
        client.same_host = same_host.SameHost(bus, "default")
        found = [await client.get(f"k{seed}") for seed in range(12)]
        in_files = len(service.files.held)
        text = component(service, "same_host")[1]
        shutil.rmtree(service.files.inbox)

    assert found == [value(seed=seed) for seed in range(12)]
    assert in_files == 3
    assert "values stayed bytes. Set cache.same_host_folder to a larger tmpfs" in text


async def test_a_put_that_finds_no_room_does_not_keep_reads_from_the_files(
    bus: Bus, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with running(bus, **OFF) as service:
        await client.put("first", value(seed=1))
        with monkeypatch.context() as full:
            full.setattr(os, "posix_fallocate", refuse)
            await client.put("key", value())
        in_files = len(service.files.held)
        first, found = await client.get("first"), await client.get("key")
        left = os.listdir(service.files.inbox)

    assert (first, found) == (value(seed=1), value())
    assert (in_files, left) == (1, [])
    assert client.same_host.is_possible
