"""The private server with real processes: killed, blocked and restarted in every way."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.js.api import StreamConfig
from structlog.testing import capture_logs

from agent.nats_server import private, process
from agent.nats_server.binary import find_server
from agent.nats_server.config import ServerSettings
from agent.nats_server.private import PrivateServer
from agent.nats_server.process import ServerStartError
from agent.state_folder import StateFolderBusyError, StateFolderError
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.bus

DEADLINE_SECONDS = 20.0
UP = """
import asyncio, signal, sys
from pathlib import Path
from agent.nats_server.private import PrivateServer

async def main():
    say = lambda: print("interrupted", flush=True)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, say)
    async with PrivateServer(Path(sys.argv[1]), binary=Path(sys.argv[2])) as server:
        print(server.server_pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def binary() -> Path:
    found = find_server()
    assert found is not None, "no nats-server: run `make setup` first"
    return found


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another process does and tells nobody."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.002)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False)
    return said.stdout.strip() not in (b"",) and not said.stdout.startswith(b"Z")


def guard_of(server_pid: int) -> int:
    said = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(server_pid)], capture_output=True, check=True
    )
    return int(said.stdout)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def guard_of_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard as it works where the kernel does not kill the server of a dead guard."""
    source = process.GUARD.read_text()
    assert 'sys.platform == "linux"' in source
    changed = tmp_path / "guard.py"
    changed.write_text(source.replace('sys.platform == "linux"', "False"))
    monkeypatch.setattr(process, "GUARD", changed)


class Restarts:
    """An `on_restart` that can be waited for."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[int] = asyncio.Queue()

    async def next(self) -> int:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.seen.get()


async def store_one(server: PrivateServer) -> None:
    client = await nats.connect(server.url)
    streams = client.jetstream()
    await streams.add_stream(StreamConfig(name="KEPT", subjects=["kept"]))
    await streams.publish("kept", b"acknowledged")
    await client.close()


async def stored(server: PrivateServer) -> bytes | None:
    client = await nats.connect(server.url)
    message = await client.jetstream().get_msg("KEPT", 1)
    await client.close()
    return message.data


async def test_is_ready_when_start_returns(binary: Path, state: Path) -> None:
    async with PrivateServer(state, binary=binary) as server:
        for url in (server.url, server.public_url):
            client = await nats.connect(url, allow_reconnect=False)
            await client.flush()
            await client.close()

        assert "local" not in server.public_url


async def test_tells_where_it_is_to_this_user_alone(binary: Path, state: Path) -> None:
    async with PrivateServer(state, binary=binary) as server:
        up = json.loads((state / "up.json").read_text())

        assert up["nats_url"] == server.url
        assert up["nats_url"] == f"nats://local:{up['password']}@127.0.0.1:{up['port']}"
        assert (up["pid"], up["state_dir"]) == (os.getpid(), str(state))
        for name in ("up.json", "nats/server.json", "nats/server.conf"):
            assert mode(state / name) == 0o600, name
        assert mode(state) == 0o700

    assert not (state / "up.json").exists()


async def test_keeps_store_port_and_password_between_runs(binary: Path, state: Path) -> None:
    # Not the default port: another test takes it in between.
    settings = ServerSettings(preferred_port=free_port())
    async with PrivateServer(state, binary=binary, settings=settings) as server:
        url = server.url
        await store_one(server)

    settings = ServerSettings(preferred_port=free_port())
    async with PrivateServer(state, binary=binary, settings=settings) as server:
        assert server.url == url
        assert await stored(server) == b"acknowledged"


async def test_the_same_server_object_starts_again_after_stop(binary: Path, state: Path) -> None:
    server = PrivateServer(state, binary=binary)

    for _ in range(2):
        await server.start()
        await server.stop()
    await server.stop()

    assert not is_alive(server.server_pid)


async def test_asks_the_server_to_stop_before_it_kills(binary: Path, state: Path) -> None:
    async with PrivateServer(state, binary=binary):
        pass

    assert "Server Exiting" in (state / "nats" / "server.log").read_text()


async def test_takes_the_preferred_port_where_it_is_free(binary: Path, state: Path) -> None:
    settings = ServerSettings(preferred_port=free_port())

    async with PrivateServer(state, binary=binary, settings=settings) as server:
        assert server.port == settings.preferred_port
        assert server.used_default_port


async def test_takes_another_port_where_the_preferred_is_in_use(binary: Path, state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        settings = ServerSettings(preferred_port=stranger.getsockname()[1])

        async with PrivateServer(state, binary=binary, settings=settings) as server:
            assert server.port != settings.preferred_port
            assert not server.used_default_port
            kept = server.port

    async with PrivateServer(state, binary=binary, settings=settings) as server:
        assert server.port == kept  # users have exported it


async def test_tries_again_when_the_port_is_taken_between_look_and_use(
    binary: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_free = private._is_free
    looks: list[int] = []

    def blind_at_first(port: int) -> bool:
        looks.append(port)
        return len(looks) == 1 or really_free(port)

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_name":"stranger"}\r\n')
        writer.close()

    monkeypatch.setattr(private, "_is_free", blind_at_first)
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as stranger:
        settings = ServerSettings(preferred_port=stranger.sockets[0].getsockname()[1])

        async with PrivateServer(state, binary=binary, settings=settings) as server:
            assert server.port != settings.preferred_port


async def test_refuses_a_second_server_on_one_folder(
    binary: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private, "OWNER_SECONDS", 0.1)
    async with PrivateServer(state, binary=binary) as first:
        with pytest.raises(StateFolderBusyError, match=f"{state} is in use by .* {os.getpid()}"):
            await PrivateServer(state, binary=binary).start()

        assert is_alive(first.server_pid)
        assert (state / "up.json").exists()

    async with PrivateServer(state, binary=binary):
        pass


@pytest.mark.parametrize("place", ["file", "file/below"])
async def test_names_a_state_folder_that_cannot_be(
    place: str, binary: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StateFolderError, match=f"cannot use state folder {tmp_path / place}"):
        await PrivateServer(tmp_path / place, binary=binary).start()


async def test_starts_over_when_its_notes_are_garbage(binary: Path, state: Path) -> None:
    (state / "nats").mkdir(parents=True)
    (state / "nats" / "server.json").write_text('{"port": 99999999}')

    async with PrivateServer(state, binary=binary) as server:
        assert json.loads((state / "nats" / "server.json").read_text())["port"] == server.port


async def test_never_lowers_the_room_for_streams(binary: Path, state: Path) -> None:
    roomy = ServerSettings(max_file_store_bytes=1 << 30)
    async with PrivateServer(state, binary=binary, settings=roomy) as server:
        client = await nats.connect(server.url)
        config = StreamConfig(name="BIG", subjects=["big"], max_bytes=1 << 29)
        await client.jetstream().add_stream(config)
        await client.close()

    tight = ServerSettings(max_file_store_bytes=1 << 20)
    async with PrivateServer(state, binary=binary, settings=tight) as server:
        client = await nats.connect(server.url)
        assert (await client.jetstream().stream_info("BIG")).config.max_bytes == 1 << 29
        assert server.max_file_store_bytes == 1 << 30
        await client.close()


async def test_takes_a_quarter_of_the_free_disk(binary: Path, state: Path) -> None:
    async with PrivateServer(state, binary=binary) as server:
        quarter = shutil.disk_usage(state).free // 4

        # other programs fill and free this disk meanwhile
        assert server.max_file_store_bytes == pytest.approx(quarter, rel=0.1)


async def test_shows_the_log_of_a_server_that_does_not_start(binary: Path, state: Path) -> None:
    (state / "nats").mkdir(parents=True)
    (state / "nats" / "store").write_text("in the way")

    with pytest.raises(ServerStartError, match=r"(?s)ended at start.*is not a directory"):
        await PrivateServer(state, binary=binary).start()

    (state / "nats" / "store").unlink()
    async with PrivateServer(state, binary=binary):
        pass


async def test_gives_a_server_up_that_never_gets_ready(
    binary: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "READY_SECONDS", 0.3)
    monkeypatch.setattr(process.ServerProcess, "_greets", never)
    server = PrivateServer(state, binary=binary)

    with pytest.raises(ServerStartError, match="was not ready after"):
        await server.start()

    assert not is_alive(server.server_pid)


async def never(*_: object) -> bool:
    return False


async def test_restarts_a_killed_server_on_its_port_with_its_data(
    binary: Path, state: Path
) -> None:
    restarts = Restarts()
    async with PrivateServer(state, binary=binary, on_restart=restarts.seen.put_nowait) as server:
        await store_one(server)
        killed, url = server.server_pid, server.url

        for round_ in (1, 2):
            os.kill(server.server_pid, signal.SIGKILL)
            async with asyncio.timeout(2):
                assert await restarts.next() == round_

        assert server.restarts == 2
        assert server.server_pid != killed
        assert server.url == url
        assert await stored(server) == b"acknowledged"


async def kill_guard_and_see_both_back(binary: Path, state: Path) -> None:
    restarts = Restarts()
    async with PrivateServer(state, binary=binary, on_restart=restarts.seen.put_nowait) as server:
        await store_one(server)
        old = server.server_pid

        os.kill(guard_of(old), signal.SIGKILL)
        await restarts.next()

        assert not is_alive(old)
        assert is_alive(server.server_pid)
        assert await stored(server) == b"acknowledged"


async def test_a_killed_guard_and_its_server_come_back(binary: Path, state: Path) -> None:
    await kill_guard_and_see_both_back(binary, state)


@pytest.mark.usefixtures("guard_of_other_systems")
async def test_the_server_of_a_killed_guard_is_killed_before_another_starts(
    binary: Path, state: Path
) -> None:
    await kill_guard_and_see_both_back(binary, state)


@pytest.mark.usefixtures("guard_of_other_systems")
async def test_a_server_that_nobody_guards_keeps_its_folder_locked(
    binary: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LOCK_SECONDS", 0.1)
    orphan = PrivateServer(state, binary=binary)
    await orphan.start()
    orphan_pid = orphan.server_pid
    monkeypatch.setattr(os, "killpg", lambda *_: None)  # nobody is left who would
    os.kill(guard_of(orphan_pid), signal.SIGKILL)
    await orphan.stop()

    with pytest.raises(StateFolderBusyError, match=f"in use by process {orphan_pid};"):
        await PrivateServer(state, binary=binary).start()

    os.kill(orphan_pid, signal.SIGKILL)
    monkeypatch.setattr(process, "LOCK_SECONDS", DEADLINE_SECONDS)
    async with PrivateServer(state, binary=binary):
        pass


async def test_comes_back_when_its_port_is_free_again(
    binary: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts = Restarts()
    monkeypatch.setattr(process, "GREETING_SECONDS", 0.05)
    # A server of another test may want the usual port while ours is down.
    settings = ServerSettings(preferred_port=free_port())
    async with PrivateServer(
        state, binary=binary, settings=settings, on_restart=restarts.seen.put_nowait
    ) as server:
        with capture_logs() as logs:
            os.kill(server.server_pid, signal.SIGKILL)
            with take(server.port):
                await until(lambda: "server_restart_failed" in str(logs))
            await restarts.next()

        client = await nats.connect(server.url, allow_reconnect=False)
        await client.close()


def take(port: int) -> socket.socket:
    """Listen on the port as soon as its owner is dead; blocks, so that nobody is faster."""
    give_up = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > give_up:
                raise


async def test_stops_a_server_that_hangs(
    binary: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STOP_SECONDS", 0.2)
    async with PrivateServer(state, binary=binary) as server:
        os.kill(server.server_pid, signal.SIGSTOP)

    await until(lambda: not is_alive(server.server_pid))


async def test_a_server_that_hangs_is_killed_and_comes_back(
    binary: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("LOOK_SECONDS", 0.05), ("HANG_SECONDS", 0.2), ("GREETING_SECONDS", 0.2)):
        monkeypatch.setattr(process, name, seconds)
    restarts = Restarts()
    async with PrivateServer(state, binary=binary, on_restart=restarts.seen.put_nowait) as server:
        await store_one(server)
        hanging = server.server_pid

        os.kill(hanging, signal.SIGSTOP)
        await restarts.next()

        assert not is_alive(hanging)
        assert await stored(server) == b"acknowledged"


async def test_a_server_whose_disk_was_full_is_started_anew_when_there_is_room(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STOP_SECONDS", 0.5)  # 2.9 hangs by now
    restarts = Restarts()
    with small_disk(tmp_path / "disk", mib=96) as disk, capture_logs() as logged:
        async with PrivateServer(
            disk.path / "state", binary=binary, on_restart=restarts.seen.put_nowait
        ) as server:
            await store_one(server)

            disk.fill()
            await until(lambda: any(line["event"] == "disk_full" for line in logged))
            with pytest.raises(nats.errors.Error):
                await store_another(server, b"x" * 100_000)
            disk.make_room()
            await restarts.next()

            await store_another(server, b"y" * 100_000)
            assert await stored(server) == b"acknowledged"

    (full,) = [line for line in logged if line["event"] == "disk_full"]
    assert (full["folder"], full["free_bytes"]) == (str(disk.path / "state" / "nats"), 0)
    assert "make room" in full["remedy"]


async def store_another(server: PrivateServer, payload: bytes) -> None:
    client = await nats.connect(server.url)
    try:
        await client.jetstream().publish("kept", payload, timeout=1)
    finally:
        await client.close()


@contextmanager
def up(state: Path, binary: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Another process that runs a server on the folder, and that server's pid."""
    with subprocess.Popen(
        [sys.executable, "-c", UP, state, binary],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


async def test_killing_us_leaves_no_server_behind(binary: Path, state: Path) -> None:
    with up(state, binary) as (process, server_pid):
        guard_pid = guard_of(server_pid)

        process.kill()

    await until(lambda: not is_alive(server_pid) and not is_alive(guard_pid))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the server then")
async def test_killing_us_and_the_guard_leaves_no_server_behind(binary: Path, state: Path) -> None:
    with up(state, binary) as (process, server_pid):
        guard_pid = guard_of(server_pid)

        process.send_signal(signal.SIGSTOP)  # it must not start another one first
        os.kill(guard_pid, signal.SIGKILL)
        process.kill()

    await until(lambda: not is_alive(server_pid))


async def test_starts_on_the_store_of_a_killed_predecessor_at_once(
    binary: Path, state: Path
) -> None:
    async with PrivateServer(state, binary=binary) as server:
        await store_one(server)
    with up(state, binary) as (process, server_pid):
        os.kill(server_pid, signal.SIGSTOP)  # its guard needs 5 s to be rid of it
        process.kill()

    async with PrivateServer(state, binary=binary) as server:
        assert not is_alive(server_pid)
        assert await stored(server) == b"acknowledged"


async def test_ctrl_c_is_ours_to_handle(binary: Path, state: Path) -> None:
    with up(state, binary) as (process, server_pid):
        guard_pid = guard_of(server_pid)

        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guard_pid, number)

        assert is_alive(server_pid)
        assert is_alive(guard_pid)
        process.kill()

    await until(lambda: not is_alive(server_pid))
