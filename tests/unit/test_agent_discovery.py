"""Which bus is used: the option, NATS_URL, the running `up`, the usual address; in that order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.discovery import DEFAULT_URL, find_bus


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
