"""A start that cannot be: one clear line, a non-zero exit, no traceback, soon."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.identity import load_identity
from tests.support.program import Up, environment, resource_agent, running_up
from tests.support.server import NatsServer
from tests.support.small_disk import small_disk


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """An installation that runs already."""
    with running_up(tmp_path_factory.mktemp("other"), "--node", "n1") as up:
        yield up


def refused(
    tmp_path: Path,
    *arguments: object,
    command: tuple[str, ...] = ("up",),
    code: int = 1,
    within: float = 50.0,
    **settings: object,
) -> str:
    """The error line of an `up`, or another command, that did not start."""
    at = time.monotonic()
    done = resource_agent(
        *command, "--state-dir", tmp_path / "state", *arguments, env=environment(**settings)
    )
    said = done.stderr.decode()
    assert done.returncode == code, said
    assert time.monotonic() - at < within
    assert "Traceback" not in said
    assert "[Errno" not in said
    assert "bus_error" not in said, "told twice"
    return said[said.lower().rindex("error") :]


def test_a_second_up_on_one_folder_is_refused(other: Up, tmp_path: Path) -> None:
    # It waits 7 s, in case the other one was just killed and its server is still stopping.
    said = refused(tmp_path, "--state-dir", other.state_dir, within=20)

    assert f"state folder {other.state_dir} is in use by process {other.process.pid}" in said


def test_an_empty_name_is_refused(tmp_path: Path) -> None:
    assert "--node is empty" in refused(tmp_path, "--node", "", code=2)


def test_a_damaged_identity_is_refused(tmp_path: Path) -> None:
    load_identity(tmp_path / "state")
    (tmp_path / "state" / "identity").write_bytes(b"\xff\x00 or so")

    said = refused(tmp_path)

    assert "identity is damaged" in " ".join(said.split())


def test_a_wrong_password_is_refused(other: Up, tmp_path: Path) -> None:
    host = other.url.rpartition("@")[2]

    said = refused(tmp_path, "--nats-url", f"nats://local:secret@{host}")

    assert f"nats://local@{host} refused the login (user 'local')" in said
    assert "secret" not in said


def test_a_name_that_another_installation_has_is_refused(other: Up, tmp_path: Path) -> None:
    said = refused(tmp_path, "--nats-url", other.url, "--node", "n1")

    assert "the name 'n1' (" in said
    assert f"pid {other.process.pid}" in said
    assert "--node" in said


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = refused(tmp_path, "--nats-url", "nats://local:secret@127.0.0.1:1")

    assert "no NATS server answers at nats://local@127.0.0.1:1" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "url",
    ["nats://127.0.0.1:nonsense", "http://127.0.0.1:4222", "two words", "nats://", ""],
    ids=["no-port", "other-scheme", "no-url", "no-host", "empty"],
)
def test_what_is_no_address_is_wrong_usage(tmp_path: Path, url: str) -> None:
    said = refused(tmp_path, "--nats-url", url, code=2)

    assert f"{url!r} is not the address of a NATS server" in said


def test_a_state_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")

    said = refused(tmp_path)

    assert str(tmp_path / "state") in said


def test_a_disk_too_small_for_the_streams_says_how_much_they_need(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state", mib=16):
        said = refused(tmp_path)

    assert "they need at least 64 MiB" in said
    assert "free disk space" in said


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state", mib=16) as disk:
        disk.fill()

        said = refused(tmp_path)

    assert f"cannot use state folder {tmp_path / 'state'}" in said
    assert "No space left on device" in said


@pytest.mark.parametrize("is_used", [False, True], ids=["new", "used"])
def test_a_read_only_state_folder_is_named(other: Up, tmp_path: Path, is_used: bool) -> None:
    with small_disk(tmp_path / "state", mib=16) as disk:
        if is_used:
            load_identity(disk.path)
        disk.make_read_only()

        said_by_up = refused(tmp_path)
        said_by_one = refused(tmp_path, "--nats-url", other.url, command=("run", "handlers"))

    for said in (said_by_up, said_by_one):
        assert f"cannot use state folder {tmp_path / 'state'}" in said
        assert "Read-only file system" in said


@pytest.mark.parametrize("command", [("up",), ("run", "agent")], ids=["up", "run"])
def test_a_server_without_jetstream_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    server = NatsServer(tmp_path / "server", jetstream=False)
    server.start()
    try:
        said = refused(tmp_path, "--nats-url", server.url, command=command)
    finally:
        server.stop()

    assert "JetStream does not answer on this server" in said
    assert "start nats-server with -js" in said


def test_an_archive_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "archive").write_text("a file")

    said = refused(tmp_path, archive__folder=tmp_path / "archive")

    assert f"archive folder {tmp_path / 'archive'} is a file" in said


def test_a_ready_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    said = refused(tmp_path, "--ready-file", tmp_path / "nowhere" / "ready.json")

    assert f"cannot write ready file {tmp_path / 'nowhere' / 'ready.json'}" in said


def test_a_server_that_does_not_run_is_named(tmp_path: Path) -> None:
    said = refused(tmp_path, "--nats-server", "/bin/false")

    assert "/bin/false does not run" in said


def test_a_host_root_without_a_host_in_it_is_named(tmp_path: Path) -> None:
    said = refused(tmp_path, code=2, agent__host_root=tmp_path)

    assert f"there is no {tmp_path / 'proc' / 'stat'}" in said
    assert f"`-v /:{tmp_path}:ro,rslave`" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--simulate-gpus", "many"), "'many'"),
        (("--simulate-engines", "0"), "'0'"),
        (("--engine", "gpu-7:8000"), "must look like http://"),
        (("--for", "-1"), "--for"),
        (("--config", "/no/such/file"), "/no/such/file"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    said = refused(tmp_path, *arguments, code=2)

    assert text in said
