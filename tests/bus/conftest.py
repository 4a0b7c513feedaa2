"""Fixtures of the cache client's tests: a cache without an archive, and a client of it."""

from collections.abc import AsyncIterator

import pytest

from agent.bus import Bus
from agent.client import CacheClient
from cache.service import CacheService
from tests.support.cache_service import running


@pytest.fixture
async def service(bus: Bus) -> AsyncIterator[CacheService]:
    async with running(bus, archive_mode="off", max_memory_mb=256) as started:
        yield started


@pytest.fixture
def client(bus: Bus) -> CacheClient:
    return CacheClient(bus)
