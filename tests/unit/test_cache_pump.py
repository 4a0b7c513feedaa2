"""The pump: every retry is the same message, and none is sent by an owner in doubt."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence

import pytest

from cache import pump as pump_module
from cache.entry import Entry
from cache.namespace import Namespace
from cache.outbox import Item
from cache.pump import Pump
from cache.settings import CacheSettings
from schemas.message import Message
from schemas.protocols import PublishError, TooLargeError


class Lease:
    held = True
    fence = 1

    async def wait_lost(self) -> None:
        raise NotImplementedError


class Stream:
    """Refuses the first messages, then takes what comes; may take the lease away."""

    def __init__(
        self, lease: Lease, *, refuse: int, lose_lease: bool = False, too_large: str = ""
    ) -> None:
        self._lease = lease
        self._refuse = refuse
        self._lose_lease = lose_lease
        self._too_large = too_large
        self.ids: list[str] = []

    async def publish(self, message: Message, *, message_id: str | None = None) -> None:
        raise NotImplementedError

    async def publish_all(self, messages: Sequence[tuple[Message, str]]) -> None:
        raise NotImplementedError

    async def publish_raw(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        message_id: str,
    ) -> None:
        self.ids.append(message_id)
        self._lease.held = not self._lose_lease
        if message_id == self._too_large:
            raise TooLargeError("2 MiB")
        if len(self.ids) <= self._refuse:
            raise PublishError("full")


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> Namespace:
    monkeypatch.setattr(pump_module, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(pump_module, "LONGEST_PAUSE_SECONDS", 0.0)
    made = Namespace(
        "default",
        CacheSettings(),
        epoch_ms=1,
        generation=1,
        message_ids=map(str, itertools.count()),
        clock=lambda: 1,
    )
    made.outbox.add_tombstone(Item(key="k", version="1", message_id="id-1", evicted_at_ns=1))
    return made


async def test_every_retry_has_the_same_id_until_it_is_acknowledged(namespace: Namespace) -> None:
    stream = Stream(Lease(), refuse=3)
    pumping = asyncio.create_task(Pump(namespace, stream, Lease()).run())

    async with asyncio.timeout(5):
        await namespace.outbox.drained()
    pumping.cancel()

    assert stream.ids == ["id-1"] * 4


async def test_an_owner_in_doubt_sends_nothing_more(namespace: Namespace) -> None:
    lease = Lease()
    stream = Stream(lease, refuse=3, lose_lease=True)

    async with asyncio.timeout(5):
        await Pump(namespace, stream, lease).run()

    assert stream.ids == ["id-1"]
    assert namespace.outbox.pending == 1


async def test_what_was_taken_in_doubt_is_given_back(namespace: Namespace) -> None:
    lease = Lease()
    lease.held = False

    async with asyncio.timeout(5):
        await Pump(namespace, Stream(lease, refuse=0), lease).run()
        again = await namespace.outbox.take()

    assert again.message_id == "id-1"


async def test_a_value_the_server_never_takes_is_counted_lost_and_holds_up_no_other(
    namespace: Namespace,
) -> None:
    for key in ("huge", "small"):
        entry = Entry(key=key, value=b"v", version="1")
        namespace.outbox.add(
            Item(key=key, version="1", message_id=key, evicted_at_ns=1, entry=entry)
        )
    stream = Stream(Lease(), refuse=0, too_large="huge")
    pumping = asyncio.create_task(Pump(namespace, stream, Lease()).run())

    async with asyncio.timeout(5):
        await namespace.outbox.drained()
    pumping.cancel()

    assert stream.ids == ["id-1", "huge", "small"]
    assert namespace.outbox.lost == 1
