"""The private folder: who may use it, where it is put, and what dead owners leave."""

import contextlib
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from cache import tmpfs
from cache.tmpfs import PrivateFolder, UnusableFolderError, choose, is_ours, is_tmpfs, remove_stale

HOLD = """
import sys, pathlib
from cache.tmpfs import PrivateFolder
folder = PrivateFolder(pathlib.Path(sys.argv[1]))
(folder.path / "value").write_bytes(b"x")
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_a_folder_is_private_and_goes_with_everything_in_it(tmp_path: Path) -> None:
    folder = PrivateFolder(tmp_path)
    (folder.path / "value").write_bytes(b"x")

    private = is_ours(folder.path) and is_ours(folder.inbox)
    folder.close()

    assert private
    assert not list(tmp_path.iterdir())


def test_what_a_killed_owner_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    owners = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    paths = [Path(owner.stdout.readline().strip()) for owner in owners if owner.stdout]
    owners[0].kill()
    owners[0].wait()
    still = paths[0].exists()

    remove_stale(tmp_path)

    found = [path.exists() for path in paths]
    for owner in owners:
        with contextlib.suppress(BrokenPipeError), owner:
            owner.communicate("")
    assert (still, found) == (True, [False, True])


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    (tmp_path / "resource-agent-link").symlink_to(elsewhere)
    (tmp_path / "resource-agent-file").write_bytes(b"")
    (tmp_path / "resource-agent-open").mkdir(0o755)
    (tmp_path / "other").mkdir(0o700)

    remove_stale(tmp_path)

    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_stays(tmp_path: Path) -> None:
    foreign = tmp_path / "resource-agent-foreign"
    foreign.mkdir(0o700)
    os.chown(foreign, 65534, 65534)

    remove_stale(tmp_path)

    assert foreign.exists()


def test_one_who_starts_while_another_cleans_up_makes_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["a" * 32, "b" * 32])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(names))
    mkdir = Path.mkdir
    others = []

    def mkdir_and_lose(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if path.name.endswith("a" * 32):
            others.append(path)
            remove_stale(tmp_path)

    monkeypatch.setattr(Path, "mkdir", mkdir_and_lose)

    folder = PrivateFolder(tmp_path)

    assert others
    assert folder.path.name.endswith("b" * 32)
    assert folder.inbox.is_dir()
    folder.close()


def test_what_is_asked_for_is_taken_even_if_it_is_no_tmpfs() -> None:
    assert choose("/proc") == Path("/proc")


def test_only_a_tmpfs_is_chosen_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    monkeypatch.setattr(tmpfs, "is_tmpfs", lambda path: path == Path("/proc"))
    monkeypatch.setattr(os, "access", lambda *_: True)
    assert choose("") == Path("/proc")

    monkeypatch.setattr(tmpfs, "is_tmpfs", lambda _: False)
    with pytest.raises(UnusableFolderError, match=r"same_host_folder"):
        choose("")


def test_a_tmpfs_is_told_from_others() -> None:
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kinds = {fields[4]: fields[fields.index("-") + 1] for fields in mounts}

    assert is_tmpfs(Path("/proc")) is False
    assert is_tmpfs(Path("/nowhere")) is False
    for place, kind in kinds.items():
        if kind == "tmpfs" and os.path.ismount(place):
            assert is_tmpfs(Path(place))
