"""The client with values of any size, against a real cache on a real server."""

import asyncio
import contextlib
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent import asking
from agent.bus import Bus
from agent.client import CacheClient
from cache.uploads import Uploads
from schemas.cache import PART_BYTES, PARTS_IN_FLIGHT
from schemas.digest import RunningDigest
from schemas.protocols import Answer, Call, Endpoint, RequestError
from tests.support.cache_service import Client, running
from tests.support.waiting import until

pytestmark = pytest.mark.bus
OFF: dict[str, Any] = {"archive_mode": "off", "max_memory_mb": 32, "same_host": False}
LARGE = os.urandom(5 * PART_BYTES + 7)


@pytest.mark.parametrize(
    "size",
    [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, len(LARGE)],
)
async def test_a_value_of_any_size_comes_back(bus: Bus, cache: CacheClient, size: int) -> None:
    value = LARGE[:size]
    buffer = bytearray(size + 3)
    file = io.BytesIO()
    async with running(bus, **OFF):
        version = await cache.put("key", value)
        whole = await cache.get("key", verify=True)
        into = await cache.get_into("key", buffer, verify=True)
        copied = await cache.get_to("key", file, verify=True)
        opened = await cache.open("key", verify=True)
        assert opened is not None
        pieces = [piece async for piece in opened]
        newer = await cache.put("key", bytearray(value), version=version)

    assert whole == value
    assert (into, bytes(buffer)) == (size, value + bytes(3))
    assert (copied, file.getvalue()) == (size, value)
    assert b"".join(pieces) == value
    assert max(map(len, pieces)) <= PART_BYTES
    assert newer > version


async def test_a_miss_is_none_whichever_way_it_is_asked(bus: Bus, cache: CacheClient) -> None:
    async with running(bus, **OFF):
        answers = [
            await cache.get("key"),
            await cache.get_into("key", bytearray()),
            await cache.get_to("key", io.BytesIO()),
            await cache.open("key"),
        ]

    assert answers == [None] * 4


async def chunks(value: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(value), size):
        yield value[start : start + size]


@pytest.mark.parametrize("size", [100, len(LARGE)])
async def test_a_file_and_an_iterator_are_sent_as_they_are_read(
    bus: Bus, cache: CacheClient, tmp_path: Path, size: int
) -> None:
    path = tmp_path / "value"
    path.write_bytes(b"header" + LARGE[:size])
    async with running(bus, **OFF):
        with path.open("rb") as file:
            file.seek(6)
            await cache.put("file", file)
        await cache.put("iterator", chunks(LARGE[:size], 99_999), size_bytes=size)
        values = [await cache.get("file"), await cache.get("iterator")]

    assert values == [LARGE[:size]] * 2


@pytest.mark.parametrize("said", [len(LARGE) - 1, len(LARGE) + 1])
async def test_a_source_of_another_size_than_said_is_refused_and_nothing_kept(
    bus: Bus, cache: CacheClient, said: int
) -> None:
    async with running(bus, **OFF):
        with pytest.raises(ValueError, match=f"{said} bytes"):
            await cache.put("key", chunks(LARGE, PART_BYTES), size_bytes=said)
        with pytest.raises(ValueError, match="size_bytes"):
            await cache.put("key", chunks(LARGE, PART_BYTES))
        value = await cache.get("key")

    assert value is None


async def test_a_value_that_is_no_bytes_is_refused_by_its_type(cache: CacheClient) -> None:
    with pytest.raises(TypeError, match="bytes, a binary file or an async iterator, not str"):
        await cache.put("key", "text")  # type: ignore[arg-type]


async def test_a_buffer_that_is_too_small_is_left_alone(bus: Bus, cache: CacheClient) -> None:
    buffer = bytearray(len(LARGE) - 1)
    async with running(bus, **OFF):
        await cache.put("large", LARGE)
        await cache.put("small", LARGE[:100])
        with pytest.raises(ValueError, match=f"value of {len(LARGE)} bytes"):
            await cache.get_into("large", buffer)
        with pytest.raises(ValueError, match="buffer of 99 bytes"):
            await cache.get_into("small", bytearray(99))

    assert not any(buffer)


async def test_progress_grows_to_the_whole_value(bus: Bus, cache: CacheClient) -> None:
    sent: list[tuple[int, int]] = []
    got: list[tuple[int, int]] = []
    async with running(bus, **OFF):
        await cache.put("key", LARGE, on_progress=lambda *seen: sent.append(seen))
        await cache.get("key", on_progress=lambda *seen: got.append(seen))

    for seen in (sent, got):
        assert len(seen) == 6
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1] == (len(LARGE), len(LARGE))


class Meddler:
    """Stands before the cache's own endpoints of parts and ranges and spoils some requests."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.seen = 0
        self.spoil: Any = None

    async def serve(self) -> None:
        """Offer one large value, `LARGE`, from the instance `m`."""
        endpoints = [
            Endpoint("get", "cache.default.get", self.get),
            Endpoint("range", "cache.default.range.m", self.range),
        ]
        await self._bus.serve("meddler", endpoints, description="test")

    def get(self, _call: Call) -> Answer:
        return Answer(
            headers={
                "Fleet-Size": str(len(LARGE)),
                "Fleet-Version": f"v{self.seen}",
                "Fleet-Digest": hashlib.sha256(LARGE).hexdigest(),
                "Fleet-Instance": "m",
            }
        )

    def range(self, call: Call) -> Answer:
        self.seen += 1
        first, _, last = call.headers["Fleet-Range"].partition("-")
        answer = Answer(LARGE[int(first) : int(last) + 1])
        return answer if self.spoil is None else self.spoil(self.seen, answer)


@pytest.fixture
async def meddler(bus: Bus) -> Meddler:
    meddler = Meddler(bus)
    await meddler.serve()
    return meddler


async def test_a_value_that_changes_while_it_is_read_is_read_again(
    cache: CacheClient, meddler: Meddler
) -> None:
    def changed_once(seen: int, answer: Answer) -> Answer:
        if seen == 3:
            raise RequestError(409, "version v0 is no longer here")
        return answer

    meddler.spoil = changed_once

    assert await cache.get("key") == LARGE


@pytest.mark.parametrize(("nth", "code"), [(1, 409), (6, 409), (6, 503)])
async def test_a_file_is_begun_again_only_while_nothing_was_written_to_it(
    cache: CacheClient, meddler: Meddler, nth: int, code: int
) -> None:
    def fails_once(seen: int, answer: Answer) -> Answer:
        if nth <= seen < nth + 3:  # each try of a part
            raise RequestError(code, "gone")
        return answer

    meddler.spoil = fails_once
    file = io.BytesIO()

    with pytest.raises(RequestError, match=str(code)) if nth > 4 else contextlib.nullcontext():
        await cache.get_to("key", file)

    assert LARGE.startswith(file.getvalue())
    assert len(file.getvalue()) > 0


async def test_a_value_that_changes_without_end_is_given_up(
    cache: CacheClient, meddler: Meddler
) -> None:
    def changed(_seen: int, _answer: Answer) -> Answer:
        raise RequestError(409, "version is no longer here")

    meddler.spoil = changed

    with pytest.raises(RequestError, match="409 version is no longer here"):
        await cache.get("key")
    with pytest.raises(RequestError, match="409"):
        await cache.get_to("key", io.BytesIO())
    assert meddler.seen <= 2 * asking.TRIES * PARTS_IN_FLIGHT


async def test_busy_is_waited_for_and_a_part_that_fails_is_asked_for_again(
    cache: CacheClient, meddler: Meddler
) -> None:
    def busy(seen: int, answer: Answer) -> Answer:
        if seen <= 8:
            raise RequestError(429, "busy", retry_after_seconds=0.01)
        if seen in (9, 12):
            raise RequestError(503, "not now")
        return answer

    meddler.spoil = busy

    assert await cache.get("key") == LARGE


async def test_a_transfer_ends_at_its_deadline_and_says_how_far_it_came(
    cache: CacheClient, meddler: Meddler
) -> None:
    def silent(seen: int, answer: Answer) -> Answer | asyncio.Future[Answer]:
        return answer if seen <= 2 else asyncio.get_running_loop().create_future()

    meddler.spoil = silent

    with pytest.raises(RequestError, match=f"{2 * PART_BYTES} of {len(LARGE)} bytes") as late:
        await cache.get("key", deadline_seconds=0.5)
    assert late.value.code == 408


@pytest.mark.parametrize("verify", [True, False])
async def test_wrong_bytes_are_noticed_when_they_are_looked_at(
    cache: CacheClient, meddler: Meddler, verify: bool
) -> None:
    meddler.spoil = lambda _seen, answer: Answer(bytes(len(answer.payload)))

    if not verify:
        assert await cache.get("key") == bytes(len(LARGE))
        return
    with pytest.raises(RequestError, match="digest"):
        await cache.get("key", verify=True)
    opened = await cache.open("key", verify=True)
    assert opened is not None
    with pytest.raises(RequestError, match="digest"):
        [piece async for piece in opened]


async def test_a_range_of_another_size_than_asked_for_is_an_error(
    cache: CacheClient, meddler: Meddler
) -> None:
    meddler.spoil = lambda _seen, answer: Answer(answer.payload[:-1])

    with pytest.raises(RequestError, match="bytes for range"):
        await cache.get("key")


async def test_an_upload_that_the_cache_forgot_is_begun_again(bus: Bus, cache: CacheClient) -> None:
    async with running(bus, **OFF) as service:
        owned = service._owned["default"]
        forgotten = 0

        def forget(done: int, _total: int) -> None:
            nonlocal forgotten
            if done == PART_BYTES and not forgotten:
                forgotten = len(owned.uploads)
                owned.uploads.close()

        await cache.put("key", LARGE, on_progress=forget)
        value = await cache.get("key")

    assert forgotten == 1
    assert value == LARGE


async def test_a_cache_that_goes_away_in_the_middle_is_a_clear_error(
    bus: Bus, cache: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PAUSE_SECONDS", 0.001)
    async with running(bus, **OFF):
        await cache.put("key", LARGE)
        opened = await cache.open("key")
    assert opened is not None

    with pytest.raises(RequestError, match=r"503 nobody serves fleet\.v1\.cache\.default\.range"):
        [piece async for piece in opened]
    with pytest.raises(RequestError, match=r"503 nobody serves fleet\.v1\.cache\.default\.put"):
        await cache.put("key", LARGE)
    with pytest.raises(RequestError, match=r"503 nobody serves fleet\.v1\.cache\.default\.get"):
        await cache.get("key")


async def test_large_gets_while_the_value_is_replaced_never_mix_versions(
    bus: Bus, cache: CacheClient
) -> None:
    values = [bytes([number]) * (3 * PART_BYTES) for number in range(6)]
    async with running(bus, **OFF):
        await cache.put("key", values[0])
        raw = Client(bus)

        async def replace() -> None:
            for value in values[1:]:
                await cache.put("key", value)

        async def read() -> list[bytes | None]:
            found = []
            for _ in range(6):
                try:
                    found.append(await cache.get("key"))
                except RequestError as error:
                    found.append(None if error.code == 409 else b"")
            return found

        _, *reads = await asyncio.gather(replace(), read(), read())
        last = await cache.get("key")
        entries = (await raw.stats()).total_entries

    assert all(value is None or value in values for found in reads for value in found)
    assert last == values[-1]
    assert entries == 1


async def test_a_put_given_up_at_its_last_part_is_not_kept_after_the_next(
    bus: Bus, cache: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    finishing, may_finish = asyncio.Event(), asyncio.Event()

    class Slow(RunningDigest):
        async def finish(self) -> str:
            finishing.set()
            await may_finish.wait()
            return await super().finish()

    monkeypatch.setattr("cache.uploads.RunningDigest", Slow)
    async with running(bus, **OFF) as service:
        given_up = asyncio.create_task(cache.put("key", LARGE))
        await finishing.wait()
        given_up.cancel()
        await cache.put("key", b"new")
        may_finish.set()
        await asyncio.gather(given_up, return_exceptions=True)
        await until(lambda: service.counters()["uploads"] == 0)
        value = await cache.get("key")

    assert given_up.cancelled()
    assert value == b"new"


@pytest.mark.parametrize("way", ["cancelled", "late"])
async def test_a_put_given_up_before_its_begin_is_answered_leaves_no_upload(
    bus: Bus, cache: CacheClient, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    begun = asyncio.Event()
    begin = Uploads.begin

    async def never(_answer: Answer) -> Answer:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("nothing sets it")

    monkeypatch.setattr(Uploads, "begin", lambda *named: never(begin(*named)))
    async with running(bus, **OFF) as service:
        seconds = 60.0 if way == "cancelled" else 0.3
        putting = asyncio.create_task(cache.put("key", LARGE, deadline_seconds=seconds))
        await begun.wait()
        uploads = service.counters()["uploads"]
        if way == "cancelled":
            putting.cancel()
        (error,) = await asyncio.gather(putting, return_exceptions=True)
        counters = service.counters()

    assert uploads == 1
    assert isinstance(error, asyncio.CancelledError if way == "cancelled" else RequestError)
    assert (counters["uploads"], counters["receiving_bytes"]) == (0, 0)


async def test_a_put_whose_source_fails_leaves_no_upload(bus: Bus, cache: CacheClient) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield LARGE[:PART_BYTES]
        raise ValueError("no more")

    async with running(bus, **OFF) as service:
        with pytest.raises(ValueError, match="no more"):
            await cache.put("key", failing(), size_bytes=len(LARGE))
        counters = service.counters()

    assert (counters["uploads"], counters["receiving_bytes"]) == (0, 0)
