"""What every store must do, be it a folder or S3.

`ARCHIVE_TEST_ENDPOINT=http://host:port ARCHIVE_TEST_BUCKET=name`, with credentials in the AWS
variables, runs the same against another server.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from archive import segment
from archive.index_entry import object_name
from archive.s3 import S3Store
from archive.settings import ArchiveSettings, S3Settings
from archive.store import HEAD_BYTES, ObjectStore
from archive.vault import DamagedObjectError, Vault
from schemas.units import instant
from tests.support.evictions import NOW_NS, ManualClock, evicted, folder_store
from tests.support.moto import CREDENTIALS, MotoServer

ENDPOINT, BUCKET = (os.environ.get(f"ARCHIVE_TEST_{name}", "") for name in ("ENDPOINT", "BUCKET"))
NAMES = [f"{number:064x}" for number in range(20)]
NAME = NAMES[10]
LARGE = bytes(range(256)) * 16 * 1024

Open = Callable[[], ObjectStore]


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    server = MotoServer(tmp_path_factory.mktemp("moto"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(
    params=[
        "folder",
        "moto",
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
    moto: MotoServer = request.getfixturevalue("moto")
    bucket = moto.make_bucket(secrets.token_hex(8))
    return lambda: S3Store(bucket, prefix, S3Settings(endpoint_url=moto.url))


@pytest.fixture
async def store(open_store: Open) -> AsyncIterator[ObjectStore]:
    opened = open_store()
    await opened.open()
    yield opened
    for name in await opened.names():
        await opened.delete(name)
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
    (head,) = await store.heads([NAME])
    assert (head.name, head.object_bytes) == (NAME, len(content))
    assert head.start == content[:HEAD_BYTES]


async def test_what_was_never_put_is_absent(store: ObjectStore) -> None:
    await store.delete(NAME)
    await store.quarantine(NAME)

    assert await store.get(NAME) is None
    assert await store.heads([NAME]) == []
    assert await store.names() == []


async def test_a_put_replaces_and_a_delete_removes(store: ObjectStore) -> None:
    await store.put(NAME, b"first, and longer")
    await store.put(NAME, b"second")
    second = await store.get(NAME)
    await store.delete(NAME)

    assert second == b"second"
    assert await store.get(NAME) is None
    assert await store.names() == []


async def test_all_objects_are_named_and_no_others(store: ObjectStore) -> None:
    async with asyncio.TaskGroup() as group:
        for name in NAMES:
            group.create_task(store.put(name, name.encode()))
    await store.probe()
    await store.quarantine(NAMES[0])
    await store.delete(NAMES[1])

    assert sorted(await store.names()) == NAMES[2:]
    assert await store.get(NAMES[0]) is None
    heads = await store.heads(NAMES)
    assert {head.name: head.start for head in heads} == {n: n.encode() for n in NAMES[2:]}


async def test_another_process_finds_what_was_put(store: ObjectStore, open_store: Open) -> None:
    await store.put(NAME, b"value")

    other = open_store()
    await other.open()

    assert await other.names() == [NAME]
    assert await other.get(NAME) == b"value"
    await other.close()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "", "AB" * 32])
async def test_a_name_that_is_not_a_hash_reaches_nothing(store: ObjectStore, name: str) -> None:
    calls = [store.put(name, b""), store.get(name), store.delete(name), store.quarantine(name)]
    for call in calls:
        with pytest.raises(ValueError, match="not an object name"):
            await call


@pytest.mark.parametrize(
    "key", [pytest.param("k", id="short header"), pytest.param("k" * 2 * HEAD_BYTES, id="long")]
)
async def test_a_head_holds_the_whole_header(store: ObjectStore, key: str) -> None:
    value = os.urandom(3 * HEAD_BYTES)
    manifest = evicted(key, value)
    content = segment.encode(manifest, value, stored_at=instant(NOW_NS), level=3, min_ratio=1.1)
    await store.put(NAME, content)

    (head,) = await store.heads([NAME])

    assert segment.decode_header(head.start, head.object_bytes).manifest == manifest
    assert len(head.start) < len(content)


@pytest.mark.parametrize("steps", [1, 3, 6, 12, 25])
async def test_a_put_that_is_given_up_leaves_all_or_nothing(store: ObjectStore, steps: int) -> None:
    putting = asyncio.create_task(store.put(NAME, LARGE))
    for _ in range(steps):
        await asyncio.sleep(0)

    putting.cancel()
    await asyncio.wait({putting})

    assert await store.get(NAME) in (None, LARGE)


async def test_a_vault_keeps_its_promises_on_it(store: ObjectStore, open_store: Open) -> None:
    clock = ManualClock()
    vault = Vault(store, ArchiveSettings(), clock)
    values = {f"key {number}": os.urandom(1000 * number) for number in range(1, 10)}
    for key, value in values.items():
        await vault.keep(evicted(key, value), value)
    await vault.keep(evicted("key 1", b"new", "b1-02"), b"new")
    await store.put(object_name(evicted("key 2", values["key 2"])), b"FLEETARC damaged")

    other = open_store()
    await other.open()
    loaded = Vault(other, ArchiveSettings(), clock)
    await loaded.load(lambda _done, _total: None)
    found = {key: await loaded.fetch("default", key, None) for key in values}
    await store.delete(object_name(evicted("key 3", values["key 3"])))

    assert {key: pair and pair[1] for key, pair in found.items()} == {
        **values,
        "key 1": b"new",
        "key 2": None,
    }
    assert loaded.unreadable == 1
    with pytest.raises(DamagedObjectError, match="missing"):
        await loaded.fetch("default", "key 3", None)
    assert len(await store.names()) == 7
    await other.close()
