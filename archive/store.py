"""Where objects lie: the ObjectStore protocol, and a local folder."""

import asyncio
import contextlib
import dataclasses
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from archive.segment import PREFIX_BYTES, ArchiveObjectError, payload_offset
from schemas.protocols import BlockingCalls

T = TypeVar("T")

OBJECT_SUFFIX = ".object"
TEMPORARY_SUFFIX = ".tmp"
DAMAGED_SUFFIX = ".damaged"
HEAD_BYTES = 4096
CALL_SECONDS = 30.0
_NAME = re.compile(r"[0-9a-f]{64}")


def check_name(name: str) -> str:
    """`name`, which can reach nothing but an object.

    Raises:
        ValueError: it is not 64 hexadecimal digits.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not an object name")
    return name


def is_name(text: str) -> bool:
    """Whether `text` can be an object's name."""
    return _NAME.fullmatch(text) is not None


class StoreError(Exception):
    """The store refused or failed; the text names it and says what an operator can do."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredHead:
    """The beginning of a stored object: at least its prefix and header, where it has them."""

    name: str
    object_bytes: int
    start: bytes


class ObjectStore(Protocol):
    """Keeps whole objects under names of 64 hexadecimal digits. Every call may raise StoreError.

    An object is either absent or complete, also after a crash in the middle of `put`.
    """

    description: str

    async def open(self) -> None:
        """Make the place usable, or say why it is not."""

    async def close(self) -> None:
        """Let go of threads and connections."""

    async def put(self, name: str, content: bytes) -> None:
        """Store durably; an object of that name is replaced."""

    async def get(self, name: str) -> bytes | None:
        """The whole object, or None."""

    async def delete(self, name: str) -> None:
        """Remove; absent is fine."""

    async def quarantine(self, name: str) -> None:
        """Put a damaged object aside, where no other call finds it; absent is fine."""

    async def names(self) -> list[str]:
        """All objects; also removes what interrupted writes left behind."""

    async def heads(self, names: Sequence[str]) -> list[StoredHead]:
        """The beginnings of `names`, without those that have vanished."""

    async def probe(self) -> str:
        """Write, sync and delete a trial object; returns a line about the state, such as room."""


class FolderStore:
    """Objects as files of one folder, on a file system of this machine.

    A write goes to a temporary file in the same folder, is synced, renamed, and the folder is
    synced: after `put` returns, the object survives a power cut. Names are hashes, checked here
    too, so that nothing outside the folder can be reached. Each call has 30 s. Calls for one
    object run in one of `threads`, in order, so one that comes back after its time was over
    cannot undo a later one; `close` ends the threads.
    """

    def __init__(self, folder: Path, threads: Sequence[BlockingCalls]) -> None:
        self.folder = folder
        self.description = f"folder {folder}"
        self._threads = threads

    async def open(self) -> None:
        """Create the folder (mode 0700) where it is missing, and try to write to it."""
        await self._run(lambda: self.folder.mkdir(mode=0o700, parents=True, exist_ok=True))
        await self.probe()

    async def close(self) -> None:
        """End the threads; calls under way finish."""
        for thread in self._threads:
            thread.close()

    async def put(self, name: str, content: bytes) -> None:
        """Store durably; nothing of it is visible when it fails."""
        target = self._path(name)
        await self._run(lambda: self._write(target, content), name)

    async def get(self, name: str) -> bytes | None:
        """The whole object, or None."""
        path = self._path(name)

        def read() -> bytes | None:
            try:
                return path.read_bytes()
            except FileNotFoundError:
                self.folder.stat()  # an archive that was unmounted is a failure, not a miss
                return None

        return await self._run(read, name)

    async def delete(self, name: str) -> None:
        """Remove; absent is fine."""
        path = self._path(name)
        await self._run(lambda: path.unlink(missing_ok=True), name)

    async def quarantine(self, name: str) -> None:
        """Rename to `<name>.damaged`, for an operator to look at."""
        path = self._path(name)

        def rename() -> None:
            with contextlib.suppress(FileNotFoundError):
                path.replace(path.with_suffix(DAMAGED_SUFFIX))

        await self._run(rename, name)

    async def names(self) -> list[str]:
        """All objects; temporary files of interrupted writes are removed."""
        return await self._run(self._list)

    async def heads(self, names: Sequence[str]) -> list[StoredHead]:
        """The beginnings of `names`, without those that have vanished."""
        paths = [self._path(name) for name in names]
        return await self._run(lambda: list(_read_heads(paths)))

    async def probe(self) -> str:
        """Write, sync and delete a small file; returns how much room there is."""

        def try_write() -> str:
            path = self.folder / f"probe.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
            try:
                _write_synced(path, b"probe")
            finally:
                path.unlink(missing_ok=True)
            return f"{shutil.disk_usage(self.folder).free / 2**30:.1f} GiB free"

        return await self._run(try_write)

    async def _run(self, work: Callable[[], T], name: str = "00") -> T:
        thread = self._threads[int(name[:2], 16) % len(self._threads)]
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await thread.run(work)
        except TimeoutError as error:
            raise StoreError(
                f"archive {self.description} did not answer within {CALL_SECONDS:g} s: "
                "is its disk or network mount hanging?"
            ) from error
        except OSError as error:
            raise StoreError(self._explain(error)) from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{check_name(name)}{OBJECT_SUFFIX}"

    def _write(self, target: Path, content: bytes) -> None:
        temporary = target.with_suffix(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        try:
            _write_synced(temporary, content)
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        # The rename itself is durable only once the folder is.
        _sync_folder(self.folder)

    def _list(self) -> list[str]:
        names = []
        with os.scandir(self.folder) as files:
            for file in files:
                if file.name.endswith(TEMPORARY_SUFFIX):
                    Path(file.path).unlink(missing_ok=True)
                name, _, suffix = file.name.partition(".")
                if f".{suffix}" == OBJECT_SUFFIX and is_name(name):
                    names.append(name)
        return names

    def _explain(self, error: OSError) -> str:
        place = f"archive folder {self.folder}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{place} is full: make room there, or set archive.folder to another disk"
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"{place} may not be written by this user: check its owner and mode (0700)"
        if error.errno == errno.EROFS:
            return f"{place} is on a file system mounted read-only"
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            return f"{place} is a file, or lies below one"
        if error.errno == errno.ENOENT:
            return f"{place} is not there: was it removed or unmounted?"
        return f"{place}: {os.strerror(error.errno) if error.errno else error}"


def _write_synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_heads(paths: Sequence[Path]) -> Iterable[StoredHead]:
    for path in paths:
        try:
            with path.open("rb") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                start = file.read(HEAD_BYTES)
                with contextlib.suppress(ArchiveObjectError):
                    if len(start) >= PREFIX_BYTES:
                        start += file.read(max(0, payload_offset(start) - len(start)))
        except FileNotFoundError:
            continue
        yield StoredHead(path.stem, size_bytes, start)
