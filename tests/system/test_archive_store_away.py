"""What the commands say while the archive is there and its store is not."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.moto import CREDENTIALS
from tests.support.program import Up, running_up
from tests.support.waiting import until_in_thread


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """With a bucket on a port where nobody listens."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with running_up(
            tmp_path_factory.mktemp("up"),
            "--no-live",
            node="n1",
            archive__store="s3://bucket/prefix",
            archive__s3__endpoint_url=f"http://127.0.0.1:{taken.getsockname()[1]}",
            archive__s3__attempts=1,
            cache__max_memory_mb=1,
        ) as running:
            yield running


def test_health_of_the_role_fails_and_that_of_a_probe_does_not(up: Up) -> None:
    role = up.command("health", "--role", "archive")
    whole = up.command("health")
    as_json = up.command("health", "--role", "archive", "--json")
    cache = up.command("health", "--role", "cache")
    here = up.command("health", "--role", "archive", "--here")

    assert (role.returncode, whole.returncode, as_json.returncode) == (1, 1, 1)
    assert "cannot be reached" in role.stdout.decode()
    assert cache.returncode == 0
    assert here.returncode == 0


@pytest.mark.parametrize("command", ["status", "ls", "get k", "dead", "sweep"])
def test_a_command_says_that_the_archiver_is_there_and_its_store_is_not(
    up: Up, command: str
) -> None:
    done = up.command(f"archive {command}")

    said = done.stderr.decode()
    assert done.returncode == 1
    assert "archiver n1, heard" in said
    assert "store failed (archive s3://bucket/prefix/" in said
    assert "(since 20" in said
    assert "FLEET_EVICTIONS holds 0 messages, 0 bytes of " in said
    assert "Traceback" not in said


def test_programs_get_the_same_as_json(up: Up) -> None:
    done = up.command("archive status", "--json")

    known = json.loads(done.stdout)
    assert done.returncode == 1
    assert known["error"].startswith("nobody serves")
    assert [one["instance"] for one in known["archivers"]] == ["n1"]
    assert [one["stream"] for one in known["waiting"]] == [
        "FLEET_EVICTIONS",
        "FLEET_EVICTION_PARTS",
    ]


def test_an_archive_that_still_answers_says_that_its_store_is_away(tmp_path: Path) -> None:
    with running_up(tmp_path / "up", "--no-live", archive__probe_interval_seconds=0.1) as up:
        before = up.command("archive status")
        shutil.rmtree(up.state_dir / "archive")
        until_in_thread(lambda: up.command("health", "--role", "archive").returncode == 1)
        said = up.command("archive status").stderr.decode()

    assert "its store" not in before.stderr.decode()
    assert "is not there: was it removed or unmounted? (since 20" in said
