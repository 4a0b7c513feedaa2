"""What the archive's health says of its parts, and how soon it says that they are mended."""

from pathlib import Path

import pytest

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from archive.lifecycle import LifecycleReport
from archive.service import ArchiveService
from archive.store import StoreError
from schemas.lifecycle import Component
from tests.support.archive_service import archiving, until
from tests.support.evictions import ManualClock, folder_store

pytestmark = pytest.mark.bus


def part(service: ArchiveService, name: str) -> Component | None:
    return next((one for one in service.components() if one.name == name), None)


async def test_dead_letters_degrade_health_until_none_is_left(bus: Bus, tmp_path: Path) -> None:
    async with archiving(bus, tmp_path / "archive") as service:
        await until(lambda: part(service, "backlog") is not None)
        before = part(service, "dead_letters")
        for namespace in ("default", "other"):
            await bus.publish_raw(f"evicted.{namespace}", b"", message_id=f"bad {namespace}")
        await until(lambda: part(service, "dead_letters") is not None)
        await until(lambda: "2 evictions" in getattr(part(service, "dead_letters"), "text", ""))
        shown = part(service, "dead_letters")
        for namespace in ("default", "other"):
            client = ArchiveClient(bus, namespace)
            for letter in [letter async for letter in client.dead()]:
                await client.drop(letter.id)
        await until(lambda: part(service, "dead_letters") is None)

    assert before is None
    assert shown is not None
    assert shown.state == "degraded"
    assert "`resource-agent archive dead` says why" in shown.text


async def test_letters_of_others_are_not_the_archives(bus: Bus, tmp_path: Path) -> None:
    await bus.publish_raw("dead.FLEET_OTHER.somebody", b"", message_id="x")

    assert await bus.depth("DEAD") == 1
    assert await bus.count("DEAD", "dead.*.archiver") == 0


async def test_a_store_that_fails_says_since_when(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, store = ManualClock(), folder_store(tmp_path / "archive")
    working = store.probe

    async def failing() -> str:
        raise StoreError("it is away")

    async with archiving(bus, store, clock=clock) as service:
        await until(lambda: part(service, "store") is not None)
        monkeypatch.setattr(store, "probe", failing)
        await until(lambda: getattr(part(service, "store"), "state", "") == "failed")
        first = part(service, "store")
        assert first is not None
        clock.advance(100)
        await until(lambda: getattr(part(service, "store"), "probed_at", None) != first.probed_at)
        later = part(service, "store")
        monkeypatch.setattr(store, "probe", working)
        await until(lambda: getattr(part(service, "store"), "state", "") == "ok")

    assert later is not None
    assert first.text == later.text == f"it is away (since {first.probed_at:%F %T}Z)"


async def test_a_right_that_is_granted_is_seen_soon(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archive.condition.LIFECYCLE_AGAIN_SECONDS", 0.01)
    store = folder_store(tmp_path / "archive")
    report = LifecycleReport("degraded", "not allowed yet")

    async def install() -> LifecycleReport:
        return report

    monkeypatch.setattr(store, "install_lifecycle", install)
    async with archiving(bus, store) as service:
        await until(lambda: getattr(part(service, "lifecycle"), "state", "") == "degraded")
        report = LifecycleReport("ok", "our rules are there")
        await until(lambda: getattr(part(service, "lifecycle"), "state", "") == "ok")
