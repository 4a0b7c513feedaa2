"""The archive's money after a known run: status, CacheMetrics and the report say the same."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from archive.billing import NOBODY
from archive.helper import Helper
from archive.index_bucket import IndexBucket
from archive.index_entry import IndexEntry
from archive.keeper import COMMIT
from archive.s3 import S3Store
from archive.settings import ArchiveSettings, S3Settings
from archive.store import ObjectStore, StoreError
from archive.sweep import Sweeper
from archive.vault import Vault
from benchmarks.moto import CREDENTIALS, MotoServer
from handlers.settings import HandlersSettings, WasteSettings
from handlers.slots import Routed, Slot, Watermark
from handlers.spending.archive_use import ArchiveUseHandler
from schemas.api import ArchiveStatus
from schemas.archive_money import ArchiveMetrics, ArchiveUse
from schemas.engines import CacheMetrics
from schemas.protocols import Answer, Emit, Moment, Requester, RequestError
from schemas.report import Report, ReportRequest
from schemas.units import SECOND_NS, to_ns
from tests.support.archive_service import FAST, Heard, archiving, evict, until
from tests.support.asking import ask
from tests.support.cache_service import Client, running, synced
from tests.support.evictions import ManualClock, evicted, folder_store
from tests.support.spending import NOW_NS, SETTINGS, record

SOON: dict[str, Any] = {"metrics_interval_seconds": 0.05}
PRICES = {
    "apply": "on",
    "source": "ours",
    "as_of": "2026-11",
    "gib_month_usd": 1e6,
    "write_usd_per_1000": 10.0,
    "list_usd_per_1000": 20.0,
    "read_usd_per_1000": 30.0,
}
CHAT = HandlersSettings(
    prices=SETTINGS.prices, waste=WasteSettings(archive_pools={"default": "chat"})
)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["folder", "moto"])
async def store(
    request: pytest.FixtureRequest, moto: MotoServer, tmp_path: Path
) -> AsyncIterator[ObjectStore]:
    if request.param == "folder":
        yield folder_store(tmp_path / "archive")
        return
    bucket = moto.make_bucket(secrets.token_hex(8))
    yield S3Store(bucket, "", S3Settings(endpoint_url=moto.url))


def nearly(use: ArchiveUse) -> Any:
    """To compare with: money and shares are sums of fractions, taken in another order."""
    tree = msgspec.to_builtins(use)
    whose = tree["cost"].pop("prices")
    requests, cost = pytest.approx(tree.pop("requests")), pytest.approx(tree.pop("cost"))
    return pytest.approx(tree), requests, cost, whose


def parts(use: ArchiveUse) -> Any:
    tree = msgspec.to_builtins(use)
    whose = tree["cost"].pop("prices")
    requests, cost = tree.pop("requests"), tree.pop("cost")
    return tree, requests, cost, whose


async def told(heard: Heard, *statuses: ArchiveStatus) -> list[ArchiveMetrics]:
    """All that the archiver said until it said what each status does."""
    found: list[ArchiveMetrics] = []
    last: dict[str, dict[str, ArchiveUse]] = {}
    while any(last.get(status.namespace) != status.classes for status in statuses):
        found.append(await heard.next(ArchiveMetrics))
        last[found[-1].namespace] = found[-1].classes
    return found


def handled(messages: list[ArchiveMetrics]) -> list[Emit]:
    """What the handlers say of them, a minute later: of the hour before, and the running one."""
    slot = Slot(0, 1, [ArchiveUseHandler()], Watermark(sequence=0, ns=0))
    emits: list[Emit] = []
    for number, message in enumerate(messages, 1):
        ns = to_ns(message.observed_at) + number
        emits += slot.feed(Routed(message, Moment(ns, number)))
    emits += slot.advance(NOW_NS + 60 * SECOND_NS)
    return emits


async def test_status_metrics_and_report_say_the_same(bus: Bus, store: ObjectStore) -> None:
    clock = ManualClock()
    clock.ns = NOW_NS - 30 * 60 * SECOND_NS
    heard = await Heard.on(bus, "metrics.archive.>")
    from_cache = await Heard.on(bus, "metrics.cache.>")
    stored = await Heard.on(bus, "archived.stored.>")
    client = Client(bus)
    await record(bus, 1)
    async with (
        archiving(
            bus, store, clock=clock, prices=PRICES, probe_interval_seconds=1000, **SOON
        ) as service,
        running(bus, clock=clock, **SOON) as cache,
    ):
        # The probe is over, and the rules are on the bucket.
        parts_of_health = 4 if isinstance(store, S3Store) else 3
        await until(lambda: len(service.components()) == parts_of_health)
        await synced(cache)
        for key, cost in (("a", "7200"), ("b", "3600"), ("c", "")):
            named = {"Fleet_Cost_Seconds": cost} if cost else {}
            await client.put(key, b"value", Fleet_Ttl_Seconds="3600", **named)
        await client.evict_all()
        for _ in range(3):
            await stored.stored()
        await until(lambda: service.counters()["stored_total"] == 3)
        values = [await client.get(key) for key in ("a", "c")]
        await evict(bus, evicted("other", namespace="other", expires_at=None))
        await until(lambda: service.counters()["stored_total"] == 4)
        clock.advance(1800)
        other = await ArchiveClient(bus, "other").status()
        status = await ArchiveClient(bus).status()
        made = dict(store.requests)
        messages = await told(heard, status, other)
        metrics = await from_cache.next(CacheMetrics)
        while metrics.archive != status.classes:
            metrics = await from_cache.next(CacheMetrics)
    for emit in handled(messages):
        await bus.publish(emit.message, message_id=emit.message_id)
    payload = await ask(
        bus,
        "api.analysis.report",
        ReportRequest(seconds=3600.0),
        settings=CHAT,
        clock=lambda: NOW_NS,
    )
    report = msgspec.json.decode(payload, type=Report)

    use = status.classes["1d"]
    assert values == [b"value", b"value"]
    assert (use.restored_total, use.restored_without_cost_total) == (2, 1)
    assert use.avoided_seconds_total == 7200
    assert use.held_byte_hours == pytest.approx(use.held_bytes / 2)
    assert metrics.archive_counted_since == status.counted_since
    assert metrics.restores_total == use.restored_total
    assert metrics.restored_cost_seconds_total == use.avoided_seconds_total
    assert report.archive is not None
    mine, others = report.archive.namespaces
    assert (mine.namespace, others.namespace) == ("default", "other")
    assert set(mine.classes) == set(status.classes)
    for shown, answered in ((mine, status), (others, other)):
        for ttl_class, figures in shown.classes.items():
            assert parts(figures.use) == nearly(answered.classes[ttl_class]), ttl_class
    assert report.archive.prices == [status.prices]
    # Two hours of a GPU of the pool `chat` at 4 USD, less what the archive cost.
    assert (mine.pool, mine.usd_per_gpu_hour) == ("chat", 4.0)
    assert mine.total.avoided_usd == pytest.approx(8.0)
    assert status.cost is not None
    assert mine.total.net_usd == pytest.approx(8.0 - status.cost.total_usd)
    assert (others.pool, others.usd_per_gpu_hour) == (None, None)
    assert others.total.avoided_usd == 0, "nothing was restored, whatever a GPU costs"
    total = report.archive.total.use.cost
    assert total is not None
    assert other.cost is not None
    assert total.total_usd == pytest.approx(status.cost.total_usd + other.cost.total_usd)
    _check_requests(made, status, other)


def _check_requests(made: dict[str, int], *statuses: ArchiveStatus) -> None:
    """Every request is somebody's, and nobody's twice; a folder is asked none."""
    shown: dict[str, float] = {}
    for status in statuses:
        for use in status.classes.values():
            for kind, count in use.requests.items():
                shown[kind] = shown.get(kind, 0.0) + count
    assert shown == pytest.approx(made)
    if made:
        of_mine, of_other = (status.classes for status in statuses)
        assert of_mine["1d"].requests["read"] == 2.0
        assert of_other["none"].requests == {"write": 1.0}


class LosesAnswers:
    """Hears nothing of the first answer to each question about a segment, and asks again.

    `meanwhile` is done before.
    """

    def __init__(self, bus: Bus, meanwhile: Callable[[], Awaitable[object]]) -> None:
        self._bus = bus
        self._meanwhile = meanwhile
        self._lost: set[bytes] = set()

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float,
    ) -> Answer:
        answer = await self._bus.request(subject, payload, headers, timeout_seconds=timeout_seconds)
        if subject == COMMIT and payload not in self._lost:
            self._lost.add(payload)
            await self._meanwhile()
            raise RequestError(503, "the answer is lost")
        return answer


def helping(bus: Bus, store: ObjectStore, requester: Requester, **named: Any) -> Helper:
    async def failed(_entry: IndexEntry, _error: StoreError) -> None:
        """Nobody counts here."""

    settings = msgspec.convert({**FAST, **named}, ArchiveSettings)
    bucket = IndexBucket(bus.bucket("archive"))
    return Helper(store, bucket, settings, requester, ManualClock(), failed)


async def test_what_was_asked_while_nobody_kept_the_index_is_told_to_the_next(
    bus: Bus, moto: MotoServer
) -> None:
    bucket = moto.make_bucket(secrets.token_hex(8))
    first, its, second = (S3Store(bucket, "", S3Settings(endpoint_url=moto.url)) for _ in range(3))
    await its.open()
    helper = helping(bus, its, bus, segment_seconds=10)
    async with archiving(bus, first):
        packed = await helper.pack_all([(evicted(), b"value")])
    helper.packer.flush()
    settling = asyncio.create_task(helper.settle_all(packed))
    await until(lambda: its.requests["write"] == 1)
    async with archiving(bus, second, probe_interval_seconds=1000):
        await settling
        status = await ArchiveClient(bus).status()
    await helper.close()
    await its.close()

    assert status.classes["1d"].requests["write"] == 1.0
    assert its.requests.take() == {}


async def test_what_several_archivers_ask_of_the_store_is_counted_once(
    bus: Bus, moto: MotoServer
) -> None:
    bucket = moto.make_bucket(secrets.token_hex(8))
    mine, its = (S3Store(bucket, "", S3Settings(endpoint_url=moto.url)) for _ in range(2))
    clock = ManualClock()
    async with archiving(bus, mine, clock=clock, probe_interval_seconds=1000) as service:
        await until(lambda: len(service.components()) == 4)
        await its.open()
        # A listing of its own is nobody's, and told with the next segment.
        helper = helping(bus, its, LosesAnswers(bus, its.list_objects))
        evictions = [(evicted(f"k{n}", namespace=f"n{n}"), b"value") for n in (1, 1, 2)]
        evictions[1] = (evicted("other", namespace="n1"), b"value")
        kept = await helper.pack_all(evictions)
        await helper.settle_all(kept)
        late = await helper.pack_all([(evicted("late", namespace="n2"), b"value")])
        await helper.settle_all(late)
        statuses = [await ArchiveClient(bus, name).status() for name in ("n1", "n2")]
        left = its.requests.take()
        # The last listing will be told with the next segment.
        made = Counter(mine.requests) + Counter(its.requests) - Counter(left[NOBODY])
        await helper.close()
        await its.close()

    shown: Counter[str] = Counter()
    for status in statuses:
        for use in status.classes.values():
            shown.update({kind: round(1e6 * count) for kind, count in use.requests.items()})
    one, other = (status.classes["1d"] for status in statuses)
    assert {kind: round(count / 1e6, 3) for kind, count in shown.items()} == made
    assert statuses[0].requests == made
    assert left == {NOBODY: {"list": 1.0}}
    assert one.requests == {"write": pytest.approx(2 / 3)}
    assert other.requests == {"write": pytest.approx(1 / 3 + 1)}
    assert (one.stored_total, other.stored_total) == (2, 2)


async def test_what_is_written_anew_is_read_and_written_for_who_needs_it(moto: MotoServer) -> None:
    store = S3Store(moto.make_bucket(secrets.token_hex(8)), "", S3Settings(endpoint_url=moto.url))
    await store.open()
    # A footer is more than a hundredth of so small a segment, which is written anew for that.
    vault = Vault(store, ArchiveSettings(segment_seconds=0.001, dead_ratio=0.01), ManualClock())
    await vault.load(lambda _done, _total: None)
    await vault.keep(evicted(namespace="a", expires_at=None), b"value")
    before = vault.meter.uses("a")["none"].requests
    async for _ in Sweeper(vault).sweep():
        pass
    after = vault.meter.uses("a")["none"].requests
    await vault.close()
    await store.close()

    assert (before, after) == ({"write": 1.0}, {"write": 2.0, "read": 1.0})
