"""What a client without a password may do on the private server, tried on a real one."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from agent.bus import BusError, connect
from agent.nats_server.binary import find_server
from agent.nats_server.config import ServerSettings
from agent.nats_server.private import PrivateServer
from agent.nats_server.rights import EVENTS_FOR_ALL
from schemas.protocols import Answer, Endpoint
from tests.support.nats_version import guests_hear_the_whole_root

pytestmark = pytest.mark.bus

DEADLINE_SECONDS = 5.0
ROOT = "acme.v1"  # not the default, so that no right is written for the default alone


class Guest:
    """A connection without credentials that remembers what the server refused."""

    def __init__(self) -> None:
        self.client = Client()
        self.refused: list[str] = []

    async def note(self, error: Exception) -> None:
        self.refused.append(str(error))

    async def subscribed(self, subject: str, queue: str = "") -> list[str]:
        """Subscribe and return the list that the subjects received are added to."""
        received: list[str] = []

        async def add(message: Msg) -> None:
            received.append(message.subject)

        await self.client.subscribe(subject, queue=queue, cb=add)
        await settle(self.client)
        return received


@asynccontextmanager
async def server_and_clients(
    folder: Path, settings: ServerSettings
) -> AsyncIterator[tuple[Guest, Client]]:
    binary = find_server()
    assert binary is not None
    guest = Guest()
    async with PrivateServer(folder, binary=binary, root=ROOT, settings=settings) as server:
        await guest.client.connect(server.public_url, error_cb=guest.note)
        local = await nats.connect(server.url)
        try:
            yield guest, local
        finally:
            await guest.client.close()
            await local.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Guest, Client]]:
    """A guest with the default rights, and user `local`."""
    async with server_and_clients(tmp_path / "state", ServerSettings()) as both:
        yield both


async def settle(client: Client) -> None:
    """Return when the server has done all that was sent: flush's PING overtakes what waits."""
    await client.flush()
    await client.flush()


async def until(condition: Callable[[], object], client: Client) -> None:
    """Make round trips to the server until the condition holds."""
    give_up = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < give_up, "it never came"
        await client.flush()


@pytest.mark.parametrize("subject", EVENTS_FOR_ALL)
async def test_a_guest_reads_every_kind_of_event(subject: str, pair: tuple[Guest, Client]) -> None:
    guest, local = pair
    received = await guest.subscribed(f"{ROOT}.{subject}")

    await local.publish(f"{ROOT}.{subject.replace('>', 'a.b')}", b"")
    await until(lambda: received, guest.client)

    assert guest.refused == []


@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "*.v1.>",
        f"{ROOT}.api.>",
        f"{ROOT}.evicted.>",
        f"{ROOT}.evicted_part.>",
        f"{ROOT}.cache.>",
        f"{ROOT}.cache.default.get",
        f"{ROOT}.dead.>",
        "_INBOX_local.>",
        "_INBOX_local.abc",
        "$KV.>",
        "$JS.ACK.>",
        "$JS.API.>",
        "$SYS.>",
        "$SRV.>",
        "other.v1.>",
    ],
)
async def test_a_guest_may_not_subscribe(subject: str, pair: tuple[Guest, Client]) -> None:
    guest, _ = pair

    await guest.subscribed(subject)
    await until(lambda: guest.refused, guest.client)

    assert "permissions violation for subscription" in guest.refused[0]


@pytest.mark.parametrize("subject", [f"{ROOT}.>", f"{ROOT}.*.default", f"{ROOT}.*.*.get"])
async def test_a_guest_hears_no_cached_value_by_a_wildcard(
    subject: str, pair: tuple[Guest, Client]
) -> None:
    guest, local = pair
    private = ("evicted.default", "evicted_part.default", "dead.default", "cache.default.get")
    public = ("metrics.default", "alert.a.get", "recommendation.scale_up.chat")
    received = await guest.subscribed(subject)

    for name in (*private, "api.default.get", *public):
        await local.publish(f"{ROOT}.{name}", b"")
    await settle(local)
    await settle(guest.client)

    if guests_hear_the_whole_root():
        assert guest.refused == []
        assert received
        assert set(received) <= {f"{ROOT}.{name}" for name in public}
    else:
        assert "permissions violation for subscription" in guest.refused[0]
        assert received == []


async def test_a_guest_takes_no_advice_away_from_a_queue_group(pair: tuple[Guest, Client]) -> None:
    guest, local = pair
    subject = f"{ROOT}.recommendation.scale_up.chat"
    received = await guest.subscribed(subject, queue="orchestrators")

    await local.publish(subject, b"")
    await settle(local)
    await until(lambda: guest.refused, guest.client)

    assert 'using queue "orchestrators"' in guest.refused[0]
    assert received == []


@pytest.mark.parametrize(
    "subject",
    [
        *(f"{ROOT}.api.{group}.x" for group in ("health", "gpu", "system", "analysis")),
        f"{ROOT}.api.cache.history",
        *(
            f"{ROOT}.cache.default.{op}"
            for op in ("get", "put", "match", "mget", "mput", "exists", "meta", "stats")
        ),
    ],
)
async def test_a_guest_may_ask_harmless_endpoints(subject: str, pair: tuple[Guest, Client]) -> None:
    guest, local = pair

    async def answer(message: Msg) -> None:
        await local.publish(message.reply, b"answer")

    await local.subscribe(subject, cb=answer)
    await settle(local)

    reply = await guest.client.request(subject, b"", timeout=DEADLINE_SECONDS)
    assert reply.data == b"answer"


@pytest.mark.parametrize(
    "subject",
    [
        "metrics.host.a",
        "metrics.stream.FLEET_DEAD",
        "alert.raised.warning.node.a.r",
        "api.alert.set_rule",
        "api.alert.delete_rule",
        "api.alert.reset_rule",
        "api.alert.silence",
        "api.alert.unsilence",
        "decision.accepted.pool",
        "recommendation.scale_up.pool",
        "evicted.default",
        "evicted_part.default.e.0",
        "service.registered.cache.a",
        "api.optimize.execute",
        "api.cache.clear",
        "api.lmcache.clear",
        "api.archive.restore.default",
        "cache.default.delete",
        "cache.default.clear",
        "cache.default.keys",
        "cache.default.warm",
        "cache.other.get",
    ],
)
async def test_a_guest_forges_no_event_and_commands_nothing(
    subject: str, pair: tuple[Guest, Client]
) -> None:
    guest, local = pair
    heard: list[bytes] = []

    async def add(message: Msg) -> None:
        heard.append(message.data)

    await local.subscribe(f"{ROOT}.{subject}", cb=add)
    await settle(local)

    await guest.client.publish(f"{ROOT}.{subject}", b"forged")
    await until(lambda: guest.refused, guest.client)
    await settle(local)

    assert "permissions violation for publish" in guest.refused[0]
    assert heard == []


@pytest.mark.parametrize(
    "subject",
    [
        "_INBOX_local.abc",
        "_INBOX.abc",
        "$KV.fleet-config.a",
        "$JS.ACK.FLEET.c.1.1.1.1.0",
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.FLEET",
        "$JS.API.STREAM.DELETE.FLEET",
        "$JS.API.STREAM.PURGE.FLEET",
        "$JS.API.STREAM.UPDATE.FLEET",
        "$JS.API.STREAM.MSG.GET.FLEET",
        "$JS.API.DIRECT.GET.FLEET",
        "$JS.API.CONSUMER.CREATE.FLEET",
        "$SYS.REQ.SERVER.PING",
    ],
)
async def test_a_guest_touches_neither_replies_nor_streams(
    subject: str, pair: tuple[Guest, Client]
) -> None:
    guest, _ = pair

    await guest.client.publish(subject, b"forged")
    await until(lambda: guest.refused, guest.client)

    assert "permissions violation for publish" in guest.refused[0]


async def test_a_guest_sees_which_services_there_are(pair: tuple[Guest, Client]) -> None:
    guest, local = pair

    async def pong(message: Msg) -> None:
        await local.publish(message.reply, b"pong")

    await local.subscribe("$SRV.PING", cb=pong)
    await settle(local)

    assert (await guest.client.request("$SRV.PING", b"")).data == b"pong"
    assert guest.refused == []


async def test_local_may_do_everything(pair: tuple[Guest, Client]) -> None:
    _, local = pair
    subscription = await local.subscribe(">", queue="any")
    await settle(local)

    await local.publish(f"{ROOT}.decision.accepted.pool", b"mine")

    message = await subscription.next_msg(DEADLINE_SECONDS)
    assert message.data == b"mine"


async def test_guest_all_may_do_everything(tmp_path: Path) -> None:
    async with server_and_clients(tmp_path / "state", ServerSettings(guest="all")) as (guest, _):
        received = await guest.subscribed(">", queue="any")

        await guest.client.publish(f"{ROOT}.decision.accepted.pool", b"")
        await until(lambda: received, guest.client)

        assert received == [f"{ROOT}.decision.accepted.pool"]


async def refusal(url: str) -> str:
    """Why the server does not let a client in; empty when it does."""
    client = Client()
    try:
        await client.connect(url, allow_reconnect=False)
    except nats.errors.Error as error:
        return str(error)
    finally:
        await client.close()
    return ""


async def test_guest_off_lets_nobody_in_without_the_password(tmp_path: Path) -> None:
    binary = find_server()
    assert binary is not None
    settings = ServerSettings(guest="off")

    async with PrivateServer(tmp_path / "state", binary=binary, settings=settings) as server:
        assert "Authorization Violation" in await refusal(server.public_url)
        assert "Authorization Violation" in await refusal(f"nats://guest@127.0.0.1:{server.port}")
        assert await refusal(server.url) == ""


async def test_a_wrong_password_does_not_make_a_guest(tmp_path: Path) -> None:
    binary = find_server()
    assert binary is not None

    async with PrivateServer(tmp_path / "state", binary=binary) as server:
        wrong = server.url.replace("local:", "local:not")

        assert "Authorization Violation" in await refusal(wrong)


async def test_our_own_commands_work_as_guest(tmp_path: Path) -> None:
    binary = find_server()
    assert binary is not None
    async with (
        PrivateServer(tmp_path / "state", binary=binary) as server,
        await connect(server.url, name="service") as service,
        await connect(server.public_url, name="guest") as guest,
    ):
        await service.serve(
            "svc",
            [Endpoint("echo", "api.health.echo", lambda call: Answer(call.payload))],
            description="test",
        )

        answer = await guest.request("api.health.echo", b"hello", timeout_seconds=3)

    assert answer.payload == b"hello"


async def test_a_guest_is_told_at_once_what_it_may_not_watch(tmp_path: Path) -> None:
    binary = find_server()
    assert binary is not None
    async with (
        PrivateServer(tmp_path / "state", binary=binary) as server,
        await connect(server.public_url, name="guest") as guest,
    ):
        with pytest.raises(BusError, match=r"subscribe to fleet\.v1\.api\.> .*denied it to this"):
            await guest.subscribe("api.>", lambda *_: None)
        await guest.subscribe("metrics.>", lambda *_: None)
