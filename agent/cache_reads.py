"""What a client reads of one namespace of the cache, and the connection it does so by."""

import asyncio
import contextlib
import functools
import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import BinaryIO, Self, TypeVar

import msgspec

from agent.asking import DEADLINE_SECONDS, REQUEST_SECONDS, TIMER_SECONDS, Asking, Deadline
from agent.batches import REQUEST_SECONDS as BATCH_SECONDS
from agent.batches import Batches
from agent.bus import Bus
from agent.cache_headers import checked_keys, checked_text, get_headers, key_bytes
from agent.coalescing import ALONE, KEY_BYTES, Gets, Puts
from agent.connected import Connected
from agent.same_host import SameHost
from agent.transfer import Found, OnProgress, Transfer
from agent.write_order import WriteOrder
from schemas.api import CacheReply, EntryMeta, NamespaceStats
from schemas.cache import BATCH_ANSWER_BYTES
from schemas.units import token

T = TypeVar("T")

READS_IN_FLIGHT = 8


class CacheReads(Connected):
    """Reads one namespace, as `agent.cache_client.CacheClient` describes it."""

    namespace = "default"
    patient = True
    """Whether to wait where the cache is busy; else its 429 is raised."""
    coalesce = True
    """Whether gets and puts of small values that are under way at once travel together, which
    makes many of them several times as fast; they need the right to `mget` and `mput`."""

    def __init__(
        self,
        bus: Bus,
        *,
        owns_bus: bool = False,
        namespace: str = "default",
        client: str | None = None,
    ) -> None:
        super().__init__(bus, owns_bus=owns_bus)
        self.namespace = token(namespace)
        self._who = {} if client is None else {"Fleet-Client": client}
        self.same_host = SameHost(bus, self.namespace, self._who)
        # For a message of several, each of which asks again by itself where that is to be done.
        # Nothing here holds the client: open files go with it, at once.
        once = functools.partial(_asking_once, bus, self.namespace, self._who)
        self._gets, self._puts = Gets(once), Puts(once)
        self._order = WriteOrder()

    async def close(self) -> None:
        """Close what is open of the cache's files, then the connection if it is this client's."""
        await self.same_host.close()
        await super().close()

    def of(self, namespace: str, *, client: str | None = None) -> Self:
        """The same connection, another namespace; `client` is who asks (`Fleet-Client`).

        A namespace whose clients do not share needs it, and keeps each one's keys apart. The other
        one is as `patient` as this one is now, and as ready to `coalesce`.
        """
        other = type(self)(self._bus, namespace=namespace, client=client)
        other.patient, other.coalesce = self.patient, self.coalesce
        return other

    async def get(
        self,
        key: str,
        *,
        restore: bool = True,
        request_class: str | None = None,
        verify: bool = False,
        deadline_seconds: float = DEADLINE_SECONDS,
        on_progress: OnProgress | None = None,
    ) -> bytes | None:
        """The value, or None. A miss in RAM asks the archive, unless `restore` is off."""
        return await self._get(
            key, restore, request_class, Deadline(deadline_seconds), verify, on_progress
        )

    async def _get(
        self,
        key: str,
        restore: bool,
        request_class: str | None,
        deadline: Deadline,
        verify: bool = False,
        on_progress: OnProgress | None = None,
    ) -> bytes | None:
        encoded = key_bytes(key)
        kept = None if verify else self.same_host.kept(encoded)
        if kept is not None:
            with contextlib.suppress(OSError):
                return await kept.read()
        gets = self._gets
        if (
            gets.worth_it
            and not verify
            # Of a get_many some of the time is over.
            and self._may_coalesce(encoded, deadline.left_seconds + TIMER_SECONDS, on_progress)
        ):
            headers = get_headers(restore=restore, request_class=request_class)
            found = await gets.get(key, headers)
            if found is not ALONE:
                return found
        transfer = self._transfer(deadline, on_progress, verify=verify)
        transfer.request_class = request_class
        gets.under_way += 1
        try:
            value = await transfer.get(encoded, restore=restore)
        finally:
            gets.under_way -= 1
        gets.note(value)
        return value

    async def get_into(
        self,
        key: str,
        buffer: bytearray | memoryview,
        *,
        restore: bool = True,
        verify: bool = False,
        deadline_seconds: float = DEADLINE_SECONDS,
        on_progress: OnProgress | None = None,
    ) -> int | None:
        """Write the value to the start of `buffer`; its size, or None for a miss.

        After an error the buffer may hold parts of the value.

        Raises:
            ValueError: the buffer is too small; nothing was written.
        """
        encoded, target = key_bytes(key), memoryview(buffer).cast("B")
        kept = None if verify else self.same_host.kept(encoded)
        if kept is not None:
            with contextlib.suppress(OSError):
                return await kept.read_into(target)
        transfer = self._transfer(Deadline(deadline_seconds), on_progress, verify=verify)
        return await transfer.get_into(encoded, target, restore=restore)

    async def get_many_into(
        self,
        keys: Sequence[str],
        buffers: Sequence[bytearray | memoryview],
        *,
        restore: bool = True,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> list[int | None]:
        """As `get_into` for each key with its buffer, some at once; sizes, or None for misses.

        Raises:
            ValueError: not as many buffers as keys, or one is too small.
        """
        sizes: list[int | None] = [None] * len(keys)
        pairs = enumerate(zip(keys, buffers, strict=True))

        async def read_some() -> None:
            for index, (key, buffer) in pairs:
                sizes[index] = await self.get_into(
                    key, buffer, restore=restore, deadline_seconds=deadline_seconds
                )

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(READS_IN_FLIGHT, len(keys))):
                    group.create_task(read_some())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return sizes

    async def get_to(
        self,
        key: str,
        file: BinaryIO,
        *,
        restore: bool = True,
        verify: bool = False,
        deadline_seconds: float = DEADLINE_SECONDS,
        on_progress: OnProgress | None = None,
    ) -> int | None:
        """Write the value to `file` as it comes; its size, or None for a miss.

        After an error the file may hold a part of the value.
        """
        transfer = self._transfer(Deadline(deadline_seconds), on_progress, verify=verify)
        return await transfer.get_to(key_bytes(key), file, restore=restore)

    async def open(
        self,
        key: str,
        *,
        restore: bool = True,
        verify: bool = False,
        deadline_seconds: float = DEADLINE_SECONDS,
        on_progress: OnProgress | None = None,
    ) -> AsyncIterator[bytes] | None:
        """The value in pieces of at most 512 KiB, in order, or None; memory for a few of them.

        The pieces can raise RequestError: 409 when the value was replaced or evicted meanwhile,
        500 after the last one when the digest is wrong. The deadline is that of the first answer.
        """
        transfer = self._transfer(Deadline(deadline_seconds), on_progress, verify=verify)
        found = await transfer.find(key_bytes(key), restore=restore)
        if isinstance(found, Found):
            return self._transfer(Deadline(math.inf), on_progress, verify=verify).read(found)
        return None if found is None else _only(found)

    async def exists(self, key: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> bool:
        """Whether the entry is in RAM or on its way to the archive, which is not asked."""
        return (
            await self._reply("exists", key_bytes(key), CacheReply, Deadline(deadline_seconds))
        ).existed

    async def meta(self, key: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> EntryMeta:
        """What is known of the entry in RAM or on its way to the archive."""
        return await self._reply("meta", key_bytes(key), EntryMeta, Deadline(deadline_seconds))

    async def stats(self, *, deadline_seconds: float = DEADLINE_SECONDS) -> NamespaceStats:
        """Counters since the cache took the namespace, and sizes now."""
        return await self._reply("stats", b"", NamespaceStats, Deadline(deadline_seconds))

    async def _reply(
        self,
        operation: str,
        payload: bytes,
        kind: type[T],
        deadline: Deadline,
        answer_seconds: float | None = None,
    ) -> T:
        asking = self._asking(deadline, answer_seconds=answer_seconds)
        return msgspec.json.decode((await asking.ask(operation, payload)).payload, type=kind)

    async def match(
        self, keys: Sequence[str], *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> int:
        """How many keys of a chain, root first, are in RAM from its root on; they count as used.

        Raises:
            ValueError: a key is empty or too long; nothing was asked.
            TypeError: a key is no str.
        """
        return await self._batches(Deadline(deadline_seconds)).match(checked_keys(keys))

    async def get_many(
        self,
        keys: Iterable[str],
        *,
        restore: bool = True,
        request_class: str | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> dict[str, bytes]:
        """The values that are there, by key, in the order of `keys`. `restore` as for `get`.

        Raises:
            ValueError: a key is empty or too long; nothing was asked.
            TypeError: a key is no str.
        """
        wanted = checked_keys(keys)
        deadline = Deadline(deadline_seconds)

        async def get_one(key: str) -> bytes | None:
            return await self._get(key, restore, request_class, deadline)

        headers = get_headers(restore=restore, request_class=request_class)
        return await self._batches(deadline).get(wanted, headers, get_one)

    async def keys(
        self, prefix: str = "", *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> AsyncIterator[str]:
        """The keys in RAM that begin with `prefix`, in no telling order.

        The deadline is that of each 10,000 of them.
        """
        checked_text("the prefix", prefix)
        after = ""
        while True:
            page = await self._batches(Deadline(deadline_seconds)).keys(prefix, after)
            for key in page.keys:
                yield key
            if not page.more:
                return
            after = page.keys[-1]

    def _may_coalesce(
        self, key: bytes, deadline_seconds: float, on_progress: OnProgress | None
    ) -> bool:
        return (
            self.coalesce
            and on_progress is None
            and deadline_seconds >= REQUEST_SECONDS
            and len(key) <= KEY_BYTES
            and self._bus.max_payload > BATCH_ANSWER_BYTES  # else an answer may be refused
        )

    def _asking(
        self,
        deadline: Deadline,
        *,
        request_seconds: float = REQUEST_SECONDS,
        answer_seconds: float | None = None,
    ) -> Asking:
        return Asking(
            self._bus,
            self.namespace,
            self._who,
            deadline,
            request_seconds=request_seconds,
            answer_seconds=answer_seconds,
            patient=self.patient,
        )

    def _transfer(
        self, deadline: Deadline, on_progress: OnProgress | None, *, verify: bool = False
    ) -> Transfer:
        return Transfer(
            self._asking(deadline),
            verify=verify,
            on_progress=on_progress,
            files=None if verify else self.same_host,
        )

    def _batches(self, deadline: Deadline, answer_seconds: float | None = None) -> Batches:
        asking = self._asking(
            deadline, request_seconds=BATCH_SECONDS, answer_seconds=answer_seconds
        )
        return Batches(asking, self._bus.max_payload)


def _asking_once(bus: Bus, namespace: str, who: Mapping[str, str]) -> Asking:
    # Its callers have deadlines of their own, which are not over after one request.
    return Asking(bus, namespace, who, request_seconds=REQUEST_SECONDS, patient=False)


async def _only(value: bytes) -> AsyncIterator[bytes]:
    yield value
