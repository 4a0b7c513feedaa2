"""Which mounts are worth watching, and their use: a mount that does not answer cannot block us."""

import fnmatch
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from agent.collectors.mounts import Mount
from schemas.host import FilesystemMetrics

_BYTES_LIMIT = 1 << 63  # of the messages, and more than any file system holds


class FilesystemsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which file systems are watched.

    All three are shell patterns in which `*` matches `/` too. An allow-list of types: kernel file
    systems, tmpfs and read-only images (snaps are always 100 % full) say nothing about space.
    """

    types: Annotated[
        tuple[str, ...],
        Meta(description="types that are watched; the root is, whatever its type"),
    ] = (
        *("apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "ntfs"),
        *("ntfs3", "vfat", "xfs", "zfs"),
        *("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "gpfs", "lustre", "nfs", "nfs4", "ocfs2"),
        *("smb3", "smbfs", "virtiofs", "wekafs"),
        *("fuse", "fuseblk", "fuse.*"),
    )
    exclude_types: Annotated[tuple[str, ...], Meta(description="types that are not, after all")] = (
        *("fuse.gvfsd-fuse", "fuse.lxcfs", "fuse.portal", "fuse.snapfuse", "fuse.squashfuse"),
    )
    exclude_mountpoints: Annotated[
        tuple[str, ...],
        Meta(
            description="mount points that are not watched: by default the kernel's, the folders "
            "of container engines, and the files they mount into every container"
        ),
    ] = (
        *("/dev/*", "/proc/*", "/sys/*", "/run/credentials/*"),
        *("/run/containerd/*", "/run/user/*", "/var/lib/containerd/*", "/var/lib/docker/*"),
        *("/var/lib/containers/storage/*", "/var/lib/kubelet/*"),
        *("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"),
    )
    timeout_seconds: Annotated[
        float,
        Meta(gt=0, le=30, description="a mount that takes longer has no numbers in that sample"),
    ] = 1.0


class FilesystemProbe:
    """Asks the watched mounts for their use, each in its own thread, all under one deadline.

    `statvfs` on a dead network mount blocks for ever and cannot be cancelled. Such a mount costs
    the deadline once: while its question hangs it is not asked again, so there is at most one
    stuck thread per mount. The threads are daemons: they do not hold up the exit.
    Call it from one thread. `root` is where the mount points are found: `/host` in a container
    that has the host's file systems there.
    """

    def __init__(
        self,
        settings: FilesystemsSettings | None = None,
        *,
        root: Path = Path("/"),
        statvfs: Callable[[str], os.statvfs_result] = os.statvfs,
    ) -> None:
        settings = settings or FilesystemsSettings()
        self._timeout_seconds = settings.timeout_seconds
        self._root = str(root).rstrip("/")
        self._statvfs = statvfs
        self._is_type = _matcher(settings.types)
        self._is_excluded_type = _matcher(settings.exclude_types)
        self._is_excluded_mountpoint = _matcher(settings.exclude_mountpoints)
        self._mounts: list[Mount] = []
        self._watched: list[Mount] = []
        self._hanging: dict[str, threading.Thread] = {}

    def watched(self, mounts: Iterable[Mount]) -> list[Mount]:
        """The mounts that hold data, each file system once.

        Of several mounts of one file system (bind mounts, subvolumes) the one that shows all of
        it is chosen, then the shortest path. Of several at one mount point the last one counts:
        it hides the others.
        """
        visible = {mount.mountpoint: mount for mount in mounts}
        chosen: dict[str, Mount] = {}
        for mount in sorted(visible.values(), key=_preference):
            if self._is_watched(mount):
                chosen.setdefault(mount.number or mount.device, mount)
        return sorted(chosen.values(), key=lambda mount: mount.mountpoint)

    def read(self, mounts: list[Mount], errors: dict[str, str]) -> list[FilesystemMetrics]:
        """The use of every watched mount; one that fails has null numbers and is in `errors`."""
        if mounts != self._mounts:
            self._mounts, self._watched = mounts, self.watched(mounts)
        self._hanging = {key: thread for key, thread in self._hanging.items() if thread.is_alive()}
        answers: dict[str, os.statvfs_result | OSError] = {}
        asked = {
            mount.mountpoint: self._ask(mount.mountpoint, answers)
            for mount in self._watched
            if mount.mountpoint not in self._hanging
        }
        deadline = time.monotonic() + self._timeout_seconds
        for thread in asked.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._hanging.update({key: thread for key, thread in asked.items() if thread.is_alive()})
        found = []
        for mount in self._watched:
            metrics = _metrics(mount)
            answer = answers.get(mount.mountpoint)
            if isinstance(answer, os.statvfs_result) and _is_plausible(answer):
                metrics = _with_numbers(metrics, answer)
            else:
                errors[f"filesystems.{metrics.mountpoint}"] = (
                    f"no answer within {self._timeout_seconds:g} s; not asked again until it comes"
                    if answer is None
                    else _printable(str(answer))
                )
            found.append(metrics)
        return found

    def _is_watched(self, mount: Mount) -> bool:
        if self._is_excluded_type(mount.fstype) or self._is_excluded_mountpoint(mount.mountpoint):
            return False
        return self._is_type(mount.fstype) or mount.mountpoint == "/"

    def _ask(
        self, mountpoint: str, answers: dict[str, os.statvfs_result | OSError]
    ) -> threading.Thread:
        def ask() -> None:
            try:
                answers[mountpoint] = self._statvfs((self._root + mountpoint) or "/")
            except OSError as error:
                answers[mountpoint] = error

        thread = threading.Thread(target=ask, name=f"statvfs {mountpoint}", daemon=True)
        thread.start()
        return thread


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    compiled = re.compile("|".join(map(fnmatch.translate, patterns)) or "(?!)")
    return lambda name: compiled.match(name) is not None


def _preference(mount: Mount) -> tuple[bool, bool, int, str]:
    path = mount.mountpoint
    return path != "/", mount.inside != "/", len(path), path


def _is_plausible(answer: os.statvfs_result) -> bool:
    """Whoever writes a FUSE file system may answer anything."""
    return (
        answer.f_blocks >= max(answer.f_bfree, answer.f_bavail)
        and answer.f_files >= answer.f_ffree
        and answer.f_blocks * answer.f_frsize < _BYTES_LIMIT
    )


def _printable(name: str) -> str:
    """A path may hold any byte; JSON may not."""
    return os.fsencode(name).decode(errors="replace")


def _metrics(mount: Mount) -> FilesystemMetrics:
    return FilesystemMetrics(
        mountpoint=_printable(mount.mountpoint),
        device=_printable(mount.device),
        fstype=_printable(mount.fstype),
        is_read_only="ro" in mount.options if mount.options else None,
    )


def _with_numbers(metrics: FilesystemMetrics, answer: os.statvfs_result) -> FilesystemMetrics:
    unit = answer.f_frsize
    used, free = answer.f_blocks - answer.f_bfree, answer.f_bavail
    usable = used + free  # as `df`: what is reserved for root is in neither
    return msgspec.structs.replace(
        metrics,
        total_bytes=answer.f_blocks * unit,
        used_bytes=used * unit,
        free_bytes=free * unit,
        utilization_ratio=used / usable if usable > 0 else None,
        # 0 where the file system has no fixed number of them (btrfs, most network ones).
        inodes_count=answer.f_files or None,
        inodes_free_count=answer.f_ffree if answer.f_files else None,
    )
