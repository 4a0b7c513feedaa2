"""One object that the store does not give, or that is damaged: named, and all the rest goes on."""

import errno
import json
import os
import secrets
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from archive.s3 import S3Store
from archive.segment import new_name
from archive.service import ArchiveService
from archive.settings import ArchiveSettings, S3Settings
from archive.store import ObjectRefusedError, ObjectStore, StoreError
from archive.vault import Vault
from benchmarks.moto import CREDENTIALS, MotoServer
from schemas.archive import ArchiveFailed
from schemas.protocols import RequestError
from schemas.units import instant
from tests.support.archive_service import Heard, archiving, evict, until
from tests.support.evictions import NOW_NS, ManualClock, evicted, folder_store, tombstone

pytestmark = pytest.mark.bus
HOUR = 3600
SETTINGS = ArchiveSettings(segment_seconds=0.01)


class Place(Protocol):
    """Where objects lie, and how one of them is made unreadable there, and readable again."""

    def open(self) -> ObjectStore: ...

    def refuse(self, name: str) -> None: ...

    def allow(self, name: str) -> None: ...

    def change(self, name: str, content: bytes) -> None: ...

    def content(self, name: str) -> bytes: ...


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> ObjectStore:
        return folder_store(self.path)

    def refuse(self, name: str) -> None:
        """In its place is a directory."""
        path = self.path / f"{name}.object"
        if path.exists():
            path.rename(path.with_suffix(".kept"))
        path.mkdir()

    def allow(self, name: str) -> None:
        path = self.path / f"{name}.object"
        path.rmdir()
        path.with_suffix(".kept").rename(path)

    def change(self, name: str, content: bytes) -> None:
        (self.path / f"{name}.object").write_bytes(content)

    def content(self, name: str) -> bytes:
        return (self.path / f"{name}.object").read_bytes()


class Bucket:
    def __init__(self, moto: MotoServer) -> None:
        self.name = moto.make_bucket(secrets.token_hex(8))
        self.url = moto.url
        keys = {
            "aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        }
        self.client: Any = boto3.client(
            "s3", endpoint_url=moto.url, region_name="us-east-1", **keys
        )

    def open(self) -> ObjectStore:
        return S3Store(self.name, "p/", S3Settings(endpoint_url=self.url))

    def refuse(self, name: str) -> None:
        """A policy of the bucket denies it."""
        self.change(name, self.content(name))
        statement = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:DeleteObject"],
            "Resource": f"arn:aws:s3:::{self.name}/p/objects/{name}",
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        self.client.put_bucket_policy(Bucket=self.name, Policy=json.dumps(policy))

    def allow(self, name: str) -> None:
        self.client.delete_bucket_policy(Bucket=self.name)

    def change(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"p/objects/{name}", Body=content)

    def content(self, name: str) -> bytes:
        try:
            found = self.client.get_object(Bucket=self.name, Key=f"p/objects/{name}")
        except self.client.exceptions.NoSuchKey:
            return b"x"
        return bytes(found["Body"].read())


def flipped(content: bytes) -> bytes:
    """With one bit of the first value wrong: behind the frame's header, before the footer."""
    at = content.index(b"value-of-")
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def cut(content: bytes) -> bytes:
    return content[:100]


@pytest.fixture(params=["folder", "moto"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "folder":
        return Folder(tmp_path / "archive")
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return Bucket(request.getfixturevalue("moto"))


async def put(bus: Bus, service: ArchiveService, *keys: str) -> dict[str, str]:
    """Archive each in a segment of its own; the segments by key."""
    heard = await Heard.on(bus, "archived.stored.>")
    for key in keys:
        value = f"value-of-{key}".encode()
        await evict(bus, evicted(key, value, expires_at=instant(NOW_NS + HOUR * 10**9)), value)
        await heard.stored()
    index = service._vault.index("default")
    return {key: entry.segment for key in keys if (entry := index.newest(key))}


def trouble(service: ArchiveService) -> str:
    return "".join(one.text for one in service.components() if one.name == "objects")


async def test_a_store_says_that_one_object_is_refused_and_not_all(place: Place) -> None:
    store = place.open()
    await store.open()
    good, bad = new_name("1d"), new_name("1d")
    await store.put(good, b"value")
    place.refuse(bad)
    for call in (store.get(bad), store.get_range(bad, 0, 1), store.delete(bad)):
        with pytest.raises(ObjectRefusedError) as caught:
            await call
        assert caught.value.name == bad
        assert caught.value.reason
    assert await store.get(good) == b"value"
    assert {one.name for one in await store.list_objects()} == {good, bad}
    await store.close()


async def test_a_bucket_that_gives_nothing_is_a_failure_of_the_store(
    moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(moto)
    store = bucket.open()
    await store.open()
    name = new_name("1d")
    await store.put(name, b"value")
    bucket.refuse("*")

    with pytest.raises(StoreError, match="permission denied") as caught:
        await store.get(name)

    assert not isinstance(caught.value, ObjectRefusedError)
    await store.close()


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, refused: Path, code: int) -> None:
    really_open = os.open

    def open_but_one(path: Any, *arguments: Any, **named: Any) -> int:
        if path == refused:
            raise OSError(code, os.strerror(code), str(path))
        return really_open(path, *arguments, **named)

    monkeypatch.setattr(os, "open", open_but_one)


@pytest.mark.parametrize(
    "kind", ["directory", "pipe", "loop", "socket", "Permission denied", "Input/output error"]
)
async def test_whatever_has_an_objects_name_in_a_folder_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    store = folder_store(tmp_path / "archive")
    await store.open()
    vault = Vault(store, SETTINGS, ManualClock())
    await vault.keep(evicted("a", expires_at=None), b"value")
    name = new_name("1d")
    path = tmp_path / "archive" / f"{name}.object"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "socket":
        os.mknod(path, 0o140600)
    else:  # what a chmod does not do to root, and no disk on request
        path.write_bytes(b"an object")
        code = next(code for code in (errno.EACCES, errno.EIO) if os.strerror(code) == kind)
        refuse_to_open(monkeypatch, path, code)

    again = Vault(store, SETTINGS, ManualClock())
    await again.load(lambda _done, _total: None)
    rebuilt = await again.catalog.rebuild(lambda _done, _total: None)

    assert again.index("default").entries == 1
    assert list(again.trouble.unreadable) == [name]
    assert rebuilt.counts == {"objects": 1, "entries": 1, "put_aside": 1}
    assert list(rebuilt.put_aside) == [name]
    assert kind in rebuilt.put_aside[name] or kind in ("directory", "pipe", "loop", "socket")
    await store.close()


async def test_one_object_that_cannot_be_read_stops_nothing_and_is_named(
    bus: Bus, place: Place
) -> None:
    clock = ManualClock()
    async with archiving(bus, place.open()) as service:
        segments = await put(bus, service, "a", "b", "c")
    place.refuse(segments["b"])
    for key in await bus.bucket("archive").items():
        await bus.bucket("archive").purge(key)
    async with archiving(bus, place.open(), clock=clock) as service:
        was_active, said = service.is_active, trouble(service)
        values = [await ArchiveClient(bus).get(key) for key in ("a", "b", "c")]
        status = await ArchiveClient(bus).status()
        await put(bus, service, "d")
        job = await ArchiveClient(bus).run("reindex", lambda _job: None)
        swept = await ArchiveClient(bus).run("sweep", lambda _job: None)
        place.allow(segments["b"])
        await service.sweep()
        later, said_later = await ArchiveClient(bus).get("b"), trouble(service)

    assert was_active
    assert segments["b"] in said
    assert "1 object cannot be read" in said
    assert values == [b"value-of-a", None, b"value-of-c"]
    assert (status.refused_objects, list(status.refused)) == (1, [segments["b"]])
    assert (job.state, swept.state) == ("done", "done")
    assert (job.counts["put_aside"], list(job.put_aside)) == (1, [segments["b"]])
    assert "cannot be read" in job.put_aside[segments["b"]]
    assert (later, said_later) == (b"value-of-b", "")


async def test_a_known_object_that_is_refused_later_is_named_and_swept_around(
    bus: Bus, place: Place
) -> None:
    clock = ManualClock()
    async with archiving(bus, place.open(), clock=clock) as service:
        segments = await put(bus, service, "a", "b", "c")
        place.refuse(segments["b"])
        with pytest.raises(RequestError, match="503 the object of this key cannot be read"):
            await ArchiveClient(bus).get("b")
        said = trouble(service)
        values = [await ArchiveClient(bus).get(key) for key in ("a", "c")]
        clock.advance(2 * HOUR)
        swept = await ArchiveClient(bus).run("sweep", lambda _job: None)
        left = set(service._vault.ledger.segments)
        said_swept = trouble(service)
        place.allow(segments["b"])
        await service.sweep()
        said_at_last = trouble(service)

    assert "1 object cannot be read" in said
    assert segments["b"] in said
    assert values == [b"value-of-a", b"value-of-c"]
    assert (swept.state, swept.counts) == ("done", {"expired": 3})
    assert left == {segments["b"]}
    assert "1 object cannot be removed" in said_swept
    assert said_at_last == ""


async def test_what_a_refused_object_may_hold_stays_outdated(bus: Bus, place: Place) -> None:
    clock = ManualClock()
    settings: dict[str, Any] = {"tombstone_keep_seconds": 60}
    async with archiving(bus, place.open(), clock=clock, **settings) as service:
        segments = await put(bus, service, "a")
    place.refuse(segments["a"])
    await bus.bucket("archive").purge(f"archive.{segments['a']}")
    async with archiving(bus, place.open(), clock=clock, **settings) as service:
        heard = await Heard.on(bus, "archived.stored.>")
        await evict(bus, tombstone("a"))
        await heard.stored()
        clock.advance(600)
        await service.sweep()
        place.allow(segments["a"])
        await service.sweep()
        value = await ArchiveClient(bus).get("a")

    assert value is None


@pytest.mark.parametrize("remedy", ["reindex", "rm", "put anew", "expiry"])
async def test_damage_found_at_a_read_stands_until_it_is_seen_to(
    bus: Bus, place: Place, remedy: str
) -> None:
    clock = ManualClock()
    heard = await Heard.on(bus, "archived.>")
    async with archiving(bus, place.open(), clock=clock) as service:
        segments = await put(bus, service, "a", "b")
        place.change(segments["a"], flipped(place.content(segments["a"])))
        with pytest.raises(RequestError, match=r"500 .* damaged"):
            await ArchiveClient(bus).get("a")
        await heard.next(ArchiveFailed)
        missed = await ArchiveClient(bus).get("a")
        status, said = await ArchiveClient(bus).status(), trouble(service)
        if remedy == "reindex":
            await ArchiveClient(bus).run("reindex", lambda _job: None)
        elif remedy == "rm":
            await evict(bus, tombstone("a"))
            await heard.stored()
        elif remedy == "put anew":
            await evict(bus, evicted("a", version="b1-02"))
            await heard.stored()
        else:
            clock.advance(HOUR)
        await until(lambda: not trouble(service))
        after = await ArchiveClient(bus).status()

    assert missed is None
    assert status.damaged == 1
    assert "1 value of namespace default found damaged" in said
    assert after.damaged == 0


async def test_each_kind_of_damage_is_counted_for_its_namespace(bus: Bus, place: Place) -> None:
    async with archiving(bus, place.open()) as service:
        segments = await put(bus, service, "flipped", "cut", "well")
        for key, harm in (("flipped", flipped), ("cut", cut)):
            place.change(segments[key], harm(place.content(segments[key])))
            with pytest.raises(RequestError, match=r"500 .* damaged"):
                await ArchiveClient(bus).get(key)
        heard = await Heard.on(bus, "archived.stored.>")
        await evict(bus, evicted("k", namespace="other"))
        await heard.stored()
        well = await ArchiveClient(bus).get("well")
        damaged = [
            (await ArchiveClient(bus, namespace).status()).damaged
            for namespace in ("default", "other")
        ]
        said = trouble(service)

    assert well == b"value-of-well"
    assert damaged == [2, 0]
    assert said == "2 values of namespace default found damaged: gone until put anew"


async def test_tombstones_are_no_entries_of_a_class_nor_of_a_reindex(
    bus: Bus, place: Place
) -> None:
    heard = await Heard.on(bus, "archived.stored.>")
    async with archiving(bus, place.open()) as service:
        await put(bus, service, "a", "b")
        await evict(bus, tombstone("a"))
        for _ in range(3):
            await heard.stored()
        await until(lambda: service.counters()["stored_total"] == 3)
        status = await ArchiveClient(bus).status()
        job = await ArchiveClient(bus).run("reindex", lambda _job: None)

    assert (status.entries, status.tombstones) == (1, 1)
    assert sum(use.entries for use in status.classes.values()) == 1
    assert sum(use.stored_total for use in status.classes.values()) == 2
    assert (job.counts["entries"], job.counts["tombstones"]) == (2, 1)
