import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.collectors.filesystems import FilesystemProbe, FilesystemsSettings
from agent.collectors.mounts import Mount
from schemas.host import FilesystemMetrics

PROJECT = Path(__file__).resolve().parents[2]
ROOT = Mount("/dev/sda1", "/", "ext4", "8:1")
OVERLAY = Mount("overlay", "/", "overlay", "0:55")
PATIENT = FilesystemsSettings(timeout_seconds=30)


def answer(
    blocks: int = 1000, free: int = 400, available: int = 200, inodes: int = 0
) -> os.statvfs_result:
    """What `statvfs` returns, in blocks of 4096 bytes; a quarter of the inodes is free."""
    return os.statvfs_result(
        (1 << 20, 4096, blocks, free, available, inodes, inodes // 4, inodes // 4, 0, 255)
    )


@pytest.fixture
def dead_mount() -> Iterator[threading.Event]:
    """Set it and the hanging questions come back."""
    comes_back = threading.Event()
    yield comes_back
    comes_back.set()


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        pytest.param([ROOT, Mount("/dev/sdb", "/data", "xfs", "8:16")], ["/", "/data"], id="disks"),
        pytest.param([Mount("nas:/m", "/models", "nfs4", "0:44")], ["/models"], id="NFS"),
        pytest.param([Mount("//nas/m", "/models", "cifs", "0:44")], ["/models"], id="CIFS"),
        pytest.param([Mount("me@nas:", "/models", "fuse.sshfs", "0:44")], ["/models"], id="sshfs"),
        pytest.param([OVERLAY], ["/"], id="a container's root"),
        pytest.param([Mount("none", "/", "tmpfs", "0:2")], ["/"], id="a root in RAM"),
        pytest.param([Mount("lxcfs", "/var/lib/lxcfs", "fuse.lxcfs", "0:9")], [], id="not data"),
        pytest.param(
            [Mount("overlay", "/srv/x/merged", "overlay", "0:56")], [], id="other overlays"
        ),
        pytest.param(
            [
                Mount("proc", "/proc", "proc", "0:21"),
                Mount("tmpfs", "/run", "tmpfs", "0:22"),
                Mount("automount", "/net", "autofs", "0:23"),
            ],
            [],
            id="no storage",
        ),
        pytest.param(
            [Mount("/dev/loop3", "/snap/core/1", "squashfs", "7:3")], [], id="read-only images"
        ),
        pytest.param(
            [Mount("/dev/sdc", "/var/lib/kubelet/pods/1/volumes/2", "ext4", "8:32")],
            [],
            id="volumes of containers",
        ),
    ],
)
def test_only_mounts_that_hold_data_are_watched(mounts: list[Mount], expected: list[str]) -> None:
    assert [mount.mountpoint for mount in FilesystemProbe().watched(mounts)] == expected


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        pytest.param([Mount("/dev/sda1", "/srv/bind", "ext4", "8:1"), ROOT], "/", id="the root"),
        pytest.param(
            [
                Mount("/dev/sdb", "/a", "xfs", "8:16", inside="/some/folder"),
                Mount("/dev/sdb", "/long/path", "xfs", "8:16"),
            ],
            "/long/path",
            id="the mount that shows all of it",
        ),
        pytest.param(
            [
                Mount("/dev/sda2", "/home", "btrfs", "0:30", inside="/@home"),
                Mount("/dev/sda2", "/mnt/all", "btrfs", "0:30"),
                Mount("/dev/sda2", "/", "btrfs", "0:30", inside="/@"),
            ],
            "/",
            id="the root although it is a subvolume",
        ),
        pytest.param(
            [
                Mount("/dev/sda1", "/usr/bin/nvidia-smi", "ext4", "8:1", inside="/x"),
                Mount("/dev/sda1", "/etc/hosts", "ext4", "8:1", inside="/y"),
                Mount("/dev/sda1", "/data", "ext4", "8:1", inside="/z"),
            ],
            "/data",
            id="the shortest, but no file that an engine mounts",
        ),
        pytest.param(
            [Mount("old:/m", "/models", "nfs", "0:1"), Mount("new:/m", "/models", "nfs", "0:2")],
            "/models",
            id="the last of two at one mount point",
        ),
        pytest.param(
            [Mount("/dev/disk1", "/b", "apfs"), Mount("/dev/disk1", "/a", "apfs")],
            "/a",
            id="by device where there are no numbers",
        ),
    ],
)
def test_a_file_system_that_is_mounted_twice_is_watched_once(
    mounts: list[Mount], expected: str
) -> None:
    assert [mount.mountpoint for mount in FilesystemProbe().watched(mounts)] == [expected]


def test_of_two_mounts_at_one_point_the_visible_one_is_named() -> None:
    mounts = [Mount("old:/m", "/models", "nfs", "0:1"), Mount("new:/m", "/models", "nfs", "0:2")]

    (mount,) = FilesystemProbe().watched(mounts)

    assert mount.device == "new:/m"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param(FilesystemsSettings(types=("tmpfs",)), ["/", "/run"], id="other types"),
        pytest.param(FilesystemsSettings(exclude_types=("nfs*",)), ["/"], id="no NFS"),
        pytest.param(
            FilesystemsSettings(exclude_mountpoints=("/", "/mo*")), [], id="no such mount points"
        ),
        pytest.param(FilesystemsSettings(exclude_mountpoints=()), ["/", "/models"], id="all"),
    ],
)
def test_settings_say_what_is_watched(settings: FilesystemsSettings, expected: list[str]) -> None:
    mounts = [
        ROOT,
        Mount("nas:/m", "/models", "nfs4", "0:44"),
        Mount("tmpfs", "/run", "tmpfs", "0:22"),
    ]

    assert [mount.mountpoint for mount in FilesystemProbe(settings).watched(mounts)] == expected


def test_usage_is_what_statvfs_says() -> None:
    errors: dict[str, str] = {}

    (root,) = FilesystemProbe(PATIENT).read([ROOT], errors)

    expected = os.statvfs("/")
    assert errors == {}
    assert root.total_bytes == expected.f_blocks * expected.f_frsize
    assert root.free_bytes == pytest.approx(expected.f_bavail * expected.f_frsize, rel=0.05)
    used = (expected.f_blocks - expected.f_bfree) * expected.f_frsize
    assert root.used_bytes == pytest.approx(used, rel=0.05)
    assert root.inodes_count == (expected.f_files or None)


def test_utilization_leaves_out_what_is_reserved_for_root() -> None:
    probe = FilesystemProbe(PATIENT, statvfs=lambda _: answer(inodes=100))
    mount = ROOT._replace(options=frozenset({"ro", "noatime"}))

    (root,) = probe.read([mount], {})

    assert root == FilesystemMetrics(
        mountpoint="/",
        device="/dev/sda1",
        fstype="ext4",
        total_bytes=1000 * 4096,
        used_bytes=600 * 4096,
        free_bytes=200 * 4096,
        utilization_ratio=0.75,
        inodes_count=100,
        inodes_free_count=25,
        is_read_only=True,
    )


def test_what_a_file_system_does_not_have_is_null() -> None:
    probe = FilesystemProbe(PATIENT, statvfs=lambda _: answer(0, 0, 0))

    (root,) = probe.read([ROOT], {})

    assert (root.total_bytes, root.utilization_ratio) == (0, None)
    assert (root.inodes_count, root.inodes_free_count, root.is_read_only) == (None, None, None)


@pytest.mark.parametrize(
    "nonsense",
    [
        pytest.param(answer(10, 11, 0), id="more free than there is"),
        pytest.param(answer(10, 5, 11), id="more available than there is"),
        pytest.param(answer(1 << 60, 5, 5), id="more than any disk"),
    ],
)
def test_an_impossible_answer_is_no_number(nonsense: os.statvfs_result) -> None:
    errors: dict[str, str] = {}

    (root,) = FilesystemProbe(PATIENT, statvfs=lambda _: nonsense).read([ROOT], errors)

    assert (root.total_bytes, root.used_bytes) == (None, None)
    assert list(errors) == ["filesystems./"]
    assert "statvfs" in errors["filesystems./"]


def test_a_mount_that_fails_is_named_and_the_others_are_read() -> None:
    gone = Mount("/dev/sdb", "/no/such/mount", "xfs", "8:16")
    errors: dict[str, str] = {}

    root, failed = FilesystemProbe(PATIENT).read([gone, ROOT], errors)

    assert (failed.mountpoint, failed.total_bytes, failed.utilization_ratio) == (
        "/no/such/mount",
        None,
        None,
    )
    assert list(errors) == ["filesystems./no/such/mount"]
    assert "No such file" in errors["filesystems./no/such/mount"]
    assert root.total_bytes is not None


def test_mount_points_are_found_below_the_hosts_root(tmp_path: Path) -> None:
    asked = []

    def statvfs(path: str) -> os.statvfs_result:
        asked.append(path)
        return answer()

    probe = FilesystemProbe(PATIENT, root=Path("/host"), statvfs=statvfs)
    found = probe.read([ROOT, Mount("/dev/sdb", "/data", "xfs", "8:16")], {})

    assert sorted(asked) == ["/host/", "/host/data"]
    assert [one.mountpoint for one in found] == ["/", "/data"]


def test_names_that_are_no_text_can_still_be_sent() -> None:
    name = b"/m\xff".decode(errors="surrogateescape")
    errors: dict[str, str] = {}

    metrics = FilesystemProbe(PATIENT).read([Mount(name, name, "nfs", "0:1")], errors)

    assert msgspec.json.decode(msgspec.json.encode(metrics))[0]["mountpoint"] == "/m\ufffd"
    assert list(msgspec.json.decode(msgspec.json.encode(errors))) == ["filesystems./m\ufffd"]


def test_a_dead_mount_is_asked_once_until_it_answers(dead_mount: threading.Event) -> None:
    asked = []

    def statvfs(path: str) -> os.statvfs_result:
        asked.append(path)
        if path == "/models":
            dead_mount.wait()
        return answer()

    probe = FilesystemProbe(FilesystemsSettings(timeout_seconds=0.5), statvfs=statvfs)
    mounts = [Mount("nas:/models", "/models", "nfs4", "0:44"), ROOT]
    errors: dict[str, str] = {}
    for _ in range(3):
        root, hanging = probe.read(mounts, errors)
        assert (hanging.total_bytes, root.total_bytes) == (None, 1000 * 4096)

    assert list(errors) == ["filesystems./models"]
    assert "no answer within 0.5 s" in errors["filesystems./models"]
    assert asked.count("/models") == 1


def test_a_mount_that_comes_back_is_read_again(dead_mount: threading.Event) -> None:
    def statvfs(_: str) -> os.statvfs_result:
        dead_mount.wait()
        return answer()

    probe = FilesystemProbe(FilesystemsSettings(timeout_seconds=0.5), statvfs=statvfs)
    probe.read([ROOT], {})
    (hanging,) = [thread for thread in threading.enumerate() if thread.name == "statvfs /"]
    dead_mount.set()
    hanging.join()
    errors: dict[str, str] = {}

    (root,) = probe.read([ROOT], errors)

    assert (root.total_bytes, errors) == (1000 * 4096, {})


def test_a_dead_mount_does_not_keep_the_process_alive() -> None:
    program = (
        "import threading\n"
        "from agent.collectors.filesystems import FilesystemProbe, FilesystemsSettings\n"
        "from agent.collectors.mounts import Mount\n"
        "settings = FilesystemsSettings(timeout_seconds=0.01)\n"
        "probe = FilesystemProbe(settings, statvfs=lambda _: threading.Event().wait())\n"
        "probe.read([Mount('nas:/m', '/models', 'nfs4', '0:44')], {})\n"
        "print('ended')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        capture_output=True,
        timeout=20,
        check=True,
    )

    assert done.stdout == b"ended\n"


def test_a_changed_mount_table_changes_what_is_watched() -> None:
    probe = FilesystemProbe(PATIENT, statvfs=lambda _: answer())
    probe.read([ROOT], {})

    found = probe.read([ROOT, Mount("/dev/sdb", "/data", "xfs", "8:16")], {})

    assert [one.mountpoint for one in found] == ["/", "/data"]
