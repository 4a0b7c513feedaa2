"""What holds after every cycle of kills, looked at from outside: cache, archive, store, streams."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from agent.archive_client import ArchiveClient
from agent.bus import Bus
from archive import segment
from archive.frame import ArchiveObjectError
from archive.index_entry import IndexEntry
from archive.store import ObjectStore
from benchmarks.chaos_ledger import Ledger, Write
from benchmarks.chaos_load import KEYS, Load
from schemas.api import ArchiveEntry
from schemas.protocols import PublishError, RequestError

T = TypeVar("T")

DRAIN_SECONDS = 120.0
"""What a killed archiver had taken comes to another one after 30 s."""
ANSWER_SECONDS = 60.0
LOOK_SECONDS = 0.05
AT_ONCE = 8
COUNT_TRIES = 20


class Counts(msgspec.Struct, kw_only=True):
    """Of one check: `acknowledged` evictions, all that were heard, are the sum of the next five."""

    acknowledged: int = 0
    readable: int = 0
    superseded: int = 0
    expired: int = 0
    in_doubt: int = 0
    """A later write that was not answered may have taken them away, and has."""
    lost: int = 0
    dead: int = 0
    archived: int = 0
    """Entries that the archive lists."""
    objects: int = 0
    """Read from the store and verified, each once."""
    lent: int = 0
    """Evictions that were stored from the cache's file."""


class Check:
    """One after each cycle; violations are told to `load`."""

    def __init__(self, bus: Bus, ledger: Ledger, load: Load, store: ObjectStore) -> None:
        self._bus = bus
        self._archive = ArchiveClient(bus)
        self._ledger = ledger
        self._load = load
        self._store = store
        self._whole: set[str] = set()

    async def run(self) -> Counts:
        """Wait until every acknowledged eviction is settled, and look at everything."""
        evicted = set(self._ledger.evicted)  # the cache may have more that waits
        await self.drain()
        counts = Counts(lent=self._load.lent)
        found = {key: await self._archived(key) for key in KEYS}
        self._judge_evictions(evicted, found, counts)
        await self._count_entries(counts)
        await self._check_cache()
        await self._check_dead(counts)
        await self._check_objects(counts)
        return counts

    async def listing(self) -> list[ArchiveEntry]:
        """What the archive says it holds, after it has removed what expired."""
        await self._archive.run("sweep", lambda _job: None)
        return [entry async for entry in self._archive.entries()]

    async def drain(self) -> None:
        """Wait until the archive has settled every eviction that the stream has."""

        async def is_empty() -> bool:
            return (await self._bus.stream_state("EVICTIONS")).messages == 0

        try:
            await until(is_empty, DRAIN_SECONDS)
        except TimeoutError:
            left = (await self._bus.stream_state("EVICTIONS")).messages
            self._load.violation(f"{left} evictions are stuck for {DRAIN_SECONDS:g} s")

    async def _archived(self, key: str) -> Write | None:
        began = time.time()
        value = await patiently(lambda: self._archive.get(key))
        if value is None:
            return None
        self._load.violation(self._ledger.judge(key, value, began, "the archive"))
        return self._ledger.put_of(value)

    def _judge_evictions(
        self, evicted: set[Write], found: dict[str, Write | None], counts: Counts
    ) -> None:
        """Each acknowledged eviction is readable, superseded, expired, or lost."""
        now = time.time()
        required = set(self._ledger.required(now))
        counts.acknowledged = len(evicted)
        for put in evicted:
            if found[put.key] is put:
                counts.readable += 1
            elif put.erased_by is not None:
                counts.superseded += 1
            elif put.expires <= now:
                counts.expired += 1
            elif put in required:
                counts.lost += 1
                self._load.violation(self._ledger.lost(put))
            else:
                counts.in_doubt += 1

    async def _count_entries(self, counts: Counts) -> None:
        """The archive counts what it lists, each key once, at what can be read of it."""
        for _ in range(COUNT_TRIES):  # values expire, and are evicted, meanwhile
            before = await patiently(self._archive.status)
            listed = await patiently(self.listing)
            status = await patiently(self._archive.status)
            if status.entries == len(listed) and before.stored_total == status.stored_total:
                break
        else:
            self._load.violation(f"{status.entries} entries counted, {len(listed)} listed")
        counts.archived = len(listed)
        doubled = [key for key, n in Counter(one.key for one in listed).items() if n > 1]
        if doubled:
            self._load.violation(f"listed more than once: {', '.join(doubled)}")

    async def _check_cache(self) -> None:
        """What the archive must give back comes back through the cache."""
        required = {put.key: put for put in self._ledger.required(time.time())}
        keys = iter(KEYS)

        async def ask() -> None:
            for key in keys:
                value = await self._load.read(key)
                if value is None and key in required:
                    await self._brought_back(required[key])

        await asyncio.gather(*(ask() for _ in range(AT_ONCE)))

    async def _brought_back(self, put: Write) -> None:
        """A slow archive is a miss at first."""

        async def comes_back() -> bool:
            is_there = await self._load.read(put.key) is not None
            return is_there or put not in self._ledger.required(time.time())

        try:
            await until(comes_back, ANSWER_SECONDS)
        except TimeoutError:
            self._load.violation(f"the cache does not bring back {put}")

    async def _check_dead(self, counts: Counts) -> None:
        """Every unreadable eviction is in FLEET_DEAD, once, and nothing else is."""
        letters = Counter([letter.key or "?" async for letter in self._archive.dead()])
        counts.dead = letters.total()
        for key, is_acknowledged in self._load.poisoned.items():
            times = letters.pop(key, 0)
            if times > 1 or times < is_acknowledged:
                self._load.violation(f"{key} is {times} times in FLEET_DEAD")
        if letters:
            self._load.violation(f"died without a reason: {', '.join(letters)}")

    async def _check_objects(self, counts: Counts) -> None:
        """Every object of the store is whole: its footer lists the frames that are in it."""
        for one in await self._store.list_objects():
            if one.name in self._whole:
                continue
            content = await self._store.get(one.name)
            if content is None:  # swept meanwhile
                continue
            try:
                listed = segment.read_footer(one.name, content)
            except ArchiveObjectError as error:
                self._load.violation(f"object {one.name}: {error.reason}")
                continue
            whole = await asyncio.to_thread(_whole_entries, one.name, content)
            places = [(entry.key, entry.order, entry.first) for entry in listed]
            if places != [(entry.key, entry.order, entry.first) for entry in whole]:
                self._load.violation(f"object {one.name}: {len(whole)} of {len(listed)} are whole")
            self._whole.add(one.name)
        counts.objects = len(self._whole)


def _whole_entries(name: str, content: bytes) -> list[IndexEntry]:
    return list(segment.walk(name, content))


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer, asked again while there is none: an archiver may be about to take over."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            return await ask()
        except RequestError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(LOOK_SECONDS)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Return once it holds; what does not answer counts as no.

    Raises:
        TimeoutError: it did not in time.
    """
    async with asyncio.timeout(seconds):
        while True:
            try:
                if await condition():
                    return
            except (RequestError, PublishError, TimeoutError):
                pass
            await asyncio.sleep(LOOK_SECONDS)
