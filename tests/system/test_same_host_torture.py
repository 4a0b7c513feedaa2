"""Values as files under torture: no wrong byte, no stale one, no leak, no signal.

Clients and cache are processes of their own; values are evicted, replaced, deleted and read through
kept descriptors without pause, clients are stopped and killed half-way, and so is the cache.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.bus import connect
from schemas.protocols import RequestError
from tests.support.cache_service import Client
from tests.support.program import ROOT, environment
from tests.support.same_host_worker import FLOORS_BYTES, WRITERS, WRONG
from tests.support.server import NatsServer
from tests.support.waiting import until, until_async

pytestmark = [pytest.mark.bus, pytest.mark.timeout(400)]
READERS = 2
NOBODY = 65534
HITS_A_ROUND = 5
DEADLINE_SECONDS = 60.0

RUN = "from agent.cli.app import app; app()"
WRITES_IN_PLACE = f"""
import itertools, os
from cache.files import Files
from cache.value_file import ValueFile

take, slots = Files.take, itertools.cycle(range(4))
ValueFile.__del__ = lambda self: None

def take_into_a_slot(self, name, size_bytes):
    value = bytes(take(self, name, size_bytes))
    path = f"{{self._folder.path}}/slot-{{next(slots)}}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for start in range(0, size_bytes, 65536):
        os.pwrite(fd, value[start : start + 65536], start)
    os.ftruncate(fd, size_bytes)
    os.close(fd)
    return ValueFile(path, size_bytes, {{}})

Files.take = take_into_a_slot
{RUN}
"""
KEEPS_NAMES = f"""
from cache.value_file import ValueFile

ValueFile.retire = lambda self: None
ValueFile.__del__ = lambda self: None
{RUN}
"""


class Arena:
    """A server, a cache with 8 MiB and its clients; one that ends by itself has found an error."""

    def __init__(self, folder: Path, files: Path, program: str = RUN) -> None:
        self.folder = folder
        self.files = files
        self._program = program
        self.server = NatsServer(folder / "server")
        self.floors = folder / "floors"
        self.floors.write_bytes(bytes(FLOORS_BYTES))
        self.workers: list[subprocess.Popen[str]] = []
        self._starting: set[int] = set()
        self.did: Counter[str] = Counter()

    def __enter__(self) -> "Arena":
        self.server.start()
        self.start_cache()
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.cache):
            process.kill()
            process.communicate()
        self.server.stop()

    def start_cache(self) -> None:
        self.cache = subprocess.Popen(
            [
                *(sys.executable, "-c", self._program, "run", "cache", "--instance", "one"),
                *("--nats-url", self.server.url, "--state-dir", str(self.folder / "cache")),
            ],
            cwd=ROOT,
            env=environment(
                cache__max_memory_mb=8,
                cache__archive_mode="off",
                cache__same_host_folder=self.files,
                cache__upload_timeout_seconds=1,
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start_worker(self, role: str, number: int, *user: int) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.support.same_host_worker", self.server.url, role),
                *map(str, (number, self.floors, *user)),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.workers.append(worker)
        self._starting.add(worker.pid)
        return worker

    def wait_started(self, worker: subprocess.Popen[str]) -> None:
        if worker.pid in self._starting:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            self._starting.discard(worker.pid)

    def start_all(self) -> None:
        for number in range(WRITERS):
            self.start_worker("writer", number)
        for _ in range(READERS):
            self.start_worker("reader", 0)
        for worker in self.workers:
            self.wait_started(worker)

    def check(self) -> None:
        """No client has ended by itself."""
        for worker in self.workers:
            assert worker.poll() is None, (worker.returncode, worker.communicate()[1])

    def replace(self, worker: subprocess.Popen[str]) -> None:
        """Kill a client in the middle of what it does; another one takes its place."""
        place = self.workers.index(worker)
        arguments = worker.args
        assert isinstance(arguments, list)
        worker.kill()
        worker.communicate()
        assert worker.returncode == -signal.SIGKILL
        self.workers.remove(worker)
        self.start_worker(arguments[4], int(arguments[5]))
        self.workers.insert(place, self.workers.pop())

    def end_workers(self) -> None:
        for worker in self.workers:
            self.wait_started(worker)
            worker.terminate()
            out, error = worker.communicate(timeout=DEADLINE_SECONDS)
            assert worker.returncode == 0, error
            report = json.loads(out.splitlines()[-1])
            assert report.pop("leaked") <= 0
            self.did.update(report)

    def entries(self) -> list[str]:
        """What lies in the folders of caches, inboxes not included."""
        return [path.name for path in self.files.glob("*/*") if path.name != "inbox"]

    def open_in_cache(self) -> list[str]:
        """What the cache has open in the folder of files."""
        links = f"/proc/{self.cache.pid}/fd"
        names = [os.readlink(f"{links}/{fd}") for fd in os.listdir(links)]
        return [name for name in names if str(self.files) in name]

    def torture(self, rounds: int, chance: random.Random) -> None:
        """In each round a client is killed, or stopped for a moment."""
        for _ in range(rounds):
            time.sleep(0.2)  # how far they come meanwhile is theirs; any point must do
            self.check()
            worker = chance.choice(self.workers)
            if chance.random() < 0.3:
                self.replace(worker)
            else:
                worker.send_signal(signal.SIGSTOP)
                time.sleep(0.05)
                worker.send_signal(signal.SIGCONT)

    def kill_cache(self) -> None:
        self.cache.kill()
        self.cache.communicate()
        self.start_cache()


@pytest.fixture
def ram() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def small_ram() -> Iterator[Path]:
    """A tmpfs that cannot take all that the cache may hold."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=5m,mode=700", "tmpfs", folder]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this container cannot mount")
        yield Path(folder)
        subprocess.run(["umount", "-l", folder], check=True)


async def survive(arena: Arena, *, rounds: int, kills: int) -> Counter[str]:
    """Torture that many rounds, and again after each kill of the cache."""
    chance = random.Random(2026)
    with arena:
        async with await connect(arena.server.url, name="test") as bus:
            client = Client(bus)

            async def is_read() -> bool:
                arena.check()
                with contextlib.suppress(RequestError):  # not served yet
                    return (await client.stats()).cache_hits >= HITS_A_ROUND * rounds
                return False

            async def is_tidy() -> bool:
                stats = await client.stats()
                inbox = os.listdir(stats.inbox)
                return not inbox and len(arena.entries()) <= stats.total_entries

            await asyncio.to_thread(arena.start_all)
            for kill in range(kills + 1):
                if kill:
                    await asyncio.to_thread(arena.kill_cache)
                await until_async(is_read, seconds=DEADLINE_SECONDS)
                await asyncio.to_thread(arena.torture, rounds, chance)
            await asyncio.to_thread(arena.end_workers)
            await until_async(is_tidy, seconds=DEADLINE_SECONDS)
        assert arena.open_in_cache() == [str(path) for path in arena.files.iterdir()]
        arena.cache.terminate()
        await asyncio.to_thread(arena.cache.communicate)
        assert arena.cache.returncode == 0
        assert not list(arena.files.iterdir())
    return arena.did


async def test_nothing_is_wrong_or_left_under_torture(tmp_path: Path, ram: Path) -> None:
    did = await survive(Arena(tmp_path, ram), rounds=5, kills=1)

    assert min(did["puts"], did["hits"], did["kept"]) > 0, did


@pytest.mark.long
@pytest.mark.parametrize("place", ["ram", "small_ram"])
async def test_nothing_is_wrong_or_left_under_long_torture(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    did = await survive(Arena(tmp_path, request.getfixturevalue(place)), rounds=100, kills=5)

    print(dict(did))
    assert min(did["puts"], did["hits"]) > 0, did


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_on_this_host_reads_right_values_over_the_bus(
    tmp_path: Path, ram: Path
) -> None:
    with Arena(tmp_path, ram) as arena:
        arena.start_worker("writer", 0)
        reader = arena.start_worker("reader", 0, NOBODY)
        async with await connect(arena.server.url, name="test") as bus:
            client = Client(bus)

            async def has_read() -> bool:
                arena.check()
                return (await client.stats()).cache_hits > 20

            await until(lambda: any(arena.entries()), seconds=DEADLINE_SECONDS)
            await until_async(has_read, seconds=DEADLINE_SECONDS)
        reader.terminate()
        out, error = await asyncio.to_thread(reader.communicate)

    report = json.loads(out.splitlines()[-1])
    assert reader.returncode == 0, error
    assert report["hits"] > 0
    assert report["kept"] == 0


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(WRITES_IN_PLACE, id="a cache that writes over its files"),
        pytest.param(
            KEEPS_NAMES,
            id="a cache that does not unlink what is replaced",
            marks=pytest.mark.long,
        ),
    ],
)
async def test_the_torture_finds(tmp_path: Path, ram: Path, program: str) -> None:
    with Arena(tmp_path, ram, program) as arena:
        await asyncio.to_thread(arena.start_all)
        await until(
            lambda: any(worker.poll() == WRONG for worker in arena.workers),
            seconds=DEADLINE_SECONDS,
        )
