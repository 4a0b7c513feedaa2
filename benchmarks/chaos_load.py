"""Continuous evictions, overwrites, deletions and clears, and who hears which were acknowledged."""

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime

import msgspec
import nats
from nats.aio.msg import Msg

from agent.bus import Bus
from agent.client import CacheClient
from benchmarks.chaos_ledger import Kind, Ledger, Write
from schemas.archive import Stored
from schemas.cache import (
    EVICTED_HEADER,
    FILE_HEADER,
    LENDER_HEADER,
    Evicted,
    decode_header,
    encode_json_header,
)
from schemas.message import UNDECODABLE
from schemas.protocols import PublishError, RequestError
from schemas.units import SECOND_NS, instant, to_ns

NAMESPACE = "default"
WORKERS, KEYS_EACH, TAGS = 8, 24, 6
KEYS = [f"w{worker}-{key}" for worker in range(WORKERS) for key in range(KEYS_EACH)]
SIZES = (
    (60, 100, 8_000),
    (31, 8_000, 100_000),
    (6, 100_000, 500_000),
    (2, 600_000, 2_000_000),
    (1, 4_200_000, 5_000_000),
)
"""Weight, least and most bytes. The last two are above the inline limit, and lent or sent in parts;
the last has a segment of its own, into which it is stored as it comes."""
SHORT_LIFE_SECONDS = (2.0, 20.0)
CALL_SECONDS = 8.0
RECONNECT_SECONDS = 0.05


class Load:
    """Writes and reads, each kept in the ledger; `violations` are what a read must not be."""

    def __init__(self, bus: Bus, ledger: Ledger, seed: int) -> None:
        self._bus = bus
        self._cache = CacheClient(bus)
        self._ledger = ledger
        self._seed = seed
        self._chance = random.Random(seed)  # noqa: S311 - a plan to repeat
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.poisoned: dict[str, bool] = {}
        """Keys of unreadable evictions; whether they were acknowledged."""
        self.lent = 0
        """Evictions that were stored from the cache's file."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Go on until `stopping` is set."""
        async with asyncio.TaskGroup() as group:
            for worker in range(WORKERS):
                keys = KEYS[worker * KEYS_EACH : (worker + 1) * KEYS_EACH]
                chance = random.Random(self._chance.random())  # noqa: S311 - a plan to repeat
                group.create_task(self._work(keys, chance, stopping))
            group.create_task(self._erase_many(stopping))

    async def _work(self, keys: list[str], chance: random.Random, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            key, dice = chance.choice(keys), chance.random()
            if dice < 0.7:
                await self._put(key, chance)
            elif dice < 0.8:
                await self._delete(key)
            else:
                await self.read(key)
            await asyncio.sleep(chance.uniform(0.01, 0.05))

    async def _erase_many(self, stopping: asyncio.Event) -> None:
        """Now and then all of a tag, or everything; and an eviction that cannot be read."""
        while not stopping.is_set():
            dice = self._chance.random()
            if dice < 0.5:
                await self._poison()
            elif dice < 0.94:
                tag = f"t{self._chance.randrange(TAGS)}"
                async with self._asked("delete tag", tag=tag):
                    await self._cache.delete_tag(tag, deadline_seconds=CALL_SECONDS)
            else:
                async with self._asked("clear"):
                    await self._bus.request(
                        f"cache.{NAMESPACE}.clear", timeout_seconds=CALL_SECONDS
                    )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._chance.uniform(0.2, 1.5)):
                    await stopping.wait()

    async def _put(self, key: str, chance: random.Random) -> None:
        least, most = chance.choices([s[1:] for s in SIZES], [s[0] for s in SIZES])[0]
        short = chance.random() < 0.1
        ttl_seconds = chance.uniform(*SHORT_LIFE_SECONDS) if short else math.inf
        tag = f"t{chance.randrange(TAGS)}" if chance.random() < 0.3 else ""
        async with self._asked("put", key=key, tag=tag) as write:
            value = content(f"{self._seed} {write.number} {key} ", chance.randint(least, most))
            self._ledger.holds(write, value, ttl_seconds)
            await self._cache.put(
                key,
                value,
                ttl_seconds=ttl_seconds if short else None,
                tags=[tag] if tag else (),
                deadline_seconds=CALL_SECONDS,
            )

    async def _delete(self, key: str) -> None:
        async with self._asked("delete", key=key):
            await self._cache.delete(key, deadline_seconds=CALL_SECONDS)

    async def read(self, key: str) -> bytes | None:
        """What the cache has of `key`; None: nothing, or no answer."""
        began = time.time()
        try:
            value = await self._cache.get(key, verify=True, deadline_seconds=CALL_SECONDS)
        except RequestError:
            self.counts["get not answered"] += 1
            return None
        self.counts["get"] += 1
        if value is not None:
            self.violation(self._ledger.judge(key, value, began, "the cache"))
        return value

    def violation(self, text: str | None) -> None:
        """Keep it, if it is one."""
        if text is not None and text not in self.violations:
            self.violations.append(text)

    async def close(self) -> None:
        """Let go of the cache's files."""
        await self._cache.close()

    @contextlib.asynccontextmanager
    async def _asked(self, kind: Kind, *, key: str = "", tag: str = "") -> AsyncIterator[Write]:
        write = self._ledger.begin(kind, time.time(), key=key, tag=tag)
        try:
            yield write
        except RequestError:
            self._ledger.give_up(write, time.time())
            self.counts[f"{kind} not answered"] += 1
        else:
            self._ledger.acknowledge(write, time.time())
            self.counts[kind] += 1

    async def _poison(self) -> None:
        """Publish an eviction whose value is not what its manifest says."""
        key = f"poison-{len(self.poisoned)}"
        manifest = Evicted(
            namespace=NAMESPACE,
            key=key,
            version="0",
            generation=0,
            evicted_at=instant(time.time_ns()),
            size_bytes=6,
            digest="0" * 64,
        )
        headers = {EVICTED_HEADER: encode_json_header(msgspec.json.encode(manifest))}
        self.poisoned[key] = False
        with contextlib.suppress(PublishError):
            await self._bus.publish_raw(
                f"evicted.{NAMESPACE}", b"poison", headers, message_id=f"{self._seed}.{key}"
            )
            self.poisoned[key] = True


class Acknowledged:
    """Hears every eviction and what the stream answers to it, while the server is there.

    What is lent is acknowledged by who has stored it: until then only the cache has it.
    """

    def __init__(self, bus: Bus, load: Load, ledger: Ledger) -> None:
        self._bus = bus
        self._load = load
        self._ledger = ledger
        self._asked: dict[str, Evicted] = {}
        self._lent: dict[tuple[str, str], Evicted] = {}
        self.count = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen meanwhile."""
        client = await nats.connect(
            self._bus.url, max_reconnect_attempts=-1, reconnect_time_wait=RECONNECT_SECONDS
        )
        await client.subscribe(self._bus.names.absolute("evicted.*"), cb=self._on_eviction)
        await client.subscribe("_INBOX.>", cb=self._on_answer)
        stored = self._bus.names.absolute(f"archived.stored.{NAMESPACE}")
        await client.subscribe(stored, cb=self._on_stored)
        await client.flush()
        try:
            yield
        finally:
            await client.close()

    async def _on_eviction(self, message: Msg) -> None:
        with contextlib.suppress(KeyError, ValueError, *UNDECODABLE):
            headers = message.headers or {}
            manifest = msgspec.json.decode(decode_header(headers[EVICTED_HEADER]), type=Evicted)
            if manifest.tombstone or manifest.key in self._load.poisoned:
                return
            if FILE_HEADER in headers or LENDER_HEADER in headers:
                self._lent[manifest.key, manifest.version] = manifest
            else:
                self._asked[message.reply] = manifest

    async def _on_answer(self, message: Msg) -> None:
        manifest = self._asked.pop(message.subject, None)
        if manifest is None or b'"error"' in message.data or b'"seq"' not in message.data:
            return
        self._acknowledge(manifest, manifest.expires_at)

    async def _on_stored(self, message: Msg) -> None:
        for entry in msgspec.json.decode(message.data, type=Stored).entries:
            if entry.tombstone:
                continue
            manifest = self._lent.pop((entry.key, entry.version), None)
            if manifest is not None:
                self._load.lent += 1
                self._acknowledge(manifest, entry.expires_at)

    def _acknowledge(self, manifest: Evicted, until: datetime | None) -> None:
        self.count += 1
        expires = math.inf if until is None else to_ns(until) / SECOND_NS
        self._load.violation(self._ledger.evict(manifest.key, manifest.digest, expires))


def content(head: str, size_bytes: int) -> bytes:
    """So many bytes that nothing else has, half of which do not compress."""
    noise = random.Random(head).randbytes(size_bytes // 2)  # noqa: S311 - the same every time
    return (head.encode() + noise + bytes(size_bytes))[: max(size_bytes, len(head))]
