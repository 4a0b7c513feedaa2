"""Poison in a stream: it is put aside whatever it looks like, and what comes after it is read."""

from urllib.parse import unquote

import pytest
import structlog

from agent.bus import Bus
from schemas.protocols import Delivery
from tests.support.server import NatsServer
from tests.support.streams import take_evictions
from tests.support.waiting import until
from tests.support.wire import send_raw, with_headers

pytestmark = pytest.mark.bus

MAX_PAYLOAD = 1024 * 1024


def headed(lines: bytes) -> bytes:
    return with_headers(b"%b", b"NATS/1.0\r\n" + lines + b"\r\n\r\n")


ILLEGIBLE = {
    "subject-not-utf8": b"PUB %b.\xff 1\r\nx\r\n",
    "header-block-cut-short": with_headers(b"%b", b"ABCD"),
}
POISON = {
    **ILLEGIBLE,
    "status-not-utf8": with_headers(b"%b", b"NATS/1.0 503 \xff\xfe\r\n\r\n"),
    "no-header": b"PUB %b 1\r\nx\r\n",
    "like-a-heartbeat": with_headers(b"%b", b"NATS/1.0 100 Idle Heartbeat\r\n\r\n", b""),
    "like-an-error": with_headers(b"%b", b"NATS/1.0 503\r\n\r\n"),
    "name-that-nobody-may-send": headed(b"A(b): c"),
    "value-not-utf8": headed(b"A: \xff"),
    "value-on-two-lines": headed(b"A: b\r\n c"),
    "order-to-the-server": headed(b"Nats-Expected-Stream: FLEET_EVICTIONS"),
    "order-to-roll-up": headed(b"nats-rollup: all"),
    "no-room-for-a-reason": b"PUB %%b %d\r\n%b\r\n" % (MAX_PAYLOAD, b"x" * MAX_PAYLOAD),
    "long-headers-and-no-room": with_headers(
        b"%b", b"NATS/1.0\r\nA: " + b"a" * 60_000 + b"\r\n\r\n", b"x" * (MAX_PAYLOAD - 60_017)
    ),
}


async def send(nats: NatsServer, form: bytes, subject: bytes) -> None:
    await send_raw(nats.port, form.replace(b"%b", subject, 1))


@pytest.mark.parametrize("form", POISON.values(), ids=POISON.keys())
async def test_poison_in_a_work_queue_goes_to_the_dead_and_the_next_is_taken(
    bus: Bus, nats: NatsServer, form: bytes
) -> None:
    await send(nats, form, b"fleet.v1.evicted.default")
    await bus.publish_raw("evicted.default", b"good", message_id="good")

    poison, good = await take_evictions(bus, 2)
    await poison.dead("it is \ud800 poison")
    await good.done()

    (dead,) = [delivery async for delivery in bus.read("DEAD")]
    first, last = await bus.stream_bounds("EVICTIONS")
    assert good.delivery.payload == b"good"
    assert first > last, "the queue is worked off"
    assert dead.subject == "dead.FLEET_EVICTIONS.archiver"
    assert dead.headers["Fleet-Dead-Reason"] == "it is %3F poison"
    assert unquote(dead.headers["Fleet-Dead-Subject"]) == f"fleet.v1.{poison.delivery.subject}"
    assert dead.payload == poison.delivery.payload[: len(dead.payload)]
    was_cut = "Fleet-Dead-Cut" in dead.headers
    assert was_cut == (len(form) > MAX_PAYLOAD)
    assert was_cut or dead.payload == poison.delivery.payload
    assert bus.counters["dead_letters_total"] == 1


@pytest.mark.parametrize("form", ILLEGIBLE.values(), ids=ILLEGIBLE.keys())
async def test_an_illegible_message_in_a_stream_is_counted_once_and_the_next_is_read(
    bus: Bus, nats: NatsServer, form: bytes
) -> None:
    heard: list[Delivery] = []
    await bus.follow("METRICS", heard.append)

    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            await send(nats, form, b"fleet.v1.metrics.host.n1")
        await bus.send("metrics.host.n1", b"good")
        await until(lambda: len(heard) == 4)

    again = [delivery.payload async for delivery in bus.read("METRICS")]
    assert [delivery.payload for delivery in heard] == [b"x", b"x", b"x", b"good"] == again
    assert bus.counters["bad_messages_total"] == 2 * 3  # by follower and by reader
    assert bus.counters["reader_restarts_total"] == 0
    assert len({line["subject"] for line in logged}) == len(logged) == 1
