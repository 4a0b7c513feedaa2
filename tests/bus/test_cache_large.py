"""Values above the inline limit: uploads in parts and reads by ranges, on a real server."""

import asyncio
import hashlib
import os
from typing import Any

import pytest

from agent.bus import Bus
from agent.client import CacheClient
from cache.requests import PutRequest
from cache.room import Room
from cache.service import CacheService
from cache.uploads import Uploads
from cache.value_file import Draft
from schemas.api import CacheReply
from schemas.cache import PART_BYTES
from schemas.digest import RunningDigest, digest_of
from schemas.protocols import Answer, Call, RequestError
from tests.support.cache_service import Client, running
from tests.support.evictions import ManualClock
from tests.support.waiting import until

pytestmark = pytest.mark.bus
OFF: dict[str, Any] = {"archive_mode": "off", "max_memory_mb": 16}
VALUE = os.urandom(2 * PART_BYTES + 1)
"""Three parts, the last one of a single byte."""


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus)


def sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


async def begin(client: Client, key: str = "key", value: bytes = VALUE, **headers: str) -> str:
    """The name of an upload."""
    named = {"Fleet_Size": str(len(value)), "Fleet_Digest": sha256(value), **headers}
    answer = await client.ask("put", b"", Fleet_Key=key, **named)
    assert answer.headers["Fleet-Instance"] == "c1"
    return answer.headers["Fleet-Upload"]


async def send(client: Client, upload: str, part: int, value: bytes = VALUE) -> Answer:
    payload = value[part * PART_BYTES : (part + 1) * PART_BYTES]
    return await client.ask("put.c1", payload, Fleet_Upload=upload, Fleet_Part=str(part))


def _is_finishing(service: CacheService, name: str) -> bool:
    upload = service._owned["default"].uploads._uploads.get(name)
    return upload is not None and upload.finisher is not None


async def read(client: Client, hit: Answer, first: int, last: int, key: str = "key") -> bytes:
    version = hit.headers["Fleet-Version"]
    asked = {"Fleet_Version": version, "Fleet_Range": f"{first}-{last}"}
    return (await client.ask("range.c1", key.encode(), **asked)).payload


async def test_a_value_in_parts_is_read_in_ranges(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF) as service:
        upload = await begin(client)
        answers = [await send(client, upload, part) for part in range(3)]
        hit = await client.ask("get", b"key")
        whole = b"".join(
            [
                await read(client, hit, 0, PART_BYTES - 1),
                await read(client, hit, PART_BYTES, 2 * PART_BYTES - 1),
                await read(client, hit, 2 * PART_BYTES, 2 * PART_BYTES),
            ]
        )
        meta = await client.meta("key")
        counters = service.counters()

    assert whole == VALUE
    assert [answer.headers.get("Fleet-Version") for answer in answers] == [None, None, meta.version]
    assert hit.payload == b""
    assert hit.headers == {
        "Fleet-Version": meta.version,
        "Fleet-Size": str(len(VALUE)),
        "Fleet-Digest": sha256(VALUE),
        "Fleet-Instance": "c1",
    }
    assert (counters["hits_total"], counters["puts_total"]) == (1, 1)
    assert (counters["uploads"], counters["receiving_bytes"]) == (0, 0)


async def test_parts_may_come_in_any_order_and_twice(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF) as service:
        upload = await begin(client)
        await send(client, upload, 2)
        await send(client, upload, 0)
        await send(client, upload, 0, bytes(len(VALUE)))  # the first one counts
        before = await client.ask("get", b"key")
        done = await send(client, upload, 1)
        again = await send(client, upload, 1)
        hit = await client.ask("get", b"key")
        middle = await read(client, hit, PART_BYTES - 5, PART_BYTES + 5)
        puts = service.counters()["puts_total"]

    assert before.headers == {"Fleet-Status": "miss"}
    assert done.headers == again.headers == {"Fleet-Version": hit.headers["Fleet-Version"]}
    assert middle == VALUE[PART_BYTES - 5 : PART_BYTES + 6]
    assert puts == 1


@pytest.mark.parametrize(
    "digest",
    ["", sha256(VALUE), digest_of(VALUE, like="blake2b:"), digest_of(VALUE)],
    ids=["missing", "sha256", "blake2b", "blake3"],
)
async def test_the_digest_may_come_with_a_part(bus: Bus, client: Client, digest: str) -> None:
    async with running(bus, **OFF):
        answer = await client.ask("put", Fleet_Key="key", Fleet_Size=str(len(VALUE)))
        upload = answer.headers["Fleet-Upload"]
        await send(client, upload, 0)
        await send(client, upload, 1)
        last: dict[str, str] = {"Fleet_Digest": digest} if digest else {}
        sending = client.ask("put.c1", VALUE[-1:], Fleet_Upload=upload, Fleet_Part="2", **last)
        if digest:
            await sending
        else:
            with pytest.raises(RequestError, match="400 header Fleet-Digest is missing"):
                await sending
        exists = await client.reply("exists", CacheReply, b"key")

    assert exists.existed is bool(digest)


@pytest.mark.parametrize("algorithm", ["", "blake2b:", "blake3:"])
async def test_a_wrong_digest_keeps_nothing_and_leaves_what_was_there(
    bus: Bus, client: Client, algorithm: str
) -> None:
    async with running(bus, **OFF) as service:
        await client.put("key", b"old")
        upload = await begin(client, Fleet_Digest=algorithm + 64 * "0")
        await send(client, upload, 0)
        await send(client, upload, 1)
        with pytest.raises(RequestError, match="400 header Fleet-Digest: the parts have another"):
            await send(client, upload, 2)
        kept = await client.get("key")
        with pytest.raises(RequestError, match="404 header Fleet-Upload"):
            await send(client, upload, 2)
        receiving = service.counters()["receiving_bytes"]

    assert kept == b"old"
    assert receiving == 0


@pytest.mark.parametrize(
    ("headers", "payload", "code", "text"),
    [
        pytest.param({"Fleet_Upload": "x"}, b"", 404, "no such upload", id="unknown upload"),
        pytest.param({"Fleet_Part": ""}, b"", 400, "Fleet-Part", id="no part"),
        pytest.param({"Fleet_Part": "3"}, b"v", 400, "0 to 2", id="part after the last"),
        pytest.param({"Fleet_Part": "-1"}, b"v", 400, "0 to 2", id="negative part"),
        pytest.param({"Fleet_Part": "9" * 5000}, b"v", 400, "0 to 2", id="endless part"),
        pytest.param({}, b"", 400, "part 0 has 524288 bytes, not 0", id="empty part"),
        pytest.param({"Fleet_Part": "2"}, b"vv", 400, "part 2 has 1 bytes", id="part too long"),
        pytest.param({"Fleet_Digest": "x"}, bytes(PART_BYTES), 400, "Fleet-Digest", id="digest"),
    ],
)
async def test_a_part_that_makes_no_sense_is_refused_and_the_upload_goes_on(
    bus: Bus, client: Client, headers: dict[str, str], payload: bytes, code: int, text: str
) -> None:
    async with running(bus, **OFF):
        upload = await begin(client)
        asked = {"Fleet_Upload": upload, "Fleet_Part": "0", **headers}
        with pytest.raises(RequestError, match=text) as refused:
            await client.ask("put.c1", payload, **asked)
        for part in range(3):
            await send(client, upload, part)
        exists = await client.reply("exists", CacheReply, b"key")

    assert refused.value.code == code
    assert exists.existed


@pytest.mark.parametrize(
    ("asked", "code", "text"),
    [
        pytest.param({"Fleet_Range": "0-524288"}, 400, "at most 524288", id="too long"),
        pytest.param({"Fleet_Range": "1048577-1048577"}, 400, "last < 1048577", id="behind"),
        pytest.param({"Fleet_Range": "5-4"}, 400, "first <= last", id="backwards"),
        pytest.param({"Fleet_Range": "-5"}, 400, "first-last", id="from the end"),
        pytest.param({"Fleet_Range": "0-"}, 400, "first-last", id="open"),
        pytest.param({}, 400, "Fleet-Range", id="no range"),
        pytest.param({"Fleet_Version": ""}, 400, "Fleet-Version", id="bad version"),
        pytest.param({"Fleet_Version": f"{0:012x}-{0:010x}"}, 409, "no longer", id="other version"),
    ],
)
async def test_a_range_that_makes_no_sense_names_the_header(
    bus: Bus, client: Client, asked: dict[str, str], code: int, text: str
) -> None:
    async with running(bus, **OFF):
        version = await CacheClient(bus).put("key", VALUE)
        with pytest.raises(RequestError, match=text) as refused:
            await client.ask("range.c1", b"key", **{"Fleet_Version": version, **asked})

    assert refused.value.code == code


async def test_what_cannot_be_kept_is_refused_before_it_is_sent(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF, max_value_bytes=2_000_000):
        with pytest.raises(RequestError, match=r"cache\.max_value_bytes") as too_large:
            await client.ask("put", Fleet_Key="key", Fleet_Size="2000001")
        with pytest.raises(RequestError, match="no such entry is here") as conflict:
            await begin(client, Fleet_Version=f"{0:012x}-{0:010x}")
        exact = await begin(client, value=bytes(2_000_000))

    assert (too_large.value.code, conflict.value.code) == (413, 409)
    assert exact


async def test_uploads_hold_no_more_than_their_room_and_then_answer_429_with_a_hint(
    bus: Bus, client: Client
) -> None:
    async with running(bus, **OFF, uploads_max_bytes=2 * len(VALUE)) as service:
        first = await begin(client, "a")
        await begin(client, "b")
        with pytest.raises(RequestError, match="uploads_max_bytes") as refused:
            await begin(client, "c")
        full = service.counters()["receiving_bytes"]
        for part in range(3):
            await send(client, first, part)
        third = await begin(client, "c")

    assert refused.value.code == 429
    assert refused.value.retry_after_seconds is not None
    assert full == 2 * len(VALUE)
    assert third


async def test_an_upload_whose_client_went_away_is_given_up(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF, upload_timeout_seconds=0.05) as service:
        upload = await begin(client)
        await until(lambda: service.counters()["uploads_aborted_total"] == 1)
        with pytest.raises(RequestError, match="404 header Fleet-Upload"):
            await send(client, upload, 0)
        counters = service.counters()

    assert (counters["uploads"], counters["receiving_bytes"], counters["entries"]) == (0, 0, 0)


@pytest.mark.parametrize("parts", [1, 2, 3])
async def test_an_upload_that_its_sender_gives_up_is_forgotten_at_once(
    bus: Bus, client: Client, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_digest: RunningDigest) -> str:
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr(RunningDigest, "finish", never)
    async with running(bus, **OFF) as service:
        upload = await begin(client)
        for part in range(parts - 1):
            await send(client, upload, part)
        last = asyncio.create_task(send(client, upload, parts - 1))
        if parts < 3:
            await last
        else:  # its digest is being computed
            await until(lambda: _is_finishing(service, upload))
        await client.ask("put.c1", b"", Fleet_Upload=upload, Fleet_Abort="1")
        again = await client.ask("put.c1", b"", Fleet_Upload=upload, Fleet_Abort="1")
        with pytest.raises(RequestError, match="404 header Fleet-Upload"):
            await send(client, upload, 2)
        if parts == 3:
            with pytest.raises(RequestError, match="503 this instance gave the upload up"):
                await last
        counters = service.counters()

    assert again.payload == b""
    assert (counters["uploads"], counters["receiving_bytes"], counters["entries"]) == (0, 0, 0)
    assert counters["uploads_aborted_total"] == 1


async def test_an_upload_that_its_sender_named_is_one_however_often_it_is_begun(
    bus: Bus, client: Client
) -> None:
    name, other = "0" * 31 + "1", "0" * 31 + "2"
    async with running(bus, **OFF) as service:
        begun = {await begin(client, Fleet_Upload=name) for _ in range(2)}
        with pytest.raises(RequestError, match="409 header Fleet-Upload"):
            await begin(client, "another key", Fleet_Upload=name)
        for bad in ("", name[1:], name.replace("0", "A")):
            with pytest.raises(RequestError, match="400 header Fleet-Upload"):
                await begin(client, Fleet_Upload=bad)
        at_once = service.counters()["uploads"]
        for part in range(3):
            await send(client, name, part)
        with pytest.raises(RequestError, match="409 header Fleet-Upload"):
            await begin(client, Fleet_Upload=name)
        await begin(client, Fleet_Upload=other)
        await client.ask("put", b"", Fleet_Upload=other, Fleet_Abort="1")
        counters = service.counters()
        value = await read(client, await client.ask("get", b"key"), 0, 0)

    assert begun == {name}
    assert at_once == 1
    assert (counters["uploads"], counters["receiving_bytes"]) == (0, 0)
    assert value == VALUE[:1]


async def test_every_part_gives_an_upload_its_whole_time_anew(bus: Bus, client: Client) -> None:
    async with running(bus, **OFF) as service:
        name = await begin(client)
        upload = service._owned["default"].uploads._uploads[name]
        timers = [upload.timer]
        for part in (2, 0):
            await send(client, name, part)
            timers.append(upload.timer)

    ends = [timer.when() for timer in timers]
    assert ends == sorted(set(ends))
    assert all(timer.cancelled() for timer in timers[:-1])


async def test_who_waits_for_the_end_of_an_upload_gets_503_when_uploads_are_closed() -> None:
    async def never(_request: PutRequest, _value: object) -> Answer:
        storing.set()
        await asyncio.Event().wait()
        return Answer()

    storing = asyncio.Event()
    uploads = Uploads("default", "c1", never, Room(len(VALUE)), Draft, timeout_seconds=600)
    headers = {"Fleet-Key": "key", "Fleet-Size": str(len(VALUE)), "Fleet-Digest": sha256(VALUE)}
    name = uploads.begin(PutRequest(headers)).headers["Fleet-Upload"]
    for part in range(3):
        payload = VALUE[part * PART_BYTES : (part + 1) * PART_BYTES]
        answer = uploads.receive(
            Call("put", payload, {"Fleet-Upload": name, "Fleet-Part": str(part)})
        )
    async with asyncio.timeout(20):
        await storing.wait()
        uploads.close()
        assert not isinstance(answer, Answer)
        with pytest.raises(RequestError, match="503 this instance gave the upload up"):
            await answer

    assert (len(uploads), uploads.room.used_bytes) == (0, 0)


async def test_two_clients_upload_one_key_and_the_last_to_finish_wins(
    bus: Bus, client: Client
) -> None:
    other = bytes(len(VALUE))
    async with running(bus, **OFF):
        one = await begin(client)
        two = await begin(client, value=other)
        for part in range(3):
            await send(client, two, part, other)
            if part < 2:
                await send(client, one, part)
        between = await CacheClient(bus).get("key")
        await send(client, one, 2)
        after = await CacheClient(bus).get("key")

    assert between == other
    assert after == VALUE


async def test_an_upload_takes_every_header_of_a_put(bus: Bus, client: Client) -> None:
    clock = ManualClock()
    async with running(bus, clock=clock, **OFF):
        cache = CacheClient(bus)
        version = await cache.put("key", b"old")
        upload = await begin(
            client,
            Fleet_Ttl_Seconds="60",
            Fleet_Parent="root",
            Fleet_Tags="a,b",
            Fleet_Class="chat",
            Fleet_Prefix_Tokens="17",
            Fleet_Version=version,
        )
        clock.advance(100)  # its time begins when it is there
        for part in range(3):
            await send(client, upload, part)
        meta = await client.meta("key")
        with pytest.raises(RequestError) as conflict:
            await cache.put("key", VALUE, version=version)
        clock.advance(60)
        expired = await cache.get("key")

    assert (meta.ttl_seconds, meta.parent, meta.tags) == (60, "root", ["a", "b"])
    assert (meta.request_class, meta.prefix_tokens) == ("chat", 17)
    assert meta.version is not None
    assert meta.version > version
    assert conflict.value.code == 409
    assert expired is None


async def test_a_version_that_changes_during_an_upload_is_a_conflict_at_its_end(
    bus: Bus, client: Client
) -> None:
    async with running(bus, **OFF):
        version = await client.put("key", b"old")
        upload = await begin(client, Fleet_Version=version)
        await send(client, upload, 0)
        await send(client, upload, 1)
        await client.put("key", b"newer")
        with pytest.raises(RequestError, match="409 version"):
            await send(client, upload, 2)
        kept = await client.get("key")

    assert kept == b"newer"


async def test_many_uploads_at_once_end_or_are_refused(bus: Bus, client: Client) -> None:
    async def upload(number: int) -> None:
        name = await begin(client, f"key-{number}")
        for part in range(3):
            await send(client, name, part)

    async with running(bus, **OFF, uploads_max_bytes=4 * len(VALUE)) as service:
        uploads = (upload(number) for number in range(40))
        ends = await asyncio.gather(*uploads, return_exceptions=True)
        counters = service.counters()

    refused = [end for end in ends if end is not None]
    assert {error.code for error in refused if isinstance(error, RequestError)} <= {429}
    assert all(isinstance(error, RequestError) for error in refused)
    assert counters["puts_total"] == len(ends) - len(refused) >= 4
    assert counters["receiving_bytes"] == 0
