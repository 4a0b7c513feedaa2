"""A real file system of a few MiB: to fill, and to make read-only."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs of its own, mounted at `path`."""

    def __init__(self, path: Path, mib: int) -> None:
        path.mkdir()
        self.path = path
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "small-disk", path],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"may not mount here: {done.stderr.strip()}")

    def fill(self, *, but_bytes: int = 0) -> None:
        """Leave so many bytes."""
        free = shutil.disk_usage(self.path).free
        with (
            contextlib.suppress(OSError),  # the last block may not fit
            (self.path / "of-another-program").open("wb", buffering=0) as file,
        ):
            os.posix_fallocate(file.fileno(), 0, free - but_bytes)

    def make_room(self) -> None:
        (self.path / "of-another-program").unlink()

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)

    def unmount(self) -> None:
        # Lazily: a server that was just killed may still hold a file.
        subprocess.run(["umount", "--lazy", self.path], check=True)


@contextlib.contextmanager
def small_disk(path: Path, mib: int) -> Iterator[SmallDisk]:
    """A disk that is gone in the end; skips the test where this user may not mount."""
    disk = SmallDisk(path, mib)
    try:
        yield disk
    finally:
        disk.unmount()
