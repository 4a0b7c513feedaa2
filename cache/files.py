"""The values of this process that lie in tmpfs, for clients of this user on the same host."""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import stat
import time
from pathlib import Path

import structlog

from cache.settings import CacheSettings
from cache.tmpfs import PrivateFolder, UnusableFolderError, choose
from cache.value_file import READ, Draft, FileDraft, ValueFile
from schemas.cache import INLINE_LIMIT_BYTES
from schemas.lifecycle import ComponentState
from schemas.protocols import RequestError

log = structlog.get_logger()

MIB = 1024 * 1024
_NAME = re.compile(r"[0-9a-f]{32}")


class Files:
    """Makes files of large values while there is room; else they stay bytes.

    A file is named once it is whole and never written after that; its room is reserved before it
    is written. It goes with its value: on eviction, expiry, overwriting, deletion, and at `close`.
    Without a usable folder every value stays bytes: nothing here fails for want of tmpfs.
    """

    def __init__(self, settings: CacheSettings) -> None:
        """Choose and make the folder, and remove what a dead owner left: slow, so in a thread."""
        self.held: dict[str, int] = {}
        self.no_room = 0
        self._min_bytes = settings.same_host_min_bytes
        self._wanted_bytes = settings.max_memory_mb * len(settings.namespaces) * MIB
        self._abandoned_after_seconds = settings.upload_timeout_seconds
        self._folder: PrivateFolder | None = None
        self._off = "cache.same_host is off"
        if settings.same_host:
            try:
                self._folder = PrivateFolder(choose(settings.same_host_folder))
            except UnusableFolderError as error:
                self._off = str(error)
                log.warning("same_host_off", reason=self._off)

    @property
    def inbox(self) -> str:
        """Where clients write values to be taken over; empty when that is off."""
        return "" if self._folder is None else str(self._folder.inbox)

    def draft(self, size_bytes: int) -> Draft:
        """Somewhere to receive a value of this size."""
        if self._folder is None or size_bytes < self._min_bytes:
            return Draft(size_bytes)
        try:
            draft = FileDraft(self._new_path(self._folder), self.held)
            draft.reserve(size_bytes)
        except OSError as error:
            self._note_no_room(size_bytes, error)
            return Draft(size_bytes)
        return draft

    def empty(self) -> FileDraft | None:
        """A file for a large value whose size another process knows; None: it must be bytes."""
        if self._folder is None or self._min_bytes > INLINE_LIMIT_BYTES:
            return None
        try:
            return FileDraft(self._new_path(self._folder), self.held)
        except OSError:
            return None

    def keep(self, value: bytes) -> bytes | memoryview | ValueFile:
        """The value as it is to be kept: in a file if it is large enough and there is room."""
        if self._folder is None or len(value) < self._min_bytes:
            return value
        draft = self.draft(len(value))
        if not isinstance(draft, FileDraft):
            return value
        draft.write(0, value)
        return draft.finish()

    def take(self, name: str, size_bytes: int) -> ValueFile:
        """Take over what a client has written to the inbox.

        The client must have closed it: no file is taken that anybody has open for writing, or
        mapped, and none can be opened for writing after that.

        Raises:
            RequestError: 404 it is not there, or cannot be taken; 400 it is not what was said.
        """
        if self._folder is None or not _NAME.fullmatch(name):
            raise _gone()
        source, target = str(self._folder.inbox / name), self._new_path(self._folder)
        try:
            fd = os.open(source, READ)
        except OSError:
            raise _gone() from None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise _gone()
            if found.st_size != size_bytes:
                raise RequestError(
                    400, f"header Fleet-Size: {size_bytes}, but the file has {found.st_size} bytes"
                )
            os.fchmod(fd, 0o400)
            _check_no_writer(fd)
            os.rename(source, target)
            taken = ValueFile(target, size_bytes, self.held)
            if os.stat(target).st_ino != found.st_ino:  # another file was given its name meanwhile
                raise _gone()
        except OSError:
            raise _gone() from None
        finally:
            os.close(fd)
        return taken

    def sweep(self) -> None:
        """Remove from the inbox what its writer has abandoned: it holds a lock while it writes."""
        if self._folder is None:
            return
        oldest = time.time() - self._abandoned_after_seconds
        with os.scandir(self._folder.inbox) as found:
            for entry in found:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        _remove_unlocked(entry.path)

    def state(self) -> tuple[ComponentState, str]:
        """For health: whether values are files, how many, and whether there is room for all."""
        if self._folder is None:
            return "off", self._off
        try:
            usage = shutil.disk_usage(self._folder.path)
        except OSError as error:
            return "degraded", f"{self._folder.path}: {error.strerror}; restart the cache"
        text = (
            f"{len(self.held)} values as files in {self._folder.path.parent}, "
            f"{usage.free // MIB} of {usage.total // MIB} MiB free"
        )
        if self.no_room or usage.total < self._wanted_bytes:
            text += (
                f": too little for the cache's {self._wanted_bytes // MIB} MiB, so "
                f"{self.no_room} values stayed bytes. {_remedy(self._folder.path)}"
            )
        return "ok", text

    def close(self) -> None:
        """Remove the folder with everything in it."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None
            self._off = "stopped"

    def _new_path(self, folder: PrivateFolder) -> str:
        return f"{folder.path}/{secrets.token_hex(16)}"

    def _note_no_room(self, size_bytes: int, error: OSError) -> None:
        self.no_room += 1
        if self.no_room == 1:
            log.warning(
                "same_host_no_room",
                error=error.strerror,
                value_bytes=size_bytes,
                folder=self.state()[1],
                effect="values that find no room stay bytes, and travel over the bus",
            )


def _check_no_writer(fd: int) -> None:
    """Refuse a file that is open for writing anywhere: only else does Linux lease it for reading.

    Raises:
        OSError: it is, or this file system knows no leases.
    """
    # Who opens it for writing at this moment (root may) has us told by a signal: a harmless one.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # type: ignore[attr-defined,unused-ignore]
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _remove_unlocked(path: str) -> None:
    fd = os.open(path, READ)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(fd)


def _gone() -> RequestError:
    return RequestError(404, "header Fleet-File: no such file to take; send the value in parts")


def _remedy(folder: Path) -> str:
    if Path("/dev/shm") in folder.parents:  # noqa: S108
        return (
            "Give /dev/shm more room (docker: --shm-size; 64 MB is its default), "
            "or set cache.same_host_folder"
        )
    return "Set cache.same_host_folder to a larger tmpfs"
