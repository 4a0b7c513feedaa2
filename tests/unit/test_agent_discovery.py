"""Which bus is used: the option, NATS_URL, the running `up`, the usual address; in that order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.bus.connection import Login
from agent.discovery import DEFAULT_URL, find_bus, with_password
from agent.state_folder import lock


def write_up(folder: Path, content: object) -> None:
    (folder / "up.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_option_beats_the_environment_beats_the_running_up_beats_the_default(
    tmp_path: Path,
) -> None:
    environ = {"NATS_URL": "nats://environment"}

    default = find_bus(None, {}, tmp_path)
    write_up(tmp_path, {"nats_url": "nats://up", "pid": os.getpid()})
    running = find_bus(None, {}, tmp_path)
    environment = find_bus(None, environ, tmp_path)
    option = find_bus("nats://option", environ, tmp_path)

    assert (default.url, running.url) == (DEFAULT_URL, "nats://up")
    assert (environment.url, option.url) == ("nats://environment", "nats://option")
    assert "default" in default.how
    assert str(tmp_path) in running.how
    assert "NATS_URL" in environment.how
    assert "--nats-url" in option.how


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("nats://127.0.0.1:4222", "nats://local:secret@127.0.0.1:4222"),
        ("127.0.0.1:4222", "nats://local:secret@127.0.0.1:4222"),
        ("nats://127.0.0.1:4223", "nats://127.0.0.1:4223"),
        ("nats://guest:x@127.0.0.1:4222", "nats://guest:x@127.0.0.1:4222"),
    ],
    ids=["its address", "without scheme", "another port", "another user"],
)
def test_the_address_that_the_running_up_shows_gets_its_password(
    tmp_path: Path, given: str, taken: str
) -> None:
    write_up(tmp_path, {"nats_url": "nats://local:secret@127.0.0.1:4222", "pid": os.getpid()})

    assert find_bus(None, {"NATS_URL": given}, tmp_path).url == taken


@pytest.mark.parametrize("empty", [None, ""])
def test_what_is_empty_is_not_given(tmp_path: Path, empty: str | None) -> None:
    assert find_bus(empty, {"NATS_URL": ""}, tmp_path).url == DEFAULT_URL


def test_an_up_that_died_is_not_used(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_up(tmp_path, {"nats_url": "nats://up", "pid": gone.pid})

    assert find_bus(None, {}, tmp_path).url == DEFAULT_URL


async def test_a_file_whose_process_id_is_anothers_by_now_is_not_believed(tmp_path: Path) -> None:
    write_up(tmp_path, {"nats_url": "nats://up", "pid": os.getpid()})
    held = await lock(tmp_path / "lock", wait_seconds=1)
    running = find_bus(None, {}, tmp_path)
    os.close(held)  # as where its process was killed
    killed = find_bus(None, {}, tmp_path)

    assert (running.url, running.guessed) == ("nats://up", False)
    assert (killed.url, killed.guessed) == (DEFAULT_URL, True)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut-short"),
        pytest.param("[]", id="not-an-object"),
        pytest.param({"pid": os.getpid()}, id="no-address"),
        pytest.param({"nats_url": "nats://up"}, id="no-pid"),
        pytest.param({"nats_url": "nats://up", "pid": "x"}, id="pid-not-a-number"),
        pytest.param({"nats_url": "nats://up", "pid": 10**30}, id="pid-too-large"),
    ],
)
def test_a_file_of_no_use_is_as_good_as_none(tmp_path: Path, content: object) -> None:
    write_up(tmp_path, content)

    assert find_bus(None, {}, tmp_path).url == DEFAULT_URL


@pytest.mark.parametrize(
    ("content", "password"),
    [
        pytest.param("5ecret", "5ecret", id="plain"),
        pytest.param("5ecret\n", "5ecret", id="newline"),
        pytest.param("5ecret\r\n", "5ecret", id="windows"),
        pytest.param("a:b@c/d?e#f%g h é", "a:b@c/d?e#f%g h é", id="special"),
        pytest.param(" 5ecret ", " 5ecret ", id="spaces are part of it"),
    ],
)
def test_a_password_file_completes_an_address_that_names_a_user(
    tmp_path: Path, content: str, password: str
) -> None:
    file = tmp_path / "password"
    file.write_bytes(content.encode())

    url = with_password("nats://agent@host:4222", str(file))

    assert Login.of(url) == Login(user="agent", password=password)
    assert url.endswith("@host:4222")


@pytest.mark.parametrize("url", ["nats://agent:own@host:4222", "nats://local:@host:4222"])
def test_an_address_with_a_password_needs_no_file(url: str) -> None:
    assert with_password(url, "/no/such/file") == url


@pytest.mark.parametrize("url", ["nats://host:4222", "nats://token@host:4222", "tls://[::1]:4222"])
def test_without_a_password_file_the_address_stays_as_it_is(url: str) -> None:
    assert with_password(url, "") == url


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "cannot be read: No such file or directory", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"\n", "is empty", id="only a newline"),
        pytest.param(b"\xff\xfe", "is not text", id="binary"),
    ],
)
def test_a_password_file_without_a_password_is_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ValueError, match=reason):
        with_password("nats://agent@host", str(file))


def test_a_folder_is_no_password_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        with_password("nats://agent@host", str(tmp_path))


def test_a_password_file_for_an_address_without_a_user_is_refused() -> None:
    with pytest.raises(ValueError, match="has no user; write nats://user@host:4222"):
        with_password("nats://host:4222", "/run/secrets/password")


@pytest.mark.parametrize(
    ("url", "login"),
    [
        pytest.param("nats://h", Login(), id="nobody"),
        pytest.param("nats://t%40ken@h", Login(token="t@ken"), id="token"),
        pytest.param("nats://a%2Fb:c%25@h", Login(user="a/b", password="c%"), id="quoted"),
    ],
)
def test_an_address_says_who_logs_in(url: str, login: Login) -> None:
    assert Login.of(url) == login
