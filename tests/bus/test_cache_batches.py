"""Many entries in one message: match, mget, mput and keys, with a real archive where it matters."""

import asyncio
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agent.bus import Bus, ensure_streams
from schemas.api import BatchError, KeysReply, MatchReply
from schemas.cache import encode_header
from schemas.protocols import RequestError
from tests.support.archive_service import Heard, archiving
from tests.support.cache_service import Client, running, synced
from tests.support.evictions import ManualClock
from tests.support.lmcache import Lmcache
from tests.support.slow_archive import SlowArchive
from tests.support.waiting import until

pytestmark = pytest.mark.bus
OFF: dict[str, Any] = {"archive_mode": "off"}
encode = msgspec.json.encode


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


async def mput(client: Client, values: dict[str, bytes], **headers: str) -> list[str | BatchError]:
    line = encode([{"key": key, "size": len(value)} for key, value in values.items()])
    answer = await client.ask("mput", line + b"\n" + b"".join(values.values()), **headers)
    return msgspec.json.decode(answer.payload, type=list[str | BatchError])


async def mget(client: Client, *keys: str, **headers: str) -> list[bytes | int | None]:
    """In the order of the keys: the value, None, or -1."""
    answer = await client.ask("mget", encode(list(keys)), **headers)
    line, _, values = answer.payload.partition(b"\n")
    found: list[bytes | int | None] = []
    for size in msgspec.json.decode(line, type=list[int | None]):
        if size is None or size < 0:
            found.append(size)
        else:
            found.append(values[:size])
            values = values[size:]
    assert values == b""
    return found


async def match(client: Client, *keys: str) -> int:
    return (await client.reply("match", MatchReply, encode(list(keys)))).matched


# --- match -----------------------------------------------------------------------------------


async def test_match_tells_how_much_of_a_chain_is_here(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF):
        await mput(client, {"a": b"1", "b": b"2", "d": b"4"})
        matched = [await match(client, *keys) for keys in ("abcd", "ab", "ad", "ca", "", "d")]
        stats = await client.stats()

    assert matched == [2, 2, 2, 0, 0, 1]
    assert (stats.cache_hits, stats.cache_misses) == (7, 2)


async def test_a_chain_that_was_matched_loses_its_tail_first(bus: Bus, client: Client) -> None:
    chain = {f"block-{number}": bytes(100_000) for number in range(8)}
    async with running(bus, **OFF):
        await mput(client, chain, Fleet_Chain="1")
        await match(client, *chain)
        await client.put("other", bytes(500_000))
        left = await match(client, *chain)
        by_key = [await client.get(key) is not None for key in chain]

    assert 0 < left < 8
    assert by_key == [True] * left + [False] * (8 - left)


async def test_match_counts_what_waits_for_the_archive(bus: Bus, client: Client) -> None:
    async with running(bus):
        await client.clear()
        await mput(client, {"a": b"1", "b": b"2", "c": b"3"})
        await client.evict_all()
        matched = await match(client, "a", "b", "c", "d")
        where = (await client.meta("b")).where

    assert matched == 3
    assert where == "ram"


# --- mget ------------------------------------------------------------------------------------


async def test_mget_answers_values_and_misses_in_order(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF):
        await mput(client, {"a": b"\n[1]\n", "empty": b"", "é\x00": bytes(range(256))})
        found = await mget(client, "é\x00", "absent", "empty", "a")
        nothing = await mget(client)
        stats = await client.stats()

    assert found == [bytes(range(256)), None, b"", b"\n[1]\n"]
    assert nothing == []
    assert (stats.cache_hits, stats.cache_misses) == (3, 1)


async def test_what_does_not_fit_into_the_answer_is_left_out_and_not_counted(
    bus: Bus, client: Client
) -> None:
    async with running(bus, **OFF, max_memory_mb=4):
        for key in "abc":
            await client.put(key, key.encode() * 400_000)
        await client.put("d", b"small")
        found = await mget(client, "a", "b", "c", "d", "e")
        stats = await client.stats()
        again = await mget(client, "a")

    assert found == [-1, b"b" * 400_000, b"c" * 400_000, b"small", None]
    assert (stats.cache_hits, stats.cache_misses) == (3, 1)
    assert again == [b"a" * 400_000]


async def test_a_chain_that_was_read_at_once_loses_its_tail_first(bus: Bus, client: Client) -> None:
    chain = [f"block-{number}" for number in range(8)]
    async with running(bus, **OFF):
        await mput(client, {key: bytes(100_000) for key in chain}, Fleet_Chain="1")
        await mget(client, *chain)
        await client.put("other", bytes(500_000))
        by_key = [await client.get(key) is not None for key in chain]

    assert by_key == sorted(by_key, reverse=True)
    assert 0 < sum(by_key) < 8


@pytest.fixture
async def archived(bus: Bus, client: Client, tmp_path: Path) -> Any:
    """Twenty keys in a real archive, none of them in RAM or outbox."""
    clock = ManualClock()
    async with (
        archiving(bus, tmp_path / "archive", clock=clock),
        running(bus, clock=clock) as service,
    ):
        await synced(service)
        heard = await Heard.on(bus, "archived.stored.>")
        await mput(client, {f"key-{n}": f"value {n}".encode() for n in range(20)})
        await client.evict_all()
        for _ in range(20):
            await heard.stored()
        await until(lambda: service.counters()["outbox_entries"] == 0)
        yield service


async def test_mget_brings_back_what_is_archived(archived: Any, client: Client) -> None:
    keys = [f"key-{number}" for number in range(20)]

    without = await mget(client, *keys, "absent", Fleet_No_Restore="1")
    found = await mget(client, *keys, "absent", Fleet_Class="chat")
    chat = (await client.stats()).classes["chat"]
    where = {(await client.meta(key)).where for key in keys}

    assert without == [None] * 21
    assert found == [*(f"value {number}".encode() for number in range(20)), None]
    assert where == {"ram"}
    assert archived.counters()["restores_total"] == 20
    assert (chat.hits_total, chat.misses_total) == (0, 21)
    assert chat.answered_bytes_total == sum(len(f"value {number}") for number in range(20))


@pytest.mark.parametrize(("operation", "payload"), [("mget", b'["key"]'), ("get", b"key")])
async def test_a_read_whose_owner_changed_while_the_archive_was_asked_is_refused(
    bus: Bus, client: Client, operation: str, payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowArchive()
    await slow.serve(bus, "key")
    async with running(bus, restore_timeout_seconds=20) as service:
        await synced(service)
        asking = asyncio.create_task(client.ask(operation, payload))
        await until(lambda: slow.asked == ["key"])
        # Lost a moment ago, and not noticed yet by what ends the ownership.
        monkeypatch.setattr("agent.bus.lease.BucketLease.held", False)
        slow.may_answer.set()
        with pytest.raises(RequestError, match="503 this instance does not own"):
            await asking
        monkeypatch.undo()


async def test_lookups_of_batches_count_in_the_latencies(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF):
        await mput(client, {"key": b"value"})
        await mget(client, "key")
        after_hit = await Lmcache(bus).ask("metrics")
        await mget(client, "missing")
        after_miss = await Lmcache(bus).ask("metrics")

    assert after_hit["cache_hit_latency_ms"] > 0
    assert after_hit["cache_miss_latency_ms"] is None
    assert after_miss["cache_miss_latency_ms"] > 0


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 µs go by between one look of an mget at the clock and the next."""
    now_ns = itertools.count(0, 64_000)
    clock = SimpleNamespace(perf_counter_ns=lambda: next(now_ns))
    monkeypatch.setattr("cache.batch.time", clock)


@pytest.mark.usefixtures("slow_clock")
@pytest.mark.parametrize("named", [True, False], ids=["class of the mget", "class of the entry"])
async def test_each_key_of_an_mget_is_charged_its_share_of_the_time(
    bus: Bus, client: Client, *, named: bool
) -> None:
    headers = {"Fleet_Class": "chat"} if named else {}
    async with running(bus, **OFF):
        await mput(client, {str(number): b"v" for number in range(60)}, Fleet_Class="chat")
        await mget(client, *map(str, range(64)), **headers)
        for _ in range(2):
            await mget(client, "0", **headers)  # the only one has all of the time
        metrics = await Lmcache(bus).ask("metrics")
        stats = await client.stats()

    assert metrics["cache_hit_latency_ms"] == pytest.approx((60 + 2 * 64) / 62 / 1000)
    assert metrics["cache_miss_latency_ms"] == pytest.approx(0.001)
    assert metrics["avg_latency_ms"] == pytest.approx((64 + 2 * 64) / 66 / 1000)
    assert stats.classes["chat"].latency_p95_seconds == pytest.approx(1e-6, rel=0.125)


@pytest.mark.usefixtures("slow_clock")
async def test_what_the_archive_is_asked_for_is_charged_its_answer(
    bus: Bus, client: Client
) -> None:
    archive = SlowArchive()
    archive.may_answer.set()
    await archive.serve(bus, "archived")
    async with running(bus, max_memory_mb=64) as service:
        await synced(service)
        await mput(client, {str(number): b"v" for number in range(63)})
        await mget(client, *map(str, range(63)), "archived", Fleet_Class="chat")
        metrics = await Lmcache(bus).ask("metrics")
        stats = await client.stats()

    assert metrics["cache_hit_latency_ms"] == pytest.approx(0.001)
    assert metrics["cache_miss_latency_ms"] == pytest.approx(0.065)
    assert stats.classes["chat"].latency_p95_seconds == pytest.approx(1e-6, rel=0.125)


async def test_many_mgets_of_the_same_keys_ask_the_archive_once(
    archived: Any, client: Client
) -> None:
    keys = [f"key-{number}" for number in range(20)]

    answers = await asyncio.gather(*(mget(client, *keys) for _ in range(5)))

    assert answers == [[f"value {number}".encode() for number in range(20)]] * 5
    assert archived.counters()["restores_total"] == 20


async def test_nothing_more_is_brought_back_once_the_answer_is_full(
    bus: Bus, client: Client, tmp_path: Path
) -> None:
    clock = ManualClock()
    keys = [f"key-{number}" for number in range(30)]
    async with (
        archiving(bus, tmp_path / "archive", clock=clock),
        running(bus, clock=clock) as service,
    ):
        await synced(service)
        heard = await Heard.on(bus, "archived.stored.>")
        for key in keys:
            await client.put(key, key.encode().ljust(200_000))
        await client.evict_all()
        for _ in keys:
            await heard.stored()
        await until(lambda: service.counters()["outbox_entries"] == 0)
        found = await mget(client, *keys)
        restores = service.counters()["restores_total"]

    assert [one for one in found if one == -1] == [-1] * 26  # four times 200,000 bytes fit
    assert None not in found
    assert restores <= 4 + 8 + 1  # those asked for at the same moment


async def test_an_archive_that_does_not_answer_costs_an_mget_one_time_limit(
    bus: Bus, client: Client
) -> None:
    asked: list[bytes] = []
    listed: list[bytes] = []
    await bus.subscribe("api.archive.restore.default", lambda _, key: asked.append(key))
    await bus.subscribe("api.archive.keys.default", lambda _, payload: listed.append(payload))
    async with running(bus, restore_timeout_seconds=0.3):
        await until(lambda: len(listed) > 1)  # the generation, and the keys once it is caught up
        await client.put("here", b"value", Fleet_Ttl_Seconds="0")
        async with asyncio.timeout(20):
            found = await mget(client, "here", *(f"key-{n}" for n in range(900)))

    assert found == [b"value"] + [None] * 900
    assert 0 < len(asked) <= 16


# --- mput ------------------------------------------------------------------------------------


async def test_mput_keeps_all_and_answers_their_versions(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF):
        versions = await mput(client, {"a": b"1", "b": b""}, Fleet_Class="chat", Fleet_Tags="t")
        found = await mget(client, "a", "b")
        meta = await client.meta("b")
        nothing = await mput(client, {})

    assert found == [b"1", b""]
    assert versions[1] == meta.version
    assert (meta.request_class, meta.tags) == ("chat", ["t"])
    assert nothing == []


async def test_a_wrong_version_refuses_that_entry_alone(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF):
        first = await client.put("a", b"old")
        await client.put("b", b"old")
        described = [
            {"key": "a", "size": 1, "version": first},
            {"key": "b", "size": 1, "version": first},
            {"key": "c", "size": 1},
        ]
        answer = await client.ask("mput", encode(described) + b"\n123", Fleet_Class="chat")
        chat = (await client.stats()).classes["chat"]
        versions = msgspec.json.decode(answer.payload, type=list[str | BatchError])
        found = await mget(client, "a", "b", "c")

    assert [isinstance(one, BatchError) for one in versions] == [False, True, False]
    assert isinstance(versions[1], BatchError)
    assert versions[1].code == 409
    assert first in versions[1].error
    assert found == [b"1", b"old", b"3"]
    assert chat.puts_total == 2


async def test_a_malformed_mput_keeps_nothing(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF):
        with pytest.raises(RequestError, match="400 keys 0 and 1 are the same"):
            await client.ask("mput", b'[{"key":"a","size":1},{"key":"a","size":1}]\n12')
        stats = await client.stats()

    assert (stats.puts, stats.total_entries) == (0, 0)


@pytest.mark.parametrize("chain", [False, True], ids=["entries", "chain"])
async def test_an_mput_of_keys_that_may_be_archived_waits_for_their_tombstones(
    bus: Bus, client: Client, *, chain: bool
) -> None:
    headers = {"Fleet_Chain": "1"} if chain else {}
    async with running(bus, tombstone_timeout_seconds=20):
        await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        writing = asyncio.create_task(mput(client, {"a": b"1", "b": b"2"}, **headers))
        while (await client.meta("b")).where is None:
            await asyncio.sleep(0)
        answered_early = writing.done()
        await ensure_streams(bus)
        versions = await writing
        first, last = await bus.stream_bounds("EVICTIONS")

    assert not answered_early
    assert all(isinstance(version, str) for version in versions)
    assert last - first + 1 == 2


async def test_an_mput_for_which_too_many_wait_keeps_nothing(
    bus: Bus, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told 429 puts it again: over what others put meanwhile, if it had been kept."""
    monkeypatch.setattr("agent.bus.serving.MAX_IN_FLIGHT", 1)
    async with running(bus, tombstone_timeout_seconds=20):
        await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        waiting = asyncio.create_task(mput(client, {"a": b"1"}))
        while (await client.meta("a")).where is None:
            await asyncio.sleep(0)

        with pytest.raises(RequestError, match="429 too many requests in flight"):
            await mput(client, {"b": b"2", "c": b"3"})
        kept = [(await client.meta(key)).where for key in "bc"]
        await ensure_streams(bus)
        await waiting

    assert kept == [None, None]


async def test_an_mput_waits_for_the_tombstone_of_what_it_evicted_itself(
    bus: Bus, client: Client
) -> None:
    """Nothing of `b` was archived when the message came, but its first entry evicts `b`."""
    async with running(bus, tombstone_timeout_seconds=20):
        await client.begin_unarchived()
        await client.put("b", bytes(500_000))
        await client.put("c", bytes(400_000))
        await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        writing = asyncio.create_task(mput(client, {"a": bytes(500_000), "b": b"2"}))
        while (await client.meta("a")).where is None:
            await asyncio.sleep(0)
        await client.stats()
        answered_early = writing.done()
        await ensure_streams(bus)
        versions = await writing

    assert not answered_early
    assert all(isinstance(version, str) for version in versions)


@pytest.mark.parametrize("first_archived", range(4))
async def test_a_chain_that_does_not_wait_is_kept_up_to_what_the_archive_is_told_of(
    bus: Bus, client: Client, first_archived: int
) -> None:
    archive, chain = SlowArchive(), [f"block-{number}" for number in range(3)]
    await archive.serve(bus, *chain[first_archived:][:1])
    async with running(bus, max_memory_mb=64) as service:
        await synced(service)
        versions = await mput(
            client,
            dict.fromkeys(chain, b"value"),
            Fleet_Chain="1",
            Fleet_No_Wait="1",
            Fleet_Parent=encode_header("root"),
        )
        metas = [await client.meta(key) for key in chain]

    kept = min(first_archived, 3)
    refusals = [one for one in versions if not isinstance(one, str)]
    assert [meta.parent for meta in metas if meta.found] == ["root", *chain][:kept]
    assert [meta.found for meta in metas] == [number < kept for number in range(3)]
    assert [(one.code, one.retry_after_seconds) for one in refusals] == [(429, 0)] * (3 - kept)


async def test_a_chain_that_does_not_wait_loses_its_tail_first(bus: Bus, client: Client) -> None:
    chain = {f"block-{number}": bytes(40_000) for number in range(40)}  # 1.6 MB, room for 1
    head, tail = dict(list(chain.items())[:20]), dict(list(chain.items())[20:])
    matched = []
    waiting: list[dict[str, str]] = [{}, {"Fleet_No_Wait": "1"}]
    async with running(bus, **OFF, eviction_policy="prefix"):
        for headers in waiting:
            await client.clear()
            await mput(client, head, Fleet_Chain="1", **headers)
            await mput(client, tail, Fleet_Chain="1", Fleet_Parent="block-19", **headers)
            matched.append(await match(client, *chain))

    assert matched[0] == matched[1] > 20


async def test_tombstones_without_acknowledgement_are_told_for_each_entry(
    bus: Bus, client: Client
) -> None:
    async with running(bus, tombstone_timeout_seconds=0.1, drain_timeout_seconds=0.1):
        await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        versions = await mput(client, {"a": b"1", "b": b"2"})
        found = await mget(client, "a", "b")

    assert [getattr(one, "code", None) for one in versions] == [503, 503]
    assert found == [b"1", b"2"]


async def test_a_chain_for_which_others_leave_is_here_as_a_whole(bus: Bus, client: Client) -> None:
    chain = {f"block-{number}": bytes(120_000) for number in range(8)}
    async with running(bus):
        await client.clear()
        await client.put("held", bytes(500_000))
        await mput(client, chain, Fleet_Chain="1", Fleet_Parent=encode_header("root"))
        where = [(await client.meta(key)).where for key in chain]
        parents = [(await client.meta(key)).parent for key in chain]
        found = await mget(client, *chain)

    assert set(where) <= {"ram", "outbox"}
    assert where[0] == "ram"
    assert parents == ["root", *list(chain)[:-1]]
    assert found == list(chain.values())


async def test_refusing_answers_429_to_the_whole_mput(bus: Bus, client: Client) -> None:
    small: dict[str, Any] = {"outbox_max_bytes": 16 * 1024 * 1024, "drain_timeout_seconds": 0.05}
    async with running(bus, **small, archive_when_full="refuse"):
        await client.clear()
        await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        refusal = await first_refusal(client)
        stats = await client.stats()

    assert refusal.code == 429
    assert refusal.retry_after_seconds
    assert "archive_when_full" in refusal.text
    assert stats.evictions_lost == 0


async def first_refusal(client: Client) -> RequestError:
    for number in range(100):
        try:
            await mput(client, {f"{number}-{part}": bytes(400_000) for part in "ab"})
        except RequestError as error:
            return error
    raise AssertionError("200 values of 400,000 bytes were taken")


# --- keys ------------------------------------------------------------------------------------


async def all_keys(client: Client, **request: Any) -> tuple[list[str], int]:
    """All keys and the number of pages."""
    found: list[str] = []
    pages = 0
    while True:
        after = {"after": found[-1]} if found else {}
        reply = await client.reply("keys", KeysReply, encode({**request, **after}))
        found += reply.keys
        pages += 1
        if not reply.more:
            return found, pages


@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_every_key_is_listed_once_whatever_the_page(
    bus: Bus, client: Client, limit: int
) -> None:
    keys = {f"a/{number}": b"" for number in range(60)} | {f"b/{n}": b"" for n in range(40)}
    async with running(bus, **OFF):
        nothing = await all_keys(client)
        await mput(client, keys)
        found, pages = await all_keys(client, limit=limit)
        some, _ = await all_keys(client, limit=limit, prefix="a/")

    assert nothing == ([], 1)
    assert sorted(found) == sorted(keys)
    assert sorted(some) == sorted(key for key in keys if key.startswith("a/"))
    assert pages == -(-100 // limit)


async def test_keys_that_were_deleted_or_expired_are_not_listed(bus: Bus, client: Client) -> None:
    clock = ManualClock()
    async with running(bus, clock=clock, **OFF):
        await mput(client, {"a": b"", "b": b"", "c": b""})
        await client.put("short", b"", Fleet_Ttl_Seconds="5")
        before, _ = await all_keys(client)
        await client.ask("delete", b"b")
        clock.advance(5)
        after, _ = await all_keys(client)

    assert sorted(before) == ["a", "b", "c", "short"]
    assert sorted(after) == ["a", "c"]


async def test_a_page_ends_before_it_is_too_large_for_a_message(bus: Bus, client: Client) -> None:
    keys = {f"{number:02}" + "\x01" * 10_000: b"" for number in range(30)}  # six times as much JSON
    async with running(bus, **OFF):
        await mput(client, dict(list(keys.items())[:15]))
        await mput(client, dict(list(keys.items())[15:]))
        found, pages = await all_keys(client, limit=10_000)

    assert sorted(found) == sorted(keys)
    assert pages > 1


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        pytest.param(b'{"limit": 0}', "limit", id="no limit"),
        pytest.param(b'{"limit": 10001}', "limit", id="too many"),
        pytest.param(b'{"prefix": 1}', "prefix", id="no text"),
        pytest.param(b'{"pattern": "*"}', "pattern", id="unknown field"),
    ],
)
async def test_a_malformed_listing_is_refused_by_name(
    bus: Bus, client: Client, payload: bytes, text: str
) -> None:
    async with running(bus, **OFF):
        with pytest.raises(RequestError, match=f"400 .*{text}"):
            await client.ask("keys", payload)


async def test_listing_gives_way_to_others(bus: Bus, client: Client) -> None:
    """Two tasks on one loop: the other one runs while a listing goes on."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with running(bus, **OFF):
        await mput(client, {f"key-{number}": b"" for number in range(100)})
        counting = asyncio.create_task(count_turns())
        await client.reply("keys", KeysReply)
        counting.cancel()

    assert turns > 200


# --- the configuration holds for batches, too --------------------------------------------------


@pytest.fixture
def lmcache(bus: Bus) -> Lmcache:
    return Lmcache(bus)


async def test_without_sharing_batches_reach_the_keys_of_their_client_alone(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        await client.put("shared", b"")
        await lmcache.configure(enable_sharing=False)
        await mput(client, {"k": b"a", "l": b"a"}, Fleet_Client="a", Fleet_Chain="1")
        await mput(client, {"k": b"b"}, Fleet_Client="b")
        values = [await mget(client, "k", "l", "shared", Fleet_Client=name) for name in "abc"]
        matched = [
            (await client.ask("match", b'["k", "l"]', Fleet_Client=name)).payload for name in "ab"
        ]
        pages = [
            (await client.ask("keys", b'{"limit": 1, "prefix": "k"}', Fleet_Client=name)).payload
            for name in "abc"
        ]
        after = await client.ask("keys", b'{"limit": 5, "after": "k"}', Fleet_Client="a")
        rest = await client.ask("keys", b'{"limit": 5}', Fleet_Client="a")
        with pytest.raises(RequestError, match="400 enable_sharing is off"):
            await client.ask("keys")
        with pytest.raises(RequestError, match="400 enable_sharing is off"):
            await mget(client, "k")

    assert values == [[b"a", b"a", None], [b"b", None, None], [None] * 3]
    assert matched == [b'{"matched":2}', b'{"matched":1}']
    assert [msgspec.json.decode(page)["keys"] for page in pages] == [["k"], ["k"], []]
    assert set(msgspec.json.decode(rest.payload)["keys"]) == {"k", "l"}
    assert set(msgspec.json.decode(after.payload)["keys"]) <= {"l"}


async def test_a_disabled_cache_finds_nothing_refuses_mput_and_counts_nothing(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    async with running(bus, **OFF):
        await mput(client, {"a": b"1"})
        await lmcache.configure(enabled=False)
        found = await mget(client, "a")
        matched = await match(client, "a")
        with pytest.raises(RequestError, match="503 enabled is off"):
            await mput(client, {"a": b"2"})
        stats = await client.stats()
        await lmcache.configure(enabled=True)
        again = await mget(client, "a")

    assert (found, matched, again) == ([None], 0, [b"1"])
    assert (stats.cache_hits, stats.cache_misses) == (0, 0)


async def test_short_prefixes_of_a_chain_are_not_kept(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    described = [{"key": str(tokens), "size": 1, "prefix_tokens": tokens} for tokens in (5, 10, 15)]
    async with running(bus, **OFF):
        await lmcache.configure(min_prefix_length=10)
        answer = await client.ask("mput", encode(described) + b"\n123", Fleet_Chain="1")
        found = await mget(client, "5", "10", "15")
        metrics = await lmcache.ask("metrics")

    assert len(msgspec.json.decode(answer.payload, type=list[str])) == 3
    assert found == [None, b"2", b"3"]
    assert metrics["tokens_computed"] == 25


@pytest.mark.parametrize("chain", [False, True], ids=["entries", "chain"])
async def test_without_auto_eviction_a_full_cache_refuses_what_does_not_fit(
    bus: Bus, client: Client, lmcache: Lmcache, *, chain: bool
) -> None:
    headers = {"Fleet_Chain": "1"} if chain else {}
    async with running(bus, **OFF):
        await lmcache.configure(auto_eviction=False)
        await client.put("held-1", bytes(350_000))
        await client.put("held-2", bytes(350_000))
        versions = await mput(client, {key: bytes(200_000) for key in "abc"}, **headers)
        stats = await client.stats()

    assert [getattr(one, "code", None) for one in versions] == [None, 413, 413]
    assert stats.evictions == 0


async def test_batches_count_tokens_and_bytes_as_single_requests_do(
    bus: Bus, client: Client, lmcache: Lmcache
) -> None:
    described = [{"key": key, "size": 3, "prefix_tokens": 16} for key in "ab"]
    async with running(bus, **OFF):
        await client.ask("mput", encode(described) + b"\n123456", Fleet_Chain="1")
        await mget(client, "a", "b", "c")
        metrics = await lmcache.ask("metrics")

    assert (metrics["tokens_computed"], metrics["tokens_served"]) == (32, 32)
    assert (metrics["tokens_cached"], metrics["cache_hits"], metrics["cache_misses"]) == (32, 2, 1)
