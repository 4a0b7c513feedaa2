"""Gets and puts of `CacheClient` that are under way at once, against a real cache."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from agent.bus import Bus, connect, ensure_streams
from agent.client import CacheClient
from agent.coalescing import MOST_TOGETHER, VALUE_BYTES
from cache.service import CacheService
from schemas.protocols import Answer, Call, Endpoint, RequestError, busy
from tests.support.cache_service import running, synced
from tests.support.server import NatsServer
from tests.support.slow_archive import SlowArchive
from tests.support.waiting import until

pytestmark = pytest.mark.bus


@pytest.fixture
def asked(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The requests that were sent, by operation."""
    sent: Counter[str] = Counter()
    request = Bus.request

    async def noted(self: Bus, subject: str, *arguments: Any, **options: Any) -> Answer:
        sent[subject.rpartition(".")[2]] += 1
        return await request(self, subject, *arguments, **options)

    monkeypatch.setattr(Bus, "request", noted)
    return sent


async def test_what_is_got_at_once_travels_together(
    service: CacheService, client: CacheClient, asked: Counter[str]
) -> None:
    values = {f"key-{number}": f"value {number}".encode() for number in range(100)}
    await client.put_many(values)
    before = await client.stats()
    asked.clear()

    found = await asyncio.gather(*map(client.get, [*values, "missing-1", "missing-2"]))
    sent = dict(asked)
    after = await client.stats()

    assert found == [*values.values(), None, None]
    assert sent == {"get": 1, "mget": 2}
    assert (after.cache_hits - before.cache_hits, after.cache_misses - before.cache_misses) == (
        100,
        2,
    )


async def test_hot_keys_do_not_keep_others_apart(
    service: CacheService, client: CacheClient, asked: Counter[str]
) -> None:
    await client.put_many({str(number): b"value" for number in range(40)})
    asked.clear()

    keys = [key for n in range(1, 40) for key in ([str(n), "0"] if n % 10 == 0 else [str(n)])]
    found = await asyncio.gather(*map(client.get, keys))

    assert found == [b"value"] * 42
    assert asked == {"get": 3, "mget": 1}


async def test_what_is_got_one_after_the_other_travels_alone(
    service: CacheService, client: CacheClient, asked: Counter[str]
) -> None:
    await client.put("key", b"value")
    asked.clear()

    found = [await client.get("key") for _ in range(5)]

    assert found == [b"value"] * 5
    assert asked == {"get": 5}


async def test_a_client_that_does_not_want_it_sends_each_alone(
    service: CacheService, client: CacheClient, asked: Counter[str]
) -> None:
    client.coalesce = False

    await asyncio.gather(*(client.put(f"key-{number}", b"value") for number in range(5)))
    found = await asyncio.gather(*(client.get(f"key-{number}") for number in range(5)))

    assert found == [b"value"] * 5
    assert asked == {"get": 5, "put": 5}


RIGHTS = """
authorization { users = [
  { user: all, password: all }
  { user: few, password: few, permissions: {
      publish: ["fleet.v1.cache.*.get", "fleet.v1.cache.*.put"], subscribe: ">" } }
] }
"""


async def test_who_may_only_get_and_put_does_so_in_every_namespace(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, RIGHTS)
    server.start()
    try:
        url = server.url.replace("//", "//{0}:{0}@")
        async with (
            await connect(url.format("all"), name="all") as bus,
            await connect(url.format("few"), name="few") as few,
        ):
            await ensure_streams(bus)
            async with running(bus, archive_mode="off", namespaces=["default", "other"]):
                client = CacheClient(few)
                client.coalesce = False
                for cache in (client, client.of("other")):
                    await asyncio.gather(*(cache.put(f"k-{n}", b"value") for n in range(4)))
                    found = await asyncio.gather(*(cache.get(f"k-{n}") for n in range(4)))
                    assert found == [b"value"] * 4
    finally:
        server.stop()


async def test_the_client_of_another_namespace_is_as_patient(bus: Bus, client: CacheClient) -> None:
    asked: list[Call] = []

    def refuse(call: Call) -> Answer:
        asked.append(call)
        raise busy("try later", 0.01)

    await bus.serve("cache", [Endpoint("put", "cache.other.put", refuse)], description="test")
    client.patient = False

    with pytest.raises(RequestError, match="429"):
        await client.of("other").put("key", b"value", deadline_seconds=2)
    assert len(asked) == 1


async def test_the_same_key_got_at_once_counts_each_time(
    service: CacheService, client: CacheClient, asked: Counter[str]
) -> None:
    await client.put("key", b"value")

    found = await asyncio.gather(*(client.get("key") for _ in range(10)))

    assert found == [b"value"] * 10
    assert asked["get"] + asked["mget"] == 10
    assert (await client.stats()).cache_hits == 10
    assert (await client.meta("key")).access_count == 10


async def test_large_values_and_long_keys_come_as_they_are(
    service: CacheService, client: CacheClient
) -> None:
    values = {
        "inline": bytes(500_000),
        "large": bytes(range(256)) * 4096,
        "k" * 10_000: b"long",
        "\x00": b"control",
        "small": b"value",
    }
    await client.put_many(values)

    for _ in range(3):
        found = await asyncio.gather(*map(client.get, values))
        assert found == list(values.values())


async def test_once_values_are_large_they_are_asked_for_alone(
    service: CacheService, client: CacheClient, asked: Counter[str]
) -> None:
    await client.put("key", bytes(VALUE_BYTES + VALUE_BYTES // 2))
    for _ in range(100):
        await client.get("key")
    asked.clear()

    await asyncio.gather(*(client.get("key") for _ in range(10)))

    assert asked == {"get": 10}


async def test_classes_and_restores_are_not_mixed(
    service: CacheService, client: CacheClient, asked: Counter[str]
) -> None:
    await client.put_many({str(number): b"value" for number in range(20)})
    asked.clear()

    found = await asyncio.gather(
        *(client.get(str(n), request_class="chat") for n in range(10)),
        *(client.get(str(n), request_class="agents", restore=False) for n in range(10, 20)),
    )

    assert found == [b"value"] * 20
    assert asked == {"get": 1, "mget": 2}
    classes = (await client.stats()).classes
    assert {name: one.hits_total for name, one in classes.items()} == {"chat": 10, "agents": 10}
    assert all(one.latency_p50_seconds for one in classes.values())


async def test_who_asks_with_what_is_in_ram_does_not_wait_for_the_archive(bus: Bus) -> None:
    archive, client = SlowArchive(), CacheClient(bus)
    await archive.serve(bus, "archived")
    async with running(bus, restore_timeout_seconds=20) as service:
        await synced(service)
        await client.put_many({"a": b"1", "b": b"2"}, ttl_seconds=0)

        deep = [asyncio.create_task(client.get("archived")) for _ in range(3)]
        found = await asyncio.gather(*map(client.get, ["a", "b", "a", "never"]))
        await until(lambda: archive.asked == ["archived"])
        waiting = [not task.done() for task in deep]
        archive.may_answer.set()
        missed = await asyncio.gather(*deep)
        stats = await client.stats()

    assert found == [b"1", b"2", b"1", None]
    assert waiting == [True] * 3
    assert missed == [None] * 3
    assert (stats.cache_hits, stats.cache_misses) == (3, 4)


async def test_what_is_put_at_once_travels_together_with_what_each_says_of_itself(
    service: CacheService, client: CacheClient, asked: Counter[str]
) -> None:
    numbers = range(1, MOST_TOGETHER + 20)

    versions = await asyncio.gather(
        *(
            client.put(
                f"key-{n}",
                bytes(n),
                prefix_tokens=n * 16,
                parent=f"key-{n - 1}",
                cost_seconds=n / 10,
                ttl_seconds=1000 + n if n % 30 else None,
                request_class="chat",
                tags=["model-7"],
                meta={"by": "test"},
            )
            for n in numbers
        )
    )
    sent = dict(asked)
    metas = [await client.meta(f"key-{n}") for n in numbers]
    found = await client.get_many(f"key-{n}" for n in numbers)

    assert sent == {"put": 1, "mput": 2}
    assert [meta.version for meta in metas] == versions
    assert [meta.prefix_tokens for meta in metas] == [n * 16 for n in numbers]
    assert [meta.ttl_seconds for meta in metas] == [1000 + n if n % 30 else None for n in numbers]
    assert [len(value) for value in found.values()] == list(numbers)
    assert (await client.stats()).classes["chat"].latency_p50_seconds is not None
    assert (await client.delete_tag("model-7")).entries == len(numbers)


async def test_what_is_not_to_be_archived_travels_with_the_others(
    service: CacheService, client: CacheClient, asked: Counter[str]
) -> None:
    """A time to live of 0 is one of its own, not none."""
    await asyncio.gather(*(client.put(str(n), b"v", ttl_seconds=n % 2 or None) for n in range(3)))
    await asyncio.gather(*(client.put(str(n), b"v", ttl_seconds=0) for n in range(3)))
    sent = dict(asked)

    assert sent == {"put": 2, "mput": 2}
    assert [(await client.meta(str(n))).ttl_seconds for n in range(3)] == [0, 0, 0]


async def test_of_one_key_put_at_once_the_last_stays(
    service: CacheService, client: CacheClient
) -> None:
    def put(key: str, number: int) -> Awaitable[str]:
        return client.put(key, str(number).encode(), ttl_seconds=60 if number % 3 else None)

    puts = [put(key, number) for number in range(20) for key in ("key", f"other-{number}")]

    versions = await asyncio.gather(*puts)

    assert await client.get("key") == b"19"
    assert versions[::2] == sorted(versions[::2])
    assert len(set(versions)) == 40


async def test_one_that_is_refused_harms_no_other(
    service: CacheService, client: CacheClient
) -> None:
    stale = await client.put("taken", b"before")
    await client.put("taken", b"here")
    asks: list[Any] = [
        client.put("first", b"1"),
        client.put("second", b"2"),
        client.put("taken", b"mine", version=stale),
        client.put("third", b"3", prefix_tokens=-1),
        client.put("fourth", b"4"),
    ]

    results = await asyncio.gather(*asks, return_exceptions=True)

    refusals = [one for one in results if isinstance(one, RequestError)]
    assert [isinstance(one, str) for one in results] == [True, True, False, False, True]
    assert [one.code for one in refusals] == [409, 400]
    assert "Fleet-Prefix-Tokens" in refusals[1].text
    assert await client.get_many(["taken", "first", "second", "third", "fourth"]) == {
        "taken": b"here",
        "first": b"1",
        "second": b"2",
        "fourth": b"4",
    }


async def test_one_that_gives_up_takes_nobody_along(
    service: CacheService, client: CacheClient
) -> None:
    await client.put_many({str(number): b"value" for number in range(10)})
    asking = [asyncio.create_task(client.get(str(number))) for number in range(10)]
    await asyncio.sleep(0)

    asking[4].cancel()
    found = await asyncio.gather(*asking, return_exceptions=True)

    assert isinstance(found[4], asyncio.CancelledError)
    assert found[:4] + found[5:] == [b"value"] * 9


async def test_each_hears_that_nobody_serves(bus: Bus, client: CacheClient) -> None:
    gets = [client.get(str(number)) for number in range(10)]
    puts = [client.put(str(number), b"value") for number in range(10)]

    results = await asyncio.gather(*gets, *puts, return_exceptions=True)

    assert [one.code for one in results if isinstance(one, RequestError)] == [503] * 20


async def test_each_ends_by_its_own_deadline(bus: Bus, client: CacheClient) -> None:
    answer = asyncio.Event()

    async def late(_call: Call) -> Answer:
        await answer.wait()
        return Answer()

    ends = [Endpoint(name, f"cache.default.{name}", late) for name in ("get", "mget", "put")]
    await bus.serve("cache", ends, description="test")
    gets = [client.get(str(number), deadline_seconds=0.2) for number in range(5)]
    long = asyncio.create_task(client.get("long"))

    async with asyncio.timeout(4):
        results = await asyncio.gather(*gets, return_exceptions=True)
    answer.set()
    await long

    assert [one.code for one in results if isinstance(one, RequestError)] == [408] * 5


async def test_those_that_travel_together_do_not_blame_their_deadline(
    bus: Bus, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is 60 s away when a message of several gets no answer."""
    monkeypatch.setattr("agent.cache_reads.REQUEST_SECONDS", 0.3)
    answer = asyncio.Event()

    async def late(_call: Call) -> Answer:
        await answer.wait()
        return Answer(headers={"Fleet-Version": "1", "Fleet-Status": "miss"})

    names = ("get", "mget", "put", "mput")
    ends = [Endpoint(name, f"cache.default.{name}", late) for name in names]
    await bus.serve("cache", ends, description="test")
    first = [asyncio.create_task(client.get("k")), asyncio.create_task(client.put("k", b"x"))]
    await asyncio.sleep(0)

    results = await asyncio.gather(
        *(client.get(str(number)) for number in range(4)),
        *(client.put(str(number), b"x") for number in range(4)),
        return_exceptions=True,
    )
    answer.set()
    await asyncio.gather(*first)

    texts = {result.text for result in results if isinstance(result, RequestError)}
    assert len(texts) == 2
    assert all(text.startswith("no answer from ") for text in texts), texts


async def test_what_is_left_of_a_get_many_is_not_exceeded_together(
    bus: Bus, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too large for its answers is asked for alone, when much of the time may be over."""
    monkeypatch.setattr("agent.cache_reads.REQUEST_SECONDS", 4.0)
    seen: list[str] = []
    answer = asyncio.Event()
    may_hold_none = asyncio.Event()

    async def get(call: Call) -> Answer:
        seen.append(f"get {call.payload.decode()}")
        await answer.wait()
        return Answer(headers={"Fleet-Status": "miss"})

    async def mget(call: Call) -> Answer:
        seen.append(f"mget {call.payload.decode()}")
        await may_hold_none.wait()
        return Answer(b"[-1,-1]\n")

    ends = [Endpoint("get", "cache.default.get", get), Endpoint("mget", "cache.default.mget", mget)]
    await bus.serve("cache", ends, description="test")
    held = asyncio.create_task(client.get("held"))
    many = [
        asyncio.create_task(client.get_many(keys, deadline_seconds=6.0)) for keys in ("ab", "de")
    ]
    with pytest.raises(RequestError):
        await client.get("c", deadline_seconds=3.0)
    may_hold_none.set()
    await until(lambda: len(seen) > 5)
    answer.set()
    found = await asyncio.gather(*many)
    await held

    assert found == [{}, {}]
    assert [one for one in seen if "mget" in one] == ['mget ["a","b"]', 'mget ["d","e"]']


@pytest.mark.parametrize("patient", [True, False])
async def test_a_busy_cache_is_waited_for_or_not_as_the_client_says(
    bus: Bus, client: CacheClient, patient: bool
) -> None:
    refused: set[str] = set()

    def refuse(_call: Call) -> Answer:
        raise busy("try later", 0.01)

    def put(call: Call) -> Answer:
        if call.headers["Fleet-Key"] not in refused:
            refused.add(call.headers["Fleet-Key"])
            raise busy("try later", 0.01)
        return Answer(headers={"Fleet-Version": "1"})

    ends = [
        Endpoint("mput", "cache.default.mput", refuse),
        Endpoint("put", "cache.default.put", put),
    ]
    await bus.serve("cache", ends, description="test")
    client.patient = patient

    puts = [client.put(str(number), b"value") for number in range(10)]
    results = await asyncio.gather(*puts, return_exceptions=True)

    codes = [one.code for one in results if isinstance(one, RequestError)]
    assert codes == ([] if patient else [429] * 10)
    assert len(refused) == 10
