"""A folder that one process at a time works on: locks, and files for this user's eyes only."""

import asyncio
import fcntl
import json
import os
from pathlib import Path

POLL_SECONDS = 0.005


class StateFolderError(Exception):
    """The state folder cannot be used; the text names it and says why."""


class StateFolderBusyError(StateFolderError):
    """Another process works on this folder."""


async def lock(path: Path, *, wait_seconds: float) -> int:
    """Take the exclusive lock and return the descriptor that holds it.

    The lock is free again when every copy of the descriptor is closed: those that child
    processes inherited, too. The file's content is the process id of the owner.

    Raises:
        StateFolderBusyError: somebody still holds it after `wait_seconds`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        async with asyncio.timeout(wait_seconds):
            while not _try_lock(descriptor):  # noqa: ASYNC110 - flock has no event
                await asyncio.sleep(POLL_SECONDS)
        write_owner(descriptor, os.getpid())
    except TimeoutError:
        owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise StateFolderBusyError(
            f"state folder {path.parent} is in use by process {owner or '(unknown)'}; "
            f"stop that process, or use another folder"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_free(path: Path) -> bool:
    """Whether the lock file is there and nobody holds the lock, as after a `kill -9`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Held for an instant; who takes the lock in earnest tries for seconds.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def write_owner(descriptor: int, pid: int) -> None:
    """Say in a lock file whose it is, for the message that the next one in line gets."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{pid}\n".encode(), 0)


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by this user alone: no reader sees half of it."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


def write_private_json(path: Path, value: object) -> None:
    """`write_private` of the value as one line of JSON."""
    write_private(path, json.dumps(value) + "\n")


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
