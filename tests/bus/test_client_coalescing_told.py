"""Puts at once of which the archive has to be told: together, after those it need not hear of."""

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest

from agent.bus import Bus
from agent.client import CacheClient
from agent.coalescing import TELLING_AT_ONCE
from schemas.api import BatchEntry, BatchError
from schemas.protocols import Answer, Call, Endpoint
from tests.support.cache_service import running, synced
from tests.support.slow_archive import SlowArchive
from tests.support.waiting import until

pytestmark = pytest.mark.bus


async def test_they_travel_together_in_a_message_of_their_own(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, client = SlowArchive(), CacheClient(bus)
    archived = [f"archived-{number}" for number in range(40)]
    new = [f"new-{number}" for number in range(20)]
    await archive.serve(bus, *archived)
    async with running(bus, max_memory_mb=64) as service:
        await synced(service)
        asked: Counter[str] = Counter()
        request = bus.request

        async def noted(subject: str, *arguments: Any, **options: Any) -> Answer:
            asked[subject] += 1
            return await request(subject, *arguments, **options)

        monkeypatch.setattr(bus, "request", noted)
        versions = await asyncio.gather(
            *(client.put(key, key.encode()) for key in ["first", *archived, *new])
        )
        monkeypatch.undo()
        found = await client.get_many([*archived, *new], restore=False)

    assert len(set(versions)) == 61
    assert found == {key: key.encode() for key in [*archived, *new]}
    assert asked == {"cache.default.put": 1, "cache.default.mput": 2}


class Told:
    """A cache whose archive has to be told of each entry, and is only once it may be."""

    def __init__(self) -> None:
        self.put_alone: list[str] = []
        self.telling = 0
        self.most_telling = 0
        self.may_tell = asyncio.Event()
        self.always_later = False

    def _put(self, call: Call) -> Answer:
        self.put_alone.append(call.headers["Fleet-Key"])
        return Answer(headers={"Fleet-Version": "1"})

    async def _mput(self, call: Call) -> Answer:
        count = len(msgspec.json.decode(call.payload.partition(b"\n")[0], type=list[BatchEntry]))
        later = BatchError(error="later", code=429, retry_after_seconds=0)
        if "Fleet-No-Wait" in call.headers or self.always_later:
            return Answer(msgspec.json.encode([later] * count))
        self.telling += 1
        self.most_telling = max(self.most_telling, self.telling)
        await self.may_tell.wait()
        self.telling -= 1
        return Answer(msgspec.json.encode(["1"] * count))

    async def serve(self, bus: Bus) -> None:
        ends = [
            Endpoint("put", "cache.default.put", self._put),
            Endpoint("mput", "cache.default.mput", self._mput),
        ]
        await bus.serve("cache", ends, description="test")


@pytest.fixture
async def told(bus: Bus) -> Told:
    cache = Told()
    await cache.serve(bus)
    return cache


async def test_few_messages_wait_at_once_and_who_has_no_time_for_that_goes_alone(
    bus: Bus, told: Told
) -> None:
    client = CacheClient(bus)
    puts = [asyncio.create_task(client.put("first", b"x"))]
    await asyncio.sleep(0)
    for number in range(2 * TELLING_AT_ONCE):
        puts += [
            asyncio.create_task(client.put(f"{number}-{n}", b"x", request_class=f"c{number}"))
            for n in range(5)
        ]
        await asyncio.sleep(0)
    await until(lambda: told.telling == TELLING_AT_ONCE)
    hurried = [
        asyncio.create_task(client.put(f"hurried-{n}", b"x", deadline_seconds=5.3))
        for n in range(5)
    ]
    await until(lambda: len(told.put_alone) == 6)
    await asyncio.gather(*hurried)
    telling = told.telling
    told.may_tell.set()
    await asyncio.gather(*puts)

    assert sorted(told.put_alone) == ["first", *(f"hurried-{n}" for n in range(5))]
    assert (telling, told.most_telling) == (TELLING_AT_ONCE, TELLING_AT_ONCE)


async def test_who_gives_up_waiting_is_not_sent(bus: Bus, told: Told) -> None:
    client = CacheClient(bus)
    puts = [
        asyncio.create_task(client.put(f"{number}", b"x", request_class=f"c{number // 5}"))
        for number in range(5 * TELLING_AT_ONCE + 5)
    ]
    await until(lambda: told.telling == TELLING_AT_ONCE)

    for put in puts:
        put.cancel()
    await asyncio.gather(*puts, return_exceptions=True)
    told.may_tell.set()
    await asyncio.gather(*(client.put(f"after-{number}", b"x") for number in range(6)))

    assert told.most_telling == TELLING_AT_ONCE


async def test_what_is_told_later_again_and_again_goes_alone(bus: Bus, told: Told) -> None:
    client, told.always_later = CacheClient(bus), True

    versions = await asyncio.gather(*(client.put(str(number), b"x") for number in range(10)))

    assert versions == ["1"] * 10
    assert len(told.put_alone) == 10
