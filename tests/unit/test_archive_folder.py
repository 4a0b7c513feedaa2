"""Objects in a local folder."""

import asyncio
import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from archive.folder import FolderStore
from archive.store import StoredObject, StoreError
from tests.support.evictions import FailingStore, folder_store

NAME = "ab" * 32
REPOSITORY = Path(__file__).parents[2]

WRITE_AND_HANG_BEFORE_SYNC = """
import asyncio, os, sys, time
from pathlib import Path
from tests.support.evictions import folder_store

def hang(descriptor):
    print("written", flush=True)
    time.sleep(60)

os.fsync = hang
asyncio.run(folder_store(Path(sys.argv[1])).put("ab" * 32, b"x" * 100_000))
"""

WRITE_BEYOND_LIMIT = """
import asyncio, resource, sys
from pathlib import Path
from archive.store import StoredObject, StoreError
from tests.support.evictions import folder_store

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    asyncio.run(folder_store(Path(sys.argv[1])).put("ab" * 32, b"x" * 100_000))
except StoreError as error:
    print(error)
"""


HANG_IN_EACH_WRITE = """
import asyncio, os, sys, threading
from pathlib import Path
import archive.folder
from archive.store import StoredObject, StoreError
from tests.support.evictions import folder_store

os.fsync = lambda _descriptor: threading.Event().wait()
archive.folder.CALL_SECONDS = 0.2

async def main():
    store = folder_store(Path(sys.argv[1]))
    try:
        await store.open()
    except StoreError as error:
        print(error)
    await store.close()

asyncio.run(main())
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FailingStore]:
    folder = FailingStore(tmp_path / "archive")
    await folder.open()
    yield folder
    await folder.close()


def open_below(folder: Path) -> list[str]:
    """What this process has open there."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of this listing
            found.append(os.readlink(link))
    return [path for path in found if path.startswith(f"{folder}/")]


def python(script: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


async def test_an_object_comes_back_until_it_is_deleted(store: FolderStore) -> None:
    await store.put(NAME, b"first")
    await store.put(NAME, b"second")
    found = await store.get(NAME)
    listed = await store.list_objects()
    await store.delete(NAME)
    await store.delete(NAME)

    assert found == b"second"
    assert listed == [StoredObject(NAME, len(b"second"))]
    assert await store.get(NAME) is None
    assert list(store.folder.iterdir()) == []


async def test_only_this_user_may_read_the_archive(store: FolderStore) -> None:
    await store.put(NAME, b"private")

    modes = [path.stat().st_mode & 0o777 for path in (store.folder, *store.folder.iterdir())]

    assert modes == [0o700, 0o600]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/b", "", "AB" * 32, NAME + "\n"]
)
async def test_a_name_that_is_not_a_hash_reaches_nothing(store: FolderStore, name: str) -> None:
    for call in (store.put(name, b""), store.get(name), store.delete(name), store.stat(name)):
        with pytest.raises(ValueError, match="not an object name"):
            await call


async def test_a_damaged_object_is_put_aside_for_an_operator(store: FolderStore) -> None:
    await store.put(NAME, b"damaged")

    await store.quarantine(NAME)
    await store.quarantine(NAME)

    assert await store.get(NAME) is None
    assert await store.list_objects() == []
    assert (store.folder / f"{NAME}.damaged").read_bytes() == b"damaged"


async def test_other_programs_files_are_not_listed(store: FolderStore) -> None:
    (store.folder / "README").write_text("hello")
    (store.folder / "short.object").write_text("hello")

    assert await store.list_objects() == []
    assert len(list(store.folder.iterdir())) == 2


async def test_a_write_is_synced_before_it_is_renamed_and_the_folder_after(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("sync folder" if is_folder else "sync file")
        sync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)

    await store.put(NAME, b"value")

    assert steps == ["sync file", "rename", "sync folder"]


async def test_a_kill_in_the_middle_of_a_write_leaves_no_object(store: FolderStore) -> None:
    await store.put(NAME, b"before")
    with python(WRITE_AND_HANG_BEFORE_SYNC, store.folder) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        partial = [path.stat().st_size for path in store.folder.glob("*.tmp")]
        writer.send_signal(signal.SIGKILL)

    young = await store.remove_leftovers()
    old = await store.remove_leftovers(older_than_seconds=0)

    assert partial == [100_000]
    assert (young, old) == (0, 1)
    assert await store.list_objects() == [StoredObject(NAME, len(b"before"))]
    assert await store.get(NAME) == b"before"
    assert [path.name for path in store.folder.iterdir()] == [f"{NAME}.object"]


async def test_a_file_that_another_archiver_finishes_meanwhile_is_no_leftover_and_no_failure(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, others = Path.stat, ["first.tmp", "second.tmp"]
    for name in others:
        (store.folder / name).write_bytes(b"part")

    def finished_first(self: Path, **options: Any) -> os.stat_result:
        if self.name in others and len(others) == 2:
            others.remove(self.name)
            self.unlink()
        return really(self, **options)

    monkeypatch.setattr(Path, "stat", finished_first)

    assert await store.remove_leftovers(older_than_seconds=0) == 1
    assert list(store.folder.iterdir()) == []


async def test_a_write_that_breaks_off_leaves_nothing_behind(store: FolderStore) -> None:
    with python(WRITE_BEYOND_LIMIT, store.folder) as writer:
        assert writer.stdout is not None
        said = writer.stdout.read()

    assert os.strerror(errno.EFBIG) in said
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        pytest.param(errno.ENOSPC, "is full: make room", id="disk full"),
        pytest.param(errno.EDQUOT, "is full: make room", id="quota"),
        pytest.param(errno.EACCES, "check its owner and mode", id="no permission"),
        pytest.param(errno.EROFS, "mounted read-only", id="read-only"),
        pytest.param(errno.EIO, os.strerror(errno.EIO), id="anything else"),
    ],
)
async def test_a_failure_says_what_to_do(store: FailingStore, code: int, advice: str) -> None:
    store.write_errno = code

    with pytest.raises(StoreError, match=advice) as caught:
        await store.put(NAME, b"value")

    assert str(store.folder) in str(caught.value)
    assert list(store.folder.iterdir()) == []


async def test_a_folder_that_is_gone_is_a_failure_and_not_a_miss(store: FolderStore) -> None:
    store.folder.rmdir()

    for call in (store.get(NAME), store.put(NAME, b""), store.probe(), store.list_objects()):
        with pytest.raises(StoreError, match="is not there"):
            await call


async def test_a_file_in_the_folders_place_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "archive").write_text("a file")
    folder = folder_store(tmp_path / "archive")

    with pytest.raises(StoreError, match="is a file"):
        await folder.open()
    await folder.close()


async def test_the_probe_really_writes_and_leaves_nothing(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await store.probe()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="is full"):
        await store.probe()

    assert room.endswith("GiB free")
    assert list(store.folder.iterdir()) == []


async def test_a_disk_that_hangs_is_named_and_does_not_hold_up_the_end_of_the_process(
    tmp_path: Path,
) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", HANG_IN_EACH_WRITE, str(tmp_path / "archive")],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=20,
    )

    assert b"did not answer within 0.2 s: is its disk or network mount hanging?" in done.stdout
    assert done.returncode == 0


async def test_calls_given_up_behind_one_that_hangs_never_happen(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, may_go_on = threading.Event(), threading.Event()

    def hang(_descriptor: int) -> None:
        hanging.set()
        may_go_on.wait()

    monkeypatch.setattr("archive.folder.CALL_SECONDS", 0.05)
    monkeypatch.setattr(os, "fsync", hang)
    first = asyncio.create_task(store.put(NAME, b"first"))
    await asyncio.to_thread(hanging.wait)
    with pytest.raises(StoreError, match="did not answer"):
        await store.put(NAME, b"given up")
    with pytest.raises(StoreError, match="did not answer"):
        await first
    monkeypatch.undo()
    may_go_on.set()

    assert await store.get(NAME) == b"first"


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
async def test_a_stream_given_up_on_a_disk_that_hangs_leaves_no_file_and_nothing_open(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    hanging, may_go_on = threading.Event(), threading.Event()
    really = getattr(os, call)

    def hang(first: Any, *rest: Any) -> Any:
        is_stream = call != "open" or str(first).endswith(".tmp")
        if is_stream and threading.current_thread() is not threading.main_thread():
            hanging.set()
            may_go_on.wait()
        return really(first, *rest)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"value"

    monkeypatch.setattr("archive.folder.CALL_SECONDS", 0.05)
    monkeypatch.setattr(os, call, hang)
    with pytest.raises(StoreError, match="did not answer"):
        await store.put_stream(NAME, pieces())
    assert hanging.is_set()
    monkeypatch.undo()
    may_go_on.set()

    assert await store.get(NAME) is None, "asked in the same thread, behind all that hung"
    assert list(store.folder.iterdir()) == []
    assert open_below(store.folder) == []


@pytest.mark.parametrize("way", ["whole", "in pieces"])
async def test_a_folder_that_had_its_mark_takes_nothing_without_it(
    tmp_path: Path, way: str
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"value"

    async def put(store: FolderStore) -> None:
        await (store.put(NAME, b"value") if way == "whole" else store.put_stream(NAME, pieces()))

    writer, reader = folder_store(tmp_path), folder_store(tmp_path)
    await writer.write_mark(b"ours", replace=False)
    await reader.read_mark()
    (tmp_path / "owner.json").rename(tmp_path / "away")
    for store in (writer, reader):
        with pytest.raises(StoreError, match="was it unmounted"):
            await put(store)
    left = os.listdir(tmp_path)
    (tmp_path / "away").rename(tmp_path / "owner.json")
    for store in (writer, reader):
        await put(store)
        await store.close()

    assert left == ["away"]
