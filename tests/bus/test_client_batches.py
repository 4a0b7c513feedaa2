"""Many entries through `CacheClient`, against a real cache."""

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.batches import PutManyError
from agent.bus import Bus
from agent.client import CacheClient
from cache.entry import Entry
from cache.namespace import Namespace
from cache.outbox import Item
from cache.service import CacheService
from cache.tombstones import OutboxCrowdedError
from schemas.protocols import Answer, Call, Endpoint, RequestError, busy
from tests.support.archive_service import Heard, archiving
from tests.support.cache_service import running, synced
from tests.support.evictions import ManualClock
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus


async def test_more_than_a_message_holds_goes_in_several(
    service: CacheService, client: CacheClient
) -> None:
    values = {f"key-{number}": bytes([number % 256]) * 20_000 for number in range(2500)}
    some = dict(list(values.items())[:1200])  # 24 MB

    versions = await client.put_many(some)
    found = await client.get_many(values)
    matched = await client.match(list(values))

    assert list(versions) == list(some)
    assert found == some
    assert list(found) == list(some)
    assert matched == 1200


async def test_values_of_the_inline_limit_come_one_after_the_other(
    service: CacheService, client: CacheClient
) -> None:
    values = {key: key.encode() * 512 * 1024 for key in "abcde"}

    await client.put_many(values)

    assert await client.get_many([*"abcde", "absent", "a"]) == values
    assert service.counters()["hits_total"] == 5


async def test_long_keys_are_spread_over_messages(
    service: CacheService, client: CacheClient
) -> None:
    chain = {f"{number}" + "\x01" * 10_000: b"v" for number in range(100)}  # six times in JSON

    await client.put_many(chain, chain=True)

    assert await client.match(list(chain)) == 100
    assert await client.get_many(chain) == chain


async def test_a_chain_is_one_over_several_messages(
    service: CacheService, client: CacheClient, bus: Bus
) -> None:
    blocks = {f"block-{number}": bytes(300_000) for number in range(6)}

    await client.put_many(
        blocks,
        chain=True,
        parent="root",
        prefix_tokens={key: 16 * n for n, key in enumerate(blocks, 1)},
        cost_seconds=dict.fromkeys(blocks, 0.25),
        tags=["model-7"],
        meta={"a": "b"},
        request_class="chat",
        ttl_seconds=60,
    )
    metas = [await client.meta(key) for key in blocks]

    assert [meta.parent for meta in metas] == ["root", *list(blocks)[:-1]]
    assert [meta.prefix_tokens for meta in metas] == [16, 32, 48, 64, 80, 96]
    assert {(meta.cost_seconds, meta.request_class, meta.ttl_seconds) for meta in metas} == {
        (0.25, "chat", 60)
    }
    assert all((meta.tags, meta.meta) == (["model-7"], {"a": "b"}) for meta in metas)


async def test_nothing_is_sent_of_what_is_too_large(
    service: CacheService, client: CacheClient
) -> None:
    with pytest.raises(ValueError, match="10240"):
        await client.put_many({"a": b"1", "k" * 10_241: b"2"})

    assert await client.get("a") is None


@pytest.mark.parametrize(
    ("wrong", "costs", "kind", "text"),
    [
        ({"bad": "text"}, {}, TypeError, "the value of 'bad' is bytes, not str"),
        ({5: b"5"}, {}, TypeError, "the key is a str, not int"),
        ({"bad": b"x"}, {"bad": float("nan")}, ValueError, "cost_seconds is nan"),
    ],
    ids=["value", "key", "cost"],
)
async def test_where_one_is_wrong_none_is_sent(
    service: CacheService,
    client: CacheClient,
    wrong: Any,
    costs: dict[str, float],
    kind: type[Exception],
    text: str,
) -> None:
    items = {f"key-{number}": bytes(60_000) for number in range(100)}  # several messages

    with pytest.raises(kind, match=text):
        await client.put_many({**items, **wrong}, cost_seconds=costs)

    assert await client.get_many(items) == {}


async def test_views_of_wider_items_are_put_whole(
    service: CacheService, client: CacheClient
) -> None:
    floats = array("d", range(1000))
    large = array("d", range(100_000))  # above the inline limit in bytes, not in items
    items: dict[str, bytes | bytearray | memoryview] = {
        "floats": memoryview(floats),
        "large": memoryview(large),
        "square": memoryview(bytes(36)).cast("i", (3, 3)),
        "none": memoryview(array("d")),
        "no rows": memoryview(b"").cast("B"),
        "growing": bytearray(b"abc"),
        "bytes": b"abc",
    }
    expected = {key: bytes(memoryview(value)) for key, value in items.items()}

    versions = await client.put_many(items)
    chained = await client.put_many({f"c {key}": one for key, one in items.items()}, chain=True)

    assert list(versions) == list(items)
    assert len(chained) == len(items)
    assert await client.get_many(items) == expected
    assert await client.get_many([f"c {key}" for key in items]) == {
        f"c {key}": value for key, value in expected.items()
    }
    assert len(expected["large"]) == 800_000


async def test_a_value_in_pieces_is_refused_by_its_key(
    service: CacheService, client: CacheClient
) -> None:
    with pytest.raises(TypeError, match="the value of 'b' is in pieces in memory"):
        await client.put_many({"a": b"1", "b": memoryview(b"123456")[::2]})

    assert await client.get_many("ab") == {}


@pytest.mark.parametrize(
    ("wrong", "kind", "text"),
    [
        (5, TypeError, "the key is a str, not int: 5"),
        (b"bytes", TypeError, "the key is a str, not bytes: b'bytes'"),
        (None, TypeError, "the key is a str, not NoneType: None"),
        ("", ValueError, "the key is empty"),
        ("k" * 10_241, ValueError, "key of 10241 bytes exceeds"),
        ("\udcff", ValueError, "not UTF-8 text"),
    ],
    ids=["int", "bytes", "none", "empty", "long", "no text"],
)
async def test_a_key_that_can_be_none_is_named_before_anything_is_asked(
    client: CacheClient, wrong: Any, kind: type[Exception], text: str
) -> None:
    # Nobody serves: who asked would be told that.
    for asked in (client.get_many(["a", wrong]), client.match(["a", wrong])):
        with pytest.raises(kind, match=text):
            await asked


async def test_refusals_name_the_entries_and_what_follows_them_in_a_chain_is_not_sent(
    service: CacheService, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = {f"block-{number}": bytes(300_000) for number in range(9)}  # three in a message
    client.patient = False
    refuses = iter([False, True])
    monkeypatch.setattr("cache.limits.Limits.refuses", lambda *_: next(refuses))

    with pytest.raises(PutManyError, match="429 6 entries refused; 'block-3'") as refused:
        await client.put_many(blocks, chain=True)

    assert list(refused.value.versions) == ["block-0", "block-1", "block-2"]
    assert [error.code for error in refused.value.errors.values()] == [429] * 3 + [409] * 3
    assert await client.match(list(blocks)) == 3


async def test_a_chain_that_was_read_in_several_messages_loses_its_tail_first(
    bus: Bus, client: CacheClient
) -> None:
    chain = {f"block-{number}": bytes(100_000) for number in range(20)}  # 9 fit into an answer
    async with running(bus, archive_mode="off", max_memory_mb=3, eviction_policy="lru"):
        await client.put_many(chain)
        found = await client.get_many(list(chain))
        await client.put_many({f"other-{number}": bytes(500_000) for number in range(3)})
        by_key = [await client.exists(key) for key in chain]

    assert found == chain
    assert by_key == sorted(by_key, reverse=True)
    assert 0 < sum(by_key) < 20


async def test_entries_for_which_the_cache_was_busy_are_put_again_and_no_others(
    service: CacheService, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, asked = Namespace.put, []

    def busy_once_with_b(space: Namespace, entry: Entry, version: str | None = None) -> Item | None:
        asked.append(entry.key)
        if asked.count("b") == 1 and entry.key == "b":
            raise OutboxCrowdedError
        return put(space, entry, version)

    monkeypatch.setattr(Namespace, "put", busy_once_with_b)
    versions = await client.put_many({"a": b"1", "b": b"2", "c": b"3"})
    asked.clear()
    client.patient = False
    with pytest.raises(PutManyError) as refused:
        await client.put_many({"a": b"1", "b": b"2", "c": b"3"})

    assert set(versions) == {"a", "b", "c"}
    assert asked == ["a", "b", "c"]
    error = refused.value.errors["b"]
    assert (error.code, error.retry_after_seconds) == (429, 0.5)
    assert set(refused.value.versions) == {"a", "c"}


async def test_busy_is_waited_for_by_whatever_is_asked(
    service: CacheService, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy_twice(*_: object) -> None:
        asked.append(time.monotonic())
        if len(asked) % 3:
            raise busy("full", 0.01)

    asked: list[float] = []
    monkeypatch.setattr("cache.endpoints.NamespaceEndpoints._check_owned", busy_twice)
    monkeypatch.setattr("cache.batch.BatchEndpoints._check_owned", busy_twice)

    await client.put_many({"a": b"1"})
    found = await client.get_many("ab")
    existed = await client.exists("a")

    assert found == {"a": b"1"}
    assert existed
    assert len(asked) == 9


async def test_who_would_wait_beyond_the_deadline_is_told_at_once(
    service: CacheService, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise busy("full", 1000.0)

    monkeypatch.setattr("cache.endpoints.NamespaceEndpoints._check_owned", full)

    with pytest.raises(RequestError, match="429 full") as refused:
        await client.put("a", b"1")

    assert refused.value.retry_after_seconds == 1000


async def silent(_call: Call) -> Answer:
    await asyncio.Event().wait()
    return Answer()


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda client: client.put("a", b"1", deadline_seconds=0.1), id="put"),
        pytest.param(
            lambda client: client.put("a", bytes(300_000), deadline_seconds=0.1), id="put by file"
        ),
        pytest.param(lambda client: client.get("a", deadline_seconds=0.1), id="get"),
        pytest.param(lambda client: client.exists("a", deadline_seconds=0.1), id="exists"),
        pytest.param(lambda client: client.get_many("a", deadline_seconds=0.1), id="get_many"),
        pytest.param(
            lambda client: client.put_many({"a": b"1"}, deadline_seconds=0.1), id="put_many"
        ),
        pytest.param(lambda client: client.match(["a"], deadline_seconds=0.1), id="match"),
        pytest.param(lambda client: anext(client.keys(deadline_seconds=0.1)), id="keys"),
        pytest.param(lambda client: client.warm("a", deadline_seconds=0.1), id="warm"),
    ],
)
async def test_every_call_ends_at_its_deadline(
    bus: Bus,
    client: CacheClient,
    ask: Callable[[CacheClient], Awaitable[object]],
) -> None:
    await bus.serve("cache", [Endpoint("all", "cache.default.>", silent)], description="test")

    async with asyncio.timeout(20):
        with pytest.raises(RequestError, match=r"408 .*within 0\."):
            await ask(client)


async def test_a_match_over_several_messages_ends_at_the_first_gap(
    service: CacheService, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.batches.MAX_CHAIN_KEYS", 3)
    keys = [f"block-{number}" for number in range(9)]
    await client.put_many(dict.fromkeys(keys, b"v"), chain=True)

    whole = await client.match(keys)
    await client.delete("block-4")
    to_the_gap = await client.match(keys)
    await client.delete("block-3")
    to_the_end_of_a_message = await client.match(keys)

    assert (whole, to_the_gap, to_the_end_of_a_message) == (9, 4, 3)


async def test_a_chain_that_was_matched_in_several_messages_loses_its_tail_first(
    bus: Bus, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.batches.MAX_CHAIN_KEYS", 3)
    chain = {f"block-{number}": bytes(100_000) for number in range(8)}
    async with running(bus, archive_mode="off"):
        await client.put_many(chain, chain=True)
        await client.match(list(chain))
        await client.put("other", bytes(500_000))
        by_key = [await client.exists(key) for key in chain]

    assert by_key == sorted(by_key, reverse=True)
    assert 0 < sum(by_key) < 8


async def test_keys_are_an_iterator_over_all_pages(
    service: CacheService, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.batches.KEYS_A_PAGE", 7)
    await client.put_many({f"a/{number}": b"" for number in range(30)} | {"b": b""})

    assert sorted([key async for key in client.keys("")]) == sorted(
        ["b", *(f"a/{number}" for number in range(30))]
    )
    assert len([key async for key in client.keys("a/")]) == 30


async def test_a_tag_is_deleted(service: CacheService, client: CacheClient) -> None:
    await client.put_many({"a": b"1", "b": b"2"}, tags=["model, 7"])
    await client.put("c", b"3")

    deleted = await client.delete_tag("model, 7")

    assert deleted.entries == 2
    assert await client.get_many("abc") == {"c": b"3"}


async def test_a_text_in_place_of_tags_is_no_list_of_letters(
    service: CacheService, client: CacheClient
) -> None:
    with pytest.raises(TypeError, match="not one str: 'model-7'"):
        await client.put("a", b"1", tags="model-7")
    with pytest.raises(TypeError, match="not one str: 'model-7'"):
        await client.put_many({"a": b"1"}, tags="model-7")

    assert await client.get("a") is None


async def test_nothing_is_nothing(service: CacheService, client: CacheClient) -> None:
    assert await client.get_many([]) == {}
    assert await client.put_many({}) == {}
    assert await client.put_many({}, chain=True) == {}
    assert await client.match([]) == 0
    assert [key async for key in client.keys("")] == []


async def test_warming_brings_keys_back(bus: Bus, client: CacheClient, tmp_path: Path) -> None:
    clock = ManualClock()
    heard = await Heard.on(bus, "archived.stored.>")
    async with (
        archiving(bus, tmp_path / "archive", clock=clock),
        running(bus, clock=clock, warm_per_second=1000, warm_evict_ratio=1) as service,
    ):
        await synced(service)
        values = {f"key-{number}": b"value" for number in range(10)}
        await client.put_many(values)
        await client.put_many({key: bytes(500_000) for key in "abc"}, ttl_seconds=0)
        for _ in values:
            await heard.stored()

        async def is_done() -> bool:
            return (await client.warm()).waiting == 0

        accepted = (await client.warm(values)).accepted
        await until_async(is_done)
        found = await client.get_many(values, restore=False)

    assert accepted == 10
    assert found == values


async def test_a_whole_refusal_of_a_reading_call_is_its_error(
    bus: Bus, client: CacheClient
) -> None:
    with pytest.raises(RequestError) as nobody:
        await client.get_many(["a"])

    assert nobody.value.code == 503
