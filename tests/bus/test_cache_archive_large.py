"""Large values to the archive and back, and those that must never come back, on a real server."""

import asyncio
import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from agent.client import CacheClient
from archive import restoring, same_host
from cache import large_evictions
from schemas.api import CacheReply
from schemas.archive import ArchiveFailed
from schemas.cache import (
    EVICTED_HEADER,
    PART_BYTES,
    Evicted,
    decode_header,
    encode_header,
    read_range,
)
from schemas.protocols import Answer, Call, Endpoint, RequestError
from tests.support.archive_service import Heard, archiving, evict
from tests.support.cache_service import Client, component, running, synced
from tests.support.evictions import FailingStore, ManualClock, evicted, manifest_headers, tombstone
from tests.support.server import NatsServer
from tests.support.slow_archive import SlowArchive
from tests.support.streams import limit_stream
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus
SMALL: dict[str, Any] = {"max_memory_mb": 2}
SENT = {**SMALL, "same_host": False}
"""Large values are no files, so none is lent to the archive."""
LARGE = os.urandom(2 * PART_BYTES + 100_000)
"""Three parts; `evict_all` pushes it out of 2 MiB."""


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def count(bus: Bus, stream: str) -> int:
    return (await bus.stream_state(stream)).messages


async def no_parts(bus: Bus) -> bool:
    return await count(bus, "EVICTION_PARTS") == 0


async def manifest_in_stream(bus: Bus) -> Evicted:
    """The only eviction that waits."""
    await until_async(lambda: has_eviction(bus))
    state = await bus.stream_state("EVICTIONS")
    assert state.messages == 1
    message = await bus.jetstream.get_msg(bus.names.stream("EVICTIONS"), state.first_sequence)
    headers = message.headers or {}
    return msgspec.json.decode(decode_header(headers[EVICTED_HEADER]), type=Evicted)


async def has_eviction(bus: Bus) -> bool:
    return await count(bus, "EVICTIONS") == 1


async def archive_key(cache: CacheClient, client: Client, heard: Heard) -> str:
    """Put `key`, evict it, wait until the archive has it; returns its version."""
    version = await cache.put("key", LARGE, ttl_seconds=3600, meta={"m": "1"})
    await client.evict_all()
    while True:
        stored = await heard.stored()
        if (stored.key, stored.version, stored.tombstone) == ("key", version, False):
            return version


async def push_out(client: Client) -> None:
    """Fill all of RAM with entries that are not archived."""
    await client.evict_all()
    for name in ("filler-4", "filler-5"):
        await client.put(name, bytes(500 * 1024), Fleet_Ttl_Seconds="0")


# --- to the archive --------------------------------------------------------------------------


async def test_a_large_value_goes_in_parts_that_one_manifest_follows(
    bus: Bus, client: Client, cache: CacheClient
) -> None:
    async with running(bus, **SMALL) as service:
        await client.begin_unarchived()
        version = await cache.put("key", LARGE, tags=["t"])
        await client.evict_all()
        manifest = await manifest_in_stream(bus)
        where = (await client.meta("key")).where
        answered = await cache.get("key")
        counters = service.counters()
    parts = [
        await bus.read_last("EVICTION_PARTS", f"evicted_part.default.{manifest.eviction}.{part}")
        for part in range(3)
    ]

    assert b"".join(part or b"" for part in parts) == LARGE
    assert (manifest.parts, manifest.size_bytes, manifest.version) == (3, len(LARGE), version)
    assert (manifest.key, manifest.tags, manifest.tombstone) == ("key", ["t"], False)
    assert where == "outbox"
    assert answered == LARGE
    assert (counters["evictions_acknowledged_total"], counters["evictions_lost_total"]) == (1, 0)


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_archived_large_value_comes_back_and_leaves_no_parts(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore, restarted: bool
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, store) as archive:
        async with running(bus, **SENT) as service:
            await synced(service)
            version = await archive_key(cache, client, heard)
            await until(lambda: service.counters()["outbox_entries"] == 0)
            if not restarted:
                value = await cache.get("key", verify=True)
                meta = await client.meta("key")
        if restarted:
            async with running(bus, **SENT) as service:
                await synced(service)
                value = await cache.get("key", verify=True)
                meta = await client.meta("key")
        held = archive.counters()["handover_bytes"]

    assert value == LARGE
    assert (meta.where, meta.version, meta.meta) == ("ram", version, {"m": "1"})
    assert await no_parts(bus)
    assert held == 0


async def test_large_values_that_are_evicted_again_and_again_stay_themselves(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore
) -> None:
    values = {f"key-{number}": os.urandom(len(LARGE) + number) for number in range(5)}
    async with archiving(bus, store), running(bus, **SMALL) as service:
        await synced(service)
        for key, value in values.items():
            await cache.put(key, value)
        found = {key: await cache.get(key) for _ in range(3) for key in values}
        await client.evict_all()
        await until(lambda: service.counters()["outbox_entries"] == 0)
        await until_async(lambda: no_parts(bus))
        lost = service.counters()["evictions_lost_total"]

    assert found == values
    assert lost == 0


async def test_a_part_that_finds_no_room_is_sent_once_there_is_some(
    bus: Bus, client: Client, cache: CacheClient
) -> None:
    await limit_stream(bus, "EVICTION_PARTS", 2 * PART_BYTES)
    async with running(bus, **SMALL) as service:
        await client.begin_unarchived()
        await cache.put("key", LARGE)
        await client.evict_all()
        await until(lambda: component(service, "default.outbox")[0] == "degraded")
        manifests_early = await count(bus, "EVICTIONS")
        meta = await client.meta("key")
        await limit_stream(bus, "EVICTION_PARTS", 100 * PART_BYTES)
        manifest = await manifest_in_stream(bus)
        sent = await count(bus, "EVICTION_PARTS")

    assert manifests_early == 0
    assert meta.where == "outbox"
    assert (manifest.parts, manifest.tombstone) == (3, False)
    assert sent == 3


async def test_small_evictions_do_not_wait_for_a_large_one_that_is_stuck(
    bus: Bus, client: Client, cache: CacheClient
) -> None:
    await limit_stream(bus, "EVICTION_PARTS", 1000)
    async with running(bus, **SMALL, evictions_in_flight=1) as service:
        await client.begin_unarchived()
        await cache.put("large", LARGE)
        await client.evict_all()
        await until(lambda: component(service, "default.outbox")[0] == "degraded")
        await client.put("small", b"value")
        await push_out(client)
        manifest = await manifest_in_stream(bus)

    assert manifest.key == "small"


async def test_a_value_that_never_finds_room_is_lost_and_others_go_on(
    bus: Bus, client: Client, cache: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_evictions, "FULL_SECONDS", 0.1)
    monkeypatch.setattr(large_evictions, "PAUSE_SECONDS", 0.02)
    await limit_stream(bus, "EVICTION_PARTS", 2 * PART_BYTES)
    async with running(bus, **SMALL) as service:
        await client.begin_unarchived()
        await cache.put("key", LARGE)
        await client.evict_all()
        given_up = await manifest_in_stream(bus)
        counters = service.counters()
        state = component(service, "default.outbox")[0]

    assert given_up.tombstone
    assert given_up.parts == 3
    assert counters["evictions_lost_total"] == 1
    assert counters["outbox_entries"] == 0
    assert state == "ok"


# --- the archive's side ----------------------------------------------------------------------


async def send_parts(bus: Bus, manifest: Evicted, *numbers: int) -> None:
    for number in numbers:
        part = LARGE[number * PART_BYTES : (number + 1) * PART_BYTES]
        subject = f"evicted_part.default.{manifest.eviction}.{number}"
        await bus.publish_raw(subject, part, message_id=f"{manifest.eviction}.{number}")


def in_parts(**fields: Any) -> Evicted:
    return evicted("k", LARGE, **{"parts": 3, "eviction": "c1-b-1", **fields})


async def send_manifest(bus: Bus, manifest: Evicted) -> None:
    await bus.publish_raw(
        "evicted.default", b"", manifest_headers(manifest), message_id=f"m.{manifest.eviction}"
    )


@pytest.mark.parametrize(
    ("fields", "sent", "reason"),
    [
        pytest.param({}, (0, 2), "part 1 of 3 is gone", id="missing"),
        pytest.param({}, (), "is gone", id="all missing"),
        pytest.param({"digest": "0" * 64}, (0, 1, 2), "does not match the digest", id="digest"),
        pytest.param({"size_bytes": len(LARGE) - 1}, (0, 1, 2), "part 2 has", id="size"),
        pytest.param({"parts": 4}, (0, 1, 2), "4 parts do not make", id="count"),
        pytest.param({"eviction": None}, (), "does not name its eviction", id="no name"),
    ],
)
async def test_parts_that_do_not_make_the_value_are_dead(
    bus: Bus, store: FailingStore, fields: dict[str, Any], sent: tuple[int, ...], reason: str
) -> None:
    async with archiving(bus, store) as archive:
        await send_parts(bus, in_parts(), *sent)
        await send_manifest(bus, in_parts(**fields))
        await until(lambda: archive.counters().get("dead_total") == 1)
    dead = await bus.jetstream.get_msg(bus.names.stream("DEAD"), 1)

    assert reason in decode_header((dead.headers or {})["Fleet-Dead-Reason"])
    assert [path.name for path in store.folder.iterdir()] == ["owner.json"]


async def test_an_eviction_whose_store_fails_is_kept_with_its_parts(
    bus: Bus, store: FailingStore
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, store) as archive:
        store.write_errno = errno.ENOSPC
        await send_parts(bus, in_parts(), 0, 1, 2)
        await send_manifest(bus, in_parts())
        await until(lambda: archive.counters().get("failed_total", 0) >= 1)
        parts_meanwhile = await count(bus, "EVICTION_PARTS")
        store.write_errno = None
        stored = await heard.stored()
        await until_async(lambda: no_parts(bus))

    assert parts_meanwhile == 3
    assert (stored.key, stored.size_bytes) == ("k", len(LARGE))


@pytest.mark.parametrize("why", ["superseded", "given up", "repeated"])
async def test_parts_that_are_not_needed_are_removed_unread(
    bus: Bus, store: FailingStore, why: str
) -> None:
    async with archiving(bus, store) as archive:
        if why == "superseded":
            await evict(bus, tombstone("k", "b1-09"))
        if why == "repeated":
            await send_parts(bus, in_parts(eviction="first"), 0, 1, 2)
            await send_manifest(bus, in_parts(eviction="first"))
        manifest = in_parts()
        if why == "given up":
            manifest = tombstone("k", "b1-01", parts=3, eviction="c1-b-1")
        await send_parts(bus, manifest, 0)  # the others are not even there
        await send_manifest(bus, manifest)
        await until_async(lambda: is_settled(bus))
        await until_async(lambda: no_parts(bus))
        dead = archive.counters().get("dead_total", 0)

    assert dead == 0


async def is_settled(bus: Bus) -> bool:
    return await count(bus, "EVICTIONS") == 0


async def test_a_restored_large_value_is_read_in_ranges_that_are_checked(
    bus: Bus, store: FailingStore
) -> None:
    async def ranged(version: str, asked: str) -> bytes:
        headers = {"Fleet-Version": version, "Fleet-Range": asked}
        subject = "api.archive.range.default.a1"
        return (await bus.request(subject, b"k", headers, timeout_seconds=5)).payload

    async with archiving(bus, store, handover_max_bytes=len(LARGE)) as archive:
        heard = await Heard.on(bus, "archived.>")
        await send_parts(bus, in_parts(), 0, 1, 2)
        await send_manifest(bus, in_parts())
        await heard.stored()
        answer = await bus.request("api.archive.restore.default", b"k", timeout_seconds=5)
        with pytest.raises(RequestError, match="429 large values being handed back") as busy:
            await bus.request("api.archive.restore.default", b"k", timeout_seconds=5)
        for asked in ("5-4", f"0-{len(LARGE)}", "0-524288", "x", f"{len(LARGE)}-{len(LARGE)}"):
            with pytest.raises(RequestError, match="400 header Fleet-Range"):
                await ranged("b1-01", asked)
        with pytest.raises(RequestError, match="409"):
            await ranged("b1-02", "0-1")
        first = await ranged("b1-01", "0-524287")
        held = archive.counters()["handover_bytes"]
        rest = await ranged("b1-01", "524288-1048575"), await ranged("b1-01", "1048576-1148575")
        with pytest.raises(RequestError, match="409"):
            await ranged("b1-01", "0-1")
        let_go = archive.counters()["handover_bytes"]

    assert (answer.payload, answer.headers["Fleet-Instance"]) == (b"", "a1")
    assert busy.value.retry_after_seconds is not None
    assert first + b"".join(rest) == LARGE
    assert (held, let_go) == (len(LARGE), 0)


@pytest.mark.parametrize("changed", [0, 1], ids=["the same", "another one"])
async def test_a_large_value_that_comes_back_as_another_one_is_not_answered(
    bus: Bus, client: Client, cache: CacheClient, changed: int
) -> None:
    archive = SlowArchive()
    archive.may_answer.set()
    other = LARGE[:-1] + bytes([LARGE[-1] ^ changed])

    def ranged(call: Call) -> Answer:
        first, end = read_range(call.headers, len(other))
        return Answer(other[first:end])

    await archive.serve(bus, "key")
    await bus.serve(
        "ranges", [Endpoint("range", "api.archive.range.*.a1", ranged)], description="test"
    )
    async with running(bus, **SMALL) as service:
        await synced(service)
        generation = (await client.stats()).generation
        manifest = evicted("key", LARGE, generation=generation, expires_at=None)
        archive.answer = Answer(headers={"Fleet-Instance": "a1", **manifest_headers(manifest)})
        value = await cache.get("key")
        failed, kept = service.counters()["restores_failed_total"], service.counters()["entries"]

    assert value == (None if changed else LARGE)
    assert (failed, kept) == (changed, 1 - changed)


class Written:
    """What an archiver has written into files of caches: whole values and ranges."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, reaches: bool) -> None:
        self.values = 0
        self.ranges: list[bool] = []
        write_range, take = same_host.write, same_host.Place.take

        def noted_range(path: str, first: int, content: memoryview, size_bytes: int) -> bool:
            self.ranges.append(reaches and write_range(path, first, content, size_bytes))
            return self.ranges[-1]

        def noted_take(path: str, size_bytes: int) -> same_host.Place | None:
            place = take(path, size_bytes) if reaches else None
            self.values += place is not None
            return place

        monkeypatch.setattr(same_host, "write", noted_range)
        monkeypatch.setattr(same_host.Place, "take", noted_take)


@pytest.mark.parametrize(
    ("place", "values", "ranges"),
    [
        pytest.param("here", 1, [], id="here"),
        pytest.param("too slow to wait for", 1, [True] * 2, id="slow"),
        pytest.param("too large for the room offered", 0, [True] * 2, id="large"),
        pytest.param("on another host", 0, [False] * 2, id="elsewhere"),
    ],
)
async def test_a_large_value_is_written_into_the_file_of_a_cache_on_the_same_host(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    values: int,
    ranges: list[bool],
) -> None:
    written = Written(monkeypatch, reaches=place != "on another host")
    settings = SMALL
    if place == "too slow to wait for":
        monkeypatch.setattr(restoring, "WRITTEN_WITHIN_SECONDS", 0)
    if place == "too large for the room offered":
        settings = {**SMALL, "uploads_max_bytes": 8 * (len(LARGE) - 1)}
    heard = await Heard.on(bus, "archived.>")
    async with (
        archiving(bus, store) as archive,
        running(bus, same_host_folder=str(tmp_path), **settings) as service,
    ):
        await synced(service)
        await archive_key(cache, client, heard)
        await until(lambda: service.counters()["outbox_entries"] == 0)
        value = await cache.get("key")
        failed = service.counters()["restores_failed_total"]
        held = archive.counters()["handover_bytes"]
        sizes = [one.stat().st_size for one in Path(service.files.inbox).parent.iterdir()]

    assert value == LARGE
    assert (failed, held) == (0, 0)
    assert (written.values, written.ranges) == (values, ranges)
    assert sizes.count(len(LARGE)) == 1, "a file that was offered and not used is gone"


@pytest.mark.parametrize("same_host", [True, False], ids=["by file", "over the bus"])
async def test_a_large_value_that_is_damaged_in_the_store_is_not_given_out(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore, same_host: bool
) -> None:
    heard = await Heard.on(bus, "archived.>")
    settings = {**SMALL, "same_host": same_host}
    async with archiving(bus, store) as archive, running(bus, **settings) as service:
        await synced(service)
        await archive_key(cache, client, heard)
        await until(lambda: service.counters()["outbox_entries"] == 0)
        for path in store.folder.glob("*.object"):
            content = bytearray(path.read_bytes())
            at = content.find(LARGE[-100:])
            if at >= 0:
                content[at] ^= 1
                path.write_bytes(content)
        found = [await cache.get("key") for _ in range(2)]
        failure = await heard.next(ArchiveFailed)
        failed = service.counters()["restores_failed_total"]
        damaged, held = archive.counters()["failed_total"], archive.counters()["handover_bytes"]

    assert found == [None, None]
    assert "does not match the digest" in failure.error
    assert (failed, damaged, held) == (1, 1, 0)


# --- data that must not come back ------------------------------------------------------------


async def write(client: Client, clock: ManualClock, story: str) -> None:
    """Make the archived `key` outdated, and leave nothing of it in RAM."""
    if story == "overwritten":
        await client.put("key", b"new", Fleet_Ttl_Seconds="0")
        await push_out(client)
    elif story == "deleted":
        await client.reply("delete", CacheReply, b"key")
    elif story == "cleared":
        await client.clear()
    else:
        clock.advance(3600)


@pytest.mark.parametrize("story", ["overwritten", "deleted", "cleared", "expired"])
@pytest.mark.parametrize("archiver", ["running", "slow", "restarted"])
@pytest.mark.parametrize("settings", [SMALL, SENT], ids=["lent", "sent"])
async def test_outdated_large_data_never_comes_back(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    clock: ManualClock,
    archiver: str,
    story: str,
    settings: dict[str, Any],
) -> None:
    heard = await Heard.on(bus, "archived.>")
    values: list[bytes | None] = []
    async with contextlib.AsyncExitStack() as first_archiver:
        await first_archiver.enter_async_context(archiving(bus, store, clock=clock))
        async with running(bus, clock=clock, **settings) as service:
            await synced(service)
            await archive_key(cache, client, heard)
            await until(lambda: service.counters()["outbox_entries"] == 0)
            restored = await cache.get("key")
            await client.evict_all()
            await until(lambda: service.counters()["outbox_entries"] == 0)
            await until_async(lambda: is_settled(bus))
            if archiver == "slow":
                store.write_errno = errno.ENOSPC
            if archiver == "restarted":
                await first_archiver.aclose()
            await write(client, clock, story)
            values.append(await cache.get("key"))

        async with running(bus, clock=clock, **settings) as service:
            values.append(await cache.get("key"))
            store.write_errno = None
            if archiver == "restarted":
                again = archiving(bus, store.folder, clock=clock)
                await first_archiver.enter_async_context(again)
            await synced(service)
            values.append(await cache.get("key"))

    assert restored == LARGE, "it is in the archive and would come back without the write"
    assert values == [None] * 3


@pytest.mark.parametrize("story", ["overwritten", "deleted", "cleared"])
async def test_a_value_outdated_while_its_parts_are_sent_is_given_up(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    clock: ManualClock,
    story: str,
) -> None:
    await limit_stream(bus, "EVICTION_PARTS", 2 * PART_BYTES)
    async with running(bus, clock=clock, **SMALL) as service:
        await client.clear()
        await cache.put("key", LARGE)
        await client.evict_all()
        await until(lambda: component(service, "default.outbox")[0] == "degraded")
        await write(client, clock, story)
        await limit_stream(bus, "EVICTION_PARTS", 100 * PART_BYTES)
        await until(lambda: component(service, "default.outbox")[0] == "ok")
        async with archiving(bus, store):
            await synced(service)
            value = await cache.get("key")
            await until_async(lambda: no_parts(bus))

    assert value is None


async def test_a_restore_that_a_write_overtook_is_not_kept(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, store), running(bus, **SMALL) as service:
        await synced(service)
        await archive_key(cache, client, heard)
        await until(lambda: service.counters()["outbox_entries"] == 0)
        reading = asyncio.create_task(cache.get("key"))
        await until(lambda: service.counters()["misses_total"] >= 1)
        await client.put("key", b"new")
        await reading
        kept = await cache.get("key")

    assert kept == b"new"


async def test_acknowledged_large_evictions_survive_a_server_that_is_killed(
    nats: NatsServer, bus: Bus, client: Client, cache: CacheClient, store: FailingStore
) -> None:
    async with running(bus, **SMALL) as service:
        await client.begin_unarchived()
        await cache.put("key", LARGE)
        await client.evict_all()
        await until(lambda: service.counters()["evictions_acknowledged_total"] == 1)
    nats.kill()
    nats.start()
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, store):
        stored = await heard.stored()

    assert (stored.key, stored.size_bytes) == (encode_header("key"), len(LARGE))
