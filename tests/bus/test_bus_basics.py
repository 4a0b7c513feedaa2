"""The bus against a real server: publish, request, serve, streams, work queues, leases."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.bus import Bus, BusError, connect, ensure_streams
from agent.bus.lease import BucketLeases
from agent.bus.streams import STREAMS
from schemas.archive import Expired
from schemas.lifecycle import Deregistered
from schemas.protocols import (
    Answer,
    Call,
    Delivery,
    Endpoint,
    PublishError,
    RequestError,
    RevisionConflictError,
    StreamFullError,
    WorkItem,
    json_endpoint,
)
from schemas.units import instant
from tests.support.server import NatsServer
from tests.support.waiting import until, until_async


def expired(key: str) -> Expired:
    return Expired(namespace="default", key=key, version="1", observed_at=instant(0))


async def echo(call: Call) -> Answer:
    return Answer(call.payload, {"Subject": call.subject})


async def test_a_durable_message_is_in_its_stream_once_published(bus: Bus) -> None:
    await bus.publish(expired("a"), message_id="a")
    await bus.publish(expired("a"), message_id="a")
    await bus.publish(expired("b"), message_id="b")

    found = [delivery async for delivery in bus.read("EVENTS")]

    assert [msgspec.json.decode(d.payload)["key"] for d in found] == ["a", "b"]
    assert bus.counters["duplicates_total"] == 1


async def test_publishing_to_a_stream_that_does_not_exist_raises(nats_url: str) -> None:
    async with await connect(nats_url, name="test") as bus:
        with pytest.raises(PublishError, match="no stream keeps"):
            await bus.publish(expired("a"), message_id="a")


async def test_a_full_stream_is_told_apart_from_other_failures(bus: Bus) -> None:
    info = await bus.jetstream.stream_info("FLEET_DEAD")
    config = info.config
    config.max_msgs = 1
    await bus.jetstream.update_stream(config)
    await bus.publish_raw("dead.x.y", b"1", message_id="1")

    with pytest.raises(StreamFullError):
        await bus.publish_raw("dead.x.y", b"2", message_id="2")


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "awaited"])
async def test_requests_are_answered_and_headers_of_the_request_are_not_echoed(
    bus: Bus, inline: bool
) -> None:
    def at_once(call: Call) -> Answer:
        return Answer(call.payload, {"Subject": call.subject})

    await bus.serve(
        "svc", [Endpoint("echo", "api.echo.*", at_once if inline else echo)], description="d"
    )

    answer = await bus.request("api.echo.x", b"hi", {"Secret": "s"}, timeout_seconds=2)

    assert answer.payload == b"hi"
    assert answer.headers == {"Subject": "api.echo.x"}


async def test_errors_carry_our_words_and_never_the_exception(bus: Bus) -> None:
    def fail(call: Call) -> Answer:
        if call.payload == b"known":
            raise RequestError(409, "version conflict")
        raise RuntimeError("secret path /etc/passwd")

    await bus.serve("svc", [Endpoint("fail", "api.fail", fail)], description="d")

    with pytest.raises(RequestError, match="version conflict") as known:
        await bus.request("api.fail", b"known", timeout_seconds=2)
    with pytest.raises(RequestError) as unknown:
        await bus.request("api.fail", b"", timeout_seconds=2)

    assert known.value.code == 409
    assert unknown.value.code == 500
    assert "secret" not in unknown.value.text
    assert bus.counters["bad_messages_total"] == 1


async def test_a_json_endpoint_names_the_unknown_field(bus: Bus) -> None:
    class Ask(msgspec.Struct, forbid_unknown_fields=True):
        limit: int = 3

    await bus.serve(
        "svc", [json_endpoint("ask", "api.ask", Ask, lambda ask, _: ask)], description="d"
    )

    defaults = await bus.request("api.ask", b"", timeout_seconds=2)
    with pytest.raises(RequestError, match="limt") as error:
        await bus.request("api.ask", b'{"limt": 1}', timeout_seconds=2)

    assert defaults.payload == b'{"limit":3}'
    assert error.value.code == 400


async def test_nobody_there_and_no_answer_are_told_apart(bus: Bus) -> None:
    never = asyncio.Event()

    async def silent(call: Call) -> Answer:
        await never.wait()
        return Answer()

    service = await bus.serve("svc", [Endpoint("silent", "api.silent", silent)], description="d")

    with pytest.raises(RequestError) as nobody:
        await bus.request("api.nobody", timeout_seconds=2)
    with pytest.raises(RequestError) as late:
        await bus.request("api.silent", timeout_seconds=0.05)

    assert (nobody.value.code, late.value.code) == (503, 408)
    never.set()
    await service.stop()


async def test_slow_requests_run_side_by_side_and_the_bound_answers_429(bus: Bus) -> None:
    gate = asyncio.Event()
    started = 0

    async def slow(call: Call) -> Answer:
        nonlocal started
        started += 1
        await gate.wait()
        return Answer(b"done")

    await bus.serve("svc", [Endpoint("slow", "api.slow", slow)], description="d")
    asks = [asyncio.create_task(bus.request("api.slow", timeout_seconds=10)) for _ in range(256)]
    await until(lambda: started == 256)

    with pytest.raises(RequestError) as busy:
        await bus.request("api.slow", timeout_seconds=5)
    gate.set()
    answers = await asyncio.gather(*asks)

    assert busy.value.code == 429
    assert busy.value.retry_after_seconds
    assert {answer.payload for answer in answers} == {b"done"}


async def test_stopping_answers_every_accepted_request(bus: Bus, nats_url: str) -> None:
    gate = asyncio.Event()
    started = asyncio.Event()

    async def slow(call: Call) -> Answer:
        started.set()
        await gate.wait()
        return Answer(b"done")

    async with await connect(nats_url, name="server") as server:
        service = await server.serve("svc", [Endpoint("slow", "api.slow", slow)], description="d")
        asks = [asyncio.create_task(bus.request("api.slow", timeout_seconds=5)) for _ in range(5)]
        await started.wait()
        stopping = asyncio.create_task(service.stop())

        async def takes_no_more() -> bool:
            try:
                await bus.request("api.slow", timeout_seconds=0.05)
            except RequestError as error:
                return error.code == 503
            return False

        # Only then: nothing but the drain keeps the accepted ones alive from here on.
        await until_async(takes_no_more)
        gate.set()
        await stopping
        answers = await asyncio.gather(*asks)

    assert [answer.payload for answer in answers] == [b"done"] * 5


async def test_discovery_shows_name_endpoints_latencies_and_errors(bus: Bus) -> None:
    await bus.serve(
        "fleet-x", [Endpoint("echo", "api.echo", echo)], description="test", metadata={"a": "b"}
    )
    await bus.request("api.echo", b"1", timeout_seconds=2)

    async def ask(subject: str) -> dict[str, Any]:
        answer = await bus.request_absolute(subject, timeout_seconds=2)
        return dict(msgspec.json.decode(answer.payload))

    ping = await ask("$SRV.PING")
    info = await ask("$SRV.INFO.fleet-x")
    stats = await ask(f"$SRV.STATS.fleet-x.{ping['id']}")

    assert ping["type"] == "io.nats.micro.v1.ping_response"
    assert info["description"] == "test"
    assert info["metadata"] == {"a": "b"}
    assert info["endpoints"][0]["subject"] == "fleet.v1.api.echo"
    endpoint = stats["endpoints"][0]
    assert (endpoint["num_requests"], endpoint["num_errors"]) == (1, 0)
    assert endpoint["data"]["latency_p99_seconds"] > 0
    assert endpoint["data"]["in_flight"] == 0
    assert endpoint["data"]["queue_depth"] == 0


async def test_a_reply_address_of_ours_is_not_answered(bus: Bus) -> None:
    forged = asyncio.Event()
    await bus.serve("svc", [Endpoint("echo", "api.echo", echo)], description="d")
    await bus.subscribe("decision.>", lambda subject, payload: forged.set())
    client = bus._client

    await client.publish("fleet.v1.api.echo", b"forged", reply="fleet.v1.decision.accepted.pool")
    await bus.request("api.echo", b"after", timeout_seconds=2)
    await client.flush()

    assert not forged.is_set()
    assert bus.counters["bad_messages_total"] == 1


async def test_following_starts_where_asked_and_sees_each_message_once(bus: Bus) -> None:
    for number in range(5):
        await bus.publish_raw("alert.n", str(number).encode(), message_id=str(number))
    seen: list[Delivery] = []
    full = asyncio.Event()

    def collect(delivery: Delivery) -> None:
        seen.append(delivery)
        if len(seen) == 5:
            full.set()

    stop = await bus.follow("ALERTS", collect, start_sequence=3)
    for number in range(5, 7):
        await bus.publish_raw("alert.n", str(number).encode(), message_id=str(number))
    async with asyncio.timeout(5):
        await full.wait()
    await stop()

    assert [d.payload for d in seen] == [b"2", b"3", b"4", b"5", b"6"]
    assert [d.sequence for d in seen] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("outage", ["kill", "consumer"], ids=["server-killed", "consumer-deleted"])
async def test_following_goes_on_after_an_outage_without_a_gap_or_a_repeat(
    bus: Bus, nats: NatsServer, outage: str
) -> None:
    await bus.publish_raw("alert.n", b"before", message_id="before")
    seen: list[bytes] = []
    arrived = asyncio.Event()

    def collect(delivery: Delivery) -> None:
        seen.append(delivery.payload)
        arrived.set()

    stop = await bus.follow("ALERTS", collect)
    if outage == "kill":
        nats.kill()
        nats.start()
        await until(lambda: bus.is_connected)
    else:
        for info in await bus.jetstream.consumers_info("FLEET_ALERTS"):
            await bus.jetstream.delete_consumer("FLEET_ALERTS", info.name)
    await bus.publish_raw("alert.n", b"after", message_id="after")
    async with asyncio.timeout(10):
        await arrived.wait()
    await stop()

    assert seen == [b"after"]


async def test_a_failing_callback_does_not_end_the_subscription(bus: Bus) -> None:
    seen: list[bytes] = []
    arrived = asyncio.Event()

    def picky(subject: str, payload: bytes) -> None:
        if payload == b"bad":
            raise ValueError("undecodable")
        seen.append(payload)
        arrived.set()

    await bus.subscribe("service.>", picky)
    await bus.send("service.x", b"bad")
    await bus.send("service.x", b"good")
    async with asyncio.timeout(5):
        await arrived.wait()

    assert seen == [b"good"]
    assert bus.counters["bad_messages_total"] == 1


async def test_what_is_on_its_way_is_no_more_than_asked_for(bus: Bus) -> None:
    for number in range(90):
        await bus.publish_raw("evicted.default", bytes(350_000), message_id=str(number))
    bound = 1_200_000
    taken: list[WorkItem] = []
    most = 0

    async with asyncio.timeout(5):  # a pause for each pull that is full would take longer
        while len(taken) < 90:
            items = await bus.take(
                "EVICTIONS", "archiver", batch=100, max_bytes=bound, wait_seconds=1
            )
            info = await bus.jetstream.consumer_info("FLEET_EVICTIONS", "archiver")
            most = max(most, int(info.num_ack_pending or 0) - len(taken))
            taken += items

    assert [item.pending for item in taken] == list(reversed(range(90)))
    assert most == 3


async def test_work_comes_again_until_done_and_poison_goes_to_the_dead(bus: Bus) -> None:
    for text in ("one", "two"):
        await bus.publish_raw("evicted.default", text.encode(), {"H": "1"}, message_id=text)

    first = await bus.take("EVICTIONS", "archiver", batch=1, wait_seconds=2)
    await first[0].retry(0)
    taken: dict[bytes, WorkItem] = {}
    async with asyncio.timeout(10):
        while len(taken) < 2:
            for item in await bus.take("EVICTIONS", "archiver", batch=5, wait_seconds=1):
                taken[item.delivery.payload] = item
    await taken[b"one"].done()
    await taken[b"two"].dead("bad digest")
    rest = await bus.take("EVICTIONS", "archiver", batch=1, wait_seconds=0.1)
    dead = [delivery async for delivery in bus.read("DEAD")]

    assert taken[b"one"].attempt == 2
    assert rest == []
    first_sequence, last_sequence = await bus.stream_bounds("EVICTIONS")
    assert first_sequence > last_sequence
    assert dead[0].payload == b"two"
    assert dead[0].headers["Fleet-Dead-Reason"] == "bad digest"
    assert dead[0].headers["H"] == "1"


async def test_work_is_delivered_while_waiting(bus: Bus) -> None:
    waiting = asyncio.create_task(bus.take("EVICTIONS", "archiver", batch=8, wait_seconds=30))
    await bus.publish_raw("evicted.default", b"x", message_id="x")

    async with asyncio.timeout(5):
        items = await waiting

    assert [item.delivery.payload for item in items] == [b"x"]


async def take_two(bus: Bus) -> list[WorkItem]:
    items: list[WorkItem] = []
    async with asyncio.timeout(10):
        while len(items) < 2:
            items += await bus.take("EVICTIONS", "archiver", batch=2, wait_seconds=5)
    return items


async def test_what_a_dead_taker_held_is_given_out_at_once_to_who_takes_over(
    bus: Bus, nats: NatsServer
) -> None:
    async with await connect(nats.url, name="dead") as dead:
        await bus.publish_raw("evicted.default", b"one", message_id="1")
        await bus.publish_raw("evicted.default", b"two", message_id="2")
        assert len(await take_two(dead)) == 2
    waits = await bus.depth("EVICTIONS")

    await bus.take_over("EVICTIONS", "archiver")
    again = await take_two(bus)
    for item in again:
        await item.done()

    assert waits == 2
    assert [item.delivery.payload for item in again] == [b"one", b"two"]
    assert await bus.depth("EVICTIONS") == 0


async def test_what_was_asked_for_and_not_taken_is_given_back_at_once(
    bus: Bus, nats: NatsServer
) -> None:
    async with await connect(nats.url, name="leaver") as leaver:
        waiting = asyncio.create_task(
            leaver.take("EVICTIONS", "archiver", batch=20, wait_seconds=20)
        )
        await bus.publish_raw("evicted.default", b"0", message_id="0")
        mine = await waiting
        for number in range(1, 10):
            await bus.publish_raw("evicted.default", b"%d" % number, message_id=str(number))
        async with asyncio.timeout(5):
            while (
                await bus.jetstream.consumer_info("FLEET_EVICTIONS", "archiver")
            ).num_ack_pending != 10:
                pass

        await leaver.give_back("EVICTIONS", "archiver")
        await leaver.give_back("EVICTIONS", "archiver")
        theirs: list[WorkItem] = []
        async with asyncio.timeout(10):
            while len(theirs) < 9:
                theirs += await bus.take("EVICTIONS", "archiver", batch=20, wait_seconds=1)
        for item in (*mine, *theirs):
            await item.done()
        await bus.give_back("EVICTIONS", "archiver")  # what it still waits for
        await bus.publish_raw("evicted.default", b"late", message_id="late")
        late = await leaver.take("EVICTIONS", "archiver", batch=1, wait_seconds=5)

    assert [item.delivery.payload for item in mine] == [b"0"]
    assert [item.delivery.payload for item in theirs] == [b"%d" % n for n in range(1, 10)]
    assert [item.delivery.payload for item in late] == [b"late"]


async def test_a_bucket_compares_and_sets(bus: Bus) -> None:
    bucket = bus.bucket("state")

    revision = await bucket.create("k", b"1")
    with pytest.raises(RevisionConflictError):
        await bucket.create("k", b"2")
    await bucket.update("k", b"3", revision)
    with pytest.raises(RevisionConflictError):
        await bucket.update("k", b"4", revision)

    found = await bucket.get("k")
    assert found is not None
    assert found[0] == b"3"
    assert list(await bucket.items()) == ["k"]
    await bucket.delete("k")
    assert await bucket.get("k") is None


async def test_one_owner_holds_a_lease_until_it_gives_it_back(bus: Bus) -> None:
    ours, theirs = (BucketLeases(bus.bucket("lease"), owner) for owner in ("a", "b"))

    lease = await ours.try_acquire("slot")
    refused = await theirs.try_acquire("slot")
    assert lease is not None
    await ours.release(lease)
    taken = await theirs.try_acquire("slot")

    assert refused is None
    assert not lease.held
    assert taken is not None
    assert taken.fence > lease.fence
    await theirs.close()


async def test_a_restarted_owner_has_its_lease_back_at_once(bus: Bus) -> None:
    before = BucketLeases(bus.bucket("lease"), "a")
    lease = await before.try_acquire("slot")
    after = BucketLeases(bus.bucket("lease"), "a")

    again = await after.try_acquire("slot")

    assert lease is not None
    assert again is not None
    async with asyncio.timeout(8):
        await lease.wait_lost()
    assert again.held
    await before.close()
    await after.close()


async def test_a_stream_that_is_not_ours_is_fatal_and_both_are_named(nats_url: str) -> None:
    async with await connect(nats_url, name="test") as bus:
        await bus.jetstream.add_stream(name="FLEET_ALERTS", subjects=["other.>"])

        with pytest.raises(BusError, match=r"other\.>.*fleet\.v1\.alert\.>"):
            await ensure_streams(bus)


async def test_an_operators_limit_is_left_alone(bus: Bus) -> None:
    config = (await bus.jetstream.stream_info("FLEET_ALERTS")).config
    config.max_bytes = 10_000_000
    await bus.jetstream.update_stream(config)

    await ensure_streams(bus)

    after = (await bus.jetstream.stream_info("FLEET_ALERTS")).config
    assert after.max_bytes == 10_000_000


async def test_missing_jetstream_is_said_with_the_remedy(tmp_path_factory: Any) -> None:
    server = NatsServer(tmp_path_factory.mktemp("plain"), jetstream=False)
    server.start()
    try:
        async with await connect(server.url, name="test") as bus:
            with pytest.raises(BusError, match="-js"):
                await ensure_streams(bus)
    finally:
        server.stop()


async def test_two_roots_share_a_server(bus: Bus, nats_url: str) -> None:
    async with await connect(nats_url, name="lab", root="lab.v1") as lab:
        await ensure_streams(lab)
        await lab.publish(expired("lab"), message_id="1")

        there = [d async for d in lab.read("EVENTS")]
        here = [d async for d in bus.read("EVENTS")]

    assert [d.subject for d in there] == ["archived.expired.default"]
    assert here == []


def test_streams_keep_no_request_subjects() -> None:
    subjects = [subject for spec in STREAMS for subject in spec.subjects]

    assert not [s for s in subjects if s.startswith(("api.", "cache.", "*", ">"))]
    assert Deregistered.STREAM is None


async def test_a_message_that_the_consumer_forgot_in_a_crash_does_not_stay_for_ever(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The state a kill -9 can leave: acknowledged for the consumer, not removed from the stream."""
    monkeypatch.setattr("agent.bus.work.CHECK_SECONDS", 0.0)
    async with await connect(nats.url, name="before") as bus:
        await ensure_streams(bus)
        await bus.publish_raw("evicted.default", b"value", message_id="1")
        stream = next(nats.folder.glob("store/jetstream/*/streams/FLEET_EVICTIONS"))
    nats.stop()
    shutil.copytree(stream / "msgs", tmp_path / "msgs")
    nats.start()
    async with await connect(nats.url, name="meanwhile") as bus:
        for item in await bus.take("EVICTIONS", "archiver", batch=1, wait_seconds=5):
            await item.done()
    nats.stop()
    shutil.rmtree(stream / "msgs")
    shutil.copytree(tmp_path / "msgs", stream / "msgs")
    nats.start()

    async with await connect(nats.url, name="after") as bus:
        there = (await bus.stream_state("EVICTIONS")).messages

        async def is_worked_off() -> bool:
            for item in await bus.take("EVICTIONS", "archiver", batch=1, wait_seconds=0.1):
                await item.done()
            return (await bus.stream_state("EVICTIONS")).messages == 0

        await until_async(is_worked_off)

    assert there in (0, 1), "newer servers may notice by themselves"


async def test_items_are_acknowledged_together(bus: Bus) -> None:
    for number in range(5):
        await bus.publish_raw("evicted.default", b"x", message_id=str(number))
    items: list[WorkItem] = []
    async with asyncio.timeout(20):
        while len(items) < 5:
            items += await bus.take("EVICTIONS", "archiver", batch=5, wait_seconds=1)

    confirmed = await bus.done_all(items)
    none = await bus.done_all([])

    assert confirmed
    assert none
    assert await bus.depth("EVICTIONS") == 0


async def test_what_no_server_confirms_is_not_said_to_be_acknowledged(
    bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.bus.ACK_TIMEOUT_SECONDS", 0.2)
    await bus.publish_raw("evicted.default", b"x", message_id="1")
    items = await bus.take("EVICTIONS", "archiver", batch=1, wait_seconds=20)
    nats.kill()

    confirmed = await bus.done_all(items)
    await bus.close()
    closed = await bus.done_all(items)

    assert (confirmed, closed) == (False, False)


async def test_events_are_published_together_each_once(bus: Bus) -> None:
    said = [(expired(f"k{number}"), f"id{number}") for number in range(5)]

    await bus.publish_all(said)
    await bus.publish_all([*said, (expired("new"), "new")])
    kept = [one async for one in bus.read("EVENTS", subject="archived.expired.default")]

    keys = [msgspec.json.decode(one.payload)["key"] for one in kept]
    assert keys == ["k0", "k1", "k2", "k3", "k4", "new"]


async def test_of_events_published_together_one_that_no_stream_takes_is_an_error(bus: Bus) -> None:
    await bus.publish_all([(expired("before"), "1")])
    await bus.jetstream.delete_stream("FLEET_EVENTS")

    with pytest.raises(PublishError, match="no stream keeps"):
        await bus.publish_all([(expired("a"), "2"), (expired("b"), "3")])
    await bus.close()
    with pytest.raises(PublishError):
        await bus.publish_all([(expired("c"), "4")])


async def test_of_events_published_together_one_that_no_stream_answered_is_an_error(
    bus: Bus,
) -> None:
    async def pretend(_call: Call) -> Answer:
        return Answer(b"thanks")

    await bus.jetstream.delete_stream("FLEET_EVENTS")
    endpoint = Endpoint("pretend", "archived.expired.default", pretend)
    await bus.serve("svc", [endpoint], description="d")

    with pytest.raises(PublishError, match="not a stream"):
        await bus.publish_all([(expired("a"), "1"), (expired("b"), "2")])
