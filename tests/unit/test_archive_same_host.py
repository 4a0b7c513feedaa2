"""Values written into a cache's file, and what must never be written to."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from archive.same_host import Place, write

FOLDER, NAME = "resource-agent-" + "a" * 32, "b" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / FOLDER
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def draft(folder: Path) -> Path:
    made = folder / NAME
    made.touch(mode=0o600)
    os.truncate(made, 6)
    return made


def test_parts_are_written_into_the_file(draft: Path) -> None:
    value = memoryview(b"abcdef")

    written = [write(str(draft), 4, value[4:], 6), write(str(draft), 0, value[:4], 6)]

    assert written == [True, True]
    assert draft.read_bytes() == b"abcdef"


def test_an_empty_file_is_filled_as_a_whole(draft: Path) -> None:
    os.truncate(draft, 0)
    place = Place.take(str(draft), 6)
    assert place is not None
    reserved = draft.stat().st_size

    place.write(4, memoryview(b"ef"))
    place.write(0, memoryview(b"abcd"))
    place.close()

    assert reserved == 6
    assert draft.read_bytes() == b"abcdef"


def test_a_file_that_has_no_room_for_the_value_stays_as_it_is(draft: Path) -> None:
    os.truncate(draft, 0)

    assert Place.take(str(draft), 2**62) is None
    assert draft.stat().st_size == 0


def renamed(draft: Path) -> Path:
    return draft.rename(draft.with_name("id_rsa"))


def in_another_folder(draft: Path) -> Path:
    return draft.parent.rename(draft.parent.with_name("home")) / NAME


def behind_a_link(draft: Path) -> Path:
    link = draft.with_name("c" * 32)
    link.symlink_to(draft)
    return link


def finished(draft: Path) -> Path:
    draft.chmod(0o400)
    return draft


def open_to_others(draft: Path) -> Path:
    draft.parent.chmod(0o755)
    return draft


def of_another_size(draft: Path) -> Path:
    os.truncate(draft, 7)
    return draft


def a_pipe(draft: Path) -> Path:
    draft.unlink()
    os.mkfifo(draft, 0o600)
    return draft


def relative(draft: Path) -> Path:
    return Path(os.path.relpath(draft))


def removed(draft: Path) -> Path:
    draft.unlink()
    return draft


NOT_OURS = (
    renamed,
    in_another_folder,
    behind_a_link,
    finished,
    open_to_others,
    a_pipe,
    relative,
    removed,
)


@pytest.mark.parametrize(
    "story",
    [*NOT_OURS, of_another_size],
)
def test_nothing_else_is_written_to(draft: Path, story: Callable[[Path], Path]) -> None:
    path = story(draft)

    assert not write(str(path), 0, memoryview(b"abc"), 6)
    if path.is_file():
        assert b"abc" not in path.read_bytes()


def test_a_file_that_another_archiver_fills_is_not_filled(draft: Path) -> None:
    os.truncate(draft, 0)
    with draft.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert Place.take(str(draft), 6) is None
    place = Place.take(str(draft), 6)

    assert place is not None
    place.close()


def not_empty(draft: Path) -> Path:
    os.truncate(draft, 6)
    return draft


@pytest.mark.parametrize(
    "story",
    [*NOT_OURS, not_empty],
)
def test_nothing_else_is_filled(draft: Path, story: Callable[[Path], Path]) -> None:
    os.truncate(draft, 0)
    path = story(draft)

    assert Place.take(str(path), 6) is None
