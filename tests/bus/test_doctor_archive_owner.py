"""What `doctor` says of whose the archive's store is: its mark, and what the bus has of it."""

import os
import secrets
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.blocking import BlockingThread
from agent.bus import Bus
from agent.doctor import Check, check_archive_owner
from agent.settings import Settings
from archive.marks import Mark, Own
from archive.store import ObjectStore
from archive.stores import make_store
from benchmarks.moto import CREDENTIALS, MotoServer
from tests.support.archive_service import archiving

pytestmark = pytest.mark.bus


@pytest.fixture(params=["folder", "moto"])
def settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Those of an installation with a store that is there, and empty."""
    archive: dict[str, Any]
    if request.param == "folder":
        (tmp_path / "one").mkdir()
        archive = {"folder": str(tmp_path / "one")}
    else:
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        server: MotoServer = request.getfixturevalue("moto")
        bucket = server.make_bucket(secrets.token_hex(8))
        archive = {"store": f"s3://{bucket}/one", "s3": {"endpoint_url": server.url}}
    return msgspec.convert({"archive": archive}, Settings)


def store_of(settings: Settings) -> ObjectStore:
    return make_store(settings.archive, settings.archive_folder(), BlockingThread)


async def mark(settings: Settings, content: bytes) -> None:
    store = store_of(settings)
    await store.open()
    await store.write_mark(content, replace=True)
    await store.close()


async def marked(settings: Settings) -> bytes | None:
    store = store_of(settings)
    await store.open()
    found = await store.read_mark()
    await store.close()
    return found


async def know(bus: Bus, content: bytes) -> None:
    await bus.bucket("state").put("archive.owner", content)


def own(settings: Settings, **fields: str) -> bytes:
    place = store_of(settings).description
    known = Own(installation="ours", store="s1", description=place)
    return msgspec.json.encode(msgspec.structs.replace(known, **fields))


OURS = msgspec.json.encode(Mark(installation="ours", store="s1"))


async def only(settings: Settings, bus: Bus) -> Check:
    (found,) = await check_archive_owner(settings, bus)
    assert found.name == "archive owner"
    return found


async def test_a_store_that_runs_is_ours(bus: Bus, settings: Settings) -> None:
    before = await only(settings, bus)
    async with archiving(bus, store_of(settings)):
        while_running = await only(settings, bus)
        content = await marked(settings)
    after = await only(settings, bus)

    assert content is not None
    assert before.ok
    assert "no mark yet" in before.text
    assert while_running.ok
    assert after == while_running
    assert msgspec.json.decode(content, type=Mark).store in after.text


async def test_who_only_looks_writes_nothing(bus: Bus, settings: Settings) -> None:
    await only(settings, bus)

    assert await marked(settings) is None
    assert await bus.bucket("state").get("archive.owner") is None


@pytest.mark.parametrize(
    ("content", "known", "text"),
    [
        pytest.param(
            b'{"installation":"theirs","store":"s1"}',
            {},
            "belongs to installation theirs, this is ours",
            id="another installation's",
        ),
        pytest.param(
            b'{"installation":"ours","store":"s2"}',
            {"description": "folder /elsewhere"},
            "is store s2, but the archive of this installation (ours) is store s1 at folder /else",
            id="another store",
        ),
        pytest.param(
            None,
            {"description": "folder /elsewhere"},
            "has no mark yet, but the archive of this installation (ours) is store s1 at folder /e",
            id="unmarked, elsewhere",
        ),
        pytest.param(None, {}, "was it unmounted or emptied", id="unmarked, here"),
        pytest.param(b"{", {}, "its mark of whose it is cannot be read", id="unreadable mark"),
    ],
)
async def test_what_does_not_agree_fails_with_its_remedy(
    bus: Bus, settings: Settings, content: bytes | None, known: dict[str, str], text: str
) -> None:
    await know(bus, own(settings, **known))
    if content is not None:
        await mark(settings, content)

    found = await only(settings, bus)

    assert not found.ok
    assert text in found.text
    assert "resource-agent archive reindex --adopt" in found.text
    assert "run doctor again" in found.remedy


async def test_a_bus_that_knows_no_installation_yet_would_be_refused_a_marked_store(
    bus: Bus, settings: Settings
) -> None:
    await mark(settings, OURS)

    found = await only(settings, bus)

    assert not found.ok
    assert "belongs to installation ours, this is a new one" in found.text


async def test_what_the_bus_has_and_cannot_be_read_is_told_by_the_same_remedy(
    bus: Bus, settings: Settings
) -> None:
    await mark(settings, OURS)
    await know(bus, b"{")

    found = await only(settings, bus)

    assert not found.ok
    assert "`archive.owner` in the bucket `fleet-state`) cannot be read" in found.text
    assert "reindex --adopt" in found.text


@pytest.mark.parametrize(("place", "is_told"), [("here", True), ("elsewhere", False)])
async def test_a_folder_that_is_gone_is_told_where_the_archive_was_there(
    bus: Bus, tmp_path: Path, place: str, is_told: bool
) -> None:
    settings = msgspec.convert({"archive": {"folder": str(tmp_path / "here")}}, Settings)
    await know(bus, own(settings, description=f"folder {tmp_path / place}"))

    found = await check_archive_owner(settings, bus)

    assert [(one.ok, "was it unmounted" in one.text) for one in found] == [(False, True)] * is_told
    assert "here" not in os.listdir(tmp_path)


async def test_nothing_is_said_while_one_of_both_does_not_answer(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    away = {"endpoint_url": "http://127.0.0.1:1", "attempts": 1}
    archive = {"store": "s3://bucket/one", "s3": away}
    of_s3 = await check_archive_owner(msgspec.convert({"archive": archive}, Settings), bus)
    (tmp_path / "one").mkdir()
    here = msgspec.convert({"archive": {"folder": str(tmp_path / "one")}}, Settings)
    await bus.jetstream.delete_key_value(bus.bucket("state").name)

    assert of_s3 == []
    assert await check_archive_owner(here, bus) == []
