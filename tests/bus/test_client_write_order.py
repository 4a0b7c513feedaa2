"""Writes of one client that are under way at once: which waits for which, on a real bus."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from agent.client import CacheClient
from cache.service import CacheService
from schemas.api import BatchEntry, CacheReply, TagReply
from schemas.protocols import Answer, Call, Endpoint, RequestError, busy
from tests.support.waiting import until

pytestmark = pytest.mark.bus


class Script:
    """A cache that notes what it is sent; what is `held` is answered once it may be."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.refusals: list[RequestError] = []
        self.held: set[str] = set()
        self.garbled: set[str] = set()
        """What is answered, but not as a cache does."""
        self.may_answer = asyncio.Event()

    async def _note(self, what: str) -> None:
        self.seen.append(what)
        if self.refusals:
            raise self.refusals.pop(0)
        if what in self.held:
            await self.may_answer.wait()

    async def _put(self, call: Call) -> Answer:
        await self._note(f"{call.headers['Fleet-Key']}={call.payload.decode()}")
        return Answer(headers={"Fleet-Version": "1"})

    async def _mput(self, call: Call) -> Answer:
        line, _, values = call.payload.partition(b"\n")
        entries = msgspec.json.decode(line, type=list[BatchEntry])
        for entry in entries:
            value, values = values[: entry.size], values[entry.size :]
            await self._note(f"{entry.key}={value.decode()}")
            if f"{entry.key}={value.decode()}" in self.garbled:
                return Answer(b"{")
        return Answer(msgspec.json.encode(["1"] * len(entries)))

    async def _delete(self, call: Call) -> Answer:
        await self._note(f"delete {call.payload.decode()}")
        is_tag = call.payload.startswith(b"{")
        reply = TagReply(entries=0, version="1") if is_tag else CacheReply(existed=True)
        return Answer(msgspec.json.encode(reply))

    async def serve(self, bus: Bus) -> None:
        ends = {"put": self._put, "mput": self._mput, "delete": self._delete}
        await bus.serve(
            "cache",
            [Endpoint(name, f"cache.default.{name}", call) for name, call in ends.items()],
            description="test",
        )


@pytest.fixture
async def script(bus: Bus) -> Script:
    cache = Script()
    await cache.serve(bus)
    return cache


TAG_T = 'delete {"tag":"t"}'


@pytest.mark.parametrize("coalesce", [True, False])
async def test_a_deletion_by_tag_waits_for_no_put_of_another_tag(
    script: Script, client: CacheClient, coalesce: bool
) -> None:
    client.coalesce = coalesce
    script.held = {"slow=x", "untagged=x"}
    puts = [
        asyncio.create_task(client.put("slow", b"x", tags=["other"])),
        asyncio.create_task(client.put("untagged", bytearray(b"x"))),
        asyncio.create_task(client.put_many({"a": b"x", "b": b"x"})),
    ]
    await until(lambda: len(script.seen) == 4)

    await client.delete_tag("t", deadline_seconds=10)
    waiting = [not put.done() for put in puts[:2]]
    script.may_answer.set()
    await asyncio.gather(*puts)

    assert waiting == [True, True]


@pytest.mark.parametrize("coalesce", [True, False])
async def test_a_deletion_by_tag_and_puts_with_it_take_turns(
    script: Script, client: CacheClient, coalesce: bool
) -> None:
    client.coalesce = coalesce
    script.held = {"k=old"}
    calls: list[Awaitable[Any]] = [
        client.put("k", b"old", tags=["t"]),
        client.delete_tag("t"),
        client.put("l", b"new", tags=["u", "t"]),
        client.put_many({"m": b"new"}, tags=["t"]),
    ]
    tasks = [asyncio.ensure_future(call) for call in calls]
    await until(lambda: "k=old" in script.seen)
    await client.put("elsewhere", b"x")
    before = list(script.seen)
    script.may_answer.set()
    await asyncio.gather(*tasks)

    assert before == ["k=old", "elsewhere=x"]
    assert script.seen[2] == TAG_T
    assert sorted(script.seen[3:]) == ["l=new", "m=new"]


@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("later", ["put", "bytearray", "delete", "put_many"])
async def test_what_is_sent_again_is_not_overtaken(
    script: Script, client: CacheClient, later: str, coalesce: bool
) -> None:
    """The first put of a key, which goes alone, is told to come later."""
    client.coalesce = coalesce
    script.refusals = [busy("try later", 0.05)]
    then: dict[str, Callable[[], Awaitable[Any]]] = {
        "put": lambda: client.put("k", b"new"),
        "bytearray": lambda: client.put("k", bytearray(b"new")),
        "delete": lambda: client.delete("k"),
        "put_many": lambda: client.put_many({"k": b"new"}),
    }

    await asyncio.gather(client.put("k", b"old"), then[later]())

    assert script.seen == ["k=old", "k=old", "delete k" if later == "delete" else "k=new"]


@pytest.mark.parametrize("later", ["put", "delete", "put_many"])
async def test_a_put_of_many_in_several_messages_is_not_overtaken(
    service: CacheService, client: CacheClient, later: str
) -> None:
    items = {f"k-{number}": bytes(60_000) for number in range(400)}
    putting = asyncio.create_task(client.put_many(items))
    await asyncio.sleep(0)

    then: dict[str, Callable[[], Awaitable[Any]]] = {
        "put": lambda: client.put("k-399", b"new"),
        "delete": lambda: client.delete("k-399"),
        "put_many": lambda: client.put_many({"k-399": b"new"}),
    }
    await asyncio.gather(putting, then[later]())

    assert await client.get("k-399") == (None if later == "delete" else b"new")


@pytest.mark.parametrize("later", ["put", "delete", "put_many"])
async def test_a_put_of_many_that_fails_is_not_overtaken_where_it_still_runs(
    script: Script, client: CacheClient, later: str
) -> None:
    script.held, script.garbled = {"slow=1"}, {"odd=1"}
    big = bytes(60_000)
    items = {"odd": b"1", **{f"a-{number}": big for number in range(40)}, "slow": b"1"}
    putting = asyncio.create_task(client.put_many(items))
    await until(lambda: {"odd=1", "slow=1"} <= set(script.seen))
    then: dict[str, Callable[[], Awaitable[Any]]] = {
        "put": lambda: client.put("slow", b"2"),
        "delete": lambda: client.delete("slow"),
        "put_many": lambda: client.put_many({"slow": b"2"}),
    }
    following = asyncio.ensure_future(then[later]())
    await client.put("other", b"3")  # behind all that was sent before it
    seen = list(script.seen)
    is_over = putting.done()
    script.may_answer.set()
    with pytest.raises(msgspec.DecodeError):
        await putting
    await following

    assert not is_over
    assert [one for one in seen if "slow" in one] == ["slow=1"]
    assert script.seen[-1] == ("delete slow" if later == "delete" else "slow=2")
    assert len(client._order) == 0


async def test_writes_of_one_key_that_nobody_answers_fail_together(
    script: Script, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cache_client.REQUEST_SECONDS", 0.5)
    script.held = {"k=x", "delete k"}
    calls: list[Awaitable[Any]] = [*(client.put("k", b"x") for _ in range(9)), client.delete("k")]

    async with asyncio.timeout(2.5):  # one after the other it would be 5 s
        results = await asyncio.gather(*calls, return_exceptions=True)

    assert [one.code for one in results if isinstance(one, RequestError)] == [408] * 10
    assert all("no answer" in str(one) for one in results)


async def test_after_one_that_was_given_up_the_next_has_the_rest_of_its_time(
    script: Script, client: CacheClient
) -> None:
    script.held = {"k=old"}

    results = await asyncio.gather(
        client.put("k", b"old", deadline_seconds=0.1),
        client.put("k", b"new"),
        return_exceptions=True,
    )

    assert isinstance(results[0], RequestError)
    assert results[1] == "1"


async def test_behind_one_that_was_slow_until_its_deadline_the_next_is_sent(
    service: CacheService, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it waited: the cache was there all the time."""
    monkeypatch.setattr("agent.cache_client.REQUEST_SECONDS", 0.2)

    async def source() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.Event().wait()

    results = await asyncio.gather(
        client.put("k", source(), size_bytes=10, deadline_seconds=0.3),
        client.put("k", b"new"),
        return_exceptions=True,
    )

    assert str(results[0]).startswith("408 not done within 0.3 s")
    assert isinstance(results[1], str)
    assert await client.get("k") == b"new"


async def test_a_call_that_ends_at_its_deadline_says_which_it_was(
    script: Script, client: CacheClient
) -> None:
    """Some of the time was used up before the request that got no answer."""
    script.refusals = [busy("try later", 0.05)]
    script.held = {"k=x"}

    with pytest.raises(RequestError) as late:
        await client.put("k", b"x", deadline_seconds=0.3)

    text = late.value.text
    assert text.startswith("not done within 0.3 s (deadline_seconds): no answer from ")
    assert late.value.code == 408


async def test_a_source_that_times_out_says_so_itself(
    service: CacheService, client: CacheClient
) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"abc"
        raise TimeoutError("the source's own")

    for size_bytes in (10, 1_000_000):
        with pytest.raises(TimeoutError, match="the source's own"):
            await client.put("k", source(), size_bytes=size_bytes)
