"""A server that dies, stalls, leaves or is not there: what the bus promises meanwhile and after."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
import structlog
from nats.aio.msg import Msg

from agent.bus import Bus, BusError, connect, ensure_streams
from agent.bus.client import ConnectionLostError, Question
from agent.bus.lease import (
    LEASE_SECONDS,
    RENEW_SECONDS,
    SAFETY_SECONDS,
    BucketLease,
    BucketLeases,
)
from agent.bus.streams import BUCKETS
from schemas.archive import Expired
from schemas.lifecycle import Deregistered
from schemas.protocols import Answer, Call, Delivery, Endpoint, PublishError, RequestError, WorkItem
from schemas.units import instant
from tests.support.server import NatsServer
from tests.support.small_disk import small_disk
from tests.support.waiting import until, until_async


def left(instance: str) -> Deregistered:
    return Deregistered(role="cache", instance=instance, observed_at=instant(0))


def expired(key: str) -> Expired:
    return Expired(namespace="default", key=key, version="1", observed_at=instant(0))


def echo(call: Call) -> Answer:
    return Answer(call.payload)


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.bus.connection.PROBE_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr("agent.bus.connection.PROBE_TIMEOUT_SECONDS", 0.2)


# --- killed and restarted ------------------------------------------------------------------------


async def test_everything_goes_on_within_5_s_of_a_killed_servers_return(
    bus: Bus, nats: NatsServer
) -> None:
    heard: list[bytes] = []
    followed: list[bytes] = []
    await bus.subscribe("service.x", lambda subject, payload: heard.append(payload))
    await bus.follow("ALERTS", lambda delivery: followed.append(delivery.payload))
    await bus.serve("svc", [Endpoint("echo", "api.echo", echo)], description="d")
    bucket = bus.bucket("state")
    revision = await bucket.put("key", b"before")
    await bus.publish_raw("evicted.default", b"before", message_id="before")
    (before,) = await bus.take("EVICTIONS", "worker", batch=1, wait_seconds=2)
    working = asyncio.create_task(bus.take("EVICTIONS", "worker", batch=1, wait_seconds=10))

    nats.kill()
    await until(lambda: not bus.is_connected)
    nats.start()

    async with asyncio.timeout(5):
        await bus.publish_raw("alert.x", b"alert", message_id="alert")
        await bus.publish_raw("evicted.default", b"after", message_id="after")
        assert (await bus.request("api.echo", b"hi", timeout_seconds=2)).payload == b"hi"
        await bus.send("service.x", b"core")
        await until(lambda: heard == [b"core"])
        await until(lambda: followed == [b"alert"])
        # A kill may lose that the first one was given out: then it comes again.
        taken = [before, *await working]
        while taken[-1].delivery.payload != b"after":
            taken += await bus.take("EVICTIONS", "worker", batch=1, wait_seconds=2)
        for item in taken:
            await item.done()
        assert await bucket.update("key", b"after", revision) > revision
    assert bus.counters["reconnects_total"] == 1


async def test_who_waits_for_an_answer_is_told_when_the_connection_breaks(
    bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus._js, "_timeout", 600)
    monkeypatch.setattr("agent.bus.client.FLUSH_SECONDS", 600)
    held = asyncio.Event()
    asked = asyncio.Event()

    async def hold(call: Call) -> Answer:
        asked.set()
        await held.wait()
        return Answer(b"")

    await bus.serve("svc", [Endpoint("hold", "api.hold", hold)], description="d")
    request = asyncio.create_task(bus.request("api.hold", timeout_seconds=600))
    together = asyncio.create_task(
        bus._client.ask_all([Question(bus.names.absolute("api.hold"))], timeout_seconds=600)
    )
    await asked.wait()
    nats.pause()
    state = asyncio.create_task(bus.stream_state("METRICS"))
    flush = asyncio.create_task(bus._client.settle())
    await asyncio.sleep(0)

    nats.kill()
    async with asyncio.timeout(20):
        with pytest.raises(RequestError, match="the connection broke before") as refused:
            await request
        (answer,) = await together
        with pytest.raises(PublishError):
            await state
        await flush
    nats.start()

    assert refused.value.code == 408
    assert isinstance(answer, ConnectionLostError)
    held.set()


async def test_metrics_published_while_the_server_is_away_are_dropped_and_counted(
    bus: Bus, nats: NatsServer
) -> None:
    heard: list[str] = []
    await bus.subscribe("service.>", lambda subject, payload: heard.append(subject))

    nats.kill()
    await until(lambda: not bus.is_connected)
    for number in range(3):
        await bus.publish(left(f"away-{number}"))
    nats.start()
    await until(lambda: bus.is_connected)
    await bus.publish(left("back"))
    await until(lambda: bool(heard))

    assert heard == ["service.deregistered.cache.back"]
    assert bus.counters["dropped_while_disconnected_total"] == 3


async def test_a_durable_message_waits_for_the_server_and_is_stored_once(
    bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So short that it is certainly sent more than once.
    monkeypatch.setattr("agent.bus.publishing.ACK_TRY_SECONDS", 0.1)

    nats.kill()
    await until(lambda: not bus.is_connected)
    publishing = [
        asyncio.create_task(bus.publish(expired(key), message_id=key)) for key in ("a", "b", "c")
    ]
    await asyncio.wait(publishing, timeout=0.3)
    nats.start()
    await asyncio.gather(*publishing)

    stored = [delivery.headers["Nats-Msg-Id"] async for delivery in bus.read("EVENTS")]
    assert sorted(stored) == ["a", "b", "c"]


async def test_a_durable_message_is_refused_when_the_server_stays_away(
    bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.publishing.ACK_TRY_SECONDS", 0.1)
    monkeypatch.setattr("agent.bus.publishing.ACK_DEADLINE_SECONDS", 0.3)

    nats.kill()
    async with asyncio.timeout(2):
        with pytest.raises(PublishError, match="not acknowledged"):
            await bus.publish(expired("a"), message_id="a")


async def test_what_does_not_fit_the_buffer_while_the_server_is_away_is_refused(
    bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.publishing.ACK_TRY_SECONDS", 0.1)
    monkeypatch.setattr("agent.bus.publishing.ACK_DEADLINE_SECONDS", 0.1)
    value = b"x" * 900_000

    nats.kill()
    await until(lambda: not bus.is_connected)
    outcomes = await asyncio.gather(
        *(bus.publish_raw("evicted.x", value, message_id=str(n)) for n in range(12)),
        return_exceptions=True,
    )

    assert {type(outcome) for outcome in outcomes} == {PublishError}
    # 8 MiB of buffer take nine of them, which then wait in vain.
    assert sum("outbound buffer" in str(outcome) for outcome in outcomes) == 3


# --- stalled -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_probes")
async def test_a_dead_read_loop_is_noticed_and_replaced(bus: Bus, nats_url: str) -> None:
    heard: list[bytes] = []
    async with await connect(nats_url, name="probed") as probed, asyncio.timeout(5):
        await probed.subscribe("service.x", lambda subject, payload: heard.append(payload))
        reading = probed._client._reading_task
        assert reading is not None

        reading.cancel()
        await until(lambda: probed.counters["reconnects_total"] == 1)
        await bus.send("service.x", b"after")
        await until(lambda: heard == [b"after"])

        assert probed.counters["forced_reconnects_total"] == 1


@pytest.mark.usefixtures("quick_probes")
async def test_a_server_that_stands_still_is_noticed_and_used_again_when_it_moves(
    nats: NatsServer,
) -> None:
    heard: list[bytes] = []
    async with await connect(nats.url, name="probed") as probed:
        await probed.subscribe("service.x", lambda subject, payload: heard.append(payload))

        nats.pause()
        # More than the socket takes: closing such a connection waits for ever.
        for _ in range(12):
            await probed.send("service.x", b"x" * 500_000)
        await until(lambda: probed.counters["disconnects_total"] == 1)
        nats.resume()

        async with asyncio.timeout(5):
            await until(lambda: probed.is_connected)
            await probed.send("service.x", b"after")
            await until(lambda: b"after" in heard)


async def test_closing_does_not_wait_for_a_server_that_stands_still(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.serving.DRAIN_SECONDS", 0.2)
    bus = await connect(nats.url, name="test")
    await bus.serve("svc", [Endpoint("echo", "api.echo", echo)], description="d")

    nats.pause()
    for _ in range(8):
        await bus.send("service.x", b"x" * 900_000)
    # The drain's deadline, and 2 s for a last flush.
    async with asyncio.timeout(4):
        await bus.close()
    nats.resume()

    assert bus.closed.is_set()


async def test_an_abandoned_bus_lets_nobody_wait(bus: Bus) -> None:
    asked = asyncio.Event()

    async def never(_call: Call) -> Answer:
        asked.set()
        await asyncio.Event().wait()
        return Answer()

    await bus.serve("svc", [Endpoint("never", "api.never", never)], description="d")
    waiting = asyncio.create_task(bus.request("api.never", timeout_seconds=60))
    async with asyncio.timeout(5):
        await asked.wait()

        await bus.abandon()
        with pytest.raises(RequestError, match="connection closed"):
            await waiting


@pytest.mark.parametrize("end", ["close", "abandon"])
async def test_a_connection_beside_a_bus_has_its_rights_and_ends_with_it(
    nats_url: str, end: str
) -> None:
    bus = await connect(nats_url, name="test")
    beside = await bus.beside("history")
    await beside.round_trip_seconds()
    is_another = beside._client.client_id != bus._client.client_id

    await getattr(bus, end)()

    assert is_another
    assert beside.name == "test.history"
    assert bus.closed.is_set()
    assert beside.closed.is_set()


async def test_attempts_on_a_stalled_server_leave_no_sockets_open(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sockets() -> int:
        open_now = psutil.Process().net_connections("tcp")
        return sum(bool(one.raddr) and one.raddr.port == nats.port for one in open_now)

    async with await connect(nats.url, name="test") as bus:
        before = sockets()
        bus._client.options["connect_timeout"] = 0.05

        nats.pause()
        await bus._client.force_reconnect()
        await until(lambda: bus._attempt >= 5)
        during = sockets()
        nats.resume()
        bus._client.options["connect_timeout"] = 2
        await until(lambda: bus.is_connected)

        assert during <= before
        assert sockets() == before


# --- leaving -------------------------------------------------------------------------------------


async def test_a_server_that_announces_its_end_is_used_until_it_ends(nats: NatsServer) -> None:
    async with await connect(nats.url, name="test") as bus:
        await bus.serve("svc", [Endpoint("echo", "api.echo", echo)], description="d")

        with structlog.testing.capture_logs() as logged:
            nats.signal(signal.SIGUSR2)
            await until(lambda: "server_lame_duck" in {line["event"] for line in logged})
        answer = await bus.request("api.echo", b"still", timeout_seconds=2)
        nats.kill()
        nats.start()
        await until(lambda: bus.counters["reconnects_total"] == 1)
        again = await bus.request("api.echo", b"again", timeout_seconds=2)

        assert (answer.payload, again.payload) == (b"still", b"again")


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_a_server_whose_disk_was_full_takes_everything_again_once_restarted(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", mib=400) as disk:
        nats = NatsServer(disk.path)
        nats.start()
        try:
            async with await connect(nats.url, name="test") as bus:
                await ensure_streams(bus, budget_bytes=280 * 1024 * 1024)
                await bus.publish_raw("alert.x", b"before", message_id="before")

                disk.fill()
                with pytest.raises(PublishError):
                    await bus.publish_raw("alert.x", b"x" * 100_000, message_id="refused")
                disk.make_room()
                nats.kill()
                nats.start()
                await until(lambda: bus.is_connected, seconds=20)
                await bus.publish_raw("alert.x", b"after", message_id="after")

                kept = [delivery.payload async for delivery in bus.read("ALERTS")]
        finally:
            nats.stop()

    assert (kept[0], kept[-1]) == (b"before", b"after")


# --- too slow ------------------------------------------------------------------------------------


async def test_messages_dropped_because_we_are_slow_are_counted(bus: Bus) -> None:
    busy = asyncio.Event()
    gate = asyncio.Event()

    async def wait(message: Msg) -> None:
        busy.set()
        await gate.wait()

    await bus._client.subscribe("fleet.v1.service.x", cb=wait, pending_msgs_limit=2)
    await bus.send("service.x", b"handled")
    await busy.wait()

    for _ in range(2 + 3):  # two wait, three are dropped
        await bus.send("service.x", b"")
    await until(lambda: bus.counters["slow_consumer_drops_total"] == 3)
    gate.set()

    assert "slow consumer" in bus.last_error


# --- two services --------------------------------------------------------------------------------


async def test_two_services_of_one_queue_group_share_the_work(bus: Bus, nats_url: str) -> None:
    def named(name: bytes) -> Endpoint:
        return Endpoint("who", "api.who", lambda call: Answer(name), queue="workers")

    async with await connect(nats_url, name="a") as a, await connect(nats_url, name="b") as b:
        await a.serve("fleet-a", [named(b"a")], description="d")
        await b.serve("fleet-b", [named(b"b")], description="d")

        answers = await asyncio.gather(
            *(bus.request("api.who", timeout_seconds=5) for _ in range(100))
        )

    shares = {name: sum(answer.payload == name for answer in answers) for name in (b"a", b"b")}
    assert sum(shares.values()) == 100
    # The server picks at random: fewer than 20 of 100 has a probability below 1e-9.
    assert min(shares.values()) >= 20


# --- only our own errors leave -------------------------------------------------------------------

OURS = (PublishError, RequestError, BusError, TimeoutError)


async def read_all(bus: Bus) -> None:
    async for _ in bus.read("ALERTS"):
        pass


def every_call(bus: Bus) -> dict[str, Callable[[], Awaitable[object]]]:
    bucket = bus.bucket("state")
    return {
        "publish": lambda: bus.publish(left("x")),
        "publish durable": lambda: bus.publish(expired("x"), message_id="1"),
        "publish_raw": lambda: bus.publish_raw("alert.x", b"", message_id="1"),
        "send": lambda: bus.send("service.x", b""),
        "request": lambda: bus.request("api.x", timeout_seconds=0.1),
        "gather": lambda: bus.gather("$SRV.PING", wait_seconds=0.1),
        "subscribe": lambda: bus.subscribe("service.x", lambda subject, payload: None),
        "serve": lambda: bus.serve("svc", [Endpoint("e", "api.e", echo)], description="d"),
        "follow": lambda: bus.follow("ALERTS", lambda delivery: None),
        "read": lambda: read_all(bus),
        "stream_state": lambda: bus.stream_state("ALERTS"),
        "stream_bounds": lambda: bus.stream_bounds("ALERTS"),
        "take": lambda: bus.take("EVICTIONS", "worker", batch=1, wait_seconds=0.1),
        "bucket get": lambda: bucket.get("key"),
        "bucket put": lambda: bucket.put("key", b""),
        "bucket create": lambda: bucket.create("key", b""),
        "bucket update": lambda: bucket.update("key", b"", 1),
        "bucket delete": lambda: bucket.delete("key"),
        "bucket items": bucket.items,
        "round trip": lambda: bus.round_trip_seconds(0.1),
        "ensure_streams": lambda: ensure_streams(bus),
    }


async def outcomes(bus: Bus) -> dict[str, object]:
    calls = every_call(bus)
    done = await asyncio.gather(*(call() for call in calls.values()), return_exceptions=True)
    return dict(zip(calls, done, strict=True))


@pytest.mark.parametrize("state", ["closed", "away", "stalled"])
async def test_only_our_own_errors_leave_the_bus(
    bus: Bus, nats: NatsServer, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.publishing.ACK_TRY_SECONDS", 0.2)
    monkeypatch.setattr("agent.bus.publishing.ACK_DEADLINE_SECONDS", 0.2)
    monkeypatch.setattr("agent.bus.client.FLUSH_SECONDS", 0.2)
    bus.jetstream._timeout = 0.2
    if state == "closed":
        await bus.close()
    elif state == "away":
        nats.kill()
        await until(lambda: not bus.is_connected)
    else:
        nats.pause()

    found = await outcomes(bus)

    nats.resume() if state == "stalled" else None
    foreign = {name: error for name, error in found.items()
               if isinstance(error, BaseException) and not isinstance(error, OURS)}  # fmt: skip
    assert foreign == {}
    nats_errors = [e for e in found.values() if type(e).__module__.startswith("nats")]
    assert nats_errors == []
    # What promises no acknowledgement, and what starts once the server is back.
    fine = {name for name, outcome in found.items() if not isinstance(outcome, BaseException)}
    assert fine <= {"publish", "send", "gather", "subscribe", "serve", "take"}


async def test_a_work_item_settled_on_a_closed_bus_says_so_in_our_words(bus: Bus) -> None:
    for number in range(4):
        await bus.publish_raw("evicted.default", b"", message_id=str(number))
    items = list(await bus.take("EVICTIONS", "worker", batch=4, wait_seconds=2))
    await until_async(lambda: _fill(bus, items))
    await bus.close()

    for settle in (
        items[0].done,
        lambda: items[1].retry(0),
        items[2].extend,
        lambda: items[3].dead("broken"),
    ):
        with pytest.raises(PublishError):
            await settle()


async def _fill(bus: Bus, items: list[WorkItem]) -> bool:
    if len(items) < 4:
        items += await bus.take("EVICTIONS", "worker", batch=4, wait_seconds=0.2)
    return len(items) == 4


async def test_a_stream_that_is_gone_is_named(bus: Bus) -> None:
    await bus.jetstream.delete_stream("FLEET_ALERTS")

    with pytest.raises(PublishError, match="no stream keeps fleet"):
        await bus.publish_raw("alert.x", b"", message_id="1")
    subscriptions = len(bus._client._subs)
    for call in (bus.stream_state("ALERTS"), bus.follow("ALERTS", print), read_all(bus)):
        with pytest.raises(PublishError, match="FLEET_ALERTS"):
            await call
    assert len(bus._client._subs) == subscriptions


async def test_a_server_that_dies_while_readers_are_renewed_does_not_freeze_the_loop(
    bus: Bus, nats: NatsServer
) -> None:
    stop = await bus.follow("ALERTS", lambda delivery: None)
    (reader,) = bus._readers
    nats.kill()
    await until(lambda: not bus.is_connected)
    reader.restart_soon()

    beats = 0
    async with asyncio.timeout(5):
        while beats < 20:  # a frozen loop would not get here again
            await asyncio.sleep(0.01)
            beats += 1
    nats.start()
    await until(lambda: bus.is_connected)
    await stop()

    assert beats == 20


async def test_a_message_that_a_restart_of_the_reader_cuts_off_comes_again(bus: Bus) -> None:
    seen: list[tuple[bytes, str]] = []
    never = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        seen.append((delivery.payload, "begun"))
        if len(seen) == 1:
            await never.wait()
        seen.append((delivery.payload, "done"))

    await bus.follow("ALERTS", handle)
    await bus.send("alert.first", b"1")
    await bus.send("alert.second", b"2")
    await until(lambda: len(seen) == 1)
    (reader,) = bus._readers

    reader.restart_soon()
    await until(lambda: len(seen) == 5)

    assert seen == [
        (b"1", "begun"),
        (b"1", "begun"),
        (b"1", "done"),
        (b"2", "begun"),
        (b"2", "done"),
    ]


async def test_a_header_that_looks_like_flow_control_deafens_nobody(bus: Bus) -> None:
    seen: list[bytes] = []
    stop = await bus.follow("ALERTS", lambda delivery: seen.append(delivery.payload))
    await bus.publish_raw("alert.n", b"", {"Status": "100"}, message_id="1")
    await bus.publish_raw("alert.n", b"after", message_id="2")
    await until(lambda: b"after" in seen)
    await stop()
    await bus.publish_raw("evicted.default", b"", {"Status": "404"}, message_id="3")
    work = await bus.take("EVICTIONS", "archiver", batch=1, wait_seconds=2)

    assert seen == [b"", b"after"]
    assert len(work) == 1


async def test_a_follower_hears_a_stream_that_was_made_anew(bus: Bus) -> None:
    await bus.publish_raw("alert.n", b"old", message_id="1")
    await bus.publish_raw("alert.n", b"older", message_id="2")
    seen: list[bytes] = []
    stop = await bus.follow(
        "ALERTS", lambda delivery: seen.append(delivery.payload), start_sequence=1
    )
    await until(lambda: len(seen) == 2)
    config = (await bus.jetstream.stream_info("FLEET_ALERTS")).config
    await bus.jetstream.delete_stream("FLEET_ALERTS")
    await bus.jetstream.add_stream(config)
    await bus.publish_raw("alert.n", b"new", message_id="3")
    await until(lambda: b"new" in seen)
    await stop()

    assert seen == [b"old", b"older", b"new"]


async def test_who_cannot_renew_a_lease_lets_go_before_it_expires(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.lease.LEASE_SECONDS", 4.0)
    monkeypatch.setattr("agent.bus.lease.RENEW_SECONDS", 0.2)
    async with await connect(nats.url, name="test") as bus:
        await ensure_streams(bus)
        leases = BucketLeases(bus.bucket("lease"), "a")
        lease = await leases.try_acquire("slot")
        assert isinstance(lease, BucketLease)
        first = lease.revision
        await until(lambda: lease.revision > first)  # renewed at least once

        nats.kill()
        killed_at = time.monotonic()
        async with asyncio.timeout(20):
            await lease.wait_lost()

        assert not lease.held
        assert lease._until <= killed_at + 4.0 - SAFETY_SECONDS
        for renewal in leases._renewals.values():
            renewal.cancel()


def test_a_lease_lasts_as_long_as_its_bucket_keeps_it() -> None:
    (ttl_seconds,) = [bucket.ttl_seconds for bucket in BUCKETS if bucket.name == "lease"]

    assert ttl_seconds == LEASE_SECONDS
    assert LEASE_SECONDS - SAFETY_SECONDS > 2 * RENEW_SECONDS


async def test_a_lapsed_lease_is_told_once_and_never_comes_back(bus: Bus) -> None:
    leases = BucketLeases(bus.bucket("lease"), "a")
    lease = await leases.try_acquire("slot")
    assert isinstance(lease, BucketLease)
    lease._until = 0.0

    with structlog.testing.capture_logs() as logs:
        lapsed = lease.held
        lease.renewed(lease.revision, time.monotonic())
        held = lease.held
        await leases.close()

    assert not lapsed
    assert not held
    told = {"event": "lease_lost", "lease": "slot", "error": "not renewed in time"}
    assert logs == [told | {"log_level": "warning"}]


async def test_a_late_release_leaves_the_next_owner_alone(bus: Bus) -> None:
    bucket = bus.bucket("lease")
    ours, theirs = BucketLeases(bucket, "a"), BucketLeases(bucket, "b")
    lease = await ours.try_acquire("slot")
    assert lease is not None
    await bucket.delete("slot")  # expired meanwhile, for the bucket
    taken = await theirs.try_acquire("slot")
    await ours.release(lease)
    third = await BucketLeases(bucket, "c").try_acquire("slot")

    assert taken is not None
    assert third is None
    await theirs.close()
