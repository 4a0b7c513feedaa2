"""Requests on a busy connection: every answer to its own question, and nothing left behind."""

import asyncio

import pytest

from agent.bus import Bus, connect
from schemas.protocols import Answer, Call, Endpoint, RequestError

DEADLINE_SECONDS = 20.0


async def serve_echo(bus: Bus) -> None:
    """`echo`: the payload back, with the headers."""

    def echo(call: Call) -> Answer:
        return Answer(call.payload, dict(call.headers))

    await bus.serve("test", [Endpoint("echo", "echo", echo)], description="test")


async def serve_held(bus: Bus) -> tuple[asyncio.Event, asyncio.Event]:
    """`held`: sets the first event when asked, and answers once the second one is set."""
    asked, released = asyncio.Event(), asyncio.Event()

    async def held(call: Call) -> Answer:
        asked.set()
        await released.wait()
        return Answer(call.payload)

    await bus.serve("test", [Endpoint("held", "held", held)], description="test")
    return asked, released


async def test_many_requests_at_once_each_get_their_own_answer(bus: Bus, nats_url: str) -> None:
    await serve_echo(bus)

    async with await connect(nats_url, name="asker") as asker, asyncio.timeout(DEADLINE_SECONDS):
        answers = await asyncio.gather(
            *(
                asker.request("echo", b"%d" % n, {"N": str(n)}, timeout_seconds=DEADLINE_SECONDS)
                for n in range(500)
            )
        )

    assert [answer.payload for answer in answers] == [b"%d" % n for n in range(500)]
    assert [answer.headers["N"] for answer in answers] == [str(n) for n in range(500)]


async def test_an_answer_that_comes_too_late_is_nobodys(bus: Bus, nats_url: str) -> None:
    _, released = await serve_held(bus)
    await serve_echo(bus)

    async with await connect(nats_url, name="asker") as asker, asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(RequestError) as refused:
            await asker.request("held", b"late", timeout_seconds=0.05)
        released.set()
        answer = await asker.request("echo", b"next", timeout_seconds=DEADLINE_SECONDS)

    assert refused.value.code == 408
    assert answer.payload == b"next"
    assert asker.counters["bad_messages_total"] == 0


async def test_a_cancelled_request_ends_at_once_and_leaves_nothing(bus: Bus, nats_url: str) -> None:
    asked, _ = await serve_held(bus)

    async with await connect(nats_url, name="asker") as asker, asyncio.timeout(DEADLINE_SECONDS):
        request = asyncio.create_task(asker.request("held", timeout_seconds=DEADLINE_SECONDS))
        await asked.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

        assert not asker._client._asked


async def test_whoever_waits_is_told_when_the_connection_is_closed(bus: Bus, nats_url: str) -> None:
    asked, _ = await serve_held(bus)
    asker = await connect(nats_url, name="asker")
    request = asyncio.create_task(asker.request("held", timeout_seconds=3600))

    async with asyncio.timeout(DEADLINE_SECONDS):
        await asked.wait()
        await asker.abandon()
        with pytest.raises(RequestError, match="closed") as refused:
            await request

    assert refused.value.code == 503


@pytest.mark.parametrize("subject", ["two words", "line\r\nPUB x 0"], ids=["blank", "command"])
async def test_no_subject_can_carry_a_command(bus: Bus, subject: str) -> None:
    with pytest.raises(RequestError) as refused:
        await bus.request(subject, timeout_seconds=DEADLINE_SECONDS)

    assert refused.value.code == 503


async def test_a_header_with_a_line_break_cannot_add_another_header(bus: Bus) -> None:
    await serve_echo(bus)

    answer = await bus.request("echo", b"x", {"A": "1\r\nB: 2"}, timeout_seconds=DEADLINE_SECONDS)

    assert "B" not in answer.headers


async def test_a_large_answer_comes_whole_among_small_ones(bus: Bus, nats_url: str) -> None:
    await serve_echo(bus)
    large = bytes(range(256)) * 2048

    async with await connect(nats_url, name="asker") as asker, asyncio.timeout(DEADLINE_SECONDS):
        answers = await asyncio.gather(
            *(
                asker.request(
                    "echo", large if n % 3 == 0 else b"small", timeout_seconds=DEADLINE_SECONDS
                )
                for n in range(30)
            )
        )

    assert [answer.payload for answer in answers] == [
        large if n % 3 == 0 else b"small" for n in range(30)
    ]
