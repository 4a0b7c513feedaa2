"""Evictions, restores, and data that must never come back, with a real archive on a real server."""

import asyncio
import contextlib
import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus, ensure_streams
from cache.archived import key_hash
from cache.service import CacheService
from schemas.api import CacheReply, TagReply
from schemas.archive import Stored, StoredEntry
from schemas.cache import EVICTED_HEADER, Evicted, decode_header
from schemas.protocols import Answer, Call, Endpoint, RequestError
from schemas.units import instant
from tests.support.archive_service import Heard, archiving
from tests.support.cache_service import Client, component, running, synced
from tests.support.evictions import FailingStore, ManualClock
from tests.support.server import NatsServer
from tests.support.streams import limit_stream
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus
SMALL: dict[str, Any] = {"outbox_max_bytes": 16 * 1024 * 1024, "drain_timeout_seconds": 0.05}


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def evictions(bus: Bus) -> list[tuple[Evicted, bytes, str]]:
    """What waits in the stream: manifest, payload, message id."""
    found = []
    first, last = await bus.stream_bounds("EVICTIONS")
    for sequence in range(max(first, 1), last + 1):
        message = await bus.jetstream.get_msg(bus.names.stream("EVICTIONS"), sequence)
        headers = message.headers or {}
        manifest = msgspec.json.decode(decode_header(headers[EVICTED_HEADER]), type=Evicted)
        found.append((manifest, message.data or b"", headers["Nats-Msg-Id"]))
    return found


async def stream_is_empty(bus: Bus) -> bool:
    first, last = await bus.stream_bounds("EVICTIONS")
    return first > last or last == 0


async def archive_key(client: Client, heard: Heard, key: str = "key", **headers: str) -> str:
    """Put `key`, evict it, wait until the archive has it; returns its version."""
    version = await client.put(key, b"old", **headers)
    await client.evict_all()
    while True:
        stored = await heard.stored()
        if (stored.key, stored.version, stored.tombstone) == (key, version, False):
            return version


# --- what leaves RAM -------------------------------------------------------------------------


async def test_an_evicted_entry_reaches_the_stream_with_its_manifest(
    bus: Bus, client: Client, clock: ManualClock
) -> None:
    async with running(bus, clock=clock):
        await client.begin_unarchived()
        version = await client.put("key é", b"value", Fleet_Class="chat", Fleet_Tags="t")
        await client.get("key é")
        await client.evict_all()
        await until_async(lambda: has_evictions(bus, 1))
        (found,) = await evictions(bus)
        stats = await client.stats()

    manifest, payload, _ = found
    assert payload == b"value"
    assert (manifest.key, manifest.version, manifest.namespace) == ("key é", version, "default")
    assert (manifest.size_bytes, manifest.access_count) == (5, 1)
    assert (manifest.request_class, manifest.tags, manifest.reason) == ("chat", ["t"], "capacity")
    assert manifest.ttl_seconds == 4500  # 3600 * (1 + 0.25 * 1)
    assert manifest.expires_at is not None
    assert (manifest.expires_at - manifest.evicted_at).total_seconds() == 4500
    assert manifest.generation == stats.generation
    assert (stats.evictions_acknowledged, stats.evictions_lost) == (1, 0)


async def has_evictions(bus: Bus, count: int) -> bool:
    first, last = await bus.stream_bounds("EVICTIONS")
    return last > 0 and last - first + 1 >= count


async def test_what_is_not_archived_yet_is_answered_from_the_outbox(
    bus: Bus, client: Client
) -> None:
    async with running(bus):
        await client.clear()
        version = await client.put("key", b"value")
        await client.evict_all()
        meta = await client.meta("key")
        exists = await client.reply("exists", CacheReply, b"key")
        value = await client.get("key")
        again = await client.meta("key")

    assert (meta.where, meta.version) == ("outbox", version)
    assert exists == CacheReply(existed=True, version=version)
    assert value == b"value"
    assert (again.where, again.version) == ("ram", version)


async def test_the_outbox_lets_go_of_what_the_archive_has(
    bus: Bus, client: Client, store: FailingStore
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with running(bus) as service, archiving(bus, store):
        await synced(service)
        await archive_key(client, heard)
        await until(lambda: service.counters()["outbox_bytes"] == 0)
        stats = await client.stats()

    assert stats.evictions_acknowledged == 1
    assert (stats.outbox_entries, stats.outbox_bytes) == (0, 0)


async def test_all_that_one_message_says_is_noted_and_saying_it_again_does_no_harm(
    bus: Bus, client: Client
) -> None:
    await Archive().serve(bus)
    async with running(bus) as service:
        await synced(service)
        for key in ("a", "b", "gone"):
            await client.put(key, b"value")
        await client.evict_all()
        await client.ask("delete", b"gone")
        await client.put("tagged", b"value", Fleet_Tags="t")
        await client.evict_all()
        await client.reply("delete", TagReply, b'{"tag": "t"}')
        await until(lambda: service.counters()["evictions_acknowledged_total"] >= 4)
        before = noted(service)
        said = Stored(
            namespace="default",
            observed_at=instant(0),
            entries=[
                StoredEntry(
                    key=manifest.key,
                    version=manifest.version,
                    size_bytes=manifest.size_bytes,
                    stored_bytes=100,
                    expires_at=manifest.expires_at,
                    tombstone=manifest.tombstone,
                    tag=manifest.tag,
                )
                for manifest, _, _ in await evictions(bus)
            ],
        )
        await bus.publish(said, message_id="once")
        await until(lambda: noted(service) == (0, 0))
        await bus.publish(said, message_id="twice")
        await bus.publish(said, message_id="thrice")
        await client.put("last", b"value")
        await client.evict_all()
        await until(lambda: noted(service) == (1, 0))

    assert before == (2, 2)


def noted(service: CacheService) -> tuple[int, int]:
    """Values that wait for the archive's word, and tombstones."""
    counters = service.counters()
    return int(counters["outbox_entries"]), int(counters["tombstones_unconfirmed"])


async def test_a_full_stream_fails_no_put_and_nothing_is_lost_once_there_is_room(
    bus: Bus, client: Client
) -> None:
    await limit_stream(bus, "EVICTIONS", 100_000)
    async with running(bus) as service:
        await client.clear()
        for number in range(6):
            await client.put(f"key-{number}", bytes(400_000))
        await until(lambda: component(service, "default.outbox")[0] == "degraded")
        while_full = await client.stats()
        values = [await client.get(f"key-{number}") for number in range(6)]
        await limit_stream(bus, "EVICTIONS", 512 * 1024 * 1024)
        await until(lambda: component(service, "default.outbox")[0] == "ok")
        await until(lambda: service.counters()["outbox_entries"] != 0)
        await until_async(lambda: has_evictions(bus, 4))
        ids = [message_id for _, _, message_id in await evictions(bus)]
        after = await client.stats()

    assert while_full.evictions_acknowledged == 0
    assert all(value == bytes(400_000) for value in values)
    assert len(set(ids)) == len(ids)
    assert after.evictions_lost == 0


async def test_a_full_outbox_drops_the_oldest_and_counts_it(bus: Bus, client: Client) -> None:
    await limit_stream(bus, "EVICTIONS", 100_000)
    async with running(bus, **SMALL, evictions_in_flight=1):
        await client.clear()
        for number in range(50):
            await client.put(f"key-{number}", bytes(500_000))
        stats = await client.stats()
        newest = await client.get("key-49")
        oldest = await client.get("key-1", Fleet_No_Restore="1")

    assert stats.evictions_lost == stats.evictions - stats.outbox_entries > 0
    assert stats.outbox_bytes <= 16 * 1024 * 1024
    assert newest is not None
    assert oldest is None


async def test_refusing_answers_429_instead_of_losing_an_eviction(bus: Bus, client: Client) -> None:
    await limit_stream(bus, "EVICTIONS", 100_000)
    async with running(bus, **SMALL, archive_when_full="refuse"):
        await client.clear()
        refusal = await first_refusal(client)
        stats = await client.stats()
        first = await client.get("key-0")

    assert refusal.code == 429
    assert refusal.retry_after_seconds
    assert "archive_when_full" in refusal.text
    assert stats.evictions_lost == 0
    assert stats.puts > 20
    assert first is not None


async def first_refusal(client: Client) -> RequestError:
    for number in range(100):
        try:
            await client.put(f"key-{number}", bytes(500_000))
        except RequestError as error:
            return error
    raise AssertionError("100 puts of 500,000 bytes were taken")


async def test_stopping_publishes_what_waits_and_on_request_all_of_ram(
    bus: Bus, client: Client
) -> None:
    async with running(bus, archive_on_stop=True):
        await client.begin_unarchived()
        for key in "abc":
            await client.put(key, b"value")
        await client.put("not archived", b"value", Fleet_Ttl_Seconds="0")

    found = {manifest.key: manifest.reason for manifest, _, _ in await evictions(bus)}
    assert found == {"a": "stop", "b": "stop", "c": "stop"}


async def test_stopping_archives_more_than_the_outbox_holds(bus: Bus, client: Client) -> None:
    large: dict[str, Any] = {"max_memory_mb": 32, "outbox_max_bytes": 16 * 1024 * 1024}
    async with running(bus, **large, archive_on_stop=True, drain_timeout_seconds=20):
        await client.begin_unarchived()
        for number in range(50):
            await client.put(f"key-{number}", bytes(500_000))

    first, last = await bus.stream_bounds("EVICTIONS")
    assert last - first + 1 == 50


# --- restores --------------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_archived_entry_comes_back_with_version_and_history(
    bus: Bus, client: Client, store: FailingStore, clock: ManualClock, restarted: bool
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, store, clock=clock):
        async with running(bus, clock=clock) as service:
            await synced(service)
            version = await archive_key(client, heard, Fleet_Meta="%7B%22m%22%3A%221%22%7D")
            await until(lambda: service.counters()["outbox_entries"] == 0)
            if not restarted:
                answer = await client.ask("get", b"key")
                meta = await client.meta("key")
        if restarted:
            async with running(bus, clock=clock) as service:
                await synced(service)
                answer = await client.ask("get", b"key")
                meta = await client.meta("key")

    assert answer.payload == b"old"
    assert answer.headers["Fleet-Version"] == version == meta.version
    assert meta.where == "ram"
    assert meta.meta == {"m": "1"}
    assert meta.expires_at is None
    assert meta.archive_ttl_seconds == 4500  # read once: a new deadline from its next eviction


async def test_a_restored_entry_keeps_the_deadline_its_writer_gave_it(
    bus: Bus, client: Client, store: FailingStore, clock: ManualClock
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, store, clock=clock), running(bus, clock=clock) as service:
        await synced(service)
        await archive_key(client, heard, Fleet_Ttl_Seconds="60")
        clock.advance(59)
        before = await client.get("key")
        clock.advance(1)
        after = await client.get("key")

    assert (before, after) == (b"old", None)


async def test_a_get_can_do_without_the_archive(
    bus: Bus, client: Client, store: FailingStore
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with running(bus) as service, archiving(bus, store):
        await synced(service)
        await archive_key(client, heard)
        await until(lambda: service.counters()["outbox_entries"] == 0)
        without = await client.get("key", Fleet_No_Restore="1")
        value = await client.get("key")

    assert (without, value) == (None, b"old")


class Archive:
    """Answers as an archive that holds `keys`, under the test's control."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.answer = Answer(headers={"Fleet-Status": "miss"})

    async def serve(self, bus: Bus) -> None:
        await bus.serve(
            "archive",
            [
                Endpoint("keys", "api.archive.keys.*", self._list),
                Endpoint("restore", "api.archive.restore.*", self._restore),
            ],
            description="test",
        )

    def _list(self, _call: Call) -> Answer:
        hashes = sorted(key_hash(key).to_bytes(8, "big") for key in self.keys)
        return Answer(b"".join(hashes))

    async def _restore(self, _call: Call) -> Answer:
        self.asked += 1
        await self.may_answer.wait()
        return self.answer


async def test_many_who_miss_one_key_ask_the_archive_once(bus: Bus, client: Client) -> None:
    archive = Archive("key")
    await archive.serve(bus)
    async with running(bus) as service:
        await synced(service)
        asking = [asyncio.create_task(client.get("key")) for _ in range(20)]
        await until(lambda: archive.asked > 0)
        await until(lambda: service.counters()["misses_total"] == 20)
        archive.may_answer.set()
        values = await asyncio.gather(*asking)

    assert values == [None] * 20
    assert archive.asked == 1


async def test_a_key_that_is_not_archived_is_a_miss_without_a_question(
    bus: Bus, client: Client
) -> None:
    archive = Archive("key")
    await archive.serve(bus)
    async with running(bus) as service:
        await synced(service)
        value = await client.get("other")

    assert value is None
    assert archive.asked == 0


async def test_an_archive_that_does_not_answer_in_time_is_a_miss(bus: Bus, client: Client) -> None:
    archive = Archive("key")
    await archive.serve(bus)
    async with running(bus, restore_timeout_seconds=0.1) as service:
        await synced(service)
        value = await client.get("key")
        failed = service.counters()["restores_failed_total"]
        state = component(service, "default.archive")
    archive.may_answer.set()

    assert value is None
    assert failed == 1
    assert state[0] == "degraded"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no manifest"),
        pytest.param({EVICTED_HEADER: "%7B"}, id="broken manifest"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_a_miss(
    bus: Bus, client: Client, headers: dict[str, str]
) -> None:
    archive = Archive("key")
    archive.answer = Answer(b"value", headers)
    archive.may_answer.set()
    await archive.serve(bus)
    async with running(bus) as service:
        await synced(service)
        value = await client.get("key")
        failed = service.counters()["restores_failed_total"]

    assert value is None
    assert failed == 1


async def test_nothing_is_restored_before_the_archive_has_worked_off_the_stream(
    bus: Bus, client: Client
) -> None:
    archive = Archive("key")
    archive.may_answer.set()
    await archive.serve(bus)
    await bus.publish_raw("evicted.default", b"", message_id="left by a predecessor")
    async with running(bus) as service:
        early = await client.get("key")
        state = component(service, "default.archive")
        asked_early = archive.asked
        await bus.jetstream.purge_stream(bus.names.stream("EVICTIONS"))
        await synced(service)
        await client.get("key")

    assert early is None
    assert asked_early == 0
    assert state[0] == "degraded"
    assert archive.asked == 1


async def test_a_sync_ends_although_the_stream_was_made_anew_meanwhile(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream_bounds = Bus.stream_bounds
    looked: list[tuple[int, int]] = []

    async def noted(self: Bus, stream: str) -> tuple[int, int]:
        looked.append(await stream_bounds(self, stream))
        return looked[-1]

    monkeypatch.setattr(Bus, "stream_bounds", noted)
    await Archive("key").serve(bus)
    await bus.publish_raw("evicted.default", b"", message_id="left by a predecessor")
    async with running(bus) as service:
        await until(lambda: (1, 1) in looked)
        await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        await ensure_streams(bus)

        await synced(service)


# --- data that must not come back ------------------------------------------------------------


async def write(client: Client, clock: ManualClock, story: str) -> None:
    """Make the archived `key` outdated, and leave nothing of it in RAM."""
    if story == "overwritten":
        await client.put("key", b"new", Fleet_Ttl_Seconds="0")
        await client.evict_all()
    elif story == "deleted":
        await client.reply("delete", CacheReply, b"key")
    elif story == "cleared":
        await client.clear()
    else:
        clock.advance(4500)


@pytest.mark.parametrize("story", ["overwritten", "deleted", "cleared", "expired"])
@pytest.mark.parametrize("archiver", ["running", "slow", "restarted"])
async def test_outdated_data_never_comes_back(
    bus: Bus, client: Client, store: FailingStore, clock: ManualClock, archiver: str, story: str
) -> None:
    """A slow archiver answers restores, and stores nothing for a while."""
    heard = await Heard.on(bus, "archived.>")
    values: list[bytes | None] = []
    async with contextlib.AsyncExitStack() as first_archiver:
        await first_archiver.enter_async_context(archiving(bus, store, clock=clock))
        async with running(bus, clock=clock) as service:
            await synced(service)
            await archive_key(client, heard)
            await until(lambda: service.counters()["outbox_entries"] == 0)
            restored = await client.get("key")
            await client.evict_all()
            await until(lambda: service.counters()["outbox_entries"] == 0)
            await until_async(lambda: stream_is_empty(bus))
            if archiver == "slow":
                store.write_errno = errno.ENOSPC
            if archiver == "restarted":
                await first_archiver.aclose()

            await write(client, clock, story)
            values.append(await client.get("key"))

        async with running(bus, clock=clock) as service:
            values.append(await client.get("key"))
            store.write_errno = None
            if archiver == "restarted":
                again = archiving(bus, store.folder, clock=clock)
                await first_archiver.enter_async_context(again)
            values.append(await client.get("key"))
            await synced(service)
            values.append(await client.get("key"))

    assert restored == b"old", "it is in the archive and would come back without the write"
    assert values == [None] * 4
    assert await stream_is_empty(bus)


async def test_what_was_cleared_is_gone_from_the_archive_itself_and_stays_so(
    bus: Bus, client: Client, tmp_path: Path, clock: ManualClock
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    direct = ArchiveClient(bus)

    async def is_gone() -> bool:
        return await direct.get("key") is None

    async with running(bus, clock=clock), archiving(bus, tmp_path / "archive", clock=clock):
        await archive_key(client, heard)
        before = await direct.get("key")
        await client.clear()
        await until_async(is_gone)
    async with archiving(bus, tmp_path / "archive", clock=clock):
        later = await direct.get("key")
        entries = [entry async for entry in direct.entries()]

    assert (before, later, entries) == (b"old", None, [])


@pytest.mark.parametrize("operation", ["put", "delete"])
async def test_a_write_of_an_archived_key_is_answered_once_its_tombstone_is_durable(
    bus: Bus, client: Client, operation: str
) -> None:
    await Archive("key").serve(bus)
    async with running(bus, tombstone_timeout_seconds=20) as service:
        await synced(service)
        await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        payload, headers = (b"value", {"Fleet_Key": "key"}) if operation == "put" else (b"key", {})
        writing = asyncio.create_task(client.ask(operation, payload, **headers))
        await until(lambda: component(service, "default.outbox")[0] == "degraded")
        answered_early = writing.done()
        await ensure_streams(bus)
        await writing
        (found,) = await evictions(bus)

    manifest, value, _ = found
    assert not answered_early
    assert (manifest.key, manifest.tombstone, value) == ("key", True, b"")


async def test_writes_of_keys_that_were_never_archived_need_no_tombstone(
    bus: Bus, client: Client
) -> None:
    await Archive("key").serve(bus)
    async with running(bus) as service:
        await synced(service)
        await client.put("other", b"value")
        await client.put("other", b"value")
        await client.ask("delete", b"other")

    assert await evictions(bus) == []


async def test_before_it_knows_the_archive_every_write_is_told_to_it(
    bus: Bus, client: Client
) -> None:
    async with running(bus):
        await client.put("a", b"value")
        await client.ask("delete", b"b")

    assert [(m.key, m.tombstone) for m, _, _ in await evictions(bus)] == [("a", True), ("b", True)]


async def test_a_tombstone_without_acknowledgement_is_tried_until_it_is_there(
    bus: Bus, client: Client
) -> None:
    async with running(bus, tombstone_timeout_seconds=0.1) as service:
        await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        with pytest.raises(RequestError, match="503 kept here"):
            await client.put("key", b"value")
        kept = await client.meta("key")
        with pytest.raises(RequestError, match="503 deleted here"):
            await client.ask("delete", b"key")
        value = await client.get("key")
        waiting = service.counters()["outbox_entries"]
        await ensure_streams(bus)
        await until(lambda: service.counters()["outbox_entries"] == 0)
        (found,) = await evictions(bus)

    assert kept.where == "ram"
    assert kept.version is not None
    assert value is None
    assert waiting == 1
    assert found[0].tombstone
    assert found[0].version > kept.version


async def test_a_restore_that_a_write_overtook_is_not_kept(bus: Bus, client: Client) -> None:
    archive = Archive("key")
    await archive.serve(bus)
    async with running(bus) as service:
        await synced(service)
        getting = asyncio.create_task(client.get("key"))
        await until(lambda: archive.asked == 1)
        await client.put("key", b"new")
        archive.may_answer.set()
        value = await getting
        kept = await client.get("key")

    assert (value, kept) == (b"new", b"new")


async def test_evictions_survive_a_server_that_is_killed(
    nats: NatsServer, bus: Bus, client: Client
) -> None:
    async with running(bus) as service:
        await client.begin_unarchived()
        for number in range(4):
            await client.put(f"key-{number}", bytes(400_000))
        nats.kill()
        nats.start()
        await until(lambda: service.counters()["evictions_acknowledged_total"] == 2, seconds=20)
        found = [manifest.key for manifest, _, _ in await evictions(bus)]
        lost = service.counters()["evictions_lost_total"]

    assert sorted(found) == ["key-0", "key-1"]
    assert lost == 0
