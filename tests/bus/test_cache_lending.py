"""Large values that an archiver reads from the cache: from its files, or part by part."""

import asyncio
import errno
import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.bus import Bus
from agent.client import CacheClient
from archive import same_host
from archive.service import ArchiveService
from cache import lending
from cache.entry import Entry
from cache.lending import Lending
from cache.service import CacheService
from cache.tmpfs import PrivateFolder
from schemas.api import CacheReply
from schemas.cache import (
    FILE_HEADER,
    LENDER_HEADER,
    PART_BYTES,
    Evicted,
    encode_header,
    read_range,
)
from schemas.protocols import Answer, Call, Endpoint, RequestError
from tests.support.archive_service import Heard, archiving
from tests.support.cache_service import Client, component, running, synced
from tests.support.evictions import FailingStore, ManualClock, evicted, manifest_headers
from tests.support.streams import limit_stream
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus
MIB = 1024 * 1024
SMALL: dict[str, Any] = {"max_memory_mb": 2}
LARGE = os.urandom(2 * PART_BYTES + 100_000)
"""Three parts; `evict_all` pushes it out of 2 MiB."""


@pytest.fixture(params=["files", "parts"])
def small(request: pytest.FixtureRequest) -> dict[str, Any]:
    """2 MiB, and which way the archiver reads."""
    return {**SMALL, "same_host": request.param == "files"}


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """As that of a cache."""
    private = PrivateFolder(tmp_path)
    yield private.path
    private.close()


async def parts_sent(bus: Bus) -> int:
    """Ever, of this server."""
    return (await bus.stream_state("EVICTION_PARTS")).last_sequence


async def no_evictions(bus: Bus) -> bool:
    return (await bus.stream_state("EVICTIONS")).messages == 0


async def one_eviction(bus: Bus) -> bool:
    return (await bus.stream_state("EVICTIONS")).messages == 1


def counter(service: CacheService | ArchiveService, name: str) -> float:
    return service.counters().get(f"{name}_total", 0)


# --- to the archive --------------------------------------------------------------------------


async def test_a_large_value_is_archived_without_a_stream_of_its_parts(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore, small: dict[str, Any]
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, store), running(bus, **small) as service:
        await synced(service)
        version = await cache.put("key", LARGE, ttl_seconds=3600, tags=["t"])
        await client.evict_all()
        stored = await heard.stored()
        await until(lambda: counter(service, "evictions_lent") == 1)
        sent, counters = await parts_sent(bus), service.counters()
        value = await cache.get("key", verify=True)

    assert (stored.key, stored.version, stored.size_bytes) == ("key", version, len(LARGE))
    assert sent == 0
    assert counters["outbox_entries"] == 0
    assert (counters["evictions_acknowledged_total"], counters["evictions_lost_total"]) == (1, 0)
    assert value == LARGE


async def test_several_are_lent_at_once_and_stay_themselves(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore, small: dict[str, Any]
) -> None:
    values = {f"key-{number}": os.urandom(len(LARGE) + number) for number in range(12)}
    async with archiving(bus, store) as archive, running(bus, **small) as service:
        await synced(service)
        store.write_errno = errno.ENOSPC
        for key, value in values.items():
            await cache.put(key, value)
        await until(lambda: archive.counters()["in_flight"] >= 10)
        store.write_errno = None
        await client.evict_all()
        await until(lambda: counter(service, "evictions_lent") == len(values))
        found = {key: await cache.get(key) for key in values}

    assert found == values


async def test_what_is_lent_is_acknowledged_only_when_it_is_stored(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore, small: dict[str, Any]
) -> None:
    async with archiving(bus, store) as archive, running(bus, **small) as service:
        await synced(service)
        store.write_errno = errno.ENOSPC
        await cache.put("key", LARGE)
        await client.evict_all()
        await until(lambda: counter(archive, "failed") >= 1)
        meanwhile, where = service.counters(), (await client.meta("key")).where
        store.write_errno = None
        await until(lambda: counter(service, "evictions_acknowledged") == 1)
        sent = await parts_sent(bus)

    assert (meanwhile["evictions_acknowledged_total"], where) == (0, "outbox")
    assert sent == 0


async def test_what_is_not_stored_in_time_is_sent_and_what_comes_next_at_once(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    monkeypatch: pytest.MonkeyPatch,
    small: dict[str, Any],
) -> None:
    monkeypatch.setattr(lending, "STORED_SECONDS", 0.1)
    async with archiving(bus, store) as archive, running(bus, **small) as service:
        await synced(service)
        store.write_errno = errno.ENOSPC
        await cache.put("key", LARGE)
        await client.evict_all()
        await until(lambda: counter(service, "evictions_acknowledged") == 1)
        sent = await parts_sent(bus)
        await cache.put("next", LARGE[::-1])
        await client.evict_all()
        await until(lambda: counter(service, "evictions_acknowledged") == 2)
        messages = (await bus.stream_state("EVICTIONS")).messages
        store.write_errno = None
        await until_async(lambda: no_evictions(bus))
        await until(lambda: service.counters()["outbox_entries"] == 0)
        values = [await cache.get("key"), await cache.get("next")]
        counters = archive.counters()

    assert sent == 3
    assert messages == 3, "that it is lent, that it was sent, and the next, which is not lent"
    assert values == [LARGE, LARGE[::-1]]
    assert (counters["stored_total"], counters.get("dead_total", 0)) == (2, 0)


@pytest.mark.parametrize("when_full", ["drop", "refuse"])
async def test_an_outbox_that_gets_crowded_is_sent_while_the_store_is_away(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    monkeypatch: pytest.MonkeyPatch,
    when_full: str,
) -> None:
    monkeypatch.setattr(lending, "STORED_SECONDS", 1000.0)
    settings: dict[str, Any] = {"max_memory_mb": 4, "outbox_max_bytes": 16 * MIB}
    settings["archive_when_full"] = when_full
    values = {f"key-{number}": os.urandom(3 * MIB) for number in range(8)}
    async with archiving(bus, store), running(bus, **settings) as service:
        await synced(service)
        store.write_errno = errno.ENOSPC
        for key, value in values.items():
            await cache.put(key, value)
            if when_full == "drop":
                await service._owned["default"].namespace.outbox.roomy()
        await until(lambda: counter(service, "evictions_acknowledged") >= 3)
        lent = counter(service, "evictions_lent")
        store.write_errno = None
        await client.evict_all()
        await until(lambda: counter(service, "evictions_acknowledged") == len(values))
        await until_async(lambda: no_evictions(bus))
        found = [await cache.get("key-0"), await cache.get("key-7")]
        lost = counter(service, "evictions_lost")

    assert lent == 0
    assert lost == 0
    assert found == [values["key-0"], values["key-7"]]


@pytest.mark.parametrize(
    ("settings", "sees_files", "is_asked"),
    [
        pytest.param({"lend": "nowhere"}, True, True, id="it lends nowhere"),
        pytest.param({"lend": "same_host", "same_host": False}, True, True, id="no files"),
        pytest.param({"lend": "same_host"}, False, True, id="the archiver sees no such file"),
        pytest.param({"same_host": False}, True, False, id="it cannot be asked for parts"),
    ],
)
async def test_where_the_archiver_can_read_nothing_parts_are_sent_at_once(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    sees_files: bool,
    is_asked: bool,
) -> None:
    if not sees_files:
        monkeypatch.setattr(same_host, "_PLACE", re.compile("/elsewhere/.*"))
    if not is_asked:
        monkeypatch.setattr(Lending, "endpoints", lambda self: [])
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, store), running(bus, **SMALL, **settings) as service:
        await synced(service)
        await cache.put("key", LARGE)
        await client.evict_all()
        await heard.stored()
        messages = (await bus.stream_state("EVICTIONS")).last_sequence
        lent = counter(service, "evictions_lent")
        sent = await parts_sent(bus)

    assert (sent, messages, lent) == (3, 1, 0)


async def test_an_archiver_that_does_not_see_the_file_asks_for_parts(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, store), running(bus, **SMALL) as service:
        await synced(service)
        await cache.put("near", LARGE)
        await client.evict_all()
        await heard.stored()
        monkeypatch.setattr(same_host, "_PLACE", re.compile("/elsewhere/.*"))
        await cache.put("far", LARGE[::-1])
        await client.evict_all()
        await heard.stored()
        await until(lambda: counter(service, "evictions_lent") == 2)
        sent, value = await parts_sent(bus), await cache.get("far", verify=True)

    assert sent == 0
    assert value == LARGE[::-1]


async def test_a_cache_that_stops_sends_what_it_has_lent(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore, small: dict[str, Any]
) -> None:
    async with archiving(bus, store) as archive:
        async with running(bus, **small) as service:
            await synced(service)
            store.write_errno = errno.ENOSPC
            await cache.put("key", LARGE)
            await client.evict_all()
            await until(lambda: counter(archive, "failed") >= 1)
        store.write_errno = None
        async with running(bus, **small) as service:
            await synced(service)
            value = await cache.get("key")

    assert value == LARGE


async def test_a_cache_that_stops_lends_over_the_bus_to_its_end(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore
) -> None:
    async with archiving(bus, store) as archive:
        async with running(bus, **SMALL, same_host=False, archive_on_stop=True) as service:
            await synced(service)
            await cache.put("key", LARGE)
        stored, sent = counter(archive, "stored"), await parts_sent(bus)
        async with running(bus, **SMALL) as service:
            await synced(service)
            value = await cache.get("key")

    assert (stored, sent) == (1, 0)
    assert value == LARGE


@pytest.mark.parametrize("story", ["overwritten", "deleted", "cleared"])
async def test_what_is_outdated_while_it_is_lent_never_comes_back(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    story: str,
    small: dict[str, Any],
) -> None:
    async with archiving(bus, store) as archive:
        async with running(bus, **small) as service:
            await synced(service)
            store.write_errno = errno.ENOSPC
            await cache.put("key", LARGE)
            await client.evict_all()
            await until(lambda: counter(archive, "failed") >= 1)
            if story == "overwritten":
                await client.put("key", b"new", Fleet_Ttl_Seconds="0")
                await client.reply("delete", CacheReply, b"key")
            elif story == "deleted":
                await client.reply("delete", CacheReply, b"key")
            else:
                await client.clear()
            store.write_errno = None
            await until_async(lambda: no_evictions(bus))
            values = [await cache.get("key")]
        async with running(bus, **small) as service:
            await synced(service)
            values.append(await cache.get("key"))

    assert values == [None, None]


class Digests:
    """Holds the first digest of an eviction until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self._go_on = threading.Event(), threading.Event()
        really = Entry.compute_digest

        def compute_digest(entry: Entry, like: str = "") -> str:
            if not self.begun.is_set():
                self.begun.set()
                self._go_on.wait(20)
            return really(entry, like)

        monkeypatch.setattr(Entry, "compute_digest", compute_digest)

    def go_on(self) -> None:
        self._go_on.set()


@pytest.mark.parametrize("story", ["overwritten", "deleted", "cleared"])
async def test_what_is_outdated_before_it_is_lent_is_not_lent_and_the_next_is(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    monkeypatch: pytest.MonkeyPatch,
    story: str,
    small: dict[str, Any],
) -> None:
    async with archiving(bus, store), running(bus, **small) as service:
        await synced(service)
        digests = Digests(monkeypatch)
        await cache.put("key", LARGE)
        await client.evict_all()
        await until(digests.begun.is_set)
        if story == "overwritten":
            await client.put("key", b"new", Fleet_Ttl_Seconds="0")
        elif story == "deleted":
            await client.reply("delete", CacheReply, b"key")
        else:
            await client.clear()
        digests.go_on()
        await cache.put("next", LARGE)
        await client.evict_all()
        await until(lambda: counter(service, "evictions_lent") == 1)
        evictions = (await bus.stream_state("EVICTIONS")).last_sequence
        sent = await parts_sent(bus)

    assert (evictions, sent) == (2, 0), "what outdates it, and the next"


async def test_nothing_is_lent_once_the_lease_is_lost(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    monkeypatch: pytest.MonkeyPatch,
    small: dict[str, Any],
) -> None:
    really = Entry.compute_digest
    loop = asyncio.get_running_loop()
    async with archiving(bus, store) as archive, running(bus, **small) as service:
        await synced(service)
        large = service._owned["default"].large

        def compute_digest(entry: Entry, like: str = "") -> str:
            if threading.current_thread() is not threading.main_thread():
                loop.call_soon_threadsafe(large._lease.lose)  # type: ignore[attr-defined]
            return really(entry, like)

        monkeypatch.setattr(Entry, "compute_digest", compute_digest)
        await cache.put("key", LARGE)
        await client.evict_all()
        await until(lambda: not service.is_owner("default"))
        evictions = (await bus.stream_state("EVICTIONS")).last_sequence
        stored = archive.counters()["stored_total"]

    assert (evictions, stored) == (0, 0)


async def test_what_cannot_be_lent_waits_in_order_and_the_oldest_is_lost(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore, small: dict[str, Any]
) -> None:
    limits = {**small, "outbox_max_bytes": 16 * MIB}
    values = {f"key-{number}": os.urandom(len(LARGE)) for number in range(20)}
    async with archiving(bus, store), running(bus, **limits) as service:
        await synced(service)
        await cache.put("first", LARGE)
        await client.evict_all()
        await until(lambda: counter(service, "evictions_lent") == 1)
        await limit_stream(bus, "EVICTIONS", 1)
        for key, value in values.items():
            await cache.put(key, value)
        await client.evict_all()
        full = service.counters()
        await limit_stream(bus, "EVICTIONS", -1)
        await until(lambda: service.counters()["outbox_entries"] == 0)
        counters = service.counters()
        found = {key: await cache.get(key) for key in values}

    lost = [key for key, value in found.items() if value is None]
    kept = [key for key, value in found.items() if value is not None]
    assert full["outbox_bytes"] <= 16 * MIB
    assert len(lost) == counters["evictions_lost_total"] > 0
    assert counters["evictions_acknowledged_total"] == 1 + len(kept)
    assert set(lost) < set(list(values)[: len(lost) + 1]), "the oldest but one: it was being sent"
    assert all(found[key] == values[key] for key in kept)


async def test_no_more_than_half_of_the_outbox_is_lent_of_what_waits_already(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore, small: dict[str, Any]
) -> None:
    limits = {**small, "outbox_max_bytes": 32 * MIB}
    async with archiving(bus, store), running(bus, **limits) as service:
        await synced(service)
        store.write_errno = errno.ENOSPC
        await limit_stream(bus, "EVICTIONS", 1)
        for number in range(20):
            await cache.put(f"key-{number}", LARGE)
        await client.evict_all()
        await until(lambda: component(service, "default.outbox")[0] == "degraded")
        await limit_stream(bus, "EVICTIONS", -1)
        waiting = service._owned["default"].large.lending
        await until(lambda: waiting._lent_bytes > 0)
        lent_bytes = waiting._lent_bytes
        store.write_errno = None

    assert 10 * len(LARGE) < lent_bytes <= 16 * MIB


async def test_what_is_evicted_again_while_it_is_lent_is_sent_at_once(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore
) -> None:
    async with archiving(bus, store) as archive, running(bus, **SMALL, lend="same_host") as service:
        await synced(service)
        store.write_errno = errno.ENOSPC
        await cache.put("key", LARGE)
        await client.evict_all()
        await until(lambda: counter(archive, "failed") >= 1)
        returned = await cache.get("key")
        where = (await client.meta("key")).where
        await client.evict_all()
        await until(lambda: counter(service, "evictions_acknowledged") == 1)
        store.write_errno = None
        await cache.put("next", LARGE[::-1])
        await client.evict_all()
        await until(lambda: counter(service, "evictions_lent") == 1)
        await until_async(lambda: no_evictions(bus))
        values = [await cache.get("key"), await cache.get("next")]
        lost = counter(service, "evictions_lost")

    assert (returned, where) == (LARGE, "ram")
    assert values == [LARGE, LARGE[::-1]]
    assert lost == 0


async def test_what_expires_while_it_is_lent_does_not_end_lending(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    monkeypatch: pytest.MonkeyPatch,
    small: dict[str, Any],
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(lending, "LEAVING_SECONDS", 0.0)
    async with (
        archiving(bus, store, clock=clock) as archive,
        running(bus, clock=clock, **small) as service,
    ):
        await synced(service)
        store.write_errno = errno.ENOSPC
        await cache.put("key", LARGE, ttl_seconds=60)
        await client.evict_all()
        await until(lambda: counter(archive, "failed") >= 1)
        clock.advance(60)
        waiting = service._owned["default"].large.lending
        waiting.hurry()
        waiting._leaving = False
        store.write_errno = None
        await until(lambda: service.counters()["outbox_entries"] == 0)
        await cache.put("next", LARGE)
        await client.evict_all()
        await until(lambda: counter(service, "evictions_lent") == 1)


@pytest.mark.parametrize("way", ["lent", "lent over the bus", "in parts", "whole"])
async def test_nothing_is_held_of_a_value_that_the_archive_has(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    if way == "lent over the bus":
        monkeypatch.setattr(same_host, "_PLACE", re.compile("/elsewhere/.*"))
    value, limit_mb = (LARGE[:300_000], 1) if way == "whole" else (LARGE, 2)
    settings: dict[str, Any] = {"max_memory_mb": limit_mb}
    if way == "in parts":
        settings["lend"] = "nowhere"
    async with archiving(bus, store), running(bus, **settings) as service:
        await synced(service)
        await cache.put("key", value)
        await until(lambda: len(value) in service.files.held.values())
        await client.evict_all()
        await until(lambda: counter(service, "evictions_acknowledged") == 1)
        await until(lambda: service.counters()["outbox_entries"] == 0)
        await until(lambda: len(value) not in service.files.held.values())


async def test_what_somebody_removed_before_it_is_read_is_lost_and_counted(
    bus: Bus,
    client: Client,
    cache: CacheClient,
    store: FailingStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lending, "STORED_SECONDS", 0.1)
    async with archiving(bus, store), running(bus, **SMALL) as service:
        await synced(service)
        await cache.put("key", LARGE)
        for path in service.files.held:
            os.unlink(path)
        await client.evict_all()
        await until(lambda: counter(service, "evictions_lost") == 1)
        counters = service.counters()

    assert (counters["outbox_entries"], counters["evictions_acknowledged_total"]) == (0, 0)


async def test_hurry_comes_when_the_time_is_up_already(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "STORED_SECONDS", 0.0)
    lent: Any = None
    one = Lending(lent, bus, bus, lent, "c1", "everywhere")
    waiting = asyncio.create_task(one._wait(asyncio.Event()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    one.hurry()

    assert await waiting is False


# --- the archive's side ----------------------------------------------------------------------


def value_file(folder: Path, value: bytes = LARGE, mode: int = 0o400) -> Path:
    file = folder / secrets.token_hex(16)
    file.write_bytes(value)
    file.chmod(mode)
    return file


async def lend(bus: Bus, file: Path, manifest: Evicted) -> None:
    await bus.publish_raw(
        "evicted.default",
        b"",
        {**manifest_headers(manifest), FILE_HEADER: encode_header(str(file))},
        message_id=f"m.{manifest.eviction}",
    )


def lent(**fields: Any) -> Evicted:
    return evicted("k", LARGE, **{"parts": 3, "eviction": "c1-b-1", **fields})


async def test_a_lent_value_is_read_from_its_file(
    bus: Bus, store: FailingStore, folder: Path
) -> None:
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, store):
        await bus.publish_raw("evicted_part.default.c1-b-1.0", b"part", message_id="part")
        await lend(bus, value_file(folder), lent())
        stored = await heard.stored()
        answer = await bus.request("api.archive.restore.default", b"k", timeout_seconds=5)
        await until_async(lambda: no_evictions(bus))
    parts = (await bus.stream_state("EVICTION_PARTS")).messages

    assert parts == 1  # of the message that follows, where the cache has sent it meanwhile
    assert (stored.key, stored.size_bytes) == ("k", len(LARGE))
    assert answer.headers["Fleet-Instance"] == "a1"


@pytest.mark.parametrize(
    "why", ["gone", "another digest", "shorter", "still written", "not in a cache's folder"]
)
async def test_what_is_not_the_lent_value_is_left_to_its_cache(
    bus: Bus, store: FailingStore, folder: Path, tmp_path: Path, why: str
) -> None:
    file = {
        "gone": lambda: folder / secrets.token_hex(16),
        "another digest": lambda: value_file(folder, LARGE[::-1]),
        "shorter": lambda: value_file(folder, LARGE[1:]),
        "still written": lambda: value_file(folder, mode=0o600),
        "not in a cache's folder": lambda: value_file(tmp_path),
    }[why]()
    async with archiving(bus, store) as archive:
        # Those of the message that follows, where the cache has sent it meanwhile.
        await bus.publish_raw("evicted_part.default.c1-b-1.0", b"part", message_id="part")
        await lend(bus, file, lent())
        await until_async(lambda: no_evictions(bus))
        counters = archive.counters()
        parts = (await bus.stream_state("EVICTION_PARTS")).messages

    assert (counters.get("dead_total", 0), counters["stored_total"]) == (0, 0)
    assert [path.name for path in store.folder.iterdir()] == ["owner.json"]
    assert parts == 1


async def test_keys_say_whether_a_file_of_the_asker_can_be_read(
    bus: Bus, store: FailingStore, folder: Path, tmp_path: Path
) -> None:
    async def is_here(file: Path) -> bool:
        answer = await bus.request(
            "api.archive.keys.default",
            headers={FILE_HEADER: encode_header(str(file))},
            timeout_seconds=5,
        )
        return answer.headers.get("Fleet-Here") == "1"

    async with archiving(bus, store):
        found = [await is_here(value_file(one)) for one in (folder, tmp_path)]

    assert found == [True, False]


@pytest.mark.parametrize(
    ("path", "code"), [("%zz", 400), (f"/a%00b/resource-agent-{'a' * 32}/{'b' * 32}", None)]
)
async def test_a_file_whose_name_cannot_be_one_is_not_here(
    bus: Bus, store: FailingStore, path: str, code: int | None
) -> None:
    answered: int | None = None
    async with archiving(bus, store):
        try:
            await bus.request(
                "api.archive.keys.default", headers={FILE_HEADER: path}, timeout_seconds=5
            )
        except RequestError as error:
            answered = error.code

    assert answered == code


async def test_a_lent_value_that_comes_twice_is_stored_once(
    bus: Bus, store: FailingStore, folder: Path
) -> None:
    file = value_file(folder)
    async with archiving(bus, store) as archive:
        await lend(bus, file, lent())
        await until_async(lambda: no_evictions(bus))
        file.unlink()
        await lend(bus, file, lent(eviction="c1-b-2"))
        await until_async(lambda: no_evictions(bus))
        counters = archive.counters()

    assert (counters["stored_total"], counters["repeated_total"]) == (1, 1)


def serves_parts(value: bytes, why: str, name: str = "c1") -> Endpoint:
    """As a cache of that name that lends `value`, but for `why`."""

    def read(call: Call) -> Answer:
        if "Fleet-Eviction" not in call.headers:
            return Answer()
        assert call.headers["Fleet-Eviction"] == "c1-b-1"
        first, end = read_range(call.headers, len(value))
        if why == "not any more" and first:
            raise RequestError(404, "not lent")
        if why == "a part is short" and first:
            end -= 1
        return Answer(value[first:end])

    return Endpoint(f"lent_{len(name)}", f"cache.default.lent.{name}", read)


async def lend_parts(bus: Bus, lender: str, file: Path | None = None) -> None:
    headers = {} if file is None else {FILE_HEADER: encode_header(str(file))}
    await bus.publish_raw(
        "evicted.default",
        b"",
        {**manifest_headers(lent()), LENDER_HEADER: lender, **headers},
        message_id="m.c1-b-1",
    )


@pytest.mark.parametrize("has_file", [False, True], ids=["no file", "a file elsewhere"])
async def test_a_lent_value_is_asked_for_part_by_part(
    bus: Bus, store: FailingStore, folder: Path, has_file: bool
) -> None:
    heard = await Heard.on(bus, "archived.>")
    served = await bus.serve("cache", [serves_parts(LARGE, "")], description="test")
    async with archiving(bus, store):
        await lend_parts(bus, "c1", folder / secrets.token_hex(16) if has_file else None)
        stored = await heard.stored()
        answer = await bus.request("api.archive.restore.default", b"k", timeout_seconds=5)
    await served.stop()

    assert (stored.key, stored.size_bytes) == ("k", len(LARGE))
    assert answer.headers["Fleet-Instance"] == "a1"


@pytest.mark.parametrize(
    ("lender", "value", "why"),
    [
        pytest.param("c2", LARGE, "", id="nobody answers"),
        pytest.param("c1.x", LARGE, "", id="no name"),
        pytest.param("c1", LARGE, "not any more", id="not lent any more"),
        pytest.param("c1", LARGE, "a part is short", id="a part is short"),
        pytest.param("c1", LARGE[::-1], "", id="another digest"),
        pytest.param("c1", LARGE[:100], "", id="too short"),
    ],
)
async def test_what_a_cache_does_not_give_is_left_to_it(
    bus: Bus, store: FailingStore, lender: str, value: bytes, why: str
) -> None:
    serves = [serves_parts(value, why, name) for name in ("c1", "c1.x")]
    served = await bus.serve("cache", serves, description="test")
    async with archiving(bus, store) as archive:
        await lend_parts(bus, lender)
        await until_async(lambda: no_evictions(bus))
        counters = archive.counters()
    await served.stop()

    assert (counters.get("dead_total", 0), counters["stored_total"]) == (0, 0)
    assert [path.name for path in store.folder.iterdir()] == ["owner.json"]


async def test_keys_say_whether_the_asker_can_be_asked_for_parts(
    bus: Bus, store: FailingStore
) -> None:
    async def asks(lender: str) -> bool:
        answer = await bus.request(
            "api.archive.keys.default", headers={LENDER_HEADER: lender}, timeout_seconds=5
        )
        return answer.headers.get("Fleet-Asks") == "1"

    served = await bus.serve("cache", [serves_parts(LARGE, "")], description="test")
    async with archiving(bus, store):
        found = [await asks(lender) for lender in ("c1", "c2", "no name")]
    await served.stop()

    assert found == [True, False, False]


async def test_a_cache_gives_parts_of_what_it_lends_alone(
    bus: Bus, client: Client, cache: CacheClient, store: FailingStore
) -> None:
    settings = {**SMALL, "same_host": False}
    async with archiving(bus, store) as archive, running(bus, **settings) as service:
        await synced(service)
        store.write_errno = errno.ENOSPC
        await cache.put("key", LARGE)
        await client.evict_all()
        await until(lambda: counter(archive, "failed") >= 1)
        (token,) = service._owned["default"].large.lending._lent
        subject = f"cache.default.lent.{service._instance}"

        async def asked(token: str, wanted: str) -> bytes | int:
            headers = {"Fleet-Eviction": token, "Fleet-Range": wanted}
            try:
                return (await bus.request(subject, headers=headers, timeout_seconds=5)).payload
            except RequestError as error:
                return error.code

        given = [
            await asked(token, f"0-{PART_BYTES - 1}"),
            await asked(token, f"{len(LARGE) - 9}-{len(LARGE) - 1}"),
            await asked(token, f"0-{len(LARGE)}"),
            await asked("another", "0-9"),
        ]
        store.write_errno = None
        await until(lambda: counter(service, "evictions_lent") == 1)
        after = await asked(token, "0-9")

    assert given == [LARGE[:PART_BYTES], LARGE[-9:], 400, 404]
    assert after == 404
