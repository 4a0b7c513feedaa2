"""Which unmarked stores an installation takes for its own, by what is in them and where."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from archive import recognition, segment
from archive.index_entry import IndexEntry
from archive.marks import Own
from archive.service import ArchiveService
from archive.store import StoredObject
from schemas.api import ArchiveJob
from schemas.protocols import RequestError
from tests.support.archive_service import Heard, archiving, evict, until
from tests.support.evictions import evicted
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus


def objects(*numbers: int) -> list[StoredObject]:
    """As long as their records say, which have no entries."""
    return [StoredObject(name(number), len(record(number))) for number in numbers]


def name(number: int) -> str:
    return f"1d-{number:032x}"


def record(number: int) -> bytes:
    return segment.footer(name(number), [])


def records(*numbers: int) -> dict[str, bytes]:
    return {name(number): record(number) for number in numbers}


@pytest.mark.parametrize(
    ("there", "known", "is_ours"),
    [
        pytest.param(range(1), range(1), True, id="one and the same"),
        pytest.param(range(100), range(100), True, id="all"),
        pytest.param(range(100), range(20, 110), True, id="80 of 100 objects"),
        pytest.param(range(75), range(100), True, id="three quarters of the index"),
        pytest.param(range(74), range(100), False, id="less of the index"),
        pytest.param(range(100), range(75), True, id="three quarters of the objects"),
        pytest.param(range(100), range(74), False, id="more that is foreign"),
        pytest.param(range(100), range(99, 199), False, id="one in common"),
        pytest.param(range(500), range(1), False, id="one record"),
        pytest.param(range(1), range(500), False, id="one object"),
        pytest.param(range(2), range(2, 4), False, id="none in common"),
        pytest.param(range(0), range(0), False, id="nothing"),
        pytest.param(range(0), range(5), False, id="emptied"),
        pytest.param(range(5), range(0), False, id="no index"),
    ],
)
def test_a_store_is_ours_where_most_of_it_and_most_of_the_index_are_the_same(
    there: range, known: range, is_ours: bool
) -> None:
    assert recognition.agrees(objects(*there), records(*known)) is is_ours


@pytest.mark.parametrize(("cut", "is_ours"), [(20, True), (30, False)])
def test_names_alone_prove_nothing_where_the_objects_have_another_length(
    cut: int, is_ours: bool
) -> None:
    found = objects(*range(100))
    short = [
        StoredObject(one.name, 0 if number % 10 < cut // 10 else one.object_bytes)
        for number, one in enumerate(found)
    ]

    assert recognition.agrees(short, records(*range(100))) is is_ours


def test_of_many_only_a_sample_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    def look(name: str, _record: bytes, _object_bytes: int) -> list[IndexEntry]:
        looks.append(name)
        return []

    monkeypatch.setattr(segment, "read_record", look)

    assert recognition.agrees(objects(*range(1000)), records(*range(1000)))
    assert 32 <= len(looks) <= recognition.SAMPLE
    assert looks[-1] > name(900)


async def own(bus: Bus) -> Own:
    found = await bus.bucket("state").get("archive.owner")
    assert found is not None
    return msgspec.json.decode(found[0], type=Own)


def refusal(service: ArchiveService) -> str:
    found = {one.name: one for one in service.components()}
    if "store" not in found or found["store"].state != "failed":
        return ""
    return found["store"].text


async def fill(bus: Bus, service: ArchiveService, *keys: str) -> None:
    """Each in a segment of its own, and in the index."""
    heard = await Heard.on(bus, "archived.stored.>")
    for key in keys:
        await evict(bus, evicted(key, expires_at=None))
        await heard.stored()

    async def is_recorded() -> bool:
        return len(await bus.bucket("archive").items()) == service.counters()["objects"]

    await until_async(is_recorded)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.object"))


def taken_away(folder: Path) -> Path:
    """What is in the folder is elsewhere from now on, and its mark is lost."""
    (folder / "owner.json").unlink()
    return folder.rename(folder.with_name("elsewhere"))


def copied_in_part(folder: Path) -> None:
    old = taken_away(folder)
    folder.mkdir()
    shutil.copy(segments(old)[0], folder)


def mixed_with_anothers(folder: Path) -> None:
    old = taken_away(folder)
    folder.mkdir()
    shutil.copy(segments(old)[0], folder)
    for number, path in enumerate(segments(old)):
        shutil.copy(path, folder / f"1d-{number:032x}.object")


@pytest.mark.parametrize("become", [copied_in_part, mixed_with_anothers])
async def test_a_store_with_an_object_in_common_is_not_ours_by_that(
    bus: Bus, tmp_path: Path, become: Callable[[Path], None]
) -> None:
    folder = tmp_path / "one"
    async with archiving(bus, folder) as service:
        await fill(bus, service, "a", "b", "c", "d")
    become(folder)
    before = {path.name for path in folder.iterdir()}
    async with archiving(bus, folder) as service:
        await until(lambda: bool(refusal(service)))
        text = refusal(service)
        after = {path.name for path in folder.iterdir() if path.suffix != ".tmp"}

    assert "has no mark" in text
    assert "reindex --adopt" in text
    assert after == before


async def test_an_unmarked_copy_elsewhere_is_not_taken_for_the_store(
    bus: Bus, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path / "one") as service:
        await fill(bus, service, "a", "b")
        # The archiver that runs tries the folder now and then, with files that are gone at once.
        no_trials = shutil.ignore_patterns("*.tmp")
        shutil.copytree(tmp_path / "one", tmp_path / "copy", ignore=no_trials)
        (tmp_path / "copy" / "owner.json").unlink()
        async with archiving(bus, tmp_path / "copy", instance="a2") as other:
            await until(lambda: bool(refusal(other)))
            text = refusal(other)

    assert "has no mark yet, but the archive of this installation" in text
    assert not (tmp_path / "copy" / "owner.json").exists()


async def test_the_bus_says_where_the_store_is_now_once_it_was_moved(
    bus: Bus, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path / "one") as service:
        await fill(bus, service, "a")
    before = await own(bus)
    (tmp_path / "one").rename(tmp_path / "moved")
    async with archiving(bus, tmp_path / "moved") as service:
        await until(lambda: service.is_active)
        value = await ArchiveClient(bus).get("a")
    moved = await own(bus)
    (tmp_path / "moved" / "owner.json").unlink()
    async with archiving(bus, tmp_path / "moved") as service:
        await until(lambda: service.is_active)
    async with archiving(bus, tmp_path / "third") as third:
        await until(lambda: bool(refusal(third)))
        text = refusal(third)

    assert (before.description, moved.description) == (
        f"folder {tmp_path / 'one'}",
        f"folder {tmp_path / 'moved'}",
    )
    assert (before.installation, before.store) == (moved.installation, moved.store)
    assert value == b"value"
    assert f"at folder {tmp_path / 'moved'}" in text


async def test_a_helper_that_reaches_the_folder_by_another_path_does_not_rename_it(
    bus: Bus, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path / "one", instance="a1") as keeper:
        (tmp_path / "link").symlink_to(tmp_path / "one")
        async with archiving(bus, tmp_path / "link", instance="a2") as helper:
            await until(lambda: helper.components()[0].text == "helping")
            while_helping = await own(bus)
        await keeper.sweep()

    assert while_helping.description == f"folder {tmp_path / 'one'}"


async def test_an_adopted_store_is_named_on_the_bus(bus: Bus, tmp_path: Path) -> None:
    async with archiving(bus, tmp_path / "one") as service:
        await fill(bus, service, "a")
    async with archiving(bus, tmp_path / "two") as service:
        await until(lambda: bool(refusal(service)))
        await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)
        adopted = await own(bus)

    assert adopted.description == f"folder {tmp_path / 'two'}"


def emptied(folder: Path) -> None:
    folder.rename(folder.with_name("away"))
    folder.mkdir()


async def anothers(bus: Bus) -> None:
    found = await own(bus)
    changed = msgspec.structs.replace(found, installation="another")
    await bus.bucket("state").put("archive.owner", msgspec.json.encode(changed))


async def served_sweep(bus: Bus) -> ArchiveJob:
    """Of an archiver that has stopped to serve as the keeper, once it offers to be asked again."""
    found: list[ArchiveJob] = []

    async def is_served() -> bool:
        with contextlib.suppress(RequestError):
            found[:] = [await ArchiveClient(bus).run("sweep", lambda _job: None)]
        return found != []

    await until_async(is_served)
    return found[0]


@pytest.mark.parametrize(
    ("what", "said"),
    [("emptied", "was it unmounted or emptied"), ("taken over", "belongs to installation")],
)
async def test_a_sweep_asked_of_a_keeper_that_loses_its_store_says_why(
    bus: Bus, tmp_path: Path, what: str, said: str
) -> None:
    folder = tmp_path / "one"
    async with archiving(bus, folder, probe_interval_seconds=3600) as service:
        await fill(bus, service, "a")
        if what == "emptied":
            emptied(folder)
        else:
            await anothers(bus)
        job = await ArchiveClient(bus).run("sweep", lambda _job: None)
        again = await served_sweep(bus)
        was_active = service.is_active
        left = len(segments(folder.with_name("away") if what == "emptied" else folder))

    assert (job.state, again.state) == ("failed", "failed")
    assert said in job.error
    assert again.error == job.error
    assert not was_active
    assert left == 1


async def test_a_store_that_was_made_anew_is_noticed_without_a_sweep_and_takes_nothing(
    bus: Bus, tmp_path: Path
) -> None:
    """A folder whose content is another looks as a bucket does that was deleted and made anew."""
    folder, away = tmp_path / "one", tmp_path / "away"
    away.mkdir()
    async with archiving(bus, folder, sweep_interval_seconds=3600) as service:
        await fill(bus, service, "a")
        moved = [*folder.glob("*.object"), folder / "owner.json"]
        for file in moved:
            file.rename(away / file.name)
        await until(lambda: "was it unmounted or emptied" in refusal(service))
        await evict(bus, evicted("b", expires_at=None))
        await until(lambda: "1 evictions wait" in backlog(service))
        taken = segments(folder)
        for file in moved:
            (away / file.name).rename(file)
        heard = await Heard.on(bus, "archived.stored.>")
        while (await heard.stored()).key != "b":
            pass
        kept = segments(folder)

    assert taken == []
    assert len(kept) == 2


def backlog(service: ArchiveService) -> str:
    return next((one.text for one in service.components() if one.name == "backlog"), "")


async def test_an_archiver_that_does_not_keep_the_index_sweeps_nothing(
    bus: Bus, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path / "one") as service:
        await fill(bus, service, "a")
        duty = service._duty
        duty.over = True
        job = await ArchiveClient(bus).run("sweep", lambda _job: None)

    assert job.state == "failed"
    assert "does not keep the index now" in job.error


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"installation":""}', b'{"store":"x"}', b"\xff", b"[]"]
)
async def test_what_the_bus_has_and_cannot_be_read_is_told_and_written_anew_by_one_command(
    bus: Bus, tmp_path: Path, content: bytes
) -> None:
    async with archiving(bus, tmp_path / "one") as service:
        await fill(bus, service, "a")
    await bus.bucket("state").put("archive.owner", content)
    async with archiving(bus, tmp_path / "one") as service:
        await until(lambda: bool(refusal(service)))
        text = refusal(service)
        plain = await ArchiveClient(bus).run("reindex", lambda _job: None)
        adopted = await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)
        await until(lambda: service.is_active)
        value = await ArchiveClient(bus).get("a")
        after = await own(bus)

    assert "`archive.owner` in the bucket `fleet-state`) cannot be read" in text
    assert "reindex --adopt" in text
    assert (plain.state, adopted.state, adopted.counts["entries"]) == ("failed", "done", 1)
    assert value == b"value"
    assert after.description == f"folder {tmp_path / 'one'}"


async def test_a_keeper_whose_bus_has_it_unreadable_gives_back_and_removes_nothing(
    bus: Bus, tmp_path: Path
) -> None:
    async with archiving(bus, tmp_path / "one") as service:
        await fill(bus, service, "a")
        await bus.bucket("state").put("archive.owner", b"{")
        swept = await ArchiveClient(bus).run("sweep", lambda _job: None)
        said = {one.name: one.text for one in service.components()}
        value = await ArchiveClient(bus).get("a")
        adopted = await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)
        after = {one.name: one.text for one in service.components()}
        was_active = service.is_active

    assert swept.state == "failed"
    assert "nothing is removed" in said["objects"]
    assert "cannot be read" in said["objects"]
    assert value == b"value"
    assert adopted.state == "done"
    assert "objects" not in after
    assert was_active


@pytest.mark.parametrize("inside", [(), ("something",)], ids=["empty", "with something in it"])
async def test_a_directory_in_the_place_of_the_mark_is_moved_aside_by_the_command(
    bus: Bus, tmp_path: Path, inside: tuple[str, ...]
) -> None:
    folder = tmp_path / "one"
    async with archiving(bus, folder) as service:
        await fill(bus, service, "a")
    (folder / "owner.json").unlink()
    (folder / "owner.json").mkdir()
    for one in inside:
        (folder / "owner.json" / one).write_text("kept")
    async with archiving(bus, folder) as service:
        await until(lambda: bool(refusal(service)))
        text = refusal(service)
        job = await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)
        await until(lambda: service.is_active)
        value = await ArchiveClient(bus).get("a")
    aside = list(folder.glob("owner.*.damaged"))

    assert "it is not a file" in text
    assert "reindex --adopt" in text
    assert (job.state, value) == ("done", b"value")
    assert (folder / "owner.json").is_file()
    assert [[found.name for found in one.iterdir()] for one in aside] == [list(inside)]


async def test_a_directory_that_cannot_be_moved_aside_is_told_with_what_to_do(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "owner.json").mkdir()

    def busy(_path: Path, _target: Path) -> Path:
        raise OSError(16, "Device or resource busy")  # it is a mount point

    monkeypatch.setattr(Path, "rename", busy)
    async with archiving(bus, folder) as service:
        await until(lambda: bool(refusal(service)))
        job = await ArchiveClient(bus).run("reindex", lambda _job: None, adopt=True)

    assert job.state == "failed"
    assert "owner.json in it is a directory that cannot be moved aside" in job.error
    assert "remove or unmount it" in job.error
