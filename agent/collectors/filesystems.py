"""Which mounts are worth watching, and their use: a mount that does not answer cannot block us."""

import shutil
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from schemas.metrics import FilesystemMetrics

LOCAL_TYPES = frozenset(
    {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "ntfs", "xfs", "zfs"}
)
NETWORK_TYPES = frozenset(
    {"beegfs", "ceph", "cifs", "fuse.glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"}
)
# Single files of the host that container engines mount into every container.
_CONTAINER_FILES = frozenset(
    {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/dev/termination-log"}
)


class Mount(NamedTuple):
    """One line of the mount table."""

    device: str
    mountpoint: str
    fstype: str


class Usage(NamedTuple):
    """Bytes of one file system; `free` is what an unprivileged user may still write."""

    total: int
    used: int
    free: int


def watched(mounts: Iterable[Mount]) -> list[Mount]:
    """The mounts that hold data, each device once, at its shortest mount point.

    An allow-list: kernel file systems, tmpfs and read-only images (snaps are always 100 % full)
    say nothing about space. `overlay` counts only as a container's root.
    """
    chosen: dict[str, Mount] = {}
    for mount in sorted(mounts, key=lambda mount: (len(mount.mountpoint), mount.mountpoint)):
        holds_data = mount.fstype in LOCAL_TYPES | NETWORK_TYPES
        is_container_root = mount.fstype == "overlay" and mount.mountpoint == "/"
        if (holds_data or is_container_root) and mount.mountpoint not in _CONTAINER_FILES:
            chosen.setdefault(mount.device, mount)
    return list(chosen.values())


class UsageProbe:
    """Asks mounts for their use, each in its own thread, all under one deadline.

    `statvfs` on a dead network mount blocks for ever and cannot be cancelled. Such a mount costs
    the deadline once: while its question hangs it is not asked again, so there is at most one
    thread per mount. The threads are daemons: they do not hold up the exit.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float = 0.5,
        disk_usage: Callable[[str], tuple[int, int, int]] = shutil.disk_usage,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._disk_usage = disk_usage
        self._hanging: dict[str, threading.Thread] = {}

    def read(self, mounts: Iterable[Mount], errors: dict[str, str]) -> list[FilesystemMetrics]:
        """The use of every mount; one that fails keeps null numbers and is named in `errors`."""
        mounts = list(mounts)
        self._hanging = {key: thread for key, thread in self._hanging.items() if thread.is_alive()}
        answers: dict[str, Usage | OSError] = {}
        asked = {
            mount.mountpoint: self._ask(mount.mountpoint, answers)
            for mount in mounts
            if mount.mountpoint not in self._hanging
        }
        deadline = time.monotonic() + self._timeout_seconds
        for thread in asked.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._hanging.update({key: thread for key, thread in asked.items() if thread.is_alive()})
        return [_metrics(mount, answers.get(mount.mountpoint), errors) for mount in mounts]

    def _ask(self, mountpoint: str, answers: dict[str, Usage | OSError]) -> threading.Thread:
        def ask() -> None:
            try:
                answers[mountpoint] = Usage(*self._disk_usage(mountpoint))
            except OSError as error:
                answers[mountpoint] = error

        thread = threading.Thread(target=ask, name=f"disk-usage {mountpoint}", daemon=True)
        thread.start()
        return thread


def _metrics(
    mount: Mount, answer: Usage | OSError | None, errors: dict[str, str]
) -> FilesystemMetrics:
    if not isinstance(answer, Usage):
        errors[f"filesystems.{mount.mountpoint}"] = str(answer or "no answer in time")
        return FilesystemMetrics(
            mountpoint=mount.mountpoint, device=mount.device, fstype=mount.fstype
        )
    usable = answer.used + answer.free  # as `df`: what is reserved for root is in neither
    return FilesystemMetrics(
        mountpoint=mount.mountpoint,
        device=mount.device,
        fstype=mount.fstype,
        total_bytes=answer.total,
        used_bytes=answer.used,
        free_bytes=answer.free,
        utilization_ratio=answer.used / usable if usable > 0 else None,
    )
