"""What every store must do, be it a folder or S3.

`ARCHIVE_TEST_ENDPOINT=http://host:port ARCHIVE_TEST_BUCKET=name`, with credentials in the AWS
variables, runs the same against another server; `-m long` against Ceph's, where that is installed.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from archive.index_entry import object_name
from archive.s3 import S3Store
from archive.settings import ArchiveSettings, S3Settings
from archive.store import ObjectStore, StoredObject
from archive.sweep import Sweeper
from archive.vault import DamagedObjectError, Vault
from benchmarks.moto import CREDENTIALS, MotoServer
from benchmarks.radosgw import RadosGateway, missing_programs
from tests.support.evictions import ManualClock, evicted, folder_store, single_object

ENDPOINT, BUCKET = (os.environ.get(f"ARCHIVE_TEST_{name}", "") for name in ("ENDPOINT", "BUCKET"))
NAMES = [f"{number:064x}" for number in range(20)]
NAME = NAMES[10]
SEGMENT = f"7d-{7:032x}"
LARGE = bytes(range(256)) * 16 * 1024

Open = Callable[[], ObjectStore]


@pytest.fixture(scope="module")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RadosGateway]:
    gateway = RadosGateway(tmp_path_factory.mktemp("radosgw"))
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()


MISSING = missing_programs()
RADOSGW = [
    pytest.mark.long,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@pytest.fixture(
    params=[
        "folder",
        "moto",
        pytest.param("radosgw", marks=RADOSGW),
        pytest.param("other", marks=pytest.mark.skipif(not ENDPOINT, reason="none is named")),
    ]
)
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Open:
    """Makes a store on the same empty place each time it is called."""
    if request.param == "folder":
        return lambda: folder_store(tmp_path / "archive")
    prefix = f"{secrets.token_hex(8)}/"
    if request.param == "other":
        return lambda: S3Store(BUCKET, prefix, S3Settings(endpoint_url=ENDPOINT))
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    server: MotoServer | RadosGateway = request.getfixturevalue(request.param)
    bucket = server.make_bucket(secrets.token_hex(8))
    return lambda: S3Store(bucket, prefix, S3Settings(endpoint_url=server.url))


@pytest.fixture
async def store(open_store: Open) -> AsyncIterator[ObjectStore]:
    opened = open_store()
    await opened.open()
    yield opened
    for stored in await opened.list_objects():
        await opened.delete(stored.name)
    await opened.close()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"x", id="one byte"),
        pytest.param(b"\x00\xff\r\n0\r\n\r\n", id="looks like chunks"),
        pytest.param(LARGE, id="4 MiB"),
    ],
)
async def test_an_object_comes_back_byte_for_byte(store: ObjectStore, content: bytes) -> None:
    await store.put(NAME, content)

    assert await store.get(NAME) == content
    assert await store.stat(NAME) == StoredObject(NAME, len(content))


async def test_what_was_never_put_is_absent(store: ObjectStore) -> None:
    await store.delete(NAME)
    await store.quarantine(NAME)

    assert await store.get(NAME) is None
    assert await store.get_range(NAME, 0, 1) is None
    assert await store.stat(NAME) is None
    assert await store.list_objects() == []


async def test_a_put_replaces_and_a_delete_removes(store: ObjectStore) -> None:
    await store.put(NAME, b"first, and longer")
    await store.put(NAME, b"second")
    second = await store.get(NAME)
    await store.delete(NAME)

    assert second == b"second"
    assert await store.get(NAME) is None
    assert await store.list_objects() == []


async def test_all_objects_are_named_and_no_others(store: ObjectStore) -> None:
    async with asyncio.TaskGroup() as group:
        for name in NAMES:
            group.create_task(store.put(name, name.encode()))
    await store.probe()
    await store.quarantine(NAMES[0])
    await store.delete(NAMES[1])

    found = {stored.name: stored.object_bytes for stored in await store.list_objects()}
    assert found == dict.fromkeys(NAMES[2:], 64)
    assert await store.get(NAMES[0]) is None


async def test_another_process_finds_what_was_put(store: ObjectStore, open_store: Open) -> None:
    await store.put(NAME, b"value")

    other = open_store()
    await other.open()

    assert await other.list_objects() == [StoredObject(NAME, 5)]
    assert await other.get(NAME) == b"value"
    await other.close()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "", "AB" * 32])
async def test_a_name_that_is_not_a_hash_reaches_nothing(store: ObjectStore, name: str) -> None:
    calls = [store.put(name, b""), store.get(name), store.delete(name), store.quarantine(name)]
    for call in calls:
        with pytest.raises(ValueError, match="not an object name"):
            await call


@pytest.mark.parametrize(
    ("first", "end", "expected"),
    [
        pytest.param(0, 4, b"0123", id="beginning"),
        pytest.param(4, 8, b"4567", id="middle"),
        pytest.param(8, 100, b"89", id="beyond the end"),
        pytest.param(10, 20, b"", id="after the end"),
        pytest.param(5, 5, b"", id="nothing"),
    ],
)
async def test_a_range_is_exactly_those_bytes(
    store: ObjectStore, first: int, end: int, expected: bytes
) -> None:
    await store.put(NAME, b"0123456789")

    assert await store.get_range(NAME, first, end) == expected


async def test_a_range_comes_in_order_to_who_takes_it_bit_by_bit(store: ObjectStore) -> None:
    pieces: list[bytes] = []
    await store.put(NAME, LARGE)

    is_there = await store.get_range_to(NAME, 5, len(LARGE) - 5, pieces.append)
    is_absent = not await store.get_range_to("f" * 64, 0, 5, pieces.append)

    assert is_there
    assert is_absent
    assert b"".join(pieces) == LARGE[5:-5]


async def of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([], id="nothing"),
        pytest.param([b"a", b"", b"b"], id="short"),
        pytest.param([LARGE] * 2, id="exactly one part"),
        pytest.param([LARGE, b"x", LARGE, LARGE, LARGE, LARGE[:-7]], id="several parts"),
    ],
)
async def test_a_stream_is_stored_as_one_object(store: ObjectStore, pieces: list[bytes]) -> None:
    await store.put(SEGMENT, b"what was there before")

    await store.put_stream(SEGMENT, of(*pieces))

    assert await store.get(SEGMENT) == b"".join(pieces)
    assert await store.remove_leftovers(older_than_seconds=0) == 0


async def test_a_stream_that_fails_leaves_nothing(store: ObjectStore) -> None:
    async def failing() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield LARGE
        raise ValueError("a part is gone")

    with pytest.raises(ValueError, match="a part is gone"):
        await store.put_stream(SEGMENT, failing())

    assert await store.list_objects() == []
    assert await store.remove_leftovers(older_than_seconds=0) == 0


async def test_a_stream_that_is_given_up_leaves_nothing(store: ObjectStore) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield LARGE
        begun.set()
        await asyncio.Event().wait()

    putting = asyncio.create_task(store.put_stream(SEGMENT, endless()))
    async with asyncio.timeout(20):
        await begun.wait()
    putting.cancel()
    await asyncio.wait({putting})

    assert putting.cancelled()
    assert await store.list_objects() == []
    assert await store.remove_leftovers(older_than_seconds=0) == 0


@pytest.mark.parametrize("steps", [1, 3, 6, 12, 25])
async def test_a_put_that_is_given_up_leaves_all_or_nothing(store: ObjectStore, steps: int) -> None:
    putting = asyncio.create_task(store.put(NAME, LARGE))
    for _ in range(steps):
        await asyncio.sleep(0)

    putting.cancel()
    await asyncio.wait({putting})

    assert await store.get(NAME) in (None, LARGE)


async def test_a_mark_is_written_once_and_replaced_only_on_request(
    store: ObjectStore, open_store: Open
) -> None:
    before = await store.read_mark()
    await store.write_mark(b"first", replace=False)
    await store.write_mark(b"second", replace=False)
    first = await store.read_mark()
    await store.write_mark(b"third", replace=True)
    other = open_store()
    await other.open()
    third = await other.read_mark()
    await other.close()

    assert (before, first, third) == (None, b"first", b"third")
    assert await store.list_objects() == []
    assert await store.remove_leftovers(older_than_seconds=0) == 0


async def test_of_marks_written_at_once_one_stays(store: ObjectStore, open_store: Open) -> None:
    others = [open_store() for _ in range(4)]
    for other in others:
        await other.open()
    async with asyncio.TaskGroup() as group:
        for number, other in enumerate(others):
            group.create_task(other.write_mark(b"%d" % number, replace=False))
    first = await store.read_mark()
    for other in others:
        await other.write_mark(b"later", replace=False)
        await other.close()

    assert first in (b"0", b"1", b"2", b"3")
    assert await store.read_mark() == first


async def test_lifecycle_rules_are_installed_once_and_found_again(store: ObjectStore) -> None:
    first = await store.install_lifecycle()
    second = await store.install_lifecycle()

    assert first == second
    assert first is None or first.state == "ok"


async def test_a_vault_keeps_its_promises_on_it(store: ObjectStore, open_store: Open) -> None:
    clock = ManualClock()
    settings = ArchiveSettings(segment_seconds=0.01)
    vault = Vault(store, settings, clock)
    values = {f"key {number}": os.urandom(1000 * number) for number in range(1, 10)}
    entries = {}
    for key, value in values.items():
        _, entries[key] = await vault.keep(evicted(key, value), value)
    await vault.keep(evicted("key 1", b"new", "b1-02"), b"new")
    old = evicted("key 2", b"old", "b1-02")
    await store.put(object_name(old), single_object(old, b"old"))
    await store.put(object_name(evicted("x")), single_object(evicted("x"), b"value")[:-1])

    other = open_store()
    await other.open()
    loaded = Vault(other, settings, clock)
    await loaded.load(lambda _done, _total: None)
    found = {key: await loaded.fetch("default", key, None) for key in values}
    third = entries["key 3"]
    assert third is not None
    await store.delete(third.segment)
    _ = [entry async for entry in Sweeper(loaded).sweep()]

    assert {key: pair and bytes(pair[1]) for key, pair in found.items()} == {
        **values,
        "key 1": b"new",
        "key 2": b"old",
    }
    assert loaded.catalog.unreadable == 1
    with pytest.raises(DamagedObjectError, match="missing"):
        await loaded.fetch("default", "key 3", None)
    assert len(await store.list_objects()) == 8
    await other.close()
