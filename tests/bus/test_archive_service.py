"""The archive service against a real server and a real folder."""

import asyncio
import errno
import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from archive.index_entry import key_hash
from archive.service import ArchiveService
from schemas.api import ArchiveList, ArchiveListRequest, ArchiveStatus
from schemas.archive import ArchiveFailed, Expired, Restored, Stored
from schemas.cache import EVICTED_HEADER, Evicted, decode_header
from schemas.lifecycle import Component
from schemas.message import Message
from schemas.protocols import Answer, PublishError, RequestError, WorkItem
from schemas.units import instant
from tests.support.archive_service import Heard, archiving, evict, until
from tests.support.evictions import (
    FailingStore,
    ManualClock,
    evicted,
    manifest_headers,
    tombstone,
)

MISS = {"Fleet-Status": "miss"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def heard(bus: Bus) -> Heard:
    return await Heard.on(bus, "archived.>")


async def restore(
    bus: Bus, key: str = "k", namespace: str = "default", generation: int | None = None
) -> Answer:
    headers = {} if generation is None else {"Fleet-Generation": str(generation)}
    return await bus.request(
        f"api.archive.restore.{namespace}", key.encode(), headers, timeout_seconds=5
    )


async def status(bus: Bus, namespace: str = "default") -> ArchiveStatus:
    answer = await bus.request(f"api.archive.status.{namespace}", timeout_seconds=5)
    return msgspec.json.decode(answer.payload, type=ArchiveStatus)


async def component(service: ArchiveService, name: str, state: str) -> Component:
    """The component once a probe finds it in this state."""

    def found() -> list[Component]:
        return [c for c in service.components() if (c.name, c.state) == (name, state)]

    await until(lambda: bool(found()))
    return found()[0]


async def is_empty(bus: Bus, stream: str) -> bool:
    first, last = await bus.stream_bounds(stream)
    return first > last or last == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("a/../../b", b"text " * 1000, id="compressible"),
        pytest.param("ключ 🔑", os.urandom(512 * 1024), id="largest inline value"),
        pytest.param("k" * 10 * 1024, b"", id="empty value, longest key"),
    ],
)
async def test_an_eviction_is_stored_and_comes_back_with_its_manifest(
    bus: Bus, store: FailingStore, heard: Heard, key: str, value: bytes
) -> None:
    manifest = evicted(key, value, tags=["t"], meta={"model": "m"}, access_count=3)

    async with archiving(bus, store):
        await evict(bus, manifest, value)
        stored = await heard.stored()
        answer = await restore(bus, key)
        restored = await heard.next(Restored)

    assert answer.payload == value
    assert msgspec.json.decode(decode_header(answer.headers[EVICTED_HEADER]), type=Evicted) == (
        manifest
    )
    assert (stored.key, stored.version, stored.size_bytes) == (key, "b1-01", len(value))
    assert stored.expires_at == manifest.expires_at
    assert (restored.key, restored.size_bytes) == (key, len(value))
    assert await is_empty(bus, "EVICTIONS")
    assert await is_empty(bus, "DEAD")


async def test_what_was_never_stored_is_a_miss(bus: Bus, store: FailingStore) -> None:
    async with archiving(bus, store):
        answer = await restore(bus)

    assert answer == Answer(b"", MISS)


async def test_a_value_is_a_miss_from_its_expiry_on_and_then_removed(
    bus: Bus, store: FailingStore, heard: Heard, clock: ManualClock
) -> None:
    async with archiving(bus, store, clock=clock) as service:
        await evict(bus, evicted())
        await heard.stored()
        clock.advance(3599.999)
        before = await restore(bus)
        clock.advance(0.001)
        after = await restore(bus)
        still_there = len(list(store.folder.glob("*.object")))
        await service.sweep()
        expired = await heard.next(Expired)
        counted = await status(bus)

    assert before.payload == b"value"
    assert after == Answer(b"", MISS)
    assert still_there == 1
    assert expired.key == "k"
    assert list(store.folder.glob("*.object")) == []
    assert (counted.expired_total, counted.entries) == (1, 0)


async def test_the_sweep_runs_by_itself(
    bus: Bus, store: FailingStore, heard: Heard, clock: ManualClock
) -> None:
    async with archiving(bus, store, clock=clock, sweep_interval_seconds=0.02):
        await evict(bus, evicted())
        await heard.stored()
        clock.advance(3600)

        assert (await heard.next(Expired)).version == "b1-01"


async def test_what_killed_archivers_left_goes_once_a_day_while_one_runs(
    bus: Bus, store: FailingStore, clock: ManualClock
) -> None:
    def left() -> list[str]:
        return sorted(path.name for path in store.folder.glob("*.tmp"))

    async with archiving(bus, store, clock=clock) as service:
        for name, age_seconds in (("old", 90_000), ("young", 80_000)):
            path = store.folder / f"{name}.tmp"
            path.write_bytes(b"part")
            os.utime(path, (time.time() - age_seconds,) * 2)
        await service.sweep()
        at_once = left()
        clock.advance(86_400)
        await service.sweep()
        a_day_later = left()

    assert (at_once, a_day_later) == (["old.tmp", "young.tmp"], ["young.tmp"])


async def test_a_tombstone_takes_the_value_from_disk_and_keeps_older_ones_out(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    async with archiving(bus, store) as service:
        await evict(bus, evicted(value=b"secret"), b"secret")
        await heard.stored()
        await evict(bus, tombstone())
        announced = await heard.stored()
        deleted = await restore(bus)
        await evict(bus, evicted(value=b"secret", version="b1-00"), b"secret")
        await evict(bus, evicted("after"))
        await heard.stored()
        await service.sweep()
    counted = [path.read_bytes() for path in store.folder.glob("*.object")]

    assert announced.tombstone
    assert deleted == Answer(b"", MISS)
    assert len(counted) == 2
    assert not any(b"secret" in content for content in counted)


async def test_a_newer_generation_makes_everything_older_a_miss(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    async with archiving(bus, store) as service:
        await evict(bus, evicted())
        await heard.stored()
        answers = [
            await restore(bus),
            await restore(bus, generation=0),
            await restore(bus, generation=1),
        ]
        await evict(bus, evicted("new", generation=1))
        await heard.stored()
        answers.append(await restore(bus))
        keys = await bus.request("api.archive.keys.default", timeout_seconds=5)
        await service.sweep()

    assert [answer.payload for answer in answers] == [b"value", b"value", b"", b""]
    assert keys == Answer(key_hash("new"), {"Fleet-Generation": "1"})
    assert len(list(store.folder.glob("*.object"))) == 1
    assert service.counters()["cleared_total"] == 1


@pytest.mark.parametrize(
    ("subject", "payload", "headers", "reason"),
    [
        pytest.param("evicted.default", b"x", {}, "no header", id="no manifest"),
        pytest.param(
            "evicted.default", b"x", {EVICTED_HEADER: "%zz"}, "bad percent", id="bad escape"
        ),
        pytest.param(
            "evicted.default", b"x", {EVICTED_HEADER: "%7B%7D"}, "missing required", id="no fields"
        ),
        pytest.param("evicted.default", b"x", {EVICTED_HEADER: "%FF"}, "not UTF-8", id="not UTF-8"),
        pytest.param("evicted.default", b"valuE", None, "digest", id="wrong digest"),
        pytest.param("evicted.default", b"valu", None, "4 bytes", id="wrong size"),
        pytest.param("evicted.other", b"value", None, "namespace", id="wrong namespace"),
    ],
)
async def test_a_poisoned_eviction_goes_to_the_dead_and_the_service_lives_on(
    bus: Bus,
    store: FailingStore,
    heard: Heard,
    subject: str,
    payload: bytes,
    headers: dict[str, str] | None,
    reason: str,
) -> None:
    async with archiving(bus, store) as service:
        if headers is None:
            headers = manifest_headers(evicted())
        await bus.publish_raw(subject, payload, headers, message_id="poison")
        await evict(bus, evicted("good"))
        stored = await heard.stored()

    dead = [delivery async for delivery in bus.read("DEAD")]
    assert stored.key == "good"
    assert [delivery.payload for delivery in dead] == [payload]
    assert reason in decode_header(dead[0].headers["Fleet-Dead-Reason"])
    assert service.counters()["dead_total"] == 1
    assert await is_empty(bus, "EVICTIONS")


async def test_an_expiry_beyond_the_calendar_is_never(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    end = instant(0).replace(year=9999, month=12, day=30)
    async with archiving(bus, store):
        await evict(bus, evicted(evicted_at=end, expires_at=None, ttl_seconds=3e10))
        stored = await heard.stored()
        answer = await restore(bus)

    assert stored.expires_at is None
    assert answer.payload == b"value"


class SlowToAnnounce:
    """A publisher whose `Restored` events wait until they may go."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.may_go = asyncio.Event()
        self.publish = bus.publish
        self.publish_raw = bus.publish_raw

    async def publish_all(self, messages: Sequence[tuple[Message, str]]) -> None:
        if any(isinstance(message, Restored) for message, _ in messages):
            await self.may_go.wait()
        await self._bus.publish_all(messages)


async def test_a_restore_is_answered_before_it_is_announced(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    publisher = SlowToAnnounce(bus)
    async with archiving(bus, store, publisher=publisher):
        await evict(bus, evicted())
        await heard.stored()
        answer = await restore(bus)
        announced_early = heard.rest()
        publisher.may_go.set()

    assert answer.payload == b"value"
    assert announced_early == []
    assert (await heard.next(Restored)).key == "k"


async def test_what_was_stored_together_is_said_together_to_each_namespace(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            name = ("default", "other")[number % 2]
            group.create_task(evict(bus, evicted(f"k{number}", namespace=name)))
    said: list[Stored] = []
    async with archiving(bus, store):
        while sum(len(one.entries) for one in said) < 20:
            said.append(await heard.next(Stored))
        status_then = await status(bus)

    assert sorted((one.namespace, entry.key) for one in said for entry in one.entries) == sorted(
        (("default", "other")[number % 2], f"k{number}") for number in range(20)
    )
    # In how many takes the server hands them over is its own affair.
    assert len(said) < 20
    assert heard.rest() == []
    assert status_then.entries == 10


async def test_a_full_disk_loses_nothing_and_recovers_by_itself(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    async with archiving(bus, store) as service:
        store.write_errno = errno.ENOSPC
        for number in range(5):
            await evict(bus, evicted(f"k{number}"))
        failed = await heard.next(ArchiveFailed)
        component_then = await component(service, "store", "failed")
        said_meanwhile = heard.rest()
        store.write_errno = None
        stored = {(await heard.stored()).key for _ in range(5)}
        await component(service, "store", "ok")

    assert "is full" in failed.error
    assert "is full" in component_then.text
    assert said_meanwhile == []
    assert stored == {f"k{number}" for number in range(5)}
    assert await is_empty(bus, "EVICTIONS")


async def test_failures_of_the_store_are_announced_once_a_minute(
    bus: Bus, store: FailingStore, heard: Heard, clock: ManualClock
) -> None:
    async with archiving(bus, store, clock=clock, retry_max_seconds=0.05) as service:
        store.write_errno = errno.EACCES
        await evict(bus, evicted(expires_at=None))
        first = await heard.next(ArchiveFailed)
        failed = service.counters()["failed_total"]
        await until(lambda: service.counters()["failed_total"] >= failed + 2)
        quiet = heard.rest()
        clock.advance(60)
        second = await heard.next(ArchiveFailed)
        store.write_errno = None
        await heard.stored()

    assert quiet == []
    assert (second.observed_at - first.observed_at).total_seconds() == 60


async def test_a_damaged_object_is_told_apart_from_a_miss(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    async with archiving(bus, store):
        await evict(bus, evicted())
        await heard.stored()
        (path,) = store.folder.glob("*.object")
        path.write_bytes(path.read_bytes().replace(b"value", b"valu?"))

        with pytest.raises(RequestError, match="archived object of this key is damaged") as caught:
            await restore(bus)
        failed = await heard.next(ArchiveFailed)
        then = await restore(bus)

    assert caught.value.code == 500
    assert "digest" in failed.error
    assert then == Answer(b"", MISS)


async def test_a_store_that_cannot_be_read_is_told_apart_from_a_miss(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    async with archiving(bus, store):
        await evict(bus, evicted())
        await heard.stored()
        store.read_errno = errno.EIO

        with pytest.raises(RequestError, match="cannot be read") as caught:
            await restore(bus)
        store.read_errno = None

        assert (await restore(bus)).payload == b"value"
    assert caught.value.code == 503
    assert str(store.folder) not in caught.value.text


@pytest.mark.parametrize(
    ("name", "payload", "headers", "text"),
    [
        pytest.param("restore", b"\xff", {}, "UTF-8", id="key is not UTF-8"),
        pytest.param("restore", b"", {}, "1 to 10240 bytes, not 0", id="no key"),
        pytest.param("restore", b"k" * 10241, {}, "not 10241", id="key too long"),
        pytest.param("restore", b"k", {"Fleet-Generation": "-1"}, "count", id="bad generation"),
        pytest.param("keys", b"", {"Fleet-After": "xyz"}, "hexadecimal", id="bad page"),
        pytest.param("list", b'{"limits": 1}', {}, "limits", id="unknown field"),
        pytest.param("status", b"[]", {}, "object", id="not an object"),
    ],
)
async def test_a_malformed_request_is_answered_400_with_what_is_wrong(
    bus: Bus, store: FailingStore, name: str, payload: bytes, headers: dict[str, str], text: str
) -> None:
    async with archiving(bus, store):
        with pytest.raises(RequestError, match=text) as caught:
            await bus.request(f"api.archive.{name}.default", payload, headers, timeout_seconds=5)

    assert caught.value.code == 400


async def test_keys_and_list_come_in_pages(
    bus: Bus, store: FailingStore, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archive.queries.HASHES_PER_PAGE", 2)
    names = ["a", "b", "c"]
    async with archiving(bus, store):
        for name in names:
            await evict(bus, evicted(name))
            await heard.stored()
        first = await bus.request("api.archive.keys.default", timeout_seconds=5)
        after = {"Fleet-After": first.payload[-8:].hex()}
        last = await bus.request("api.archive.keys.default", b"", after, timeout_seconds=5)
        listing = await bus.request(
            "api.archive.list.default",
            msgspec.json.encode(ArchiveListRequest(after="a", limit=1)),
            timeout_seconds=5,
        )

    listed = msgspec.json.decode(listing.payload, type=ArchiveList)
    assert first.payload + last.payload == b"".join(sorted(map(key_hash, names)))
    assert (first.headers.get("Fleet-More"), last.headers.get("Fleet-More")) == ("1", None)
    assert [entry.key for entry in listed.entries] == ["b"]
    assert listed.more


async def test_a_list_of_long_keys_fits_into_one_message(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    names = [f"{number:02}" + "k" * 10_000 for number in range(40)]
    found: list[str] = []
    async with archiving(bus, store):
        for name in names:
            await evict(bus, evicted(name))
            await heard.stored()
        more = True
        while more:
            request = ArchiveListRequest(after=found[-1] if found else "")
            answer = await bus.request(
                "api.archive.list.default", msgspec.json.encode(request), timeout_seconds=5
            )
            page = msgspec.json.decode(answer.payload, type=ArchiveList)
            found += [entry.key for entry in page.entries]
            more = page.more

    assert found == names


async def test_the_status_counts_what_is_there_and_what_happened(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    async with archiving(bus, store) as service:
        for manifest in (evicted("a"), tombstone("b"), evicted("c", b"longer")):
            await evict(bus, manifest, b"longer" if manifest.key == "c" else b"value")
            await heard.stored()
        await evict(bus, evicted("c", b"longer", "b1-00"), b"longer")
        await evict(bus, evicted("d"))
        await heard.stored()
        await restore(bus, "a")
        found = await status(bus)
        lease = await component(service, "lease", "ok")
        backlog = await component(service, "backlog", "ok")

    assert (found.namespace, found.instance) == ("default", "a1")
    assert str(store.folder) in found.store
    assert (found.entries, found.tombstones, found.size_bytes) == (3, 1, 16)
    on_disk = sum(path.stat().st_size for path in store.folder.glob("*.object"))
    assert 0 < found.stored_bytes < on_disk
    assert service.counters()["object_bytes"] == on_disk
    assert (found.restored_total, found.superseded_total, found.dead_total) == (1, 1, 0)
    assert found.pending is not None
    assert lease.text == "active"
    assert backlog.text.endswith("evictions wait")


async def test_a_namespace_that_nobody_knows_has_no_status(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    async with archiving(bus, store):
        served_here = await status(bus)
        with pytest.raises(RequestError, match="the archive knows no namespace other") as unknown:
            await status(bus, "other")
        await evict(bus, evicted(namespace="other"))
        await heard.stored()
        seen = await status(bus, "other")

    assert unknown.value.code == 404
    assert (served_here.entries, seen.entries) == (0, 1)


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param({"in_flight": 4}, id="count"),
        pytest.param({"in_flight_bytes": 1024 * 1024}, id="bytes"),
    ],
)
async def test_no_more_evictions_are_in_memory_than_allowed(
    bus: Bus,
    store: FailingStore,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
    limit: dict[str, Any],
) -> None:
    value = os.urandom(256 * 1024)
    sizes: list[int] = []
    put = store.put

    async def counted_put(name: str, content: bytes) -> None:
        sizes.append(len(content))
        await put(name, content)

    monkeypatch.setattr(store, "put", counted_put)
    for number in range(20):
        await evict(bus, evicted(f"k{number}", value), value)

    async with archiving(bus, store, segment_seconds=1, **limit):
        for _ in range(20):
            await heard.stored()

    assert len(sizes) >= 5
    assert max(sizes) < 4.5 * len(value)


async def test_an_announcement_that_failed_is_made_at_once_again(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    class FailsOnce:
        failed = False

        async def publish_all(self, messages: Sequence[tuple[Message, str]]) -> None:
            if not self.failed:
                self.failed = True
                raise PublishError("no acknowledgement")
            await bus.publish_all(messages)

        publish = bus.publish
        publish_raw = bus.publish_raw

    async with archiving(bus, store, publisher=FailsOnce()) as service:
        await evict(bus, evicted())
        stored = await heard.stored()
    counted = service.counters()

    assert stored.key == "k"
    assert (counted["unconfirmed_total"], counted["repeated_total"]) == (1, 1)
    assert await is_empty(bus, "EVICTIONS")


async def test_an_acknowledgement_that_is_not_confirmed_settles_nothing(
    bus: Bus, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.work.ACK_WAIT_SECONDS", 0.5)
    done_all = bus.done_all
    may_confirm = asyncio.Event()

    async def unconfirmed_at_first(items: Sequence[WorkItem]) -> bool:
        if may_confirm.is_set():
            return await done_all(items)
        may_confirm.set()
        return False

    monkeypatch.setattr(bus, "done_all", unconfirmed_at_first)
    async with archiving(bus, store) as service:
        await evict(bus, evicted())
        await until(lambda: service.counters().get("repeated_total") == 1)
        counted = service.counters()

    assert counted["unconfirmed_total"] == 1
    assert counted.get("stored_total", 0) == 0
    assert await is_empty(bus, "EVICTIONS")


async def test_a_lost_restored_event_does_not_cost_the_value(
    bus: Bus, store: FailingStore, heard: Heard
) -> None:
    class LosesRestored:
        async def publish_all(self, messages: Sequence[tuple[Message, str]]) -> None:
            if any(isinstance(message, Restored) for message, _ in messages):
                raise PublishError("no acknowledgement")
            await bus.publish_all(messages)

        publish = bus.publish
        publish_raw = bus.publish_raw

    async with archiving(bus, store, publisher=LosesRestored()) as service:
        await evict(bus, evicted())
        await heard.stored()
        answer = await restore(bus)
        await until(lambda: service.counters()["events_lost_total"] > 0)

    assert answer.payload == b"value"
    assert service.counters()["events_lost_total"] == 1


async def test_restores_that_come_together_are_announced_together(
    bus: Bus, store: FailingStore, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archive.announce.GATHER_SECONDS", 1.0)
    sent: list[int] = []

    class Counts:
        async def publish_all(self, messages: Sequence[tuple[Message, str]]) -> None:
            sent.extend([len(messages)] * isinstance(messages[0][0], Restored))
            await bus.publish_all(messages)

        publish = bus.publish
        publish_raw = bus.publish_raw

    async with archiving(bus, store, publisher=Counts()):
        for key in ("k1", "k2", "k3"):
            await evict(bus, evicted(key))
            await heard.stored()
        await asyncio.gather(*(restore(bus, key) for key in ("k1", "k2", "k3")))
        told = [(await heard.next(Restored)).key for _ in range(3)]

    assert sorted(told) == ["k1", "k2", "k3"]
    assert sent == [3]
