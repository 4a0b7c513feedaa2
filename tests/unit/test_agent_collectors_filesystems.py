import os
import threading
from collections.abc import Iterator

import pytest

from agent.collectors.filesystems import Mount, UsageProbe, watched

ROOT = Mount("/dev/sda1", "/", "ext4")


@pytest.fixture
def dead_mount() -> Iterator[threading.Event]:
    """Set it and the hanging questions come back."""
    answer = threading.Event()
    yield answer
    answer.set()


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        pytest.param([ROOT, Mount("/dev/sdb", "/data", "xfs")], ["/", "/data"], id="disks"),
        pytest.param([Mount("nas:/models", "/models", "nfs4")], ["/models"], id="network"),
        pytest.param([Mount("overlay", "/", "overlay")], ["/"], id="a container's root"),
        pytest.param(
            [Mount("overlay", "/var/lib/docker/overlay2/x/merged", "overlay")],
            [],
            id="other overlays",
        ),
        pytest.param(
            [Mount("proc", "/proc", "proc"), Mount("tmpfs", "/run", "tmpfs")], [], id="no storage"
        ),
        pytest.param([Mount("/dev/loop3", "/snap/core/1", "squashfs")], [], id="read-only images"),
        pytest.param(
            [Mount("/dev/sda1", "/srv/bind", "ext4"), ROOT], ["/"], id="one device mounted twice"
        ),
        pytest.param(
            [Mount("/dev/sda1", "/etc/hosts", "ext4"), Mount("overlay", "/", "overlay")],
            ["/"],
            id="files the container engine mounts",
        ),
    ],
)
def test_only_mounts_that_hold_data_are_watched(mounts: list[Mount], expected: list[str]) -> None:
    assert [mount.mountpoint for mount in watched(mounts)] == expected


def test_usage_is_what_statvfs_says() -> None:
    errors: dict[str, str] = {}

    (root,) = UsageProbe(timeout_seconds=30).read([ROOT], errors)

    expected = os.statvfs("/")
    assert errors == {}
    assert root.total_bytes == expected.f_blocks * expected.f_frsize
    assert root.free_bytes == pytest.approx(expected.f_bavail * expected.f_frsize, rel=0.05)
    used = (expected.f_blocks - expected.f_bfree) * expected.f_frsize
    assert root.used_bytes == pytest.approx(used, rel=0.05)


def test_utilization_leaves_out_what_is_reserved_for_root() -> None:
    probe = UsageProbe(timeout_seconds=30, disk_usage=lambda _: (1000, 600, 200))

    (root,) = probe.read([ROOT], {})

    assert root.utilization_ratio == 0.75


def test_an_empty_file_system_has_no_utilization() -> None:
    probe = UsageProbe(timeout_seconds=30, disk_usage=lambda _: (0, 0, 0))

    (root,) = probe.read([ROOT], {})

    assert (root.total_bytes, root.utilization_ratio) == (0, None)


def test_a_mount_that_fails_is_named_and_the_others_are_read() -> None:
    gone = Mount("/dev/sdb", "/no/such/mount", "xfs")
    errors: dict[str, str] = {}

    failed, root = UsageProbe(timeout_seconds=30).read([gone, ROOT], errors)

    assert (failed.mountpoint, failed.total_bytes, failed.utilization_ratio) == (
        "/no/such/mount",
        None,
        None,
    )
    assert list(errors) == ["filesystems./no/such/mount"]
    assert "No such file" in errors["filesystems./no/such/mount"]
    assert root.total_bytes is not None


def test_a_dead_mount_is_asked_once_until_it_answers(dead_mount: threading.Event) -> None:
    asked = []

    def disk_usage(mountpoint: str) -> tuple[int, int, int]:
        asked.append(mountpoint)
        if mountpoint == "/models":
            dead_mount.wait()
        return 1000, 600, 200

    probe = UsageProbe(timeout_seconds=0.5, disk_usage=disk_usage)
    mounts = [Mount("nas:/models", "/models", "nfs4"), ROOT]
    errors: dict[str, str] = {}
    for _ in range(3):
        hanging, root = probe.read(mounts, errors)
        assert (hanging.total_bytes, root.total_bytes) == (None, 1000)

    assert errors == {"filesystems./models": "no answer in time"}
    assert asked.count("/models") == 1


def test_a_mount_that_comes_back_is_read_again(dead_mount: threading.Event) -> None:
    def disk_usage(mountpoint: str) -> tuple[int, int, int]:
        dead_mount.wait()
        return 1000, 600, 200

    probe = UsageProbe(timeout_seconds=0.5, disk_usage=disk_usage)
    probe.read([ROOT], {})
    (hanging,) = [thread for thread in threading.enumerate() if thread.name == "disk-usage /"]
    dead_mount.set()
    hanging.join()

    (root,) = probe.read([ROOT], {})

    assert root.total_bytes == 1000
