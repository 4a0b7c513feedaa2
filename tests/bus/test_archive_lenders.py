"""Caches that lend large values, and do not answer as they should."""

import asyncio
import os

import pytest

from agent.bus import Bus
from archive import lenders
from schemas.cache import LENDER_HEADER, PART_BYTES, read_range
from schemas.protocols import Answer, Call, Endpoint
from tests.support.archive_service import Heard, archiving
from tests.support.evictions import FailingStore, evicted, manifest_headers
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus
LARGE = os.urandom(2 * PART_BYTES + 100_000)
"""Three parts."""


class Lender:
    """A cache that lends `LARGE` by any token, and answers when it `may_answer`."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked: list[str | None] = []

    def endpoint(self) -> Endpoint:
        return Endpoint("lent", "cache.default.lent.c1", self._read)

    async def _read(self, call: Call) -> Answer:
        token = call.headers.get("Fleet-Eviction")
        self.asked.append(token)
        await self.may_answer.wait()
        return Answer() if token is None else Answer(LARGE[slice(*read_range(call.headers, 2**30))])


async def lend(bus: Bus, key: str, lender: str = "c1") -> None:
    manifest = evicted(key, LARGE, parts=3, eviction=f"c1-b-{key}")
    headers = {**manifest_headers(manifest), LENDER_HEADER: lender}
    await bus.publish_raw("evicted.default", b"", headers, message_id=f"m.{key}")


async def no_evictions(bus: Bus) -> bool:
    return (await bus.stream_state("EVICTIONS")).messages == 0


async def test_a_cache_that_did_not_answer_is_not_waited_for_again_until_it_does(
    bus: Bus, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lenders, "PART_SECONDS", 0.3)
    monkeypatch.setattr(lenders, "HEARD_SECONDS", 0.2)
    heard = await Heard.on(bus, "archived.>")
    lender = Lender()
    served = await bus.serve("cache", [lender.endpoint()], description="test")
    async with archiving(bus, store) as archive:
        asked = []
        for key in ("1", "2"):
            await lend(bus, key)
            await until_async(lambda: no_evictions(bus))
            asked.append(set(lender.asked))
            lender.asked.clear()
        lender.may_answer.set()
        monkeypatch.setattr(lenders, "PART_SECONDS", 5.0)
        monkeypatch.setattr(lenders, "HEARD_SECONDS", 5.0)
        for key in ("3", "4"):
            await lend(bus, key)
            assert (await heard.stored()).key == key
            asked.append(set(lender.asked))
            lender.asked.clear()
        dead = archive.counters().get("dead_total", 0)
    await served.stop()

    assert asked == [{"c1-b-1"}, {None}, {None, "c1-b-3"}, {"c1-b-4"}]
    assert dead == 0


@pytest.mark.parametrize("length", [129, 5000])
async def test_a_lender_whose_name_is_none_is_not_asked(
    bus: Bus, store: FailingStore, length: int
) -> None:
    lender = "c" * length
    async with archiving(bus, store):
        await lend(bus, "1", lender)
        await until_async(lambda: no_evictions(bus))
        answer = await bus.request(
            "api.archive.keys.default", headers={LENDER_HEADER: lender}, timeout_seconds=5
        )
        gives = await lenders.Lenders(bus).gives_parts("n" * length, "c1")

    assert "Fleet-Asks" not in answer.headers
    assert not gives
    # The server closes the connection at a subject of 4 KiB.
    assert bus.counters["disconnects_total"] == 0
