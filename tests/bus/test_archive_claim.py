"""Whose a store is: two installations on one, two stores of one, and a bus that forgot."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.archive_client import ArchiveClient
from agent.blocking import BlockingThread
from agent.bus import Bus, connect, ensure_streams
from archive.catalog import Catalog
from archive.claim import Claim
from archive.folder import FolderStore
from archive.index_bucket import IndexBucket
from archive.index_entry import IndexEntry
from archive.marks import NotOurStoreError
from archive.s3 import S3Store
from archive.service import ArchiveService
from archive.settings import S3Settings
from archive.store import ObjectRefusedError, ObjectStore, StoreError
from benchmarks.moto import CREDENTIALS, MotoServer
from schemas.protocols import RequestError
from schemas.units import instant
from tests.support.archive_service import Heard, archiving, evict, until
from tests.support.evictions import NOW_NS, ManualClock, evicted, folder_store
from tests.support.server import NatsServer
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus
Open = Callable[[str], ObjectStore]


@pytest.fixture(params=["folder", "moto"])
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Open:
    """A store of this name; the same one each time it is called with it."""
    if request.param == "folder":
        return lambda name: folder_store(tmp_path / name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    server: MotoServer = request.getfixturevalue("moto")
    bucket = server.make_bucket(secrets.token_hex(8))
    settings = S3Settings(endpoint_url=server.url)
    return lambda name: S3Store(bucket, f"{name}/", settings)


@pytest.fixture
async def other_bus(nats: NatsServer, tmp_path: Path) -> AsyncIterator[Bus]:
    """Of another installation, or of the same one on a nats-server that lost its state."""
    server = NatsServer(tmp_path / "other nats")
    server.start()
    try:
        async with await connect(server.url, name="other") as connected:
            await ensure_streams(connected)
            yield connected
    finally:
        server.stop()


async def fill(bus: Bus, *keys: str) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    for key in keys:
        await evict(bus, evicted(key, expires_at=None))
    for _ in keys:
        await heard.stored()


def refusal(service: ArchiveService) -> str:
    """What health says of the store that is not this installation's."""
    found = {one.name: one for one in service.components()}
    if "store" not in found or found["store"].state != "failed":
        return ""
    return found["store"].text.partition(" (since ")[0]


async def refused(service: ArchiveService) -> str:
    await until(lambda: bool(refusal(service)) and not service.is_active)
    return refusal(service)


async def installation(bus: Bus) -> str:
    found = await bus.bucket("state").get("archive.owner")
    assert found is not None
    return found[0].decode().split('"')[3]


async def test_a_second_installation_is_refused_and_touches_nothing(
    bus: Bus, other_bus: Bus, open_store: Open
) -> None:
    clock = ManualClock()
    async with archiving(bus, open_store("one")):
        await fill(bus, "a", "b")
        async with archiving(
            other_bus, open_store("one"), clock=clock, sweep_interval_seconds=0.05
        ) as second:
            told_at_once = refusal(second)
            text = await refused(second)
            clock.advance(10 * 86400)
            await evict(other_bus, evicted("c"))
            with pytest.raises(RequestError):
                await ArchiveClient(other_bus).get("a")
            failed = await ArchiveClient(other_bus).run("reindex", lambda _job: None)
            pending = await other_bus.depth("EVICTIONS")
        values = [await ArchiveClient(bus).get(key) for key in ("a", "b")]

    assert told_at_once == text
    assert await installation(bus) in text
    assert await installation(other_bus) in text
    assert "one" in text
    assert "resource-agent archive reindex --adopt" in text
    assert (failed.state, failed.error) == ("failed", text)
    assert pending == 1
    assert values == [b"value", b"value"]


async def test_a_bus_that_lost_its_state_gets_its_store_back_by_one_command(
    bus: Bus, other_bus: Bus, open_store: Open
) -> None:
    async with archiving(bus, open_store("one")):
        await fill(bus, "a", "b")
    async with (
        archiving(other_bus, open_store("one"), instance="a1") as first,
        archiving(other_bus, open_store("one"), instance="a2") as second,
    ):
        await refused(first)
        await refused(second)
        job = await ArchiveClient(other_bus).run("reindex", lambda _job: None, adopt=True)

        def states() -> set[str]:
            return {service.components()[0].text for service in (first, second)}

        await until(lambda: states() == {"active", "helping"})
        await until(lambda: not refusal(first) and not refusal(second))
        values = [await ArchiveClient(other_bus).get(key) for key in ("a", "b")]
        await fill(other_bus, "c")
    async with archiving(other_bus, open_store("one")) as again:
        entries = again.counters()["entries"]

    assert (job.state, job.counts["entries"]) == ("done", 2)
    assert values == [b"value", b"value"]
    assert entries == 3


@pytest.mark.parametrize("when", ["before it sweeps", "while it sweeps"])
async def test_who_loses_its_store_to_another_installation_removes_nothing_more(
    bus: Bus, other_bus: Bus, open_store: Open, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    clock = ManualClock()
    async with archiving(bus, open_store("one"), clock=clock) as loser:
        await evict(bus, evicted("a", expires_at=instant(NOW_NS + 10**9)))
        await until(lambda: loser.counters()["entries"] == 1)
        async with archiving(other_bus, open_store("one")) as winner:
            await refused(winner)

            async def lose(_expired: IndexEntry | None = None) -> None:
                await ArchiveClient(other_bus).run("reindex", lambda _job: None, adopt=True)
                await until(lambda: winner.is_active)

            if when == "while it sweeps":
                monkeypatch.setattr(loser._announcer, "expired", lose)
            else:
                await lose()
            clock.advance(60)
            await loser.sweep()
            await refused(loser)
            value = await ArchiveClient(other_bus).get("a")

    assert value == b"value"


async def test_an_archiver_with_another_store_than_the_others_is_refused(
    bus: Bus, open_store: Open
) -> None:
    async with archiving(bus, open_store("one"), instance="right") as right:
        await fill(bus, "a")
        async with archiving(bus, open_store("two"), instance="wrong") as wrong:
            text = await refused(wrong)
            job = await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)
            value = await ArchiveClient(bus).get("a")
            is_still_right = right.is_active and not wrong.is_active

    assert "one" in text
    assert "two" in text
    assert await installation(bus) in text
    assert job.instance == "right"
    assert value == b"value"
    assert is_still_right


class Unconditional(FolderStore):
    """As a server that does not heed `If-None-Match`; writes its mark when it may."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [BlockingThread("store")])
        self.writes, self.may_write = asyncio.Event(), asyncio.Event()

    async def write_mark(self, content: bytes, *, replace: bool) -> None:
        self.writes.set()
        await self.may_write.wait()
        await super().write_mark(content, replace=True)


async def test_two_archivers_that_mark_a_store_at_once_both_have_it_where_the_last_write_stays(
    bus: Bus, tmp_path: Path
) -> None:
    async def is_not_asked() -> bool:
        raise AssertionError

    store, slow = (Unconditional(tmp_path / "one") for _ in range(2))
    for one in (store, slow):
        await one.open()
    first, second = (Claim(one, bus.bucket("state"), is_not_asked) for one in (store, slow))
    store.may_write.set()

    checking = asyncio.create_task(second.check())
    await slow.writes.wait()  # it found no mark
    await first.check()
    slow.may_write.set()
    await checking

    await first.check()
    for one in (store, slow):
        await one.close()


async def test_two_archivers_of_two_stores_that_start_together_agree_on_one(
    bus: Bus, open_store: Open
) -> None:
    async with (
        archiving(bus, open_store("one"), instance="a1") as first,
        archiving(bus, open_store("two"), instance="a2") as second,
    ):
        await until(lambda: first.is_active != second.is_active)
        await until(lambda: bool(refusal(first)) != bool(refusal(second)))


async def test_another_store_is_gone_on_with_by_one_command(bus: Bus, open_store: Open) -> None:
    async with archiving(bus, open_store("one")):
        await fill(bus, "a")
    async with archiving(bus, open_store("two")) as moved:
        text = await refused(moved)
        await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)
        await until(lambda: moved.is_active)
        await fill(bus, "b")
        values = [await ArchiveClient(bus).get(key) for key in ("a", "b")]
    async with archiving(bus, open_store("one")) as back:
        refused_back = await refused(back)

    assert "has no mark" in text
    assert values == [None, b"value"]
    assert "two" in refused_back


async def unmark(open_store: Open, name: str) -> None:
    store = open_store(name)
    await store.open()
    if isinstance(store, S3Store):
        await store._delete(store._mark)
    else:
        os.unlink(Path(store.description.removeprefix("folder ")) / "owner.json")
    assert await store.read_mark() is None
    await store.close()


async def test_a_store_of_an_earlier_release_gets_its_mark_at_the_first_start(
    bus: Bus, other_bus: Bus, open_store: Open
) -> None:
    async with archiving(bus, open_store("one")):
        await fill(bus, "a")
    await unmark(open_store, "one")
    await bus.bucket("state").delete("archive.owner")
    async with archiving(bus, open_store("one")) as upgraded:
        value = await ArchiveClient(bus).get("a")
        was_active = upgraded.is_active
        async with archiving(other_bus, open_store("one")) as second:
            text = await refused(second)

    assert was_active
    assert value == b"value"
    assert await installation(bus) in text


async def test_a_mark_that_was_lost_is_made_anew_where_the_index_knows_the_objects(
    bus: Bus, open_store: Open
) -> None:
    async with archiving(bus, open_store("one")) as service:
        await fill(bus, "a")

        async def is_recorded() -> bool:
            return bool(await bus.bucket("archive").items())

        await until_async(is_recorded)
        await unmark(open_store, "one")
        await service.sweep()
        was_active = service.is_active
        store = open_store("one")
        await store.open()
        mark = await store.read_mark()
        await store.close()

    assert was_active
    assert mark is not None
    assert await installation(bus) in mark.decode()


async def test_a_mark_that_cannot_be_read_is_told_with_what_to_do(
    bus: Bus, open_store: Open
) -> None:
    store = open_store("one")
    await store.open()
    await store.write_mark(b"{", replace=True)
    await store.close()
    async with archiving(bus, open_store("one")) as service:
        text = await refused(service)
        await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)
        await until(lambda: service.is_active)

    assert "cannot be read" in text
    assert "reindex --adopt" in text


async def test_a_deleted_index_does_not_make_the_store_foreign(bus: Bus, open_store: Open) -> None:
    async with archiving(bus, open_store("one")):
        await fill(bus, "a")
    await bus.jetstream.delete_key_value(bus.bucket("archive").name)
    await ensure_streams(bus)
    async with archiving(bus, open_store("one")) as service:
        value = await ArchiveClient(bus).get("a")
        was_active = service.is_active

    assert was_active
    assert value == b"value"


class SlowMark(FolderStore):
    """Whose mark, once `holds` is set, is refused to the first that asks, when it may `go_on`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [BlockingThread("store")])
        self.holds = False
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def read_mark(self) -> bytes | None:
        if not self.holds:
            return await super().read_mark()
        self.holds = False
        self.asked.set()
        await self.go_on.wait()
        raise ObjectRefusedError("owner.json", "refused")


async def test_a_look_that_began_earlier_is_not_told_after_a_later_one(
    bus: Bus, tmp_path: Path
) -> None:
    store = SlowMark(tmp_path / "one")
    async with archiving(bus, store, probe_interval_seconds=3600) as service:
        upkeep = service._upkeep
        store.holds = True
        earlier = asyncio.create_task(upkeep.check_claim())
        await store.asked.wait()
        later = asyncio.create_task(upkeep.check_claim())
        await asyncio.wait({later}, timeout=0.5)  # it may not end before the earlier one
        store.go_on.set()
        failed, fine = await asyncio.gather(earlier, later, return_exceptions=True)

    assert isinstance(failed, StoreError)
    assert fine is None
    assert upkeep.trouble == ""


async def test_what_was_not_recognised_is_looked_at_again_seldom(bus: Bus, tmp_path: Path) -> None:
    looks = 0

    async def recognises() -> bool:
        nonlocal looks
        looks += 1
        return False

    store = folder_store(tmp_path / "one")
    await store.open()
    await Claim(store, bus.bucket("state"), recognises).check()
    (tmp_path / "one" / "owner.json").unlink()
    seldom = Claim(store, bus.bucket("state"), recognises)
    for _ in range(3):
        with pytest.raises(NotOurStoreError):
            await seldom.check()
    of_seldom = looks
    always = Claim(store, bus.bucket("state"), recognises, again_seconds=0.0)
    for _ in range(3):
        with pytest.raises(NotOurStoreError):
            await always.check()
    await store.close()

    assert of_seldom == 1
    assert looks == 4


async def test_an_index_that_cannot_be_read_recognises_nothing_and_denies_nothing(
    bus: Bus, tmp_path: Path
) -> None:
    store = folder_store(tmp_path / "one")
    await store.open()
    catalog = Catalog(store, IndexBucket(bus.bucket("archive")))
    unknown = await catalog.recognises()
    await bus.jetstream.delete_key_value(bus.bucket("archive").name)
    with pytest.raises(StoreError, match="index bucket"):
        await catalog.recognises()
    await store.close()

    assert not unknown


@pytest.mark.parametrize("finds_out", ["sweep", "get"])
async def test_a_folder_that_was_unmounted_is_told_as_that_and_gone_on_with_when_it_is_back(
    bus: Bus, tmp_path: Path, finds_out: str
) -> None:
    folder = tmp_path / "one"
    async with archiving(bus, folder) as service:
        await fill(bus, "a")
        folder.rename(tmp_path / "away")
        folder.mkdir()
        if finds_out == "sweep":
            await service.sweep()
        else:
            with pytest.raises(RequestError, match="cannot be read now"):
                await ArchiveClient(bus).get("a")
        text = await refused(service)
        folder.rename(tmp_path / "below the mount point")
        (tmp_path / "away").rename(folder)
        await until(lambda: service.is_active)
        await service.sweep()
        value = await ArchiveClient(bus).get("a")

    assert "was it unmounted or emptied" in text
    assert "reindex --adopt" in text
    assert value == b"value"


async def test_nothing_is_stored_where_a_folder_was_unmounted(bus: Bus, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    heard = await Heard.on(bus, "archived.stored.>")
    async with archiving(bus, folder) as service:
        await fill(bus, "a")
        await heard.stored()
        folder.rename(tmp_path / "away")
        folder.mkdir()
        await evict(bus, evicted("b", expires_at=None))
        await until(lambda: "was it unmounted" in parts(service)["store"])
        stored_there = list(folder.glob("*.object"))
        folder.rename(tmp_path / "below the mount point")
        (tmp_path / "away").rename(folder)
        stored = await heard.stored()
    async with archiving(bus, folder):
        value = await ArchiveClient(bus).get("b")

    assert stored_there == []
    assert stored.key == "b"
    assert value == b"value"


async def test_a_keeper_says_at_once_that_its_store_is_anothers(
    bus: Bus, other_bus: Bus, open_store: Open
) -> None:
    slow: dict[str, Any] = {"retry_seconds": 1000.0, "retry_max_seconds": 1000.0}
    async with archiving(bus, open_store("one"), **slow) as loser:
        async with archiving(other_bus, open_store("one")) as winner:
            await refused(winner)
            await ArchiveClient(other_bus).run("reindex", lambda _job: None, adopt=True)
            await until(lambda: winner.is_active)
        await loser.sweep()
        text = await refused(loser)

    assert await installation(other_bus) in text


async def refuse_mark(open_store: Open, name: str) -> None:
    """Have the mark be there, and not be given: in a cold storage class, or no file."""
    store = open_store(name)
    await store.open()
    content = await store.read_mark()
    assert content is not None
    if isinstance(store, S3Store):
        cold = {"Key": store._mark, "Body": content, "StorageClass": "GLACIER"}
        await store._ask(lambda s3: s3.put_object(Bucket=store._bucket, **cold))
    else:
        path = Path(store.description.removeprefix("folder ")) / "owner.json"
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(ObjectRefusedError):
        await store.read_mark()
    await store.close()


def parts(service: ArchiveService) -> dict[str, str]:
    return {one.name: one.text for one in service.components()}


async def test_a_mark_alone_that_cannot_be_read_is_named_and_written_anew_by_one_command(
    bus: Bus, open_store: Open
) -> None:
    async with archiving(bus, open_store("one")) as service:
        await fill(bus, "a")
        await refuse_mark(open_store, "one")
        await service.sweep()
        said = parts(service)
        values = [await ArchiveClient(bus).get("a")]
        plain = await ArchiveClient(bus).run("reindex", lambda _job: None)
        adopted = await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)
        was_active, after = service.is_active, parts(service)
        await refuse_mark(open_store, "one")
    async with archiving(bus, open_store("one")) as service:
        text = await refused(service)
        await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)
        await until(lambda: service.is_active)
        values.append(await ArchiveClient(bus).get("a"))

    assert "its mark of whose it is cannot be read" in said["objects"]
    assert (plain.state, adopted.state) == ("failed", "done")
    assert was_active
    assert "objects" not in after
    assert "reindex --adopt" in text
    assert values == [b"value", b"value"]
