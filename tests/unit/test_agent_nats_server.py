import hashlib
import io
import os
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from agent.nats_server import binary
from agent.nats_server.binary import (
    ChecksumError,
    ServerNotFoundError,
    cache_folder,
    find_server,
    install_release,
    main,
    server_version,
)

Serve = Callable[..., str]


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No nats-server is found, wherever this test runs; the cache folder is a new one."""
    monkeypatch.delenv("NATS_SERVER_BIN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(binary, "SYSTEM_FOLDER", str(tmp_path / "sbin"))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve one body for every request; returns the address."""
    servers: list[ThreadingHTTPServer] = []

    def start(body: bytes, *, status: int = 200, announced: int | None = None) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(announced or len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def script(path: Path, text: str = "nats-server: v2.14.5") -> Path:
    """An executable that says `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return path


def release(content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in (("v/LICENSE", b"free"), ("v/nats-server", content)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


RELEASE = release(b"#!/bin/sh\necho 'nats-server: v2.14.5'\n")


def test_finds_nothing_on_a_bare_machine() -> None:
    assert find_server() is None


def test_looks_in_the_order_option_variable_path_sbin_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cached = script(cache_folder() / "nats-server")
    assert find_server() == cached
    in_sbin = script(tmp_path / "sbin" / "nats-server")
    assert find_server() == in_sbin
    on_path = script(tmp_path / "path" / "nats-server")
    assert find_server() == on_path
    by_variable = script(tmp_path / "variable")
    monkeypatch.setenv("NATS_SERVER_BIN", str(by_variable))
    assert find_server() == by_variable
    by_option = script(tmp_path / "option")
    assert find_server(by_option) == by_option


@pytest.mark.parametrize("source", ["--nats-server", "NATS_SERVER_BIN"])
def test_names_an_explicit_path_that_is_not_there(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    if source == "NATS_SERVER_BIN":
        monkeypatch.setenv("NATS_SERVER_BIN", str(missing))

    with pytest.raises(ServerNotFoundError, match=f"{source} is {missing}"):
        find_server(missing if source == "--nats-server" else None)


def test_reads_the_version(tmp_path: Path) -> None:
    assert server_version(script(tmp_path / "a")) == (2, 14, 5)
    assert server_version(script(tmp_path / "b", "nats-server: v2.9.10-RC.1")) == (2, 9, 10)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("nats-server: v2.8.4", "is 2.8.4, needed is 2.9.0"),
        ("hello", "is no nats-server: it says 'hello'"),
    ],
    ids=["too old", "another program"],
)
def test_refuses_a_binary_that_will_not_do(said: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ServerNotFoundError, match=complaint):
        server_version(script(tmp_path / "server", said))


def test_refuses_a_binary_that_does_not_run(tmp_path: Path) -> None:
    broken = script(tmp_path / "server")
    broken.write_bytes(b"\x7fELF nonsense")

    with pytest.raises(ServerNotFoundError, match="does not run"):
        server_version(broken)


def test_installs_a_release_whose_digest_is_right(serve: Serve) -> None:
    told: list[str] = []

    binary = install_release(serve(RELEASE), hashlib.sha256(RELEASE).hexdigest(), told.append)

    assert binary == find_server()
    assert os.access(binary, os.X_OK)
    assert [file.name for file in cache_folder().iterdir()] == ["nats-server"]
    assert told[-1] == f"installed nats-server 2.14.5 in {cache_folder()}"


def test_refuses_a_wrong_digest_and_installs_nothing(serve: Serve) -> None:
    pinned = set(binary.PINNED_SHA256.values())

    with pytest.raises(ChecksumError) as refused:
        binary.fetch_server(print, releases_url=serve(RELEASE))

    assert hashlib.sha256(RELEASE).hexdigest() in str(refused.value)
    assert any(digest in str(refused.value) for digest in pinned)
    assert not cache_folder().exists()


def test_keeps_the_installed_server_when_a_new_one_does_not_run(serve: Serve) -> None:
    kept = script(cache_folder() / "nats-server")
    bad = release(b"#!/bin/sh\nexit 1\n")

    with pytest.raises(ServerNotFoundError, match="does not run"):
        install_release(serve(bad), hashlib.sha256(bad).hexdigest(), print)

    assert find_server() == kept
    assert server_version(kept) == (2, 14, 5)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ({"body": b"gone", "status": 404}, "404"),
        ({"body": b"half", "announced": 8}, "cut after 4 of 8 bytes"),
    ],
    ids=["not there", "connection cut"],
)
def test_tells_a_failed_download_from_a_wrong_one(
    answer: dict[str, object], complaint: str, serve: Serve
) -> None:
    with pytest.raises(ServerNotFoundError, match=complaint) as failed:
        install_release(serve(**answer), "0" * 64, print)

    assert not isinstance(failed.value, ChecksumError)


def test_gives_a_silent_server_up_after_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "SILENCE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()

        with pytest.raises(ServerNotFoundError, match="timed out"):
            install_release(f"http://127.0.0.1:{silent.getsockname()[1]}", "0" * 64, print)

    assert time.monotonic() - began < 10


def test_names_a_cache_folder_that_cannot_be_written(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "xdg").write_text("in the way")

    with pytest.raises(ServerNotFoundError, match=f"cannot install .*{tmp_path / 'xdg'}"):
        install_release(serve(RELEASE), hashlib.sha256(RELEASE).hexdigest(), print)


@pytest.mark.parametrize(
    ("platform", "remedy"),
    [("linux", "sudo apt-get install nats-server"), ("darwin", "type: brew install nats-server")],
)
def test_says_what_to_type_where_nothing_can_be_fetched(
    platform: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]

    with pytest.raises(ServerNotFoundError, match=remedy):
        binary.fetch_server(print, releases_url=f"http://127.0.0.1:{port}")


def test_prints_the_path_and_nothing_else_on_stdout(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    binary = script(tmp_path / "path" / "nats-server")

    assert main() == 0

    assert capsys.readouterr().out == f"{binary}\n"


def test_fails_with_a_sentence_and_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_SERVER_BIN", "/nowhere")

    assert main() == 1

    assert capsys.readouterr().err == "NATS_SERVER_BIN is /nowhere: no executable file there\n"
