"""Values between archiver and cache on the same host, in files of the cache: given and taken."""

import fcntl
import os
import re
import stat
from collections.abc import Mapping

from schemas.cache import FILE_HEADER, decode_header
from schemas.protocols import RequestError

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
        fd = _open_place(path, 0)
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
    fd = _open_place(path, size_bytes)
    if fd is None:
        return False
    try:
        _write(fd, first, content)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


class Lent:
    """A cache's finished value (mode 0400), open: it can be read as long as nobody cuts it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(cls, path: str, size_bytes: int) -> "Lent | None":
        """The file; None: no value of a cache with that size is here."""
        fd = _open(path, os.O_RDONLY, 0o400, size_bytes)
        return None if fd is None else cls(fd)

    def close(self) -> None:
        """No more is read."""
        os.close(self._fd)

    def read(self, first: int, size_bytes: int) -> bytes:
        """So many bytes from `first` on. Raises OSError where there are fewer."""
        content = os.pread(self._fd, size_bytes, first)
        if len(content) != size_bytes:
            raise OSError("it was cut short")
        return content


def named_path(headers: Mapping[str, str]) -> str:
    """That of a cache's file in a request; empty: it names none.

    Raises:
        RequestError: 400, the header is malformed.
    """
    try:
        return decode_header(headers.get(FILE_HEADER, ""))
    except ValueError as error:
        raise RequestError(400, f"header {FILE_HEADER}: {error}") from None


def has_value(path: str) -> bool:
    """Whether a value of a cache, of whatever size, can be read there."""
    file = _open(path, os.O_RDONLY, 0o400, None)
    if file is None:
        return False
    os.close(file)
    return True


def _open_place(path: str, size_bytes: int) -> int | None:
    """Only a file that a cache of this user is still receiving: a finished value is read-only."""
    return _open(path, os.O_WRONLY, 0o600, size_bytes)


def _open(path: str, flags: int, mode: int, size_bytes: int | None) -> int | None:
    """Only a file of that mode and size (None: any), by its name in a cache's private folder.

    Names are random: nobody else than the cache can name one.
    """
    if not _PLACE.fullmatch(path):
        return None
    try:
        folder = os.lstat(os.path.dirname(path))
        is_private = stat.S_ISDIR(folder.st_mode) and not stat.S_IMODE(folder.st_mode) & 0o077
        if not is_private or folder.st_uid != os.geteuid():
            return None
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):  # also what no path can hold, such as a zero byte
        return None
    found = os.fstat(fd)
    if found.st_mode == stat.S_IFREG | mode and size_bytes in (None, found.st_size):
        return fd
    os.close(fd)
    return None


def _write(fd: int, first: int, content: memoryview) -> None:
    while content:
        written = os.pwrite(fd, content, first)
        content, first = content[written:], first + written
