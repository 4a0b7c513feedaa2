"""moto's S3 server in a process of its own, whose objects outlive it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import boto3

DEADLINE_SECONDS = 60.0
LOOK_SECONDS = 0.01
PAGE_KEYS = 7
"""Small, so that a handful of objects is listed in pages."""
ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # noqa: S105 - the example of the AWS docs
SERVER = """
import os, sys, threading
from moto.moto_api import recorder
from moto.moto_api._internal.recorder.models import Recorder
from moto.server import ThreadedMotoServer, main

record, turns = Recorder._record_request, threading.Lock()

def one_at_a_time(*arguments):  # moto's threads would write into each other's lines
    with turns:
        record(*arguments)

Recorder._record_request = one_at_a_time
if os.path.exists(os.environ["MOTO_RECORDER_FILEPATH"]):
    # By a port that nobody knows: nobody else may ask before everything is there again.
    behind = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    behind.start()
    recorder.replay_recording("http://%s:%s" % behind.get_host_and_port())
    behind.stop()
main(sys.argv[1:])
"""
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}


class MotoServer:
    """One server; `start` after `kill` keeps the port, and all that was recorded until then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._recording = folder / "recording"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; returns when it serves what it served before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._recording.exists():
            # Who was killed in the middle of a line had not answered yet.
            whole, end, _ = self._recording.read_bytes().rpartition(b"\n")
            self._recording.write_bytes(whole + end)
        log = self.folder / "moto.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER, "-p", str(self.port)],
                stdout=out,
                stderr=out,
                env={
                    **os.environ,
                    "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE_KEYS),
                    "MOTO_ENABLE_RECORDING": "1",
                    "MOTO_RECORDER_FILEPATH": str(self._recording),
                },
            )
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (found := re.search(r"Running on http://[\d.]+:(\d+)", log.read_text())) is None:
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(LOOK_SECONDS)
        self.port = int(found[1])

    def kill(self) -> None:
        """SIGKILL; all its RAM is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_SECONDS)

    def stop(self) -> None:
        """End it for good."""
        if self._process is not None:
            self.kill()

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its name."""
        make_bucket(self.url, name)
        return name


def make_bucket(endpoint_url: str, name: str) -> None:
    """Create a bucket with the credentials above."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    client.create_bucket(Bucket=name)
    client.close()
