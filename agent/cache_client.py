"""The typed client of one namespace of the cache."""

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import BinaryIO, Self, TypeVar

import msgspec

from agent.asking import DEADLINE_SECONDS, REQUEST_SECONDS, Asking
from agent.batches import REQUEST_SECONDS as BATCH_SECONDS
from agent.batches import Batches, PutManyError
from agent.bus import Bus
from agent.coalescing import ALONE, KEY_BYTES, VALUE_BYTES, Gets, Puts
from agent.connected import Connected
from agent.same_host import SameHost
from agent.sources import Buffer, Source
from agent.transfer import Found, OnProgress, Transfer
from schemas.api import (
    BatchEntry,
    BatchError,
    CacheReply,
    EntryMeta,
    NamespaceStats,
    TagReply,
    WarmReply,
)
from schemas.cache import (
    BATCH_ANSWER_BYTES,
    INLINE_LIMIT_BYTES,
    MAX_KEY_BYTES,
    encode_header,
)
from schemas.protocols import RequestError
from schemas.units import token

T = TypeVar("T")

READS_IN_FLIGHT = 8


class CacheClient(Connected):
    """One namespace of the cache. Values of any size that it takes, keys up to 10 KiB of UTF-8.

    Above 512 KiB a value travels in parts, a few in flight, each asked for again where it gets no
    answer; `on_progress` is called with the bytes done and in all after each of them. The cache
    checks the digest of what it takes from clients and from the archive; with `verify` a get
    checks it once more, which costs as much CPU as the transfer. Every call ends within its
    `deadline_seconds`, waits meanwhile where the cache is busy and says for how long, and raises
    `schemas.protocols.RequestError` when it is refused.
    """

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
        once = functools.partial(
            Asking, bus, self.namespace, self._who, REQUEST_SECONDS, patient=False
        )
        self._gets, self._puts = Gets(once), Puts(once)

    async def close(self) -> None:
        """Close what is open of the cache's files, then the connection if it is this client's."""
        await self.same_host.close()
        await super().close()

    def of(self, namespace: str, *, client: str | None = None) -> Self:
        """The same connection, another namespace; `client` is who asks (`Fleet-Client`).

        A namespace whose clients do not share needs it, and keeps each one's keys apart.
        """
        return type(self)(self._bus, namespace=namespace, client=client)

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
        encoded = _key_bytes(key)
        kept = None if verify else self.same_host.kept(encoded)
        if kept is not None:
            with contextlib.suppress(OSError):
                return await kept.read()
        gets = self._gets
        if (
            gets.worth_it
            and self._may_coalesce(encoded, deadline_seconds, on_progress)
            and not verify
        ):
            started = time.monotonic()
            headers = _get_headers(restore=restore, request_class=request_class)
            found = await gets.get(key, headers)
            if found is not ALONE:
                return found
            deadline_seconds -= time.monotonic() - started
        transfer = self._transfer(deadline_seconds, on_progress, verify=verify)
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
        encoded, target = _key_bytes(key), memoryview(buffer).cast("B")
        kept = None if verify else self.same_host.kept(encoded)
        if kept is not None:
            with contextlib.suppress(OSError):
                return await kept.read_into(target)
        transfer = self._transfer(deadline_seconds, on_progress, verify=verify)
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
        transfer = self._transfer(deadline_seconds, on_progress, verify=verify)
        return await transfer.get_to(_key_bytes(key), file, restore=restore)

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
        transfer = self._transfer(deadline_seconds, on_progress, verify=verify)
        found = await transfer.find(_key_bytes(key), restore=restore)
        if isinstance(found, Found):
            return self._transfer(math.inf, on_progress, verify=verify).read(found)
        return None if found is None else _only(found)

    async def put(
        self,
        key: str,
        value: Buffer | BinaryIO | AsyncIterator[bytes],
        *,
        size_bytes: int | None = None,
        ttl_seconds: float | None = None,
        prefix_tokens: int | None = None,
        parent: str | None = None,
        cost_seconds: float | None = None,
        request_class: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        version: str | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        on_progress: OnProgress | None = None,
    ) -> str:
        """Store the value and return its version.

        `value` may be bytes, a binary file, read from where it stands, or an async iterator of
        bytes, with `size_bytes`; bytes must not change until this returns. `version` compares and
        sets: RequestError 409 if the entry has another one.

        Raises:
            ValueError: the key is too long, or no such time to live is possible, and nothing was
                sent; or the source has not the size it should, and nothing is kept.
            TypeError: the value or its tags are of a wrong type; nothing was sent.
        """
        puts, encoded = self._puts, _key_bytes(key)
        headers = _put_headers(ttl_seconds, request_class, tags, meta)
        of_its_own = {
            "Fleet-Prefix-Tokens": prefix_tokens,
            "Fleet-Parent": encode_header(parent) if parent else None,
            "Fleet-Cost-Seconds": cost_seconds,
            "Fleet-Version": version,
        }
        may_coalesce = (
            puts.others_are_under_way
            and isinstance(value, bytes)
            and len(value) <= VALUE_BYTES
            and self._may_coalesce(encoded, deadline_seconds, on_progress)
        )
        if not may_coalesce and not puts.is_begun(key):
            own = {**headers, **_told(of_its_own)}
            return await self._put(key, value, size_bytes, own, deadline_seconds, on_progress)
        started, waited = time.monotonic(), puts.is_begun(key)
        async with puts.turn([key], deadline_seconds, is_put=may_coalesce):
            left_seconds = deadline_seconds - (time.monotonic() - started)
            is_in_time = left_seconds >= REQUEST_SECONDS or not waited
            if may_coalesce and is_in_time and isinstance(value, bytes):
                entry = BatchEntry(
                    key=key,
                    size=len(value),
                    prefix_tokens=prefix_tokens,
                    parent=parent or None,
                    cost_seconds=cost_seconds,
                    version=version,
                )
                kept = await puts.put(entry, value, headers)
                if kept is not ALONE:
                    return kept
            left_seconds = deadline_seconds - (time.monotonic() - started)
            own = {**headers, **_told(of_its_own)}
            return await self._put(key, value, size_bytes, own, left_seconds, on_progress)

    async def _put(
        self,
        key: str,
        value: Buffer | BinaryIO | AsyncIterator[bytes],
        size_bytes: int | None,
        headers: dict[str, str],
        deadline_seconds: float,
        on_progress: OnProgress | None = None,
    ) -> str:
        """Put it by itself, now."""
        asking, source = self._asking(deadline_seconds), Source(value, size_bytes)
        headers |= {**self._who, "Fleet-Key": encode_header(key)}
        if isinstance(value, Buffer):
            whole = memoryview(value).cast("B")
            handed_over = await asking.in_time(self.same_host.put(whole, headers, asking))
            if handed_over is not None:
                if on_progress is not None:
                    on_progress(source.size_bytes, source.size_bytes)
                return handed_over
        if source.size_bytes > INLINE_LIMIT_BYTES:
            return await Transfer(asking, on_progress=on_progress).put(source, headers)
        if isinstance(value, bytes):
            payload = value
        else:
            payload = await asking.in_time(source.read_all())
        self._puts.under_way += 1
        try:
            return (await asking.ask("put", payload, headers)).headers["Fleet-Version"]
        finally:
            self._puts.under_way -= 1

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
        self, deadline_seconds: float, *, request_seconds: float = REQUEST_SECONDS
    ) -> Asking:
        return Asking(
            self._bus,
            self.namespace,
            self._who,
            deadline_seconds,
            request_seconds=request_seconds,
            patient=self.patient,
        )

    def _transfer(
        self, deadline_seconds: float, on_progress: OnProgress | None, *, verify: bool = False
    ) -> Transfer:
        return Transfer(
            self._asking(deadline_seconds),
            verify=verify,
            on_progress=on_progress,
            files=None if verify else self.same_host,
        )

    async def delete(self, key: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> CacheReply:
        """Remove the entry from RAM and archive; `existed` tells whether RAM had it."""
        encoded, started = _key_bytes(key), time.monotonic()
        if not self._puts.is_begun(key):
            return await self._reply("delete", encoded, CacheReply, deadline_seconds)
        async with self._puts.turn([key], deadline_seconds):
            left_seconds = deadline_seconds - (time.monotonic() - started)
            return await self._reply("delete", encoded, CacheReply, left_seconds)

    async def exists(self, key: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> bool:
        """Whether the entry is in RAM or on its way to the archive, which is not asked."""
        return (await self._reply("exists", _key_bytes(key), CacheReply, deadline_seconds)).existed

    async def meta(self, key: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> EntryMeta:
        """What is known of the entry in RAM or on its way to the archive."""
        return await self._reply("meta", _key_bytes(key), EntryMeta, deadline_seconds)

    async def stats(self, *, deadline_seconds: float = DEADLINE_SECONDS) -> NamespaceStats:
        """Counters since the cache took the namespace, and sizes now."""
        return await self._reply("stats", b"", NamespaceStats, deadline_seconds)

    async def _reply(
        self, operation: str, payload: bytes, kind: type[T], deadline_seconds: float
    ) -> T:
        answer = await self._asking(deadline_seconds).ask(operation, payload)
        return msgspec.json.decode(answer.payload, type=kind)

    async def delete_tag(self, tag: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> TagReply:
        """Remove all that was put with this tag, from RAM and archive."""
        ends_at = time.monotonic() + deadline_seconds
        async with self._puts.turn(self._puts.begun, deadline_seconds):
            return await self._batches(ends_at - time.monotonic()).delete_tag(tag)

    async def match(
        self, keys: Sequence[str], *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> int:
        """How many keys of a chain, root first, are in RAM from its root on; they count as used."""
        return await self._batches(deadline_seconds).match(keys)

    async def get_many(
        self,
        keys: Iterable[str],
        *,
        restore: bool = True,
        request_class: str | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> dict[str, bytes]:
        """The values that are there, by key, in the order of `keys`. `restore` as for `get`."""
        ends_at = time.monotonic() + deadline_seconds

        async def get_one(key: str) -> bytes | None:
            return await self.get(
                key,
                restore=restore,
                request_class=request_class,
                deadline_seconds=ends_at - time.monotonic(),
            )

        headers = _get_headers(restore=restore, request_class=request_class)
        return await self._batches(deadline_seconds).get(keys, headers, get_one)

    async def put_many(
        self,
        items: Mapping[str, bytes],
        *,
        chain: bool = False,
        parent: str | None = None,
        prefix_tokens: Mapping[str, int] | None = None,
        cost_seconds: Mapping[str, float] | None = None,
        ttl_seconds: float | None = None,
        request_class: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> dict[str, str]:
        """Store the values and return their versions.

        `chain`: they stand root first, each the prefix of the next, and the first extends
        `parent`. Tokens and cost are by key; what follows them holds for all.

        Raises:
            agent.batches.PutManyError: some were refused; it says which, and why.
            ValueError: a key is too long; nothing was sent.
        """
        for key in items:
            _key_bytes(key)
        entries = [
            (
                BatchEntry(
                    key=key,
                    size=len(value),
                    prefix_tokens=(prefix_tokens or {}).get(key),
                    cost_seconds=(cost_seconds or {}).get(key),
                    parent=None if chain else parent,
                ),
                value,
            )
            for key, value in items.items()
        ]

        ends_at = time.monotonic() + deadline_seconds
        headers = _put_headers(ttl_seconds, request_class, tags, meta)

        async def put_one(entry: BatchEntry, value: bytes) -> str:
            of_its_own = {
                "Fleet-Prefix-Tokens": entry.prefix_tokens,
                "Fleet-Parent": encode_header(entry.parent) if entry.parent else None,
                "Fleet-Cost-Seconds": entry.cost_seconds,
            }
            own = {**headers, **_told(of_its_own)}
            return await self._put(entry.key, value, None, own, ends_at - time.monotonic())

        try:
            async with self._puts.turn(items, deadline_seconds):
                batches = self._batches(ends_at - time.monotonic())
                return await batches.put(entries, headers, put_one, chain=chain, parent=parent)
        except PutManyError:
            raise
        except RequestError as late:
            refused = BatchError(error=late.text, code=late.code)
            raise PutManyError({}, dict.fromkeys(items, refused)) from None

    async def keys(
        self, prefix: str = "", *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> AsyncIterator[str]:
        """The keys in RAM that begin with `prefix`, in no telling order.

        The deadline is that of each 10,000 of them.
        """
        after = ""
        while True:
            page = await self._batches(deadline_seconds).keys(prefix, after)
            for key in page.keys:
                yield key
            if not page.more:
                return
            after = page.keys[-1]

    async def warm(
        self,
        keys: Iterable[str] = (),
        *,
        cancel: bool = False,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> WarmReply:
        """Have keys brought back from the archive; the answer says how far that is.

        Without keys it only asks. `cancel` forgets what still waits.
        """
        return await self._batches(deadline_seconds).warm(keys, cancel=cancel)

    def _batches(self, deadline_seconds: float) -> Batches:
        asking = self._asking(deadline_seconds, request_seconds=BATCH_SECONDS)
        return Batches(asking, self._bus.max_payload)


def _get_headers(*, restore: bool, request_class: str | None) -> dict[str, str]:
    headers = {} if restore else {"Fleet-No-Restore": "1"}
    if request_class:
        headers["Fleet-Class"] = request_class
    return headers


def _told(optional: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in optional.items() if value is not None}


def _put_headers(
    ttl_seconds: float | None,
    request_class: str | None,
    tags: Sequence[str],
    meta: Mapping[str, str] | None,
) -> dict[str, str]:
    """What may be said of one entry as of many."""
    if isinstance(tags, str):
        raise TypeError(f"tags are a sequence of str, not one str: {tags!r:.40}")
    if ttl_seconds is not None and not 0 <= ttl_seconds < math.inf:
        raise ValueError(f"a time to live of {ttl_seconds:g} s: it must be finite, 0 or more")
    optional = {
        "Fleet-Ttl-Seconds": None if ttl_seconds is None else str(ttl_seconds),
        "Fleet-Class": encode_header(request_class) if request_class else None,
        "Fleet-Tags": ",".join(map(encode_header, tags)) or None,
        "Fleet-Meta": encode_header(msgspec.json.encode(dict(meta)).decode()) if meta else None,
    }
    return _told(optional)


def _key_bytes(key: str) -> bytes:
    encoded = key.encode()
    if not encoded:
        raise ValueError("the key is empty")
    if len(encoded) > MAX_KEY_BYTES:
        raise ValueError(f"key of {len(encoded)} bytes exceeds the limit of {MAX_KEY_BYTES} bytes")
    return encoded


async def _only(value: bytes) -> AsyncIterator[bytes]:
    yield value
