"""When segments are closed, and what a write that fails means."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from archive import segment
from archive.index_entry import IndexEntry
from archive.packer import Packer
from archive.settings import ArchiveSettings
from archive.store import StoreError
from tests.support.evictions import NOW_NS, FailingStore, evicted
from tests.support.waiting import until

NEVER = {"segment_seconds": 10.0, "retry_seconds": 0.01, "retry_max_seconds": 0.01}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FailingStore]:
    folder = FailingStore(tmp_path / "archive")
    await folder.open()
    yield folder
    await folder.close()


class Packing:
    """A packer, what it says, and what it has stored."""

    def __init__(self, store: FailingStore, **settings: Any) -> None:
        self.failures: list[str] = []
        self.footers: dict[str, bytes] = {}
        self.store = store
        chosen: dict[str, Any] = {**NEVER, **settings}
        self.packer = Packer(store, ArchiveSettings(**chosen), self._failed, self._stored)

    async def add(
        self, key: str = "k", value: bytes = b"value", ttl_class: str = "1d"
    ) -> IndexEntry:
        return await self.packer.add(
            evicted(key, value), value, stored_ns=NOW_NS, ttl_class=ttl_class, follows=False
        )

    def on_disk(self) -> set[str]:
        return {path.stem for path in self.store.folder.glob("*.object")}

    async def _failed(self, entry: IndexEntry, error: StoreError) -> None:
        self.failures.append(f"{entry.key}: {error}")

    async def _stored(self, name: str, footer: bytes, _object_bytes: int) -> None:
        self.footers[name] = footer


async def stored(packing: Packing, *entries: IndexEntry) -> None:
    async with asyncio.timeout(20):
        for entry in entries:
            await packing.packer.wait(entry.segment)


async def test_a_thousand_entries_are_one_write(store: FailingStore) -> None:
    packing = Packing(store)

    entries = [await packing.add(f"k{number}") for number in range(1000)]
    packing.packer.flush()
    await stored(packing, *entries)

    (name,) = packing.on_disk()
    assert segment.read_footer(name, packing.footers[name]) == entries
    content = (store.folder / f"{name}.object").read_bytes()
    assert content.endswith(packing.footers[name])


async def test_a_segment_is_closed_when_it_is_full(store: FailingStore) -> None:
    packing = Packing(store, segment_bytes=64 * 1024)

    entries = [await packing.add(f"k{number}", os.urandom(8000)) for number in range(20)]
    full = {entry.segment for entry in entries[:16]}
    await stored(packing, *entries[:16])

    assert len(full) == 2
    assert packing.on_disk() == full
    await packing.packer.close()


async def test_a_segment_is_closed_before_its_record_is_too_large_for_a_message(
    store: FailingStore,
) -> None:
    packing = Packing(store)

    entries = [await packing.add(f"{number:010}" * 900) for number in range(60)]
    packing.packer.flush()
    await stored(packing, *entries)

    assert len(packing.on_disk()) == 2
    assert all(len(footer) <= segment.MAX_FOOTER_BYTES for footer in packing.footers.values())


async def test_a_segment_is_closed_when_its_first_entry_is_old(store: FailingStore) -> None:
    packing = Packing(store, segment_seconds=0.05)

    entry = await packing.add()
    await stored(packing, entry)

    assert packing.on_disk() == {entry.segment}


async def test_each_class_has_a_segment_of_its_own(store: FailingStore) -> None:
    packing = Packing(store)

    short, longer = await packing.add(), await packing.add("other", ttl_class="30d")
    packing.packer.flush()
    await stored(packing, short, longer)

    assert packing.on_disk() == {short.segment, longer.segment}
    assert (short.segment[:3], longer.segment[:4]) == ("1d-", "30d-")


async def test_when_nothing_more_can_come_only_one_segment_is_written_at_once(
    store: FailingStore,
) -> None:
    packing = Packing(store)
    store.write_errno = 28

    first = await packing.add("first")
    packing.packer.hurry()
    second = await packing.add("second")
    packing.packer.hurry()
    third = await packing.add("third")
    store.write_errno = None
    await stored(packing, first)
    packing.packer.hurry()
    await stored(packing, second, third)

    assert first.segment != second.segment == third.segment


async def test_a_write_that_fails_is_tried_until_it_succeeds(store: FailingStore) -> None:
    packing = Packing(store)
    store.write_errno = 28

    entry = await packing.add()
    packing.packer.flush()
    await until(lambda: len(packing.failures) >= 3)
    said, is_held = packing.packer.store_error, packing.packer.read(entry) is not None
    store.write_errno = None
    await stored(packing, entry)

    assert "is full" in said
    assert packing.failures[0].startswith("k: archive folder")
    assert is_held
    assert packing.packer.store_error == ""
    assert packing.packer.read(entry) is None
    assert len(packing.footers) == 1


async def test_what_is_given_up_is_answered_to_nobody(store: FailingStore) -> None:
    packing = Packing(store)
    store.write_errno = 28

    entry = await packing.add()
    waiting = asyncio.create_task(packing.packer.wait(entry.segment))
    packing.packer.flush()
    await until(lambda: bool(packing.failures))
    await packing.packer.close()
    await asyncio.wait({waiting})
    store.write_errno = None

    assert waiting.cancelled()
    assert packing.on_disk() == set()
