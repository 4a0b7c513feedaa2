"""The kernel's table of mounts."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MOUNT_FIELDS = 6  # before the optional ones
_FILE_SYSTEM_FIELDS = 3
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount.

    `number` is the device's `major:minor`, the same for every mount of one file system, and empty
    where the platform does not tell it. `inside` is the folder of the file system that is mounted:
    `/`, or another where only a part is (bind mounts, a container's cgroup).
    """

    device: str
    mountpoint: str
    fstype: str
    number: str = ""
    inside: str = "/"
    options: frozenset[str] = frozenset()


class MountTable:
    """Reads one `mountinfo` file; parses it only when it has changed.

    A Kubernetes node has a thousand mounts and more, and they seldom change.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = b""
        self._mounts: list[Mount] = []

    def read(self) -> list[Mount]:
        """The mounts as they are now, in their order; the same list while nothing changes.

        Raises:
            OSError: the file cannot be read.
        ValueError: a line is not what the kernel documents.
        """
        content = self._path.read_bytes()
        if content != self._content:
            self._mounts = list(_parse(content.decode(errors="surrogateescape")))
            self._content = content
        return self._mounts


def _parse(content: str) -> Iterator[Mount]:
    """Lines of `/proc/<pid>/mountinfo` (proc(5)).

    `36 35 98:0 /inside /mount/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`:
    the optional fields before the hyphen may be any number.
    """
    for line in content.split("\n"):
        if not line:
            continue
        mount, _, file_system = line.partition(" - ")
        fields, parts = mount.split(" "), file_system.split(" ")
        if len(fields) < _MOUNT_FIELDS or len(parts) < _FILE_SYSTEM_FIELDS:
            raise ValueError(f"not a line of mountinfo: {line[:80]!r}")
        yield Mount(
            device=_unescape(parts[1]),
            mountpoint=_unescape(fields[4]),
            fstype=parts[0],
            number=fields[2],
            inside=_unescape(fields[3]),
            options=frozenset([*fields[5].split(","), *parts[2].split(",")]),
        )


def _unescape(name: str) -> str:
    r"""Blanks, tabs, newlines and backslashes are written as `\040`, `\011`, `\012`, `\134`."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), name)
