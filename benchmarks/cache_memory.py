"""Resident memory of a full cache under random puts and gets of all sizes.

Large values are files in tmpfs, whose pages count once.
"""

import asyncio
import contextlib
import random
import shutil
import time
from pathlib import Path

import msgspec

from agent.client import CacheClient
from benchmarks.installation import private_bus, service
from cache.tmpfs import choose

LIMITS_MB = (128, 512)
LOAD_SECONDS = 20.0
AT_ONCE = 16
SIZES = (100, 1_000, 4_096, 20_000, 100_000, 500_000)
MIB = 1024 * 1024
COLUMNS = ("limit", "archive", "entries", "used", "RSS at most", "allowed", "put")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one cache process came to."""

    limit_bytes: int
    archive_mode: str
    entries: int
    used_bytes: int
    peak_rss_bytes: int
    put_bytes: int

    def cells(self) -> list[str]:
        """For the table."""
        allowed = 1.1 * self.limit_bytes + 60 * MIB
        sizes = (self.used_bytes, self.peak_rss_bytes, allowed, self.put_bytes)
        return [
            f"{self.limit_bytes / MIB:.0f} MiB",
            self.archive_mode,
            f"{self.entries:,}",
            *(f"{size / MIB:,.0f} MiB" for size in sizes),
        ]


def own_bytes(pid: int) -> int:
    """Resident memory of a process, without the pages of tmpfs that it has mapped."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kb = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)
          if name in {"RssAnon", "RssFile"}}  # fmt: skip
    return 1024 * sum(kb.values())


async def measure() -> list[Row]:
    """Without the archive, and with evictions on their way to it (64 MiB more may wait)."""
    return [await _one(limit, mode) for mode in ("off", "on") for limit in LIMITS_MB]


async def _one(limit_mb: int, archive_mode: str) -> Row:
    settings = {
        "RESOURCE_AGENT_CACHE__MAX_MEMORY_MB": str(limit_mb),
        "RESOURCE_AGENT_CACHE__ARCHIVE_MODE": archive_mode,
    }
    async with contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(private_bus())
        if archive_mode == "on":  # else what is evicted fills its stream, and puts are refused
            await stack.enter_async_context(service(bus, "archive", **settings))
        pid = await stack.enter_async_context(service(bus, "cache", **settings))
        client, files = CacheClient(bus), choose("")
        files_before = shutil.disk_usage(files).used
        rng = random.Random(limit_mb)  # noqa: S311 - a made-up load
        end = time.monotonic() + LOAD_SECONDS
        put_bytes = peak = 0

        async def worker() -> None:
            nonlocal put_bytes, peak
            while time.monotonic() < end or put_bytes < 2 * limit_mb * MIB:
                key = f"key-{rng.randrange(1_000_000)}"
                if rng.random() < 0.2:
                    await client.get(key, restore=False)
                    continue
                value = bytes(int(rng.choice(SIZES) * rng.uniform(0.5, 1.0)))
                await client.put(key, value)
                put_bytes += len(value)
                in_files = shutil.disk_usage(files).used - files_before
                peak = max(peak, own_bytes(pid) + in_files)

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        stats = await client.stats()
        return Row(
            limit_bytes=stats.limit_bytes,
            archive_mode=archive_mode,
            entries=stats.total_entries,
            used_bytes=stats.used_bytes,
            peak_rss_bytes=peak,
            put_bytes=put_bytes,
        )
