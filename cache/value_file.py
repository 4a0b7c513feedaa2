"""A large value as an immutable file in tmpfs, and values while they are being received."""

import contextlib
import os
from collections.abc import Iterator, MutableMapping

from schemas.digest import Digest

BLOCK_BYTES = 512 * 1024
"""Read at once where a value is only passed over, as by its digest."""
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class ValueFile:
    """A value in a file that is never written again; its name goes when this object does.

    All reading is by `pread`, and raises OSError where somebody else removed or cut the file:
    nothing maps it, so that nothing that happens to it can end the process by a signal.
    """

    __slots__ = ("__weakref__", "_fd", "_held", "path", "size_bytes")

    def __init__(self, path: str, size_bytes: int, held: MutableMapping[str, int]) -> None:
        """Own `path`, and stand in `held` as long as that lasts."""
        self.path = path
        self.size_bytes = size_bytes
        self._held = held
        self._fd = -1
        held[path] = size_bytes

    def __len__(self) -> int:
        return self.size_bytes

    def __bytes__(self) -> bytes:
        return self.read()

    def read(self, first: int = 0, end: int | None = None) -> bytes:
        """The bytes from `first` up to, not with, `end`."""
        wanted = (self.size_bytes if end is None else end) - first
        with self._opened() as fd:
            value = os.pread(fd, wanted, first)
        if len(value) != wanted:
            raise OSError(f"{self.path} was cut short")
        return value

    def digest(self, digest: Digest) -> None:
        """Feed the whole value to `digest`; slow for a large one, so in a thread."""
        with self._opened() as fd:
            _feed(digest, fd, 0, self.size_bytes)

    @property
    def has_name(self) -> bool:
        """Whether it was not retired: others may open it."""
        return self._fd < 0

    def retire(self) -> None:
        """Take the name away now: who has it open elsewhere sees that it no longer counts.

        Who holds this object can still read, by a descriptor that is open as long as that lasts.
        """
        if self._fd < 0:
            with contextlib.suppress(OSError):
                self._fd = os.open(self.path, READ)
            _unlink(self.path)

    def remove(self) -> None:
        """Take the name away, and let nobody read it here any more: needs no descriptor."""
        _unlink(self.path)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            fd = os.open(self.path, READ)
        except FileNotFoundError:
            if self._fd < 0:
                raise
            yield self._fd  # retired, maybe a moment ago by another thread
            return
        try:
            yield fd
        finally:
            os.close(fd)

    def __del__(self) -> None:
        self._held.pop(self.path, None)
        if self._fd >= 0:
            os.close(self._fd)
        else:
            _unlink(self.path)


class Draft:
    """A value that is being received, in RAM: written in any order, then finished.

    `path` is that of its file, where it has one.
    """

    path = ""

    def __init__(self, size_bytes: int) -> None:
        self._buffer = bytearray(size_bytes)

    def write(self, first: int, payload: bytes | memoryview) -> None:
        """Put `payload` at `first`."""
        self._buffer[first : first + len(payload)] = payload

    def digest(self, digest: Digest, first: int, end: int) -> None:
        """Feed a range that was written to `digest`."""
        digest.update(memoryview(self._buffer)[first:end])

    def finish(self) -> memoryview | ValueFile:
        """The value, never to be written again."""
        return memoryview(self._buffer).toreadonly()


class FileDraft(Draft):
    """The same in a file of its own: empty, until room is reserved in it, or another fills it."""

    def __init__(self, path: str, held: MutableMapping[str, int]) -> None:
        """Make the file.

        Raises:
            OSError: it cannot be made.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.path = path
        self._held = held

    @property
    def size_bytes(self) -> int:
        """How long the file is now."""
        return os.fstat(self._fd).st_size

    def reserve(self, size_bytes: int) -> None:
        """Have the file be so long.

        Raises:
            OSError: there is no room for that.
        """
        os.posix_fallocate(self._fd, 0, size_bytes)

    def write(self, first: int, payload: bytes | memoryview) -> None:
        """As `Draft.write`; there is room."""
        view = memoryview(payload)
        while view:
            written = os.pwrite(self._fd, view, first)
            view, first = view[written:], first + written

    def digest(self, digest: Digest, first: int, end: int) -> None:
        """As `Draft.digest`."""
        _feed(digest, self._fd, first, end)

    def finish(self) -> ValueFile:
        """As `Draft.finish`."""
        os.fchmod(self._fd, 0o400)
        size_bytes = self.size_bytes
        path, self.path = self.path, ""
        return ValueFile(path, size_bytes, self._held)

    def __del__(self) -> None:
        if hasattr(self, "_held"):  # else it was not made
            os.close(self._fd)
            if self.path:
                _unlink(self.path)


def _feed(digest: Digest, fd: int, first: int, end: int) -> None:
    block = memoryview(bytearray(min(BLOCK_BYTES, end - first)))
    while first < end:
        read = os.preadv(fd, [block[: end - first]], first)
        if not read:
            raise OSError("a value's file was cut short")
        digest.update(block[:read])
        first += read


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
