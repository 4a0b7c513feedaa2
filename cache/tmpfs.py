"""A private folder in tmpfs, locked for its owner's life, and removed when the owner is dead."""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from pathlib import Path

PREFIX = "resource-agent-"
INBOX = "inbox"


class UnusableFolderError(Exception):
    """There is no place for files here; the text says why, and what would help."""


def choose(asked: str) -> Path:
    """Where the folder goes: `asked`, else $XDG_RUNTIME_DIR or /dev/shm, whichever has more room.

    Raises:
        UnusableFolderError: neither of the two is a tmpfs that this user may write to.
    """
    if asked:
        return Path(asked)
    named = (os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm")  # noqa: S108 - the kernel's place for it
    places = [
        Path(name)
        for name in named
        if name and os.access(name, os.W_OK | os.X_OK) and is_tmpfs(Path(name))
    ]
    if not places:
        raise UnusableFolderError(
            "neither $XDG_RUNTIME_DIR nor /dev/shm is a tmpfs that this user may write to; "
            "set cache.same_host_folder"
        )
    return max(places, key=lambda place: shutil.disk_usage(place).free)


def is_tmpfs(folder: Path) -> bool:
    """Whether `folder` is in a tmpfs; also False where the kernel does not tell."""
    try:
        device = folder.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1] == "tmpfs"
    return False


class PrivateFolder:
    """`<base>/resource-agent-<random>`, mode 0700, with an inbox for clients of this user.

    Its owner holds an flock on it for life, so that it is known to be in use however the owner
    ends. A name cannot be taken by somebody else beforehand, because it is random.
    """

    def __init__(self, base: Path) -> None:
        """Remove what dead owners left in `base`, then make a folder.

        Raises:
            UnusableFolderError: it cannot be made.
        """
        try:
            remove_stale(base)
            while not self._make(base / f"{PREFIX}{secrets.token_hex(16)}"):
                pass
        except OSError as error:
            raise UnusableFolderError(f"{base}: {error.strerror}") from error

    def _make(self, path: Path) -> bool:
        """Whether it is ours: who starts at the same time may take it for a dead owner's."""
        path.mkdir(mode=0o700)
        try:
            self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path, self.inbox = path, path / INBOX
        try:
            self.inbox.mkdir(mode=0o700)
        except FileNotFoundError:
            os.close(self._lock)
            return False
        return True

    def close(self) -> None:
        """Remove it with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_stale(base: Path) -> None:
    """Remove the folders of this user in `base` whose owner is dead."""
    for path in base.glob(f"{PREFIX}*"):
        # Others may come and go meanwhile, and what is not ours stays.
        with contextlib.suppress(OSError):
            if not is_ours(path):
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def is_ours(folder: Path) -> bool:
    """Whether it is a real folder of this user that nobody else may enter."""
    found = folder.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not stat.S_IMODE(found.st_mode) & 0o077
    )
