"""Several archivers at once: one keeps the index, the others take evictions for it."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus, connect
from archive.helper import Helper
from archive.index_bucket import IndexBucket
from archive.index_entry import IndexEntry
from archive.intake import CONSUMER, STREAM, Intake
from archive.keeping import Kept
from archive.settings import ArchiveSettings
from archive.store import ObjectStore, StoreError
from schemas.api import ArchiveStatus
from schemas.cache import Evicted
from schemas.protocols import PublishError, RequestError, WorkItem
from schemas.units import SECOND_NS, instant
from tests.support.archive_service import DEADLINE_SECONDS, FAST, Heard, archiving, evict, until
from tests.support.evictions import (
    NOW_NS,
    FailingStore,
    ManualClock,
    evicted,
    folder_store,
    tombstone,
)
from tests.support.server import NatsServer

REPOSITORY = Path(__file__).parents[2]
DAY_NS = 86400 * SECOND_NS

DIE_WRITING = """
import asyncio, os, signal, sys
from pathlib import Path

import agent.bus.work
from agent.bus import connect
from archive.folder import FolderStore
from tests.support.archive_service import archiving

agent.bus.work.ACK_WAIT_SECONDS = 2.0

async def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with await connect(sys.argv[1], name="killed") as bus:
        async with archiving(bus, Path(sys.argv[2]), instance="victim"):
            FolderStore.put = die
            print("ready", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


class Forever:
    """A lease that nobody loses."""

    held = True


@contextlib.asynccontextmanager
async def helping(
    bus: Bus, store: ObjectStore, clock: ManualClock | None = None
) -> AsyncIterator[Helper]:
    async def failed(_entry: IndexEntry, _error: StoreError) -> None:
        """Nobody counts here."""

    settings = msgspec.convert(FAST, ArchiveSettings)
    bucket = IndexBucket(bus.bucket("archive"))
    helper = Helper(store, bucket, settings, bus, clock or ManualClock(), failed)
    await store.open()
    try:
        async with asyncio.timeout(3 * DEADLINE_SECONDS):
            yield helper
    finally:
        await helper.close()
        await store.close()


async def kept_by(helper: Helper, *manifests: Evicted) -> list[Kept]:
    values = [b"" if one.tombstone else b"value" for one in manifests]
    kept = await helper.pack_all(list(zip(manifests, values, strict=True)))
    await helper.settle_all(kept)
    return kept


async def restored(bus: Bus, key: str) -> bytes:
    answer = await bus.request("api.archive.restore.default", key.encode(), timeout_seconds=5)
    return answer.payload


async def status(bus: Bus) -> ArchiveStatus:
    answer = await bus.request("api.archive.status.default", timeout_seconds=5)
    return msgspec.json.decode(answer.payload, type=ArchiveStatus)


def objects(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "archive").glob("*.object"))


async def test_what_a_helper_kept_is_given_back_at_once_and_counted(
    bus: Bus, tmp_path: Path
) -> None:
    async with (
        archiving(bus, tmp_path / "archive"),
        helping(bus, folder_store(tmp_path / "archive")) as helper,
    ):
        kept = await kept_by(helper, evicted("a"), evicted("b"))
        values = [await restored(bus, key) for key in ("a", "b")]
        shown = await status(bus)

    assert [outcome for outcome, _ in kept] == ["stored", "stored"]
    assert values == [b"value", b"value"]
    assert (shown.stored_total, shown.entries) == (2, 2)
    assert sum(use.stored_total for use in shown.classes.values()) == 2


async def test_what_two_archivers_store_is_read_from_the_objects_by_the_next(
    bus: Bus, tmp_path: Path
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    async with (
        archiving(bus, tmp_path / "archive"),
        helping(bus, folder_store(tmp_path / "archive")) as helper,
    ):
        await evict(bus, evicted("a"))
        await heard.stored()
        await kept_by(helper, evicted("b"))
        indexed = sorted(await IndexBucket(bus.bucket("archive")).records())
    async with archiving(bus, tmp_path / "archive"):
        values = [await restored(bus, key) for key in ("a", "b")]

    assert indexed == objects(tmp_path)
    assert values == [b"value", b"value"]


@pytest.mark.parametrize("newest", [evicted(version="b1-02"), tombstone()], ids=["value", "gone"])
@pytest.mark.parametrize("order", ["known before", "packed at the same time"])
async def test_the_newest_version_holds_whoever_archived_it(
    bus: Bus, tmp_path: Path, newest: Evicted, order: str
) -> None:
    older = evicted(version="b1-01", size_bytes=5)
    folder = tmp_path / "archive"
    async with (
        archiving(bus, folder),
        helping(bus, folder_store(folder)) as one,
        helping(bus, folder_store(folder)) as other,
    ):
        if order == "known before":
            await kept_by(one, newest)
            outcomes = [outcome for outcome, _ in await kept_by(other, older)]
        else:
            late = await other.pack_all([(older, b"value")])
            await kept_by(one, newest)
            await other.settle_all(late)
            outcomes = [outcome for outcome, _ in late]
        at_once = await restored(bus, "k")
        shown = await status(bus)
    async with archiving(bus, folder):
        later = await restored(bus, "k")

    expected = b"" if newest.tombstone else b"value"
    assert outcomes == ["superseded" if order == "known before" else "stored"]
    assert (at_once, later) == (expected, expected)
    assert shown.entries == (0 if newest.tombstone else 1)
    assert shown.superseded_total == (1 if order == "known before" else 0)


async def test_a_tombstone_of_a_tag_and_a_clear_hold_for_what_others_packed_before(
    bus: Bus, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    async with (
        archiving(bus, folder),
        helping(bus, folder_store(folder)) as one,
        helping(bus, folder_store(folder)) as other,
    ):
        late = await other.pack_all(
            [(evicted("tagged", tags=["t"]), b"value"), (evicted("cleared"), b"value")]
        )
        await kept_by(one, tombstone("", tag="t"), evicted("new", generation=1))
        await other.settle_all(late)
        values = [await restored(bus, key) for key in ("tagged", "cleared", "new")]
        again = await kept_by(other, evicted("old", generation=0))

    assert values == [b"", b"", b"value"]
    assert again == [("superseded", None)]


async def test_a_repeated_eviction_is_stored_once_whoever_gets_it(bus: Bus, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    async with (
        archiving(bus, folder),
        helping(bus, folder_store(folder)) as one,
        helping(bus, folder_store(folder)) as other,
    ):
        ((_, entry),) = await kept_by(one, evicted())
        ((outcome, known),) = await kept_by(other, evicted())
        shown = await status(bus)

    assert outcome == "repeated"
    assert (known and known.segment) == (entry and entry.segment)
    assert len(objects(tmp_path)) == 1
    assert (shown.stored_total, shown.entries) == (1, 1)


async def test_what_the_owner_has_only_packed_is_stored_by_a_helper_too(
    bus: Bus, tmp_path: Path
) -> None:
    store = FailingStore(tmp_path / "archive")
    store.write_errno = 5
    async with (
        archiving(bus, store) as owner,
        helping(bus, folder_store(tmp_path / "archive")) as helper,
    ):
        await evict(bus, evicted())
        await until(lambda: owner.counters().get("failed_total", 0) > 0)
        kept = await kept_by(helper, evicted())
        while_failing = objects(tmp_path)
        store.write_errno = None
        await until(lambda: owner.counters().get("stored_total") == 2)
        value = await restored(bus, "k")
        shown = await status(bus)

    assert [outcome for outcome, _ in kept] == ["stored"]
    assert len(while_failing) == 1
    assert (value, shown.entries) == (b"value", 1)


async def test_an_expired_value_becomes_a_tombstone_of_the_older_one(
    bus: Bus, tmp_path: Path
) -> None:
    clock = ManualClock()
    over = evicted(version="b1-02", expires_at=instant(NOW_NS - SECOND_NS))
    async with (
        archiving(bus, tmp_path / "archive", clock=clock),
        helping(bus, folder_store(tmp_path / "archive"), clock) as helper,
    ):
        await kept_by(helper, evicted(version="b1-01"))
        kept = await kept_by(helper, over, evicted("other", expires_at=over.expires_at))
        value = await restored(bus, "k")

    (outcome, entry), other = kept
    assert (outcome, entry is not None and entry.tombstone) == ("stored", True)
    assert other == ("expired", None)
    assert value == b""


async def test_an_older_value_that_would_outlive_its_successor_is_written_away_at_once(
    bus: Bus, tmp_path: Path
) -> None:
    long = evicted(version="b1-01", expires_at=instant(NOW_NS + 60 * DAY_NS))
    others = [f"other{number}" for number in range(8)]
    folder = tmp_path / "archive"
    async with (
        archiving(bus, folder),
        helping(bus, folder_store(folder)) as one,
        helping(bus, folder_store(folder)) as other,
    ):
        late = await other.pack_all(
            [(msgspec.structs.replace(long, key=key), b"value") for key in ("k", *others)]
        )
        await kept_by(one, evicted(version="b1-02"))
        await other.settle_all(late)
        before = {name for name in objects(tmp_path) if name.startswith("90d-")}
        await ArchiveClient(bus).run("sweep", lambda _job: None)
        after = {name for name in objects(tmp_path) if name.startswith("90d-")}
        values = [await restored(bus, key) for key in ("k", *others)]

    assert len(before) == len(after) == 1
    assert before != after
    assert values == [b"value"] * 9


async def test_without_an_owner_a_helper_takes_nothing_and_says_why(
    bus: Bus, tmp_path: Path
) -> None:
    async with helping(bus, folder_store(tmp_path / "archive")) as helper:
        with pytest.raises(PublishError, match="keeps the index"):
            await helper.ready()


async def test_a_segment_is_told_to_the_next_owner_where_the_first_is_gone(
    bus: Bus, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    async with helping(bus, folder_store(folder)) as helper:
        async with archiving(bus, folder):
            packed = await helper.pack_all([(evicted(), b"value")])
        settling = asyncio.create_task(helper.settle_all(packed))
        async with archiving(bus, folder):
            await settling
            value = await restored(bus, "k")
            shown = await status(bus)

    assert value == b"value"
    assert shown.entries == 1


async def test_a_segment_that_was_removed_before_its_commit_is_packed_again(
    bus: Bus, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    store = folder_store(folder)
    put = store.put

    async def put_and_lose(name: str, content: bytes) -> None:
        await put(name, content)
        await store.delete(name)

    async with archiving(bus, folder), helping(bus, store) as helper:
        store.put = put_and_lose  # type: ignore[method-assign]
        packed = await helper.pack_all([(evicted(), b"value")])
        with pytest.raises(PublishError, match="not in the store"):
            await helper.settle_all(packed)
        with pytest.raises(PublishError, match="not in the store"):
            await helper.settle_all(packed)
        store.put = put  # type: ignore[method-assign]
        await kept_by(helper, evicted())
        value = await restored(bus, "k")

    assert value == b"value"


@pytest.mark.parametrize(
    ("subject", "payload", "headers", "code"),
    [
        ("admit", b"\xc1", {}, 400),
        ("admit", msgspec.msgpack.encode([["default"]]), {}, 400),
        ("commit", b"", {}, 400),
        ("commit", b"", {"Fleet-Segment": "../x"}, 400),
        ("commit", b"", {"Fleet-Segment": f"1d-{'0' * 32}"}, 404),
        ("commit", b"", {"Fleet-Segment": "x"}, 400),
        ("commit", b"", {"Fleet-Segment": f"1d-{'0' * 32}", "Fleet-Store-Bill": "{}"}, 400),
    ],
)
async def test_nonsense_between_archivers_is_refused(
    bus: Bus, tmp_path: Path, subject: str, payload: bytes, headers: dict[str, str], code: int
) -> None:
    async with archiving(bus, tmp_path / "archive"):
        with pytest.raises(RequestError) as caught:
            await bus.request(f"api.archive.{subject}", payload, headers, timeout_seconds=5)

    assert caught.value.code == code


async def test_a_footer_that_is_not_the_segments_is_refused(bus: Bus, tmp_path: Path) -> None:
    async with (
        archiving(bus, tmp_path / "archive") as owner,
        helping(bus, folder_store(tmp_path / "archive")) as helper,
    ):
        await kept_by(helper, evicted())
        (name,) = objects(tmp_path)
        with pytest.raises(RequestError) as caught:
            await bus.request(
                "api.archive.commit", b"x" * 30, {"Fleet-Segment": name}, timeout_seconds=5
            )
        entries = owner.counters()["entries"]

    assert (caught.value.code, entries) == (400, 1)


async def test_a_commit_that_comes_twice_counts_once(bus: Bus, tmp_path: Path) -> None:
    async with (
        archiving(bus, tmp_path / "archive"),
        helping(bus, folder_store(tmp_path / "archive")) as helper,
    ):
        await kept_by(helper, evicted())
        ((name, footer),) = (await IndexBucket(bus.bucket("archive")).records()).items()
        await bus.request("api.archive.commit", footer, {"Fleet-Segment": name}, timeout_seconds=5)
        shown = await status(bus)

    assert (shown.stored_total, shown.entries) == (1, 1)


async def test_two_archivers_share_what_comes(bus: Bus, tmp_path: Path) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    keys: list[str] = []
    async with (
        archiving(bus, tmp_path / "archive", instance="first") as first,
        archiving(bus, tmp_path / "archive", instance="second") as second,
    ):
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not second.counters().get("helped_total"):
                some = [f"k{len(keys) + number}" for number in range(20)]
                keys += some
                await asyncio.gather(*(evict(bus, evicted(key)) for key in some))
                missing = set(some)
                while missing:
                    missing.discard((await heard.stored()).key)
        values = [await restored(bus, key) for key in keys]
        await until(lambda: first.counters().get("stored_total") == len(keys))
        shown = await status(bus)
        states = [service.components()[0].text for service in (first, second)]

    assert values == [b"value"] * len(keys)
    assert (shown.entries, shown.stored_total) == (len(keys), len(keys))
    assert states == ["active", "helping"]


async def test_what_a_killed_helper_had_taken_goes_to_the_others(
    bus: Bus, nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.work.ACK_WAIT_SECONDS", 2.0)
    heard = await Heard.on(bus, "archived.stored.>")
    keys: set[str] = set()
    async with archiving(bus, tmp_path / "archive", instance="first") as first:
        victim = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", DIE_WRITING, nats.url, tmp_path / "archive"),
            cwd=REPOSITORY,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(2 * DEADLINE_SECONDS):
            assert victim.stdout is not None
            while await victim.stdout.readline() not in (b"ready\n", b""):
                """What it logs."""
            while victim.returncode is None:
                some = [f"k{len(keys) + number}" for number in range(5)]
                keys.update(some)
                for key in some:
                    await evict(bus, evicted(key))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await victim.wait()
        missing = set(keys)
        while missing:
            missing.discard((await heard.stored()).key)
        values = [await restored(bus, key) for key in keys]
        counted = first.counters()

    assert victim.returncode == -signal.SIGKILL
    assert values == [b"value"] * len(keys)
    assert counted["entries"] == len(keys)


async def test_a_helper_takes_the_place_of_an_owner_that_leaves(bus: Bus, tmp_path: Path) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    async with contextlib.AsyncExitStack() as stack:
        async with archiving(bus, tmp_path / "archive", instance="first"):
            helper = await stack.enter_async_context(
                archiving(bus, tmp_path / "archive", instance="second")
            )
            await evict(bus, evicted("old"))
            await heard.stored()
            was_active = helper.is_active
        await evict(bus, evicted("new"))
        await heard.stored()
        values = [await restored(bus, key) for key in ("old", "new")]
        await until(lambda: helper.is_active)

    assert not was_active
    assert values == [b"value", b"value"]


async def test_who_stops_leaves_what_it_had_asked_for_to_the_others_at_once(
    bus: Bus, nats: NatsServer, tmp_path: Path
) -> None:
    stopping = asyncio.Event()
    async with await connect(nats.url, name="leaver") as leaver:
        asked = asyncio.create_task(leaver.take(STREAM, CONSUMER, batch=9, wait_seconds=20))
        for number in range(9):
            await evict(bus, evicted(f"k{number}"))
        taken = await asked
        settings = msgspec.convert(FAST, ArchiveSettings)
        async with helping(leaver, folder_store(tmp_path / "archive")) as helper:
            intake = Intake(leaver, cast(Any, None), leaver, cast(Any, None), settings)
            stopping.set()
            await intake.run(helper, Forever(), stopping, lambda *_: None)

        left: list[WorkItem] = []
        assert len(taken) < 9
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(taken) + len(left) < 9:
                left += await bus.take(STREAM, CONSUMER, batch=9, wait_seconds=1)
