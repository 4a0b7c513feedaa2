"""A mounted FUSE file system whose server never answers: what a dead NFS or sshfs mount is."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.collectors.filesystems import FilesystemProbe, FilesystemsSettings
from agent.collectors.host import HostCollector
from schemas.metrics import HostMetrics

_DETACH = 2  # umount2(2): MNT_DETACH


@pytest.fixture
def dead_mount(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Where it is mounted, and how to end its server: its calls then fail instead of hanging."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no /dev/fuse here: {error.strerror}")
    options = f"fd={server},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    mountpoint = str(tmp_path)
    if libc.mount(b"nas:/models", mountpoint.encode(), b"fuse.sshfs", 0, options.encode()) != 0:
        os.close(server)
        pytest.skip(f"may not mount here: {os.strerror(ctypes.get_errno())}")
    closed = False

    def end_server() -> None:
        nonlocal closed
        if not closed:
            os.close(server)
        closed = True

    yield mountpoint, end_server
    end_server()
    libc.umount2(mountpoint.encode(), _DETACH)


def stuck_threads(mountpoint: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"statvfs {mountpoint}"]


def collector(probe: FilesystemProbe) -> HostCollector:
    return HostCollector(
        node="n1", node_name="n1", pool=None, process_limit=3, filesystems=probe
    )  # fmt: skip


def test_a_dead_mount_costs_one_thread_and_its_own_numbers_until_it_answers(
    dead_mount: tuple[str, Callable[[], None]],
) -> None:
    mountpoint, end_server = dead_mount
    probe = FilesystemProbe(FilesystemsSettings(timeout_seconds=0.3))
    collectors = [collector(probe), collector(probe)]  # the publisher's and the queries'

    hanging = [one.sample() for _ in range(2) for one in collectors]
    (stuck,) = stuck_threads(mountpoint)
    end_server()
    stuck.join(10)
    failed = collectors[0].sample()

    for sample in hanging:
        assert numbers(sample, mountpoint) == ("nas:/models", "fuse.sshfs", None)
        assert list(sample.errors) == [f"filesystems.{mountpoint}"]
        assert "no answer within 0.3 s" in sample.errors[f"filesystems.{mountpoint}"]
        assert sample.memory is not None
        assert numbers(sample, "/")[2] is not None
    assert "not connected" in failed.errors[f"filesystems.{mountpoint}"]
    assert not stuck.is_alive()


def numbers(sample: HostMetrics, mountpoint: str) -> tuple[str, str, int | None]:
    (one,) = [one for one in sample.filesystems or [] if one.mountpoint == mountpoint]
    return one.device, one.fstype, one.total_bytes
