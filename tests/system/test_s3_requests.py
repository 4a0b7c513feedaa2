"""Requests to S3: counted as they are billed, and none for what is not there."""

import secrets
from collections import Counter
from collections.abc import AsyncIterator

import msgspec
import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from archive.s3 import S3Store
from archive.settings import S3Settings
from benchmarks.moto import CREDENTIALS, MotoServer
from tests.support.archive_service import Heard, archiving, evict, until
from tests.support.evictions import ManualClock, evicted, tombstone
from tests.support.s3_double import S3Double, http, s3_error

NAME = "ab" * 32


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def store(moto: MotoServer) -> AsyncIterator[S3Store]:
    bucket = moto.make_bucket(secrets.token_hex(8))
    opened = S3Store(bucket, "", S3Settings(endpoint_url=moto.url))
    yield opened
    await opened.close()


async def test_each_try_of_a_request_is_counted() -> None:
    answers = iter([s3_error(503, "SlowDown"), http(200), s3_error(404, "NoSuchKey"), http(204)])
    async with S3Double(lambda *_: next(answers)) as server:
        store = S3Store("bucket", "", S3Settings(endpoint_url=server.url, attempts=2))
        await store.open()
        await store.put(NAME, b"value")
        await store.get(NAME)
        await store.delete(NAME)
        await store.close()

    assert store.requests == Counter(write=2, read=1, delete=1)


async def test_what_is_not_there_costs_no_request(bus: Bus, store: S3Store) -> None:
    clock = ManualClock()
    heard = await Heard.on(bus, "archived.stored.>")
    async with archiving(bus, store, clock=clock, probe_interval_seconds=1000) as service:
        await until(lambda: len(service.components()) == 4)  # the probe is over, rules are there
        for manifest in (evicted("gone"), evicted("kept", expires_at=None), evicted("expired")):
            await evict(bus, manifest)
        await evict(bus, tombstone("gone"))
        for _ in range(4):
            await heard.stored()
        clock.advance(3600)
        before = Counter(store.requests)
        client = ArchiveClient(bus)
        missed = [await client.get(key) for key in ("never", "gone", "expired")]
        newer = await bus.request(
            "api.archive.restore.default", b"kept", {"Fleet-Generation": "9"}, timeout_seconds=10
        )
        after = Counter(store.requests)
        found = await client.get("kept")

    assert missed == [None, None, None]
    assert newer.headers["Fleet-Status"] == "miss"
    assert after == before
    assert found == b"value"
    assert store.requests["read"] > before["read"]


async def test_the_status_says_what_was_used_and_what_that_cost(bus: Bus, store: S3Store) -> None:
    clock = ManualClock()
    heard = await Heard.on(bus, "archived.stored.>")
    prices = {"apply": "on", "write_usd_per_1000": 1000.0, "source": "ours", "as_of": "today"}
    async with archiving(bus, store, clock=clock, prices=prices) as service:
        await evict(bus, evicted("k", expires_at=None, cost_seconds=7.0))
        await heard.stored()
        await until(lambda: service.counters().get("stored_total") == 1)
        client = ArchiveClient(bus)
        value = await client.get("k")
        clock.advance(3600)
        status = await client.status()

    use = status.classes["none"]
    assert value == b"value"
    assert (use.entries, use.stored_total, use.restored_total) == (1, 1, 1)
    assert use.avoided_seconds_total == 7.0
    assert use.held_byte_hours == pytest.approx(use.held_bytes)
    assert status.requests["write"] >= 1
    assert status.cost is not None
    assert status.cost.requests_usd >= status.requests["write"]
    assert status.cost.prices == "ours, today"
    assert msgspec.json.encode(status)
