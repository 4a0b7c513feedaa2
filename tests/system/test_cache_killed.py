"""A cache process killed in the middle of a burst of large values."""

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus
from agent.client import CacheClient
from schemas.cache import EVICTED_HEADER, PART_BYTES, Evicted, decode_header
from schemas.digest import digest_of
from schemas.protocols import RequestError
from tests.support.archive_service import archiving
from tests.support.program import ROOT, environment
from tests.support.waiting import until_async

pytestmark = pytest.mark.bus
LONG = 3e8
"""Outlives the archive's clock, which stands in the future."""
VALUES = {f"key-{number}": os.urandom(3 * PART_BYTES + number) for number in range(40)}


async def test_a_killed_cache_is_a_clear_error_and_acknowledged_evictions_survive(
    bus: Bus, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "run", "cache", "--instance", "one"),
        *("--nats-url", bus.url, "--state-dir", str(tmp_path / "state")),
        cwd=ROOT,
        env=environment(cache__max_memory_mb=4),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        cache = CacheClient(bus)
        await until_async(lambda: answers(cache))
        puts = (cache.put(key, value, ttl_seconds=LONG) for key, value in VALUES.items())
        burst = [asyncio.create_task(put) for put in puts]
        await until_async(lambda: is_evicting(bus))
        process.kill()
        ends = await asyncio.gather(*burst, return_exceptions=True)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    manifests = await acknowledged(bus)
    async with archiving(bus, tmp_path / "archive") as archive:
        await until_async(lambda: is_worked_off(bus))
        dead = archive.counters().get("dead_total", 0)
        digests = {key: await archived_digest(bus, key) for key in manifests}

    failures = [end for end in ends if isinstance(end, BaseException)]
    assert all(isinstance(failure, RequestError) for failure in failures)
    assert {f.code for f in failures if isinstance(f, RequestError)} <= {408, 503}
    assert dead == 0
    assert manifests
    assert digests == {key: digest_of(VALUES[key]) for key in manifests}


async def answers(cache: CacheClient) -> bool:
    try:
        await cache.get("key")
    except RequestError:
        return False
    return True


async def is_evicting(bus: Bus) -> bool:
    return len(await acknowledged(bus)) >= 3


async def is_worked_off(bus: Bus) -> bool:
    return (await bus.stream_state("EVICTIONS")).messages == 0


async def acknowledged(bus: Bus) -> list[str]:
    """Keys of the values in the stream."""
    state = await bus.stream_state("EVICTIONS")
    keys = []
    for sequence in range(state.first_sequence, state.last_sequence + 1):
        message = await bus.jetstream.get_msg(bus.names.stream("EVICTIONS"), sequence)
        header = (message.headers or {})[EVICTED_HEADER]
        manifest = msgspec.json.decode(decode_header(header), type=Evicted)
        if not manifest.tombstone:
            keys.append(manifest.key)
    return keys


async def archived_digest(bus: Bus, key: str) -> str:
    """What the archive has read and verified."""
    subject = "api.archive.restore.default"
    answer = await bus.request(subject, key.encode(), timeout_seconds=20)
    header = decode_header(answer.headers[EVICTED_HEADER])
    return msgspec.json.decode(header, type=Evicted).digest
