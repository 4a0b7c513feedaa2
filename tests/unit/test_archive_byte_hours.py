"""Byte-hours are exact to the nanosecond of the clock. A real folder, a clock to set."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from archive.settings import ArchiveSettings
from archive.sweep import Sweeper
from archive.vault import Vault
from schemas.cache import Evicted
from schemas.units import SECOND_NS, instant
from tests.support.evictions import ManualClock, evicted, folder_store, tombstone

HOUR = 3600
KEYS = [f"key-{number}" for number in range(12)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def vault(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Vault]:
    store = folder_store(tmp_path / "archive")
    await store.open()
    settings = ArchiveSettings(segment_seconds=0.001, dead_ratio=0.01, tombstone_keep_seconds=HOUR)
    opened = Vault(store, settings, clock)
    await opened.load(lambda _done, _total: None)
    yield opened
    await opened.close()
    await store.close()


def byte_hours(vault: Vault) -> float:
    return sum(use.held_byte_hours for use in vault.meter.uses("default").values())


def needed_bytes(vault: Vault) -> int:
    """What the entries that the index has now take, looked up one by one."""
    index = vault.index("default")
    found = [index.newest(key) for key in KEYS]
    return sum(entry.object_bytes for entry in found if entry is not None)


async def sweep(vault: Vault) -> int:
    return len([entry async for entry in Sweeper(vault).sweep()])


def eviction(clock: ManualClock, key: str, version: int, ttl: float) -> tuple[Evicted, bytes]:
    """Of a value that lives so long from now on."""
    until = instant(clock.ns + int(ttl * SECOND_NS))
    value = random.Random(version).randbytes(100 + 37 * version % 900)
    return evicted(key, value, version=f"b1-{version:06}", expires_at=until), value


async def keep(vault: Vault, clock: ManualClock, key: str, version: int, ttl: float) -> int:
    """Archive such a value; the bytes it takes."""
    _, entry = await vault.keep(*eviction(clock, key, version, ttl))
    assert entry is not None
    return entry.object_bytes


async def test_an_entry_counts_its_bytes_until_it_is_swept_and_no_longer(
    vault: Vault, clock: ManualClock
) -> None:
    size = await keep(vault, clock, "key-0", 1, HOUR)
    clock.advance(HOUR / 4)
    early = byte_hours(vault)
    clock.advance(HOUR * 3 / 4)
    assert await sweep(vault) == 1
    clock.advance(24 * HOUR)

    assert early == size / 4
    assert byte_hours(vault) == size


async def test_what_takes_the_place_of_a_value_counts_from_then_on(
    vault: Vault, clock: ManualClock
) -> None:
    first = await keep(vault, clock, "key-0", 1, 24 * HOUR)
    clock.advance(HOUR)
    second = await keep(vault, clock, "key-0", 2, 24 * HOUR)
    clock.advance(2 * HOUR)

    assert byte_hours(vault) == first + 2 * second


async def test_a_segment_that_is_written_anew_changes_nothing(
    vault: Vault, clock: ManualClock
) -> None:
    both = [eviction(clock, "key-0", 1, 24 * HOUR), eviction(clock, "key-1", 2, HOUR)]
    packed = await vault.pack_all(both)
    await vault.settle_all(packed)
    kept, gone = (entry.object_bytes for _, entry in packed if entry is not None)
    before = vault.index("default").newest("key-0")
    clock.advance(HOUR)
    await sweep(vault)
    clock.advance(HOUR)
    await sweep(vault)
    after = vault.index("default").newest("key-0")
    clock.advance(HOUR)

    assert before is not None
    assert after is not None
    assert before.segment != after.segment
    assert byte_hours(vault) == 3 * kept + gone


async def test_an_index_that_is_read_anew_goes_on_counting(
    vault: Vault, clock: ManualClock
) -> None:
    size = await keep(vault, clock, "key-0", 1, 24 * HOUR)
    clock.advance(HOUR)
    await vault.load(lambda _done, _total: None)
    clock.advance(HOUR)

    assert byte_hours(vault) == 2 * size


@pytest.mark.parametrize("seed", range(6))
async def test_byte_hours_are_the_bytes_needed_by_the_time_they_were(
    vault: Vault, clock: ManualClock, seed: int
) -> None:
    chance = random.Random(seed)
    expected = 0
    for version in range(1, 120):
        match chance.choice(("keep", "keep", "keep", "delete", "sweep", "load")):
            case "keep":
                ttl = chance.choice((30.0, 90.0, HOUR, 30 * HOUR, 2000.0 * HOUR))
                await keep(vault, clock, chance.choice(KEYS), version, ttl)
            case "delete":
                await vault.keep(tombstone(chance.choice(KEYS), f"b1-{version:06}"), b"")
            case "sweep":
                await sweep(vault)
            case "load":
                await vault.load(lambda _done, _total: None)
        elapsed_ns = chance.randrange(0, 2 * HOUR * SECOND_NS)
        expected += needed_bytes(vault) * elapsed_ns
        clock.ns += elapsed_ns

    assert byte_hours(vault) == pytest.approx(expected / SECOND_NS / HOUR, rel=1e-12)
    assert expected > 0
