"""S3 servers that a benchmark starts for itself."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from benchmarks.moto import CREDENTIALS, MotoServer
from benchmarks.radosgw import RadosGateway
from benchmarks.rclone import RcloneServer

KINDS = ("rclone", "radosgw", "moto")


class S3(Protocol):
    """A server that takes `benchmarks.moto.CREDENTIALS`."""

    @property
    def url(self) -> str:
        """Its endpoint; the same after a kill."""

    def start(self) -> None:
        """Start it; returns when it answers. After `kill` it goes on with what it had stored."""

    def kill(self) -> None:
        """SIGKILL."""

    def stop(self) -> None:
        """End it for good."""

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its name."""


def s3_server(kind: str, folder: Path, rclone: str = "") -> S3:
    """A server of one of `KINDS`, for whose credentials this process and its children are set."""
    os.environ.update(CREDENTIALS)
    if kind == "rclone":
        return RcloneServer(folder, rclone)
    return MotoServer(folder) if kind == "moto" else RadosGateway(folder)


@contextlib.contextmanager
def running_s3(kind: str, bucket: str) -> Iterator[str]:
    """The address of a server that has this bucket."""
    with tempfile.TemporaryDirectory() as folder:
        server = s3_server(kind, Path(folder) / "s3")
        try:
            server.start()
            server.make_bucket(bucket)
            yield server.url
        finally:
            server.stop()
