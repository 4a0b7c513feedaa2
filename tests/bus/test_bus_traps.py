"""nats-py's traps, one by one: what ends a plain client silently, and that our bus survives it.

Some tests show the plain client first: when nats-py mends the fault, they say that our own remedy
can go. Echoed headers, one request at a time and leaking exceptions are in test_bus_basics.py.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
import structlog
from nats.aio.client import Client

from agent.bus import Bus, BusError, connect, ensure_streams
from agent.bus.cancellation import heed
from agent.bus.client import BusClient, DeniedError, Question
from schemas.protocols import Answer, Call, Endpoint, PublishError, RequestError, WorkItem
from tests.support.server import NatsServer
from tests.support.waiting import until, until_async
from tests.support.wire import impostor, send_raw, with_headers

USERS = """
authorization { users = [
  { user: admin, password: "let-me-in" }
  { user: reader, password: "read-only", permissions: {
      publish: ["_INBOX.>", "$JS.API.>"], subscribe: ">" } }
] }
"""


@contextlib.asynccontextmanager
async def plain_client(url: str, **options: Any) -> AsyncIterator[tuple[Client, list[bytes]]]:
    """nats-py as it comes, subscribed to `x.>`."""
    client = Client()
    seen: list[bytes] = []

    async def take(message: Any) -> None:
        seen.append(message.data)

    async def quiet(*_: object) -> None:
        pass

    await client.connect(url, **{"error_cb": quiet, **options})
    await client.subscribe("x.>", cb=take)
    await client.flush()
    yield client, seen
    await client.close()


def is_deaf(client: Client) -> bool:
    """The read loop is over although the client says that it is connected."""
    reading = client._reading_task
    return bool(client.is_connected and reading and reading.done())


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with passwords, and with a user who may not publish."""
    server = NatsServer(tmp_path / "guarded", USERS)
    server.start()
    yield server
    server.stop()


async def expect_delivery(bus: Bus) -> None:
    """A message published now reaches a subscription."""
    arrived = asyncio.Event()
    unsubscribe = await bus.subscribe("service.check", lambda subject, payload: arrived.set())
    await bus.send("service.check", b"")
    async with asyncio.timeout(5):
        await arrived.wait()
    await unsubscribe()


# --- too large -----------------------------------------------------------------------------------


async def test_headers_and_payload_over_the_limit_are_refused_and_the_connection_lives(
    bus: Bus, nats_url: str
) -> None:
    overhead = len(b"NATS/1.0\r\nA: \r\n\r\n")
    fits = b"x" * (bus.max_payload - overhead - 1000)

    await bus.send("service.big", fits, {"A": "h" * 1000})
    with pytest.raises(PublishError, match="exceed the server's limit"):
        await bus.send("service.big", fits, {"A": "h" * 1001})
    with pytest.raises(RequestError) as refused:
        await bus.request("api.big", fits, {"A": "h" * 1001}, timeout_seconds=1)

    assert refused.value.code == 413
    assert bus.counters["refused_too_large_total"] == 2
    await expect_delivery(bus)
    assert bus.counters["disconnects_total"] == 0
    async with plain_client(nats_url) as (client, _):
        await client.publish("y", fits, headers={"A": "h" * 1001})
        await until(lambda: client.is_closed)


async def test_an_answer_over_the_limit_is_replaced_by_the_way_to_a_smaller_one(bus: Bus) -> None:
    overhead = len(b"NATS/1.0\r\nA: \r\n\r\n")

    def fill(call: Call) -> Answer:
        # Two bytes a letter, as headers travel in UTF-8.
        letters = 500 + int(call.payload)
        return Answer(b"x" * (bus.max_payload - overhead - 1000), {"A": "é" * letters})

    await bus.serve("svc", [Endpoint("fill", "api.fill", fill)], description="d")

    fits = await bus.request("api.fill", b"0", timeout_seconds=2)
    with pytest.raises(RequestError, match="ask for less") as refused:
        await bus.request("api.fill", b"1", timeout_seconds=2)

    assert len(fits.headers["A"]) == 500
    assert refused.value.code == 413
    assert bus.counters["disconnects_total"] == 0


async def test_a_header_of_an_answer_cannot_become_another_one(bus: Bus) -> None:
    def speak(_call: Call) -> Answer:
        return Answer(b"payload", {"A": "1\r\nNats-Service-Error: no", "B": "2\rC: 3"})

    await bus.serve("svc", [Endpoint("speak", "api.speak", speak)], description="d")

    answer = await bus.request("api.speak", timeout_seconds=2)

    assert answer.payload == b"payload"
    assert answer.headers.keys() == {"A", "B"}


# --- callbacks -----------------------------------------------------------------------------------


async def test_a_failing_error_callback_does_not_end_delivery(
    guarded: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("logging failed")

    monkeypatch.setattr("agent.bus.incidents.Incidents.take_error", fail)
    url = guarded.url.replace("://", "://admin:let-me-in@")
    async with await connect(url, name="test") as bus:
        await bus._client._error_cb(nats.errors.Error("anything"))

        await expect_delivery(bus)

        assert bus.counters["callback_failures_total"] == 1


async def test_nats_alone_goes_deaf_when_its_error_callback_fails(guarded: NatsServer) -> None:
    async def fail(error: Exception) -> None:
        raise RuntimeError("logging failed")

    url = guarded.url.replace("://", "://reader:read-only@")
    async with plain_client(url, error_cb=fail) as (client, _):
        await client.publish("x.denied", b"")

        await until(lambda: is_deaf(client))


async def test_failing_callbacks_do_not_end_the_reconnection(
    bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BrokenLog:
        def __getattr__(self, name: str) -> Any:
            raise OSError("stderr is gone")

    monkeypatch.setattr("agent.bus.connection.log", BrokenLog())

    nats.kill()
    nats.start()
    await until(lambda: bus.counters["reconnects_total"] == 1)

    await expect_delivery(bus)
    assert bus.counters["callback_failures_total"] == 2


# --- what strangers send -------------------------------------------------------------------------

HOSTILE = {
    "subject-not-utf8": b"PUB %b.\xff 1\r\nx\r\n",
    "reply-not-utf8": b"PUB %b.a reply.\xff 1\r\nx\r\n",
    "header-block-cut-short": with_headers(b"%b.a", b"ABCD"),
    "header-block-of-status-not-utf8": with_headers(b"%b.a", b"NATS/1.0 503 \xff\xfe\r\n\r\n"),
}


@pytest.mark.parametrize("form", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_message_is_counted_and_the_next_one_arrives(
    bus: Bus, nats: NatsServer, form: bytes
) -> None:
    seen: list[bytes] = []
    await bus.subscribe("service.>", lambda subject, payload: seen.append(payload))

    with structlog.testing.capture_logs() as logged:
        await send_raw(nats.port, *[form.replace(b"%b", b"fleet.v1.service")] * 3)
        await bus.send("service.good", b"good")
        await until(lambda: b"good" in seen)

    assert bus.counters["bad_messages_total"] == 3
    assert [line["event"] for line in logged] == ["bad_message"]
    assert bus.counters["disconnects_total"] == 0


@pytest.mark.parametrize("form", HOSTILE.values(), ids=HOSTILE.keys())
async def test_nats_alone_goes_deaf_on_a_hostile_message(nats: NatsServer, form: bytes) -> None:
    async with plain_client(nats.url) as (client, _):
        await send_raw(nats.port, form.replace(b"%b", b"x"))

        await until(lambda: is_deaf(client))


async def test_a_hostile_request_does_not_keep_an_endpoint_from_the_next(
    bus: Bus, nats: NatsServer
) -> None:
    async def echo(call: Call) -> Answer:
        return Answer(call.payload)

    await bus.serve("svc", [Endpoint("echo", "api.echo.*", echo)], description="d")

    for form in HOSTILE.values():
        await send_raw(nats.port, form.replace(b"%b", b"fleet.v1.api.echo"))
    answer = await bus.request("api.echo.x", b"hi", timeout_seconds=2)

    assert answer.payload == b"hi"


async def test_undecodable_messages_are_logged_once_and_counted_all(bus: Bus) -> None:
    def refuse(subject: str, payload: bytes) -> None:
        raise ValueError("not a metric")

    await bus.subscribe("metrics.>", refuse)

    with structlog.testing.capture_logs() as logged:
        for number in range(200):
            await bus.send(f"metrics.host.made_up_{number}", b"\x00" * 10_000)
        await until(lambda: bus.counters["bad_messages_total"] == 200)

    assert [line["subject"] for line in logged] == ["fleet.v1.metrics.>"]
    assert "not a metric" in logged[0]["error"]


# --- round trips that are given up ---------------------------------------------------------------


async def test_a_cancelled_round_trip_does_not_end_delivery(bus: Bus) -> None:
    probing = asyncio.create_task(bus.round_trip_seconds())
    await asyncio.sleep(0)

    probing.cancel()
    await bus.round_trip_seconds(2)

    await expect_delivery(bus)
    assert bus.counters["disconnects_total"] == 0


async def test_nats_alone_goes_deaf_when_a_round_trip_is_cancelled(nats: NatsServer) -> None:
    async with plain_client(nats.url) as (client, _):
        probing = asyncio.create_task(client.rtt())
        await asyncio.sleep(0)

        probing.cancel()

        await until(lambda: is_deaf(client))


@pytest.mark.parametrize("mended", [True, False], ids=["ours", "nats-alone"])
async def test_a_flush_does_not_overtake_what_was_sent_before_it(mended: bool) -> None:
    heard: list[bytes] = []

    async def play_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"headers":true,"max_payload":1000}\r\n')
        while line := await reader.readline():
            heard.append(line.split()[0])
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")

    client = BusClient(lambda subject, error: None) if mended else Client()
    async with impostor(play_server) as port:
        await client.connect(f"nats://127.0.0.1:{port}")
        await client.subscribe("x")
        await client.flush()
        await until(lambda: len(heard) == 4)
        await client.close()

    assert heard == [b"CONNECT", b"PING", *([b"SUB", b"PING"] if mended else [b"PING", b"SUB"])]


# --- cancellation that Python 3.11 loses ---------------------------------------------------------


@pytest.mark.parametrize("outcome", ["result", "error"])
async def test_a_cancellation_that_comes_with_the_answer_is_heeded(outcome: str) -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def ask() -> str:
        return await heed(asyncio.wait_for(answer, 5))

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    if outcome == "result":
        answer.set_result("answer")
    else:
        answer.set_exception(ConnectionError("gone"))
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="mended in Python 3.12")
async def test_python_alone_loses_a_cancellation_that_comes_with_the_answer() -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asking = asyncio.create_task(asyncio.wait_for(answer, 5))
    await asyncio.sleep(0)

    answer.set_result("answer")
    asking.cancel()

    assert await asking == "answer"


# --- permissions ---------------------------------------------------------------------------------


async def test_a_denied_request_and_publication_say_so(
    guarded: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.publishing.ACK_TRY_SECONDS", 60.0)
    admin = guarded.url.replace("://", "://admin:let-me-in@")
    reader = guarded.url.replace("://", "://reader:read-only@")
    async with await connect(admin, name="admin") as owner, await connect(reader, name="r") as bus:
        await ensure_streams(owner)

        with structlog.testing.capture_logs() as logged:
            async with asyncio.timeout(5):  # at once, and not when their time is over
                with pytest.raises(RequestError, match="denied it to this user") as asked:
                    await bus.request("api.health.root", timeout_seconds=60)
                with pytest.raises(PublishError, match="denied it to this user"):
                    await bus.publish_raw("alert.x", b"", message_id="1")

        assert asked.value.code == 403
        assert 'violation for publish to "fleet.v1.api.health.root"' in asked.value.text
        denied = [line["subject"] for line in logged if line["event"] == "bus_denied"]
        assert denied == ["fleet.v1.api.health.root", "fleet.v1.alert.x"]


@contextlib.contextmanager
def server_for(folder: Path, permissions: str) -> Iterator[str]:
    """The address of a user with these rights on a server of its own."""
    users = f"authorization {{ users = [{{user: u, password: x, permissions: {permissions}}}] }}"
    server = NatsServer(folder / "rights", users)
    server.start()
    try:
        yield server.url.replace("://", "://u:x@")
    finally:
        server.stop()


async def test_all_who_ask_what_is_denied_are_told_and_nobody_else(tmp_path: Path) -> None:
    rights = '{publish: {deny: ["fleet.v1.api.Secret", "a.b"]}, subscribe: ">"}'
    with server_for(tmp_path, rights) as url:
        async with await connect(url, name="r") as bus, asyncio.timeout(5):
            await bus.subscribe("api.slow", lambda *_: None)  # there, and never answers
            waiting = asyncio.create_task(bus.request("api.slow", timeout_seconds=60))
            asked = [bus.request("api.Secret", timeout_seconds=60) for _ in range(3)]
            refused = await asyncio.gather(*asked, return_exceptions=True)
            questions = [Question("a.b"), Question("a.b")]
            answers = await bus._client.ask_all(questions, 60.0)
            still_waits = not waiting.done()
            waiting.cancel()

    assert [getattr(error, "code", None) for error in refused] == [403] * 3
    assert [type(answer) for answer in answers] == [DeniedError] * 2
    assert still_waits


async def test_who_may_not_hear_the_answer_is_told_at_once_each_time(tmp_path: Path) -> None:
    rights = '{publish: ">", subscribe: {deny: "_INBOX_u.>"}}'
    with server_for(tmp_path, rights) as url:
        async with await connect(url, name="deaf") as bus, asyncio.timeout(5):
            for _ in range(2):
                with pytest.raises(RequestError, match=r"subscription to .*_inbox_u") as asked:
                    await bus.request("api.health.root", timeout_seconds=60)
                assert asked.value.code == 403


# --- the server ends the connection --------------------------------------------------------------


async def test_a_revoked_login_is_tried_again_until_it_is_back(guarded: NatsServer) -> None:
    url = guarded.url.replace("://", "://admin:let-me-in@")
    config = guarded.folder / "server.conf"
    before = config.read_text()
    async with plain_client(url) as (client, _), await connect(url, name="test") as bus:
        config.write_text(before.replace("let-me-in", "changed"))
        guarded.signal(signal.SIGHUP)
        await until(lambda: bus.counters["disconnects_total"] == 1)
        await until(lambda: client.is_closed)

        config.write_text(before)
        guarded.signal(signal.SIGHUP)
        await until(lambda: bus.is_connected)

        await expect_delivery(bus)
        assert not bus.closed.is_set()


async def test_garbage_in_place_of_a_greeting_does_not_end_the_reconnection(
    bus: Bus, nats: NatsServer
) -> None:
    greeted = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO\r\n")
        greeted.set()

    nats.kill()
    async with impostor(greet, nats.port), asyncio.timeout(5):
        await greeted.wait()
    nats.start()

    await until(lambda: bus.is_connected)
    await expect_delivery(bus)


# --- services ------------------------------------------------------------------------------------


async def test_an_endpoint_drained_while_the_server_was_away_does_not_come_back(
    bus: Bus, nats: NatsServer
) -> None:
    def answer(call: Call) -> Answer:
        return Answer(b"still here")

    service = await bus.serve("svc", [Endpoint("kept", "api.kept", answer)], description="d")
    drain = await service.add([Endpoint("lost", "api.lost", answer)])

    nats.kill()
    await until(lambda: not bus.is_connected)
    await drain()
    nats.start()
    await until(lambda: bus.is_connected)

    assert (await bus.request("api.kept", timeout_seconds=2)).payload == b"still here"
    with pytest.raises(RequestError, match="nobody serves"):
        await bus.request("api.lost", timeout_seconds=2)


async def test_what_does_not_end_within_the_drain_is_interrupted_and_answered(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.serving.DRAIN_SECONDS", 0.1)
    started = asyncio.Event()

    async def endless(call: Call) -> Answer:
        started.set()
        await asyncio.Event().wait()
        return Answer()

    service = await bus.serve("svc", [Endpoint("endless", "api.endless", endless)], description="d")
    asking = asyncio.create_task(bus.request("api.endless", timeout_seconds=5))
    await started.wait()
    await service.stop()

    with pytest.raises(RequestError, match="interrupted") as interrupted:
        await asking
    assert interrupted.value.code == 503


async def test_nothing_is_lost_while_one_of_two_services_stops_under_load(
    bus: Bus, nats_url: str
) -> None:
    answered_by: list[str] = []

    def endpoint(who: str) -> Endpoint:
        async def work(call: Call) -> Answer:
            await asyncio.sleep(0.01)  # stands for work
            answered_by.append(who)
            return Answer(call.payload)

        return Endpoint("work", "api.work", work, queue="workers")

    async with await connect(nats_url, name="one") as one, await connect(nats_url, name="two") as b:
        leaving = await one.serve("svc", [endpoint("one")], description="d")
        await b.serve("svc", [endpoint("two")], description="d")
        asks = [
            asyncio.create_task(bus.request("api.work", b"%d" % n, timeout_seconds=10))
            for n in range(100)
        ]
        await until(lambda: len(answered_by) > 10)
        later = asyncio.create_task(leaving.stop())
        asks += [
            asyncio.create_task(bus.request("api.work", b"%d" % n, timeout_seconds=10))
            for n in range(100, 200)
        ]
        answers = await asyncio.gather(*asks)
        await later

    assert [answer.payload for answer in answers] == [b"%d" % n for n in range(200)]
    assert {"one", "two"} == set(answered_by)


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "awaited"])
async def test_no_word_of_an_exception_reaches_a_stranger(bus: Bus, inline: bool) -> None:
    def fail(call: Call) -> Answer:
        raise KeyError("/root/secret")

    async def fail_later(call: Call) -> Answer:
        raise KeyError("/root/secret")

    await bus.serve(
        "svc", [Endpoint("fail", "api.fail", fail if inline else fail_later)], description="d"
    )

    with pytest.raises(RequestError) as failed:
        await bus.request("api.fail", timeout_seconds=20)
    stats = await bus.request_absolute("$SRV.STATS.svc", timeout_seconds=20)

    assert failed.value.code == 500
    assert "secret" not in failed.value.text
    assert b"secret" not in stats.payload
    assert b'"num_errors":1' in stats.payload


async def test_discovery_always_has_a_description(bus: Bus) -> None:
    await bus.serve("svc", [], description="")

    info = await bus.request_absolute("$SRV.INFO.svc", timeout_seconds=2)

    # The `nats` command line skips a service whose description is null.
    assert b'"description":""' in info.payload


def test_the_bus_imports_without_a_warning_and_without_nats_micro() -> None:
    code = "import sys, agent.bus; sys.exit('nats.micro' in sys.modules)"

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


# --- streams and work queues ---------------------------------------------------------------------


async def test_a_reader_that_recovers_before_its_first_message_keeps_its_start(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.reader.HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr("agent.bus.reader.SILENCE_SECONDS", 0.3)
    for number in range(5):
        await bus.publish_raw("alert.n", b"%d" % number, message_id=str(number))
    seen: list[int] = []
    stop = await bus.follow("ALERTS", lambda delivery: seen.append(delivery.sequence),
                            start_sequence=6)  # fmt: skip

    for info in await bus.jetstream.consumers_info("FLEET_ALERTS"):
        await bus.jetstream.delete_consumer("FLEET_ALERTS", info.name)
    await bus.publish_raw("alert.n", b"5", message_id="5")
    await until(lambda: bool(seen))
    await stop()

    assert seen == [6]


@pytest.mark.parametrize("waiting", [True, False], ids=["while-waiting", "between-takes"])
async def test_a_deleted_consumer_is_made_anew_and_gives_each_item_once(
    bus: Bus, waiting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.work.CHECK_SECONDS", 0.0)
    taken: list[WorkItem] = []

    async def take(wait_seconds: float) -> bool:
        taken.extend(await bus.take("EVICTIONS", "w", batch=8, wait_seconds=wait_seconds))
        return bool(taken)

    async def is_asked() -> bool:
        return bool((await bus.jetstream.consumer_info("FLEET_EVICTIONS", "w")).num_waiting)

    async def is_idle() -> bool:
        return not await is_asked()

    await take(0.05)
    if waiting:
        taking = asyncio.create_task(until_async(lambda: take(5), seconds=5))
        await until_async(is_asked)
        await bus.jetstream.delete_consumer("FLEET_EVICTIONS", "w")
    else:
        await until_async(is_idle)
        await bus.jetstream.delete_consumer("FLEET_EVICTIONS", "w")
        taking = asyncio.create_task(until_async(lambda: take(0.2), seconds=5))
    await bus.publish_raw("evicted.default", b"x", message_id="x")
    await taking
    await taken[0].done()
    await take(0.05)

    assert [item.delivery.payload for item in taken] == [b"x"]


@pytest.mark.parametrize("words", [b"thanks", b"{}"], ids=["no JSON", "no stream in it"])
async def test_an_acknowledgement_that_no_stream_gave_is_none(bus: Bus, words: bytes) -> None:
    def pretend(call: Call) -> Answer:
        return Answer(words)

    await bus.serve("svc", [Endpoint("pretend", "api.pretend", pretend)], description="d")

    with pytest.raises(PublishError, match="not a stream"):
        await bus.publish_raw("api.pretend", b"", message_id="1")


# --- what is refused at the start ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("login", "named"),
    [
        pytest.param("admin:hunter2@", "user 'admin'", id="wrong-password"),
        pytest.param("stranger:hunter2@", "user 'stranger'", id="unknown-user"),
        pytest.param("hunter2@", "no user name", id="wrong-token"),
        pytest.param("", "no user name", id="no-login"),
    ],
)
async def test_a_refused_login_is_said_within_a_second_without_the_secret(
    guarded: NatsServer, login: str, named: str
) -> None:
    url = guarded.url.replace("://", f"://{login}")

    async with asyncio.timeout(1):
        with pytest.raises(BusError, match="refused the login") as refused:
            await connect(url, name="test")

    assert named in str(refused.value)
    assert f"127.0.0.1:{guarded.port}" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("nats://127.0.0.1:1", id="nobody-listens"),
        pytest.param("nats://user:hunter2@nowhere.invalid:4222", id="no-such-host"),
        pytest.param("nats://user:hunter2@127.0.0.1:99999", id="no-such-port"),
        pytest.param("nats://user:hun/ter2@127.0.0.1:4222", id="slash-in-password"),
        pytest.param("nats://", id="no-host"),
        pytest.param("", id="empty"),
    ],
)
async def test_an_address_without_a_server_is_refused_within_the_deadline(url: str) -> None:
    async with asyncio.timeout(3):
        with pytest.raises(BusError) as refused:
            await connect(url, name="test", deadline_seconds=0.3)

    assert "hun" not in str(refused.value)


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(b"", id="silent"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
        pytest.param(b"INFO {}\r\n", id="silent-after-greeting"),
        pytest.param(b"INFO nonsense\r\n", id="greeting-not-json"),
    ],
)
async def test_something_else_at_the_address_is_refused_within_the_deadline(
    greeting: bytes,
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()

    async with impostor(greet) as port, asyncio.timeout(3):
        with pytest.raises(BusError, match=f"127.0.0.1:{port}"):
            await connect(f"nats://127.0.0.1:{port}", name="test", deadline_seconds=0.3)


def test_the_pause_before_a_reconnection_is_bounded_whatever_the_attempt() -> None:
    bus = Bus("nats://127.0.0.1:1", "test", None, "_INBOX_test")  # type: ignore[arg-type]

    first = bus._next_server(["a"], {})
    later = [bus._next_server([], {}) for _ in range(5000)]

    assert first == ("a", 0.0)
    assert all(0 < delay <= 2 for _, delay in later)
    assert {server for server, _ in later} == {None}
