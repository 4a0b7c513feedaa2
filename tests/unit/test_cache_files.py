"""Large values as files: made, taken over, given up, and never in the way when there is no room."""

import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from cache import files as files_module
from cache.files import Files
from cache.settings import CacheSettings
from cache.value_file import FileDraft, ValueFile
from schemas.digest import Digest, digest_of
from schemas.protocols import RequestError

NAME = "0123456789abcdef" * 2
VALUE = bytes(range(256)) * 1024


def make(folder: Path, **settings: Any) -> Files:
    named = {"same_host_folder": str(folder), **settings}
    return Files(msgspec.convert(named, CacheSettings))


@pytest.fixture
def files() -> Iterator[Files]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # leases are not for every disk
        made = make(Path(folder))
        yield made
        made.close()


def kept(files: Files, value: bytes = VALUE) -> ValueFile:
    file = files.keep(value)
    assert isinstance(file, ValueFile)
    return file


def hand_over(files: Files, value: bytes = VALUE, name: str = NAME) -> Path:
    """As a client does."""
    path = Path(files.inbox, name)
    path.write_bytes(value)
    return path


def test_a_large_value_is_a_private_file_that_is_not_written_again(files: Files) -> None:
    file = kept(files)

    path = Path(file.path)
    assert path.read_bytes() == bytes(file) == VALUE
    assert file.read(3, 7) == VALUE[3:7]
    assert path.stat().st_mode & 0o777 == 0o400
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert files.held == {file.path: len(VALUE)}


def test_a_small_value_stays_bytes(files: Files) -> None:
    assert files.keep(VALUE[:-1]) == VALUE[:-1]
    assert not isinstance(files.draft(1000), FileDraft)


def test_the_file_goes_with_its_value(files: Files) -> None:
    file = kept(files)
    path = file.path

    del file

    assert not os.path.exists(path)
    assert not files.held


def test_a_retired_value_has_no_name_but_can_be_read(files: Files) -> None:
    file = kept(files)
    reader = os.open(file.path, os.O_RDONLY)

    file.retire()
    file.retire()

    assert os.fstat(reader).st_nlink == 0
    assert bytes(file) == os.pread(reader, len(VALUE), 0) == VALUE
    os.close(reader)


def test_a_value_that_is_retired_while_it_is_opened_can_be_read(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kept(files)
    retiring = [file.retire]
    really_open = os.open

    def open_late(path: str, flags: int) -> int:
        if retiring:
            retiring.pop()()  # as another thread does
        return really_open(path, flags)

    with monkeypatch.context() as patch:
        patch.setattr("cache.value_file.os.open", open_late)
        read = bytes(file)

    assert read == VALUE
    assert not os.path.exists(file.path)


def test_a_draft_is_written_in_any_order_and_digested_in_pieces(files: Files) -> None:
    draft = files.draft(len(VALUE))
    draft.write(1000, VALUE[1000:])
    draft.write(0, VALUE[:1000])
    digest = Digest()

    draft.digest(digest, 0, 700)
    draft.digest(digest, 700, len(VALUE))
    value = draft.finish()

    assert isinstance(value, ValueFile)
    assert bytes(value) == VALUE
    assert str(digest) == digest_of(VALUE)


def test_a_draft_that_is_given_up_leaves_no_file(files: Files) -> None:
    draft = files.draft(len(VALUE))
    assert isinstance(draft, FileDraft)

    del draft

    assert os.listdir(os.path.dirname(files.inbox)) == ["inbox"]


def test_descriptors_are_closed(files: Files) -> None:
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(3):
        file = kept(files)
        file.retire()
        bytes(file)
        files.draft(len(VALUE)).finish()
        hand_over(files)
        files.take(NAME, len(VALUE))
        del file

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_in_the_inbox_is_taken_over_and_cannot_be_written_any_more(files: Files) -> None:
    source = hand_over(files)
    inode = source.stat().st_ino

    taken = files.take(NAME, len(VALUE))

    assert bytes(taken) == VALUE
    found = os.stat(taken.path)
    assert (found.st_ino, found.st_mode & 0o777) == (inode, 0o400)
    assert not source.exists()


def open_for_writing(path: Path) -> Any:
    return path.open("r+b")


def map_for_writing(path: Path) -> Any:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


@pytest.mark.parametrize(
    "hold", [pytest.param(open_for_writing, id="open"), pytest.param(map_for_writing, id="mapped")]
)
def test_a_file_that_somebody_can_still_write_is_not_taken(files: Files, hold: Any) -> None:
    source = hand_over(files)

    with hold(source), pytest.raises(RequestError, match="no such file") as refused:
        files.take(NAME, len(VALUE))

    assert refused.value.code == 404
    assert not files.held


@pytest.mark.parametrize(
    ("name", "size_bytes", "code"),
    [
        pytest.param("f" * 32, len(VALUE), 404, id="not there"),
        pytest.param("../" + NAME, len(VALUE), 404, id="path out of the inbox"),
        pytest.param("", len(VALUE), 404, id="empty name"),
        pytest.param(NAME, len(VALUE) + 1, 400, id="another size"),
    ],
)
def test_what_is_not_as_said_is_not_taken(
    files: Files, name: str, size_bytes: int, code: int
) -> None:
    source = hand_over(files)

    with pytest.raises(RequestError) as refused:
        files.take(name, size_bytes)

    assert refused.value.code == code
    assert source.exists()
    assert not files.held


def make_link(path: Path, elsewhere: Path) -> None:
    elsewhere.write_bytes(VALUE)
    path.symlink_to(elsewhere)


def make_second_name(path: Path, elsewhere: Path) -> None:
    elsewhere.write_bytes(VALUE)
    path.hardlink_to(elsewhere)


def make_pipe(path: Path, _elsewhere: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path, _elsewhere: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("put", [make_link, make_second_name, make_pipe, make_folder])
def test_only_a_plain_file_with_one_name_is_taken(files: Files, put: Any) -> None:
    put(Path(files.inbox, NAME), Path(files.inbox, "elsewhere"))

    with pytest.raises(RequestError, match="no such file"):
        files.take(NAME, len(VALUE))

    assert not files.held


def test_a_file_that_gets_another_ones_name_meanwhile_is_not_taken(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hand_over(files)
    other = hand_over(files, VALUE[::-1], "f" * 32)

    def swap(_fd: int) -> None:
        other.rename(source)

    monkeypatch.setattr(files_module, "_check_no_writer", swap)

    with pytest.raises(RequestError, match="no such file"):
        files.take(NAME, len(VALUE))

    assert os.listdir(os.path.dirname(files.inbox)) == ["inbox"]


@pytest.mark.parametrize("locked", [False, True], ids=["abandoned", "being written"])
def test_the_inbox_is_swept_of_what_nobody_writes_any_more(files: Files, locked: bool) -> None:
    old, fresh = hand_over(files), hand_over(files, name="f" * 32)
    os.utime(old, (0, 0))
    writer = os.open(old, os.O_WRONLY)
    if locked:
        fcntl.flock(writer, fcntl.LOCK_EX)

    files.sweep()

    assert old.exists() == locked
    assert fresh.exists()
    os.close(writer)


def test_without_room_values_stay_bytes_and_one_warning_says_what_helps(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with capture_logs() as logs:
        first, second = files.keep(VALUE), files.draft(len(VALUE))

    assert first == VALUE
    assert not isinstance(second, FileDraft)
    assert files.no_room == 2
    assert os.listdir(os.path.dirname(files.inbox)) == ["inbox"]
    assert [line["event"] for line in logs] == ["same_host_no_room"]
    assert "2 values stayed bytes. Give /dev/shm more room" in files.state()[1]


def test_a_place_smaller_than_the_cache_is_told_with_what_helps(tmp_path: Path) -> None:
    files = make(tmp_path, max_memory_mb=10**9)

    state, text = files.state()
    files.close()

    assert state == "ok"
    assert "too little for the cache's 1000000000 MiB" in text
    assert "Set cache.same_host_folder to a larger tmpfs" in text


def test_a_value_whose_file_was_removed_or_cut_is_an_error_and_no_signal(files: Files) -> None:
    removed, cut = kept(files), kept(files)
    os.unlink(removed.path)
    os.chmod(cut.path, 0o600)
    os.truncate(cut.path, 100)

    with pytest.raises(FileNotFoundError):
        removed.read()
    with pytest.raises(OSError, match="cut short"):
        cut.read()
    with pytest.raises(OSError, match="cut short"):
        cut.digest(Digest())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param({"same_host": False}, "cache.same_host is off", id="switched off"),
        pytest.param({"same_host_folder": "/nowhere"}, "/nowhere: No such file", id="no folder"),
        pytest.param({"same_host_folder": "/proc"}, "/proc: ", id="folder that takes no files"),
    ],
)
def test_without_a_folder_every_value_stays_bytes(settings: Any, reason: str) -> None:
    files = Files(msgspec.convert(settings, CacheSettings))

    state, text = files.state()

    assert files.keep(VALUE) == VALUE
    assert (state, files.inbox) == ("off", "")
    assert reason in text
    with pytest.raises(RequestError, match="no such file"):
        files.take(NAME, len(VALUE))
    files.sweep()
    files.close()
