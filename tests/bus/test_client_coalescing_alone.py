"""What travels alone though others are under way: it overtakes nobody, and nobody waits for it."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from agent.asking import REQUEST_SECONDS
from agent.batches import PutManyError
from agent.bus import Bus, ensure_streams
from agent.client import CacheClient
from cache.service import CacheService
from schemas.api import BatchEntry
from schemas.protocols import Answer, Call, Endpoint, RequestError
from tests.support.cache_service import running, synced
from tests.support.slow_archive import SlowArchive

pytestmark = pytest.mark.bus


class Number:
    """As numpy's: no int, but it has the text of one."""

    def __str__(self) -> str:
        return "16"


Last = Callable[[CacheClient], Awaitable[Any]]
LATER: dict[str, Last] = {
    "large": lambda client: client.put("k", bytes(100_000)),
    "bytearray": lambda client: client.put("k", bytearray(b"new")),
    "short deadline": lambda client: client.put("k", b"new", deadline_seconds=4),
    "many": lambda client: client.put_many({"k": b"new", "l": b"new"}),
    "delete": lambda client: client.delete("k"),
}


@pytest.mark.parametrize("later", LATER)
async def test_nothing_overtakes_a_put_of_its_key(
    service: CacheService, client: CacheClient, later: str
) -> None:
    await asyncio.gather(client.put("other", b"x"), client.put("k", b"old"), LATER[later](client))

    left = {"large": bytes(100_000), "delete": None}.get(later, b"new")
    assert await client.get("k") == left


async def test_what_a_neighbours_refusal_sends_alone_is_not_overtaken(
    service: CacheService, client: CacheClient
) -> None:
    results = await asyncio.gather(
        client.put("other", b"x"),
        client.put("k", b"old"),
        client.put("bad", b"x", prefix_tokens=-1),
        client.put("k", b"new"),
        client.put("another", b"x"),
        client.put("k", b"newest"),
        return_exceptions=True,
    )

    assert [isinstance(one, RequestError) for one in results] == [n == 2 for n in range(6)]
    assert await client.get("k") == b"newest"


async def test_who_gives_up_waiting_lets_nobody_overtake(bus: Bus, client: CacheClient) -> None:
    """The first put is not answered; the second gives up; the third waits for the first."""
    began, answer = asyncio.Event(), asyncio.Event()
    seen: list[bytes] = []

    async def put(call: Call) -> Answer:
        seen.append(call.payload)
        if call.payload == b"1":
            began.set()
            await answer.wait()
        return Answer(headers={"Fleet-Version": "1"})

    await bus.serve("cache", [Endpoint("put", "cache.default.put", put)], description="test")
    other = asyncio.create_task(client.put("other", b"x"))
    await asyncio.sleep(0)
    first = asyncio.create_task(client.put("k", b"1"))
    await began.wait()
    with pytest.raises(RequestError, match=r"408 not done within 0\.05 s"):
        await client.put("k", b"2", deadline_seconds=0.05)
    third = asyncio.create_task(client.put("k", b"3"))
    await client.put("others are served meanwhile", b"y")
    before = list(seen)
    answer.set()
    await asyncio.gather(other, first, third)

    assert b"3" not in before
    assert seen == [*before, b"3"]


class SlowPuts:
    """A cache whose put of `k` waits for the test, and whose batches are answered at once."""

    def __init__(self) -> None:
        self.began, self.may_answer = asyncio.Event(), asyncio.Event()
        self.kept: dict[str, bytes] = {}

    async def _put(self, call: Call) -> Answer:
        key = call.headers["Fleet-Key"]
        if key == "k" and not self.may_answer.is_set():
            self.began.set()
            await self.may_answer.wait()
        self.kept[key] = call.payload
        return Answer(headers={"Fleet-Version": "1"})

    def _mput(self, call: Call) -> Answer:
        line, _, values = call.payload.partition(b"\n")
        entries = msgspec.json.decode(line, type=list[BatchEntry])
        for entry in entries:
            self.kept[entry.key], values = values[: entry.size], values[entry.size :]
        return Answer(msgspec.json.encode(["1"] * len(entries)))

    async def hold(self, bus: Bus, client: CacheClient) -> list[asyncio.Task[str]]:
        """Serve, with a put of `k` under way that may travel with others."""
        ends = [
            Endpoint("put", "cache.default.put", self._put),
            Endpoint("mput", "cache.default.mput", self._mput),
        ]
        await bus.serve("cache", ends, description="test")
        puts = [asyncio.create_task(client.put("other", b"x"))]
        await asyncio.sleep(0)
        puts.append(asyncio.create_task(client.put("k", b"1")))
        await self.began.wait()
        return puts


async def test_who_waits_is_not_overtaken_in_any_of_its_keys(bus: Bus, client: CacheClient) -> None:
    cache = SlowPuts()
    puts: list[asyncio.Task[Any]] = [*await cache.hold(bus, client)]

    puts.append(asyncio.create_task(client.put_many({"k": b"2", "l": b"old"})))
    await asyncio.sleep(0)
    puts.append(asyncio.create_task(client.put("l", b"new")))
    await client.put("elsewhere", b"y")
    cache.may_answer.set()
    await asyncio.gather(*puts)

    assert (cache.kept["k"], cache.kept["l"]) == (b"2", b"new")


async def test_many_that_give_up_waiting_are_all_told(bus: Bus, client: CacheClient) -> None:
    cache = SlowPuts()
    puts = await cache.hold(bus, client)

    with pytest.raises(PutManyError) as late:
        await client.put_many({"k": b"2", "l": b"3"}, deadline_seconds=0.05)
    cache.may_answer.set()
    await asyncio.gather(*puts)

    assert {key: error.code for key, error in late.value.errors.items()} == {"k": 408, "l": 408}


async def test_after_a_wait_the_deadline_still_holds(bus: Bus, client: CacheClient) -> None:
    """What is left when the wait is over is less than a message of several may take."""
    cache = SlowPuts()
    puts = await cache.hold(bus, client)
    sent: list[str] = []
    client._puts.put = lambda *_: sent.append("together")  # type: ignore[assignment,method-assign]

    waiting = asyncio.create_task(client.put("k", b"2", deadline_seconds=REQUEST_SECONDS))
    await asyncio.sleep(0)
    cache.may_answer.set()
    await asyncio.gather(*puts, waiting)

    assert sent == []
    assert cache.kept["k"] == b"2"


async def test_a_deletion_by_tag_takes_what_was_begun_before(
    service: CacheService, client: CacheClient
) -> None:
    for number in range(20):
        await asyncio.gather(
            client.put("other", b"x"),
            client.put(f"k-{number}", b"x", tags=["t"]),
            client.put("another", b"x"),
            client.delete_tag("t"),
        )

    assert await client.get_many(f"k-{number}" for number in range(20)) == {}


async def test_what_was_given_up_does_not_come_after_what_its_caller_did_then(
    service: CacheService, client: CacheClient
) -> None:
    async def change_mind() -> None:
        try:
            await client.put("k", b"old")
        except asyncio.CancelledError:
            await client.put("k", bytearray(b"new"))

    puts = [asyncio.create_task(client.put(key, b"x")) for key in ("other", "another")]
    await asyncio.sleep(0)
    changing = asyncio.create_task(change_mind())
    third = asyncio.create_task(client.put("third", b"x"))
    await asyncio.sleep(0)
    changing.cancel()
    await asyncio.gather(*puts, changing, third)
    await client.put_many({"a": b"after", "b": b"all"})

    assert await client.get("k") == b"new"


@pytest.mark.parametrize(
    ("own", "is_refused"),
    [
        ({"prefix_tokens": Number()}, False),
        ({"cost_seconds": Number()}, False),
        ({"cost_seconds": float("nan")}, True),
        ({"cost_seconds": float("inf")}, True),
        ({"cost_seconds": 10**400}, True),
        ({"version": Number()}, True),
        ({"parent": "\ud800"}, True),
    ],
    ids=["tokens", "cost", "no cost", "endless cost", "huge cost", "version", "parent"],
)
async def test_what_one_says_of_itself_is_its_own_affair(
    service: CacheService, client: CacheClient, own: dict[str, Any], is_refused: bool
) -> None:
    results = await asyncio.gather(
        client.put("other", b"x"),
        client.put("innocent", b"x"),
        client.put("k", b"x", **own),
        client.put("another", b"x"),
        return_exceptions=True,
    )

    assert [isinstance(one, Exception) for one in results] == [False, False, is_refused, False]
    assert not isinstance(results[2], OverflowError)


@pytest.mark.parametrize("number", [1, 5])
async def test_nobody_waits_for_a_neighbours_tombstone(
    bus: Bus, client: CacheClient, number: int
) -> None:
    archive, keys = SlowArchive(), [f"archived-{n}" for n in range(number)]
    await archive.serve(bus, *keys)
    async with running(bus, tombstone_timeout_seconds=4) as service:
        await synced(service)
        await bus.jetstream.delete_stream(bus.names.stream("EVICTIONS"))
        first = asyncio.create_task(client.put("first", b"value"))
        await asyncio.sleep(0)
        archived = [asyncio.create_task(client.put(key, b"value")) for key in keys]
        async with asyncio.timeout(3):
            await asyncio.gather(client.put("new-1", b"value"), client.put("new-2", b"value"))
        waits = [not one.done() for one in archived]
        refused = await asyncio.gather(*archived, return_exceptions=True)
        await first
        await ensure_streams(bus)

    assert waits == [True] * number
    assert ["503 kept here" in str(one) for one in refused] == waits


async def test_what_an_answer_has_no_room_for_counts_as_used_once(bus: Bus) -> None:
    client = CacheClient(bus)
    async with running(bus, archive_mode="off", max_memory_mb=64):
        sizes = {"large": 600_000, **{f"middle-{n}": 300_000 for n in range(6)}}
        await client.put_many({key: bytes(size) for key, size in sizes.items()})
        await client.put_many({f"small-{n}": b"x" for n in range(40)})

        await asyncio.gather(
            *map(client.get, [f"small-{n}" for n in range(40)]), *map(client.get, sizes)
        )
        counts = [(await client.meta(key)).access_count for key in sizes]
        hits = (await client.stats()).cache_hits

    assert counts == [1] * 7
    assert hits == 47


async def test_a_class_without_a_name_is_none(service: CacheService, client: CacheClient) -> None:
    await client.put("key", b"value")

    found = await asyncio.gather(*(client.get("key", request_class="") for _ in range(3)))

    assert found == [b"value"] * 3


async def test_each_has_an_error_of_its_own(bus: Bus, client: CacheClient) -> None:
    def refuse(_call: Call) -> Answer:
        raise RequestError(503, "not now")

    ends = [Endpoint(name, f"cache.default.{name}", refuse) for name in ("get", "mget")]
    await bus.serve("cache", ends, description="test")

    gets = [client.get(str(n)) for n in range(6)]
    errors = [one for one in await asyncio.gather(*gets, return_exceptions=True)]

    assert len({id(error) for error in errors}) == 6
    assert {str(error) for error in errors} == {"503 not now"}


async def test_each_has_its_own_error_of_an_answer_that_makes_no_sense(
    bus: Bus, client: CacheClient
) -> None:
    def miss(_call: Call) -> Answer:
        return Answer(headers={"Fleet-Status": "miss"})

    def nonsense(_call: Call) -> Answer:
        return Answer(b"[what]\n")

    ends = [
        Endpoint("get", "cache.default.get", miss),
        Endpoint("mget", "cache.default.mget", nonsense),
    ]
    await bus.serve("cache", ends, description="test")

    gets = [client.get(str(n)) for n in range(6)]
    first, *errors = await asyncio.gather(*gets, return_exceptions=True)

    assert first is None
    assert [isinstance(error, msgspec.DecodeError) for error in errors] == [True] * 5
    assert len({id(error) for error in errors}) == 5
    assert len({str(error) for error in errors}) == 1


def test_a_client_that_is_dropped_goes_at_once(bus: Bus) -> None:
    gc.disable()
    try:
        client = CacheClient(bus).of("other")
        files = weakref.ref(client.same_host)
        del client
        assert files() is None
    finally:
        gc.enable()
