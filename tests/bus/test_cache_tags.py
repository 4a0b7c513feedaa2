"""Delete by tag, with a real archive: what was put with the tag is gone everywhere, for ever."""

import contextlib
import errno
from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus, ensure_streams
from schemas.api import CacheReply, TagReply
from schemas.cache import CacheEvent, decode_header
from schemas.protocols import RequestError
from tests.support.archive_service import Heard, archiving
from tests.support.cache_service import Client, running, synced
from tests.support.evictions import FailingStore, ManualClock
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.bus


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


async def delete_tag(client: Client, tag: str) -> TagReply:
    return await client.reply("delete", TagReply, msgspec.json.encode({"tag": tag}))


async def stream_is_empty(bus: Bus) -> bool:
    first, last = await bus.stream_bounds("EVICTIONS")
    return first > last or last == 0


async def test_deleting_a_tag_removes_what_was_put_with_it(bus: Bus, client: Client) -> None:
    async with running(bus, archive_mode="off"):
        await client.put("one", b"1", Fleet_Tags="t")
        await client.put("both", b"2", Fleet_Tags="s,t%2C%20%C3%A9")
        await client.put("other", b"3", Fleet_Tags="s")
        await client.put("plain", b"4")
        first = await delete_tag(client, "t")
        second = await delete_tag(client, "t, é")
        nothing = await delete_tag(client, "t")
        left = [key for key in ("one", "both", "other", "plain") if await client.get(key)]

    assert (first.entries, second.entries, nothing.entries) == (1, 1, 0)
    assert first.version < second.version
    assert left == ["other", "plain"]


@pytest.mark.parametrize("where", ["archive", "stream", "outbox"])
@pytest.mark.parametrize("restarted", ["nothing", "cache", "archive"])
async def test_what_was_deleted_by_its_tag_never_comes_back(
    bus: Bus, client: Client, tmp_path: Path, where: str, restarted: str
) -> None:
    clock = ManualClock()
    store = FailingStore(tmp_path / "archive")
    heard = await Heard.on(bus, "archived.stored.>")
    async with contextlib.AsyncExitStack() as archiver, contextlib.AsyncExitStack() as cache:
        await archiver.enter_async_context(archiving(bus, store, clock=clock))
        service = await cache.enter_async_context(running(bus, clock=clock))
        await synced(service)
        if where == "stream":
            store.write_errno = errno.ENOSPC
        if where == "outbox":
            await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        await client.put("key", b"old", Fleet_Tags="t")
        await client.put("other", b"other", Fleet_Tags="s")
        await client.evict_all()
        if where == "archive":
            await heard.stored()
            await heard.stored()
            await until(lambda: service.counters()["outbox_entries"] == 0)
        if where == "stream":
            await until(lambda: service.counters()["evictions_acknowledged_total"] == 2)
        if where == "outbox":
            await ensure_streams(bus)

        await delete_tag(client, "t")

        at_once = await client.get("key")
        store.write_errno = None
        if restarted == "cache":
            await cache.aclose()
            service = await cache.enter_async_context(running(bus, clock=clock))
        if restarted == "archive":
            await archiver.aclose()
            await archiver.enter_async_context(
                archiving(bus, FailingStore(tmp_path / "archive"), clock=clock)
            )
        after_restart = await client.get("key")
        await until_async(lambda: stream_is_empty(bus))
        await synced(service)
        await until(lambda: service.counters()["tombstones_unconfirmed"] == 0)
        in_the_end = await client.get("key")
        other = await client.get("other")
        await client.put("key", b"new", Fleet_Tags="t")
        await client.evict_all()
        newer = await client.get("key")

    assert (at_once, after_restart, in_the_end) == (None, None, None)
    assert other == b"other"
    assert newer == b"new"


@pytest.mark.parametrize("by", ["tag", "chain"])
async def test_the_file_of_a_value_goes_with_its_entry(bus: Bus, client: Client, by: str) -> None:
    async with running(bus, archive_mode="off"):
        await client.put("key", bytes(300_000), Fleet_Tags="t")
        answer = await client.ask("get", b"key", Fleet_Same_Host="1")
        file = Path(decode_header(answer.headers["Fleet-File"]))
        before = is_there(file)
        if by == "tag":
            await delete_tag(client, "t")
        else:
            await client.ask("mput", b'[{"key":"key","size":1}]\n1', Fleet_Chain="1")
        after = is_there(file)

    assert (before, after) == (True, False)


def is_there(file: Path) -> bool:
    return file.exists()


async def test_a_deletion_whose_tombstone_is_not_durable_says_so_and_is_tried_again(
    bus: Bus, client: Client
) -> None:
    async with running(bus, tombstone_timeout_seconds=0.1) as service:
        await client.clear()
        await client.put("key", b"value", Fleet_Tags="t")
        await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        with pytest.raises(RequestError, match="503 deleted here"):
            await delete_tag(client, "t")
        value = await client.get("key")
        await ensure_streams(bus)
        await until(lambda: service.counters()["outbox_entries"] == 0)
        first, last = await bus.stream_bounds("EVICTIONS")

    assert value is None
    assert (first, last) == (1, 1)


async def test_no_tag_is_deleted_while_too_many_deletions_wait(
    bus: Bus, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(bus):
        await client.put("key", b"value", Fleet_Tags="t")
        monkeypatch.setattr("cache.outbox.Outbox.crowded", True)
        with pytest.raises(RequestError, match="429 too many deletions wait") as busy:
            await delete_tag(client, "t")
        kept = await client.get("key")
        monkeypatch.undo()

    assert kept == b"value"
    assert busy.value.retry_after_seconds


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        pytest.param(b'{"tag": ""}', "1 to 16384 bytes", id="empty"),
        pytest.param(b'{"tag": 5}', r"\$.tag", id="no text"),
        pytest.param(b'{"tag": "a", "key": "b"}', "key", id="unknown field"),
        pytest.param(b'{"tag": "a"', "truncated", id="cut short"),
        pytest.param(b'{"tag": "\xff"}', "UTF-8|utf-8", id="not UTF-8"),
        pytest.param(b'{"tag": "%s"}' % (b"x" * 16_385), "1 to 16384 bytes", id="too long"),
    ],
)
async def test_a_malformed_deletion_by_tag_deletes_nothing(
    bus: Bus, client: Client, payload: bytes, text: str
) -> None:
    async with running(bus, archive_mode="off"):
        await client.put("key", b"value", Fleet_Tags="a")
        with pytest.raises(RequestError, match=text) as refused:
            await client.ask("delete", payload)
        value = await client.get("key")

    assert refused.value.code == 400
    assert value == b"value"


async def test_a_key_that_only_begins_like_json_is_a_key(bus: Bus, client: Client) -> None:
    async with running(bus, archive_mode="off"):
        await client.put('{"tags": []}', b"value")
        deleted = await client.reply("delete", CacheReply, b'{"tags": []}')

    assert deleted.existed


# --- what keepers of copies hear ---------------------------------------------------------------


async def invalidated(heard: Heard, wanted: set[str]) -> tuple[dict[str, str], list[int | None]]:
    """Versions by key and the sequence numbers, until all wanted keys were heard."""
    keys: dict[str, str] = {}
    sequence: list[int | None] = []
    while not wanted <= set(keys):
        event = await heard.next(CacheEvent)
        assert (event.kind, event.namespace) == ("invalidated", "default")
        keys |= event.keys
        sequence.append(event.sequence)
    return keys, sequence


async def test_every_write_of_a_key_is_announced_with_its_version(bus: Bus, client: Client) -> None:
    heard = await Heard.on(bus, "cache_event.>")
    async with running(bus, archive_mode="off"):
        first = await client.put("a", b"1")
        keys, sequence = await invalidated(heard, {"a"})
        second = await client.put("a", b"2")
        deleted = await client.reply("delete", CacheReply, b"b")
        await client.ask("mput", b'[{"key":"c","size":1}]\n1')
        more, later = await invalidated(heard, {"a", "b", "c"})

    assert keys == {"a": first}
    assert more["a"] == second > first
    assert more["b"] == deleted.version
    assert [*sequence, *later] == list(range(1, len(sequence) + len(later) + 1))


async def test_many_writes_are_few_events_and_none_is_too_large(bus: Bus, client: Client) -> None:
    heard = await Heard.on(bus, "cache_event.>")
    long = [f"{number}" + "\x01" * 10_000 for number in range(48)]  # six times as long in JSON
    short = [f"key-{number}" for number in range(1500)]
    parts = [long[start : start + 12] for start in range(0, 48, 12)] + [short[:750], short[750:]]
    async with running(bus, archive_mode="off", max_memory_mb=8):
        for keys in parts:
            line = msgspec.json.encode([{"key": key, "size": 0} for key in keys])
            await client.ask("mput", line + b"\n")
        keys_heard, sequence = await invalidated(heard, {*long, *short})

    assert set(keys_heard) == {*long, *short}
    assert len(sequence) < 50


async def test_a_deletion_by_tag_is_announced_by_tag_and_an_answer_names_its_tags(
    bus: Bus, client: Client
) -> None:
    async with running(bus, archive_mode="off"):
        await client.put("key", b"value", Fleet_Tags="t%2C,s", Fleet_Ttl_Seconds="60")
        answer = await client.ask("get", b"key")
        heard = await Heard.on(bus, "cache_event.>")
        deleted = await delete_tag(client, "t,")
        event = await heard.next(CacheEvent)
        while event.tag is None:
            event = await heard.next(CacheEvent)

    assert list(map(decode_header, answer.headers["Fleet-Tags"].split(","))) == ["t,", "s"]
    assert float(answer.headers["Fleet-Ttl-Seconds"]) == 60
    assert (event.kind, event.tag, event.entries) == ("invalidated", "t,", 1)
    assert event.below_version == deleted.version > answer.headers["Fleet-Version"]


async def test_the_last_writes_before_a_stop_are_announced(bus: Bus, client: Client) -> None:
    heard = await Heard.on(bus, "cache_event.>")
    async with running(bus, archive_mode="off"):
        await client.put("last", b"1")
    keys, _ = await invalidated(heard, {"last"})

    assert list(keys) == ["last"]
