"""A vault with a byte budget: what is dropped, and that nothing old comes back for it."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from archive.settings import ArchiveSettings
from archive.sweep import Sweeper
from archive.vault import Vault
from schemas.cache import Evicted
from schemas.units import SECOND_NS, instant
from tests.support.evictions import NOW_NS, FailingStore, ManualClock, evicted, tombstone

VALUE = bytes(range(256)) * 16
BUDGET = 50_000
SETTINGS = ArchiveSettings(
    budget_bytes=BUDGET, min_ratio=1e9, tombstone_keep_seconds=7200, segment_seconds=0.001
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FailingStore]:
    folder = FailingStore(tmp_path / "archive")
    await folder.open()
    yield folder
    await folder.close()


@pytest.fixture
def vault(store: FailingStore, clock: ManualClock) -> Vault:
    return Vault(store, SETTINGS, clock)


def value(key: str, *, score: float = 1.0, idle_seconds: float = 60, **known: str) -> Evicted:
    last_accessed = instant(NOW_NS - int(idle_seconds * SECOND_NS))
    return evicted(key, VALUE, score=score, last_accessed=last_accessed, **known)


def bytes_on_disk(store: FailingStore) -> int:
    return sum(path.stat().st_size for path in store.folder.glob("*.object"))


def held(vault: Vault) -> set[str]:
    return {entry.key for entry in vault.index("default").listing("", "", 1000, NOW_NS)}


async def loaded(store: FailingStore, clock: ManualClock) -> Vault:
    """A vault as another process would find it."""
    vault = Vault(store, SETTINGS, clock)
    await vault.load(lambda _done, _total: None)
    return vault


async def fill(vault: Vault, count: int = 30) -> None:
    """Values 0, 1, 2 …, each worth more than the one before."""
    for number in range(count):
        await vault.keep(value(str(number), idle_seconds=1000 - number), VALUE)


async def test_the_least_worthy_values_leave_the_store(vault: Vault, store: FailingStore) -> None:
    await fill(vault)
    _ = [entry async for entry in Sweeper(vault).sweep()]

    fitting = len(held(vault))
    assert held(vault) == {str(number) for number in range(30 - fitting, 30)}
    assert BUDGET - 5000 < bytes_on_disk(store) <= BUDGET
    assert vault.dropped == {"default": 30 - fitting}


async def test_a_high_score_outweighs_age(vault: Vault) -> None:
    await vault.keep(value("dear", score=50.0, idle_seconds=2000), VALUE)

    await fill(vault)

    assert "dear" in held(vault)


async def test_without_a_budget_nothing_is_dropped(store: FailingStore, clock: ManualClock) -> None:
    vault = Vault(store, ArchiveSettings(segment_seconds=0.001), clock)

    await fill(vault)

    assert len(held(vault)) == 30
    assert not vault.dropped


async def test_the_next_process_finds_the_same_order_and_trims_to_its_budget(
    vault: Vault, store: FailingStore, clock: ManualClock
) -> None:
    await fill(vault)
    smaller = Vault(store, msgspec.structs.replace(SETTINGS, budget_bytes=BUDGET // 2), clock)

    await smaller.load(lambda _done, _total: None)

    fitting = len(held(smaller))
    assert held(smaller) == {str(number) for number in range(30 - fitting, 30)}
    assert smaller.index("default").value_object_bytes <= BUDGET // 2


async def test_what_the_cache_has_again_goes_first_until_it_is_evicted_anew(vault: Vault) -> None:
    await fill(vault, 11)
    best = await vault.fetch("default", "10", 0)
    also = await vault.fetch("default", "9", 0)
    outcome, _ = await vault.keep(value("9", idle_seconds=0), VALUE)

    for number in range(11, 14):
        await vault.keep(value(str(number), idle_seconds=0), VALUE)

    assert best is not None
    assert also is not None
    assert outcome == "repeated"
    assert "10" not in held(vault)
    assert "9" in held(vault)


@pytest.mark.parametrize("restarted", ["never", "before the drop", "after the drop"])
async def test_an_older_version_that_comes_late_stays_out_after_its_successor_was_dropped(
    vault: Vault, store: FailingStore, clock: ManualClock, restarted: str
) -> None:
    await vault.keep(value("k", version="b1-01"), VALUE)
    await vault.keep(tombstone("k", "b1-02"), b"")
    await vault.keep(value("k", version="b1-02", idle_seconds=5000), VALUE)
    if restarted == "before the drop":
        vault = await loaded(store, clock)
    await fill(vault)
    assert "k" not in held(vault)
    if restarted == "after the drop":
        vault = await loaded(store, clock)

    outcome, _ = await vault.keep(value("k", version="b1-01", idle_seconds=0), VALUE)

    assert outcome == "superseded"
    assert await vault.fetch("default", "k", None) is None


@pytest.mark.parametrize(
    ("waited_seconds", "tombstones"),
    [
        pytest.param(7199, 1, id="an older version may still come"),
        pytest.param(7200, 0, id="none can come any more"),
    ],
)
async def test_a_tombstone_is_left_only_as_long_as_it_is_needed(
    vault: Vault, clock: ManualClock, waited_seconds: float, tombstones: int
) -> None:
    await vault.keep(tombstone("k", "b1-02"), b"")
    await vault.keep(
        value("k", version="b1-02", idle_seconds=5000, **{"expires_at": None}),  # type: ignore[arg-type]
        VALUE,
    )
    clock.advance(waited_seconds)

    for number in range(30):
        late = value(str(number), idle_seconds=-waited_seconds, **{"expires_at": None})  # type: ignore[arg-type]
        await vault.keep(late, VALUE)

    assert "k" not in held(vault)
    assert vault.index("default").tombstones == tombstones


async def test_namespaces_have_a_budget_each(vault: Vault) -> None:
    await fill(vault)
    await vault.keep(value("k", idle_seconds=5000, namespace="other"), VALUE)

    assert vault.index("other").entries == 1
    assert vault.dropped["other"] == 0
