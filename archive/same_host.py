"""Hands a value to a cache on the same host: into the file that the cache has made for it."""

import fcntl
import os
import re
import stat

_PLACE = re.compile(r"/.*/resource-agent-[0-9a-f]{32}/[0-9a-f]{32}")


class Place:
    """A cache's empty file, given the size of a value, to be filled in any order and closed.

    The room is the file's from the start. Who has made the file removes it, whatever comes.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, path: str, size_bytes: int) -> "Place | None":
        """The file; None: no empty one of a cache is here, no room, or another archiver has it."""
        fd = _open(path, 0)
        if fd is None:
            return None
        try:
            # One archiver alone: what two write would be a mixture, that nobody verifies.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(fd, 0, size_bytes)
        except OSError:
            os.close(fd)
            return None
        return cls(fd)

    def write(self, first: int, content: memoryview) -> None:
        """Put `content` at `first`."""
        _write(self._fd, first, content)

    def close(self) -> None:
        """No more comes."""
        os.close(self._fd)


def write(path: str, first: int, content: memoryview, size_bytes: int) -> bool:
    """Write `content` at `first`; False: nothing was, as no such file of that size is here."""
    fd = _open(path, size_bytes)
    if fd is None:
        return False
    try:
        _write(fd, first, content)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _open(path: str, size_bytes: int) -> int | None:
    """Only a file of that size that a cache of this user is still receiving (mode 0600).

    By its random name in that cache's private folder: nobody can name another, and a finished
    value is read-only.
    """
    if not _PLACE.fullmatch(path):
        return None
    try:
        folder = os.lstat(os.path.dirname(path))
        is_private = stat.S_ISDIR(folder.st_mode) and not stat.S_IMODE(folder.st_mode) & 0o077
        if not is_private or folder.st_uid != os.geteuid():
            return None
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    found = os.fstat(fd)
    if found.st_mode == stat.S_IFREG | 0o600 and found.st_size == size_bytes:
        return fd
    os.close(fd)
    return None


def _write(fd: int, first: int, content: memoryview) -> None:
    while content:
        written = os.pwrite(fd, content, first)
        content, first = content[written:], first + written
