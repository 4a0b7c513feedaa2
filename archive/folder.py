"""Objects as files of one folder."""

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncIterable, Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import structlog

from archive.billing import Requests
from archive.store import (
    LEFTOVER_SECONDS,
    ObjectRefusedError,
    StoredObject,
    StoreError,
    check_name,
    is_name,
)
from schemas.protocols import BlockingCalls

T = TypeVar("T")

log = structlog.get_logger()

OBJECT_SUFFIX = ".object"
TEMPORARY_SUFFIX = ".tmp"
DAMAGED_SUFFIX = ".damaged"
MARK = "owner.json"
CALL_SECONDS = 30.0
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What file systems without hard links say, such as those of some network mounts."""


class FolderStore:
    """Objects as files of one folder, on a file system of this machine.

    A write goes to a temporary file in the same folder, is synced, renamed, and the folder is
    synced: after `put` returns, the object survives a power cut. Names are hashes, checked here
    too, so that nothing outside the folder can be reached. Each call has 30 s. Calls for one
    object run in one of `threads`, in order, so one that comes back after its time was over
    cannot undo a later one; `close` ends the threads. A folder that had its mark takes no object
    without it: it was unmounted, and what is put where it was mounted would be hidden later.
    """

    def __init__(self, folder: Path, threads: Sequence[BlockingCalls]) -> None:
        self.folder = folder
        self.description = f"folder {folder}"
        self.requests = Requests()
        self._threads = threads
        self._has_mark = False
        self._cleaning: set[asyncio.Future[None]] = set()

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
        return await self._read_one(name, lambda: self._read(path))

    async def put_stream(self, name: str, pieces: AsyncIterable[bytes]) -> None:
        """Store the concatenation of `pieces`; each is written before the next is asked for."""
        target = self._path(name)
        temporary = _temporary(target)
        opened: list[int] = []
        try:
            await self._run(lambda: opened.append(_create(temporary)), name)
            async for piece in pieces:
                await self._run(lambda piece=piece: _write_all(opened[0], piece), name)  # type: ignore[misc]
            await self._run(lambda: os.fsync(opened[0]), name)
            await self._run(lambda: self._place(temporary, target), name)
        finally:
            await self._clean_up(lambda: _drop(opened, temporary), name)

    async def get_range(self, name: str, first: int, end: int) -> bytes | None:
        """Its bytes from `first` up to, not with, `end`; shorter where it ends; None: absent."""
        path = self._path(name)

        def read() -> bytes | None:
            try:
                with _open(path) as file:
                    file.seek(first)
                    return file.read(end - first)
            except FileNotFoundError:
                self.folder.stat()
                return None

        return await self._read_one(name, read)

    async def get_range_to(
        self, name: str, first: int, end: int, take: Callable[[bytes], None]
    ) -> bool:
        """As `get_range`, given to `take`; False: absent."""
        content = await self.get_range(name, first, end)
        if content:
            take(content)
        return content is not None

    async def stat(self, name: str) -> StoredObject | None:
        """The object without its content, or None."""
        path = self._path(name)

        def look() -> StoredObject | None:
            try:
                return StoredObject(name, path.stat().st_size)
            except FileNotFoundError:
                self.folder.stat()
                return None

        return await self._read_one(name, look)

    async def delete(self, name: str) -> None:
        """Remove; absent is fine."""
        path = self._path(name)
        await self._change_one(name, lambda: path.unlink(missing_ok=True))

    async def quarantine(self, name: str) -> None:
        """Rename to `<name>.damaged`, for an operator to look at."""
        path = self._path(name)

        def rename() -> None:
            with contextlib.suppress(FileNotFoundError):
                path.replace(path.with_suffix(DAMAGED_SUFFIX))

        await self._change_one(name, rename)

    async def list_objects(self) -> list[StoredObject]:
        """All objects, in no order."""
        return await self._run(self._list)

    async def remove_leftovers(self, older_than_seconds: float = LEFTOVER_SECONDS) -> int:
        """Remove temporary files of writes that were interrupted that long ago."""

        def remove() -> int:
            before_seconds = time.time() - older_than_seconds
            removed = 0
            for path in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):
                with contextlib.suppress(FileNotFoundError):  # another archiver has finished it
                    if path.stat().st_mtime <= before_seconds:
                        path.unlink()
                        removed += 1
            return removed

        return await self._run(remove)

    async def read_mark(self) -> bytes | None:
        """What says whose the folder is, or None."""
        try:
            content = await self._run(lambda: self._read(self.folder / MARK))
            self._has_mark |= content is not None
            return content
        except StoreError as error:
            reason = _of_one(error)
            if reason is None:
                raise
            await self.probe()
            raise ObjectRefusedError(MARK, reason) from error

    async def write_mark(self, content: bytes, *, replace: bool) -> None:
        """Write that; without `replace` one that is there stays.

        A directory of its name is moved aside, with what is in it: `owner.<random>.damaged`.
        """
        await self._run(lambda: self._write_mark(content, replace=replace))
        self._has_mark = True

    async def install_lifecycle(self) -> None:
        """A folder forgets nothing by itself."""

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

    async def _read_one(self, name: str, work: Callable[[], T]) -> T:
        """A failure is that of the object alone where the folder and its mark can be read."""

        def read_others() -> None:
            with os.scandir(self.folder) as files:
                next(files, None)
            self._read(self.folder / MARK)

        try:
            return await self._run(work, name)
        except StoreError as error:
            reason = _of_one(error)
            if reason is None:
                raise
            await self._run(read_others)
            raise ObjectRefusedError(name, reason) from error

    async def _change_one(self, name: str, work: Callable[[], None]) -> None:
        """A failure is that of the object alone where other files can be written and removed."""
        try:
            await self._run(work, name)
        except StoreError as error:
            reason = _of_one(error)
            if reason is None:
                raise
            await self.probe()
            raise ObjectRefusedError(name, reason) from error

    async def _run(self, work: Callable[[], T], name: str = "00") -> T:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await self._thread(name).run(work)
        except TimeoutError as error:
            raise StoreError(
                f"archive {self.description} did not answer within {CALL_SECONDS:g} s: "
                "is its disk or network mount hanging?"
            ) from error
        except OSError as error:
            raise StoreError(self._explain(error)) from error

    async def _clean_up(self, work: Callable[[], None], name: str) -> None:
        """Behind whatever still runs in the thread, which nobody may await any more.

        It is done however long that hangs; here it is awaited as long as any call.
        """
        task = asyncio.ensure_future(self._thread(name).run(work))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)
        await asyncio.wait({task}, timeout=CALL_SECONDS)

    def _thread(self, name: str) -> BlockingCalls:
        return self._threads[int(name[-2:], 16) % len(self._threads)]

    def _path(self, name: str) -> Path:
        return self.folder / f"{check_name(name)}{OBJECT_SUFFIX}"

    def _read(self, path: Path) -> bytes | None:
        try:
            with _open(path) as file:
                return file.read()
        except FileNotFoundError:
            self.folder.stat()  # an archive that was unmounted is a failure, not a miss
            return None

    def _write_mark(self, content: bytes, *, replace: bool) -> None:
        temporary = _temporary(self.folder / MARK)
        try:
            _write_synced(temporary, content)
            if not replace:
                try:
                    os.link(temporary, self.folder / MARK)
                    _sync_folder(self.folder)
                    return
                except FileExistsError:
                    return
                except OSError as error:
                    if error.errno not in NO_LINKS:
                        raise
            try:
                self._rename(temporary, self.folder / MARK)
            except IsADirectoryError:
                self._put_mark_aside()
                self._rename(temporary, self.folder / MARK)
        finally:
            temporary.unlink(missing_ok=True)

    def _put_mark_aside(self) -> None:
        aside = (self.folder / MARK).with_suffix(f".{secrets.token_hex(8)}{DAMAGED_SUFFIX}")
        try:
            (self.folder / MARK).rename(aside)
        except OSError as error:  # something is mounted there, say
            raise OSError(
                f"{MARK} in it is a directory that cannot be moved aside ({error.strerror}): "
                "remove or unmount it, then ask again"
            ) from error
        log.warning("archive_mark_moved_aside", folder=str(self.folder), to=aside.name)

    def _write(self, target: Path, content: bytes) -> None:
        temporary = _temporary(target)
        try:
            _write_synced(temporary, content)
            self._place(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _place(self, temporary: Path, target: Path) -> None:
        if self._has_mark:
            try:
                os.lstat(self.folder / MARK)
            except FileNotFoundError as error:
                raise StoreError(
                    f"archive {self.description}: its mark {MARK} is gone: was it unmounted or "
                    "emptied? Nothing is stored in it meanwhile"
                ) from error
        self._rename(temporary, target)

    def _rename(self, temporary: Path, target: Path) -> None:
        temporary.replace(target)
        # The rename itself is durable only once the folder is.
        _sync_folder(self.folder)

    def _list(self) -> list[StoredObject]:
        objects = []
        with os.scandir(self.folder) as files:
            for file in files:
                name, _, suffix = file.name.partition(".")
                if f".{suffix}" == OBJECT_SUFFIX and is_name(name):
                    try:
                        objects.append(StoredObject(name, file.stat().st_size))
                    except FileNotFoundError:
                        continue  # removed meanwhile
                    except OSError:
                        objects.append(StoredObject(name, 0))  # who reads it is told what it is
        return objects

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


def _temporary(target: Path) -> Path:
    return target.with_suffix(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")


def _of_one(error: StoreError) -> str | None:
    """What the system says of it; None: nothing, as it did not answer."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or isinstance(cause, TimeoutError):
        return None
    return cause.strerror or str(cause)


def _open(path: Path) -> BinaryIO:
    """A file to read; of anything else, such as a pipe that nobody writes, an error at once."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file")
    return open(descriptor, "rb")


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _drop(opened: Sequence[int], temporary: Path) -> None:
    for descriptor in opened:
        with contextlib.suppress(OSError):  # what counts was synced, or is not kept
            os.close(descriptor)
    with contextlib.suppress(OSError):  # a leftover, then
        temporary.unlink(missing_ok=True)


def _write_synced(path: Path, content: bytes) -> None:
    with open(_create(path), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
