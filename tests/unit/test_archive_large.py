"""Values of 4 MiB and more: a segment each, written as a stream, read by ranges."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import pytest

from archive import vault as vault_module
from archive.packer import ALONE_BYTES
from archive.settings import ArchiveSettings
from archive.store import StoreError
from archive.sweep import Sweeper
from archive.vault import DamagedObjectError, Vault
from tests.support.evictions import FailingStore, ManualClock, evicted

REPOSITORY = Path(__file__).parents[2]
SETTINGS = ArchiveSettings(segment_seconds=0.01, retry_seconds=0.01, retry_max_seconds=0.01)
NOISE = os.urandom(ALONE_BYTES)
TEXT = b"the same words again " * (ALONE_BYTES // 4)

KEEP_LARGE_VALUES = """
import asyncio, hashlib, os, sys
from pathlib import Path
from archive.settings import ArchiveSettings
from archive.store import StoreError
from archive.sweep import Sweeper
from archive.vault import Vault
from tests.support.evictions import ManualClock, evicted, folder_store

async def main():
    store = folder_store(Path(sys.argv[1]))
    await store.open()
    vault = Vault(store, ArchiveSettings(), ManualClock())
    for number, piece in enumerate((os.urandom(2**20), b"text" * 2**18, os.urandom(2**20))):
        class Value:
            async def sample(self, piece=piece):
                return piece
            async def pieces(self, piece=piece):
                for _ in range(64):
                    yield piece
        digest = hashlib.sha256()
        for _ in range(64):
            digest.update(piece)
        size = {"size_bytes": 2**26, "digest": digest.hexdigest()}
        await vault.keep(evicted(f"k{number}", **size), Value())
    await store.close()
    # Not ru_maxrss: it begins with that of the process that forked.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)

asyncio.run(main())
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FailingStore]:
    folder = FailingStore(tmp_path / "archive")
    await folder.open()
    yield folder
    await folder.close()


async def loaded(store: FailingStore) -> Vault:
    vault = Vault(store, SETTINGS, ManualClock())
    await vault.load(lambda _done, _total: None)
    return vault


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(NOISE, id="exactly 4 MiB"),
        pytest.param(NOISE * 3 + b"x", id="several ranges"),
        pytest.param(TEXT, id="compressible"),
    ],
)
async def test_a_large_value_comes_back_from_this_and_the_next_process(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch, value: bytes
) -> None:
    monkeypatch.setattr(vault_module, "RANGE_BYTES", 1024 * 1024)
    vault = await loaded(store)
    manifest = evicted(value=value)

    await vault.keep(manifest, value)
    await vault.keep(evicted("small"), b"value")
    again = await loaded(store)

    for one in (vault, again):
        assert await one.fetch("default", "k", None) == (manifest, memoryview(value))
        assert await one.fetch("default", "small", None) is not None
    assert len(list(store.folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("range_bytes", "ranges"),
    [
        pytest.param(len(NOISE), 1, id="just above a range"),
        pytest.param(len(NOISE) * 10 // 16, 2, id="above one and a half"),
    ],
)
async def test_a_value_is_read_in_equal_ranges(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch, range_bytes: int, ranges: int
) -> None:
    monkeypatch.setattr(vault_module, "RANGE_BYTES", range_bytes)
    get_range, asked = store.get_range, []

    async def noted(name: str, first: int, end: int) -> bytes | None:
        asked.append(end - first)
        return await get_range(name, first, end)

    vault = await loaded(store)
    await vault.keep(evicted(value=NOISE), NOISE)
    monkeypatch.setattr(store, "get_range", noted)
    found = await vault.fetch("default", "k", None)

    assert found is not None
    assert len(asked) == ranges
    assert max(asked) - min(asked) <= 1


async def test_a_large_value_can_be_fetched_while_it_is_written(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, may_go_on = asyncio.Event(), asyncio.Event()
    put_stream = store.put_stream

    async def slow(name: str, pieces: AsyncIterator[bytes]) -> None:
        writing.set()
        await may_go_on.wait()
        await put_stream(name, pieces)

    monkeypatch.setattr(store, "put_stream", slow)
    vault = await loaded(store)
    manifest = evicted(value=NOISE)
    keeping = asyncio.create_task(vault.keep(manifest, NOISE))
    async with asyncio.timeout(20):
        await writing.wait()
    found = await vault.fetch("default", "k", None)
    is_answered = keeping.done()
    may_go_on.set()

    assert found == (manifest, memoryview(NOISE))
    assert not is_answered
    assert (await keeping)[0] == "stored"


@pytest.mark.parametrize("harm", ["flipped", "truncated"])
async def test_a_damaged_large_value_is_never_returned(store: FailingStore, harm: str) -> None:
    vault = await loaded(store)
    await vault.keep(evicted(value=NOISE), NOISE)
    (path,) = store.folder.glob("*.object")
    content = bytearray(path.read_bytes())
    if harm == "flipped":
        content[ALONE_BYTES // 2] ^= 1
    else:
        del content[ALONE_BYTES // 2 :]
    path.write_bytes(content)

    with pytest.raises(DamagedObjectError):
        await vault.fetch("default", "k", None)

    assert await vault.fetch("default", "k", None) is None


async def test_of_a_large_value_damaged_on_its_way_nothing_is_given_up(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = await loaded(store)
    manifest = evicted(value=NOISE)
    await vault.keep(manifest, NOISE)
    read = store.get_range_to
    harmed: list[bytes] = []

    async def flip_once(name: str, first: int, end: int, take: Callable[[bytes], None]) -> bool:
        def took(piece: bytes) -> None:
            if not harmed:
                harmed.append(piece)
                piece = piece[:-1] + bytes([piece[-1] ^ 1])
            take(piece)

        return await read(name, first, end, took)

    monkeypatch.setattr(store, "get_range_to", flip_once)

    # Some of what came first was handed on already, so it cannot be made good here.
    with pytest.raises(StoreError, match="damaged on its way"):
        await vault.fetch("default", "k", None)
    assert await vault.fetch("default", "k", None) == (manifest, memoryview(NOISE))


class Streamed:
    """A value that comes in pieces; `then` happens at its end, each time."""

    def __init__(self, value: bytes, then: Callable[[], None] = lambda: None) -> None:
        self._value = value
        self._then = then
        self.times = 0

    async def sample(self) -> bytes:
        return self._value[: 128 * 1024]

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        self.times += 1
        for first in range(0, len(self._value), 1024 * 1024):
            yield self._value[first : first + 1024 * 1024]
        self._then()


@pytest.mark.parametrize(
    ("value", "is_passed_on"),
    [
        pytest.param(NOISE + b"x", True, id="noise"),
        pytest.param(TEXT, False, id="text"),
        pytest.param(NOISE[:-1], False, id="below 4 MiB"),
    ],
)
async def test_a_value_that_comes_in_pieces_is_stored_as_it_comes(
    store: FailingStore, value: bytes, is_passed_on: bool
) -> None:
    on_the_way: list[bool] = []

    def look() -> None:
        on_the_way.append(any(store.folder.glob("*.tmp")))

    vault = await loaded(store)
    manifest = evicted(value=value)

    outcome, entry = await vault.keep(manifest, Streamed(value, look))
    again = await loaded(store)

    assert outcome == "stored"
    assert on_the_way == [is_passed_on]
    assert entry is not None
    assert not vault.packer.holds(entry.segment)
    for one in (vault, again):
        assert await one.fetch("default", "k", None) == (manifest, memoryview(value))


async def test_a_value_that_is_not_what_it_should_be_leaves_nothing(store: FailingStore) -> None:
    def fail() -> None:
        raise ValueError("another digest")

    vault = await loaded(store)
    before = evicted(value=b"before", version="b1-00")
    await vault.keep(before, b"before")
    with pytest.raises(ValueError, match="another digest"):
        await vault.keep(evicted(value=NOISE), Streamed(NOISE, fail))

    assert await vault.fetch("default", "k", None) == (before, memoryview(b"before"))
    assert len(list(store.folder.iterdir())) == 1
    assert vault.ledger.dead() == []


async def test_a_value_whose_store_fails_comes_again_from_its_beginning(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_stream, failures = store.put_stream, iter([StoreError("slow down")])

    async def failing(name: str, pieces: AsyncIterator[bytes]) -> None:
        await put_stream(name, pieces)
        for failure in failures:
            raise failure

    monkeypatch.setattr(store, "put_stream", failing)
    vault = await loaded(store)
    value = Streamed(NOISE)

    outcome, _ = await vault.keep(evicted(value=NOISE), value)

    assert outcome == "stored"
    assert value.times == 2
    assert vault.packer.store_error == ""
    assert await vault.fetch("default", "k", None) is not None


async def test_what_is_read_while_a_value_is_stored_waits_for_it(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending, may_go_on = asyncio.Event(), asyncio.Event()
    put_stream = store.put_stream

    async def slow(name: str, pieces: AsyncIterator[bytes]) -> None:
        await put_stream(name, pieces)
        sending.set()
        await may_go_on.wait()

    async def look(*_: object) -> None:
        during.append(await vault.fetch("default", "k", None))

    during: list[object] = []
    monkeypatch.setattr(store, "put_stream", slow)
    vault = await loaded(store)
    monkeypatch.setattr(vault.catalog, "stored", look)
    manifest = evicted(value=NOISE)
    keeping = asyncio.create_task(vault.keep(manifest, Streamed(NOISE)))
    async with asyncio.timeout(20):
        await sending.wait()
    fetching = asyncio.create_task(vault.fetch("default", "k", None))
    swept = [entry async for entry in Sweeper(vault).sweep()]
    await vault.adopt()
    is_early = fetching.done()
    may_go_on.set()
    async with asyncio.timeout(20):
        found = await fetching
        await keeping

    assert found == (manifest, memoryview(NOISE))
    assert during == [found]
    assert vault.index("default").older_until_ns("k") == 0
    assert not is_early
    assert swept == []


def test_values_of_64_mib_are_kept_in_less_than_256_mib(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEEP_LARGE_VALUES, str(tmp_path / "archive")],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
        timeout=100,
    )

    assert 64 < int(done.stdout) < 256
