"""Fixtures that several files share: a cache without an archive, clients, a store that can fail."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.bus import Bus
from agent.client import CacheClient
from cache.service import CacheService
from tests.support.cache_service import running
from tests.support.evictions import FailingStore


@pytest.fixture
async def service(bus: Bus) -> AsyncIterator[CacheService]:
    async with running(bus, archive_mode="off", max_memory_mb=256) as started:
        yield started


@pytest.fixture
def client(bus: Bus) -> CacheClient:
    return CacheClient(bus)


@pytest.fixture
def cache(bus: Bus) -> CacheClient:
    """The same, for files whose `client` is another."""
    return CacheClient(bus)


@pytest.fixture
def store(tmp_path: Path) -> FailingStore:
    return FailingStore(tmp_path / "archive")
