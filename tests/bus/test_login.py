"""Who connects as whom: passwords of any characters, tokens, and answers that only they hear."""

from pathlib import Path

import pytest

from agent.bus import BusError, connect, ensure_streams, is_authenticated
from agent.discovery import with_password
from schemas.protocols import Answer, Endpoint
from tests.support.server import NatsServer

pytestmark = pytest.mark.bus

HARD = "p@ss/w:rd%20#?é"


def started(folder: Path, authorization: str) -> NatsServer:
    server = NatsServer(folder, f"authorization {{ {authorization} }}")
    server.start()
    return server


async def test_a_password_of_any_characters_logs_in(tmp_path: Path) -> None:
    server = started(tmp_path / "nats", f'users: [{{ user: "a.b", password: "{HARD}" }}]')
    (tmp_path / "password").write_text(f"{HARD}\n")
    url = with_password(f"nats://a.b@127.0.0.1:{server.port}", str(tmp_path / "password"))
    try:
        async with await connect(url, name="test") as bus:
            await bus.round_trip_seconds()
            with pytest.raises(BusError, match=r"nats://a\.b@.* refused the login \(user 'a\.b'\)"):
                await connect(url.replace("%40", "%41"), name="test")
    finally:
        server.stop()


async def test_a_quoted_token_logs_in_and_is_in_no_message(tmp_path: Path) -> None:
    server = started(tmp_path / "nats", 'token: "5ecret/token"')
    try:
        async with await connect(
            f"nats://5ecret%2Ftoken@127.0.0.1:{server.port}", name="test"
        ) as bus:
            await bus.round_trip_seconds()
        with pytest.raises(BusError) as refused:
            await connect(f"nats://other%2Ftoken@127.0.0.1:{server.port}", name="test")
    finally:
        server.stop()

    assert "other" not in str(refused.value)


async def test_a_user_needs_no_inbox_but_its_own(tmp_path: Path) -> None:
    rights = (
        'permissions: { publish: ">", subscribe: ["fleet.v1.api.>", "$SRV.>", "_INBOX_agent.>"] }'
    )
    server = started(tmp_path / "nats", f"users: [{{ user: agent, password: p, {rights} }}]")
    echo = Endpoint("echo", "api.echo", lambda call: Answer(call.payload))
    try:
        async with await connect(f"nats://agent:p@127.0.0.1:{server.port}", name="test") as bus:
            await ensure_streams(bus)
            await bus.bucket("state").put("key", b"value")
            await bus.serve("echo", [echo], description="test")

            answer = await bus.request("api.echo", b"hello", timeout_seconds=3)
            kept = [delivery.payload async for delivery in bus.read("METRICS")]
            items = await bus.bucket("state").items()

            assert (answer.payload, kept) == (b"hello", [])
            assert items["key"][0] == b"value"
            assert not bus.counters["permission_denied_total"]
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("config", "login", "is_known"),
    [
        pytest.param("", "", False, id="anybody"),
        pytest.param("", "ann:secret@", False, id="who-says-so"),
        pytest.param(
            "authorization { user: ann, password: secret }", "ann:secret@", True, id="one"
        ),
        pytest.param("authorization { token: secret }", "secret@", True, id="token"),
        pytest.param(
            "no_auth_user: guest\nauthorization { users: ["
            "{ user: ann, password: secret }, { user: guest, password: unused } ] }",
            "ann:secret@",
            True,
            id="beside-guests",
        ),
        pytest.param(
            "no_auth_user: guest\nauthorization { users: [{ user: guest, password: unused }] }",
            "",
            False,
            id="a-guest",
        ),
    ],
)
async def test_whether_the_server_has_checked_who_we_are(
    tmp_path: Path, config: str, login: str, is_known: bool
) -> None:
    server = NatsServer(tmp_path / "nats", config)
    server.start()
    try:
        async with await connect(f"nats://{login}127.0.0.1:{server.port}", name="test") as bus:
            assert await is_authenticated(bus) == is_known
    finally:
        server.stop()
