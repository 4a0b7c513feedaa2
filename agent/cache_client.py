"""The typed client of one namespace of the cache."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import BinaryIO, cast

from agent.asking import DEADLINE_SECONDS, REQUEST_SECONDS, Asking, Deadline
from agent.batches import REQUEST_SECONDS as BATCH_SECONDS
from agent.batches import PutManyError
from agent.cache_headers import (
    checked_cost,
    checked_tag,
    checked_text,
    checked_ttl,
    key_bytes,
    put_headers,
    told,
)
from agent.cache_reads import CacheReads
from agent.coalescing import ALONE, VALUE_BYTES
from agent.sources import Buffer, Source
from agent.transfer import OnProgress, Transfer
from schemas.api import BatchEntry, BatchError, CacheReply, TagReply, WarmReply
from schemas.cache import INLINE_LIMIT_BYTES, encode_header
from schemas.protocols import RequestError


class CacheClient(CacheReads):
    """One namespace of the cache. Values of any size that it takes, keys up to 10 KiB of UTF-8.

    Above 512 KiB a value travels in parts, a few in flight, each asked for again where it gets no
    answer; `on_progress` is called with the bytes done and in all after each of them. The cache
    checks the digest of what it takes from clients and from the archive; with `verify` a get
    checks it once more, which costs as much CPU as the transfer. Every call ends within its
    `deadline_seconds`, waits meanwhile where the cache is busy and says for how long, and raises
    `schemas.protocols.RequestError` when it is refused.
    """

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
            ValueError: the key is too long, a tag is empty, or no such time to live or cost is
                possible, and nothing was sent; or the source has not the size it should, and
                nothing is kept.
            TypeError: the key, the value or a tag is of a wrong type; nothing was sent.
        """
        puts, encoded = self._puts, key_bytes(key)
        headers = put_headers(request_class, tags, meta)
        deadline = Deadline(deadline_seconds)
        of_its_own = {
            "Fleet-Prefix-Tokens": prefix_tokens,
            "Fleet-Parent": encode_header(checked_text("parent", parent)) if parent else None,
            "Fleet-Cost-Seconds": (cost_seconds := checked_cost(cost_seconds)),
            "Fleet-Ttl-Seconds": checked_ttl(ttl_seconds),
            "Fleet-Version": version,
        }
        with self._order.begin((key,), tags) as turn:
            await turn.come(deadline)
            left_seconds = deadline.left_seconds if turn.has_waited else deadline_seconds
            if (
                puts.others_are_under_way
                and isinstance(value, bytes)
                and len(value) <= VALUE_BYTES
                and not turn.after_silence
                and self._may_coalesce(encoded, left_seconds, on_progress)
            ):
                entry = BatchEntry(
                    key=key,
                    size=len(value),
                    prefix_tokens=prefix_tokens,
                    parent=parent or None,
                    cost_seconds=cost_seconds,
                    ttl_seconds=ttl_seconds,
                    version=version,
                )
                kept = await puts.put(entry, value, headers, deadline)
                if kept is not ALONE:
                    return kept
            own = {**headers, **told(of_its_own)}
            asking = self._asking(deadline, answer_seconds=turn.answer_seconds(REQUEST_SECONDS))
            return await self._put(key, value, size_bytes, own, asking, on_progress)

    async def _put(
        self,
        key: str,
        value: Buffer | BinaryIO | AsyncIterator[bytes],
        size_bytes: int | None,
        headers: dict[str, str],
        asking: Asking,
        on_progress: OnProgress | None = None,
    ) -> str:
        """Put it by itself, now."""
        source = Source(value, size_bytes)
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

    async def delete(self, key: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> CacheReply:
        """Remove the entry from RAM and archive; `existed` tells whether RAM had it."""
        encoded, deadline = key_bytes(key), Deadline(deadline_seconds)
        with self._order.begin((key,)) as turn:
            await turn.come(deadline)
            answer_seconds = turn.answer_seconds(REQUEST_SECONDS)
            return await self._reply("delete", encoded, CacheReply, deadline, answer_seconds)

    async def delete_tag(self, tag: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> TagReply:
        """Remove all that was put with this tag, from RAM and archive."""
        deadline = Deadline(deadline_seconds)
        with self._order.begin_deletion(checked_tag(tag)) as turn:
            await turn.come(deadline)
            batches = self._batches(deadline, turn.answer_seconds(BATCH_SECONDS))
            return await batches.delete_tag(tag)

    async def put_many(
        self,
        items: Mapping[str, Buffer],
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
            ValueError: a key is too long, a tag is empty, or no such time to live or cost is
                possible; nothing was sent.
            TypeError: a key, value or tag is of a wrong type, or a value does not lie in one piece
                in memory; nothing was sent.
        """
        values = {key: _as_bytes(key, value) for key, value in items.items()}
        entries = [
            (
                BatchEntry(
                    key=key,
                    size=len(value),
                    prefix_tokens=(prefix_tokens or {}).get(key),
                    cost_seconds=checked_cost((cost_seconds or {}).get(key)),
                    parent=None if chain else parent,
                ),
                value,
            )
            for key, value in values.items()
        ]

        deadline = Deadline(deadline_seconds)
        headers = put_headers(request_class, tags, meta)
        headers |= told({"Fleet-Ttl-Seconds": checked_ttl(ttl_seconds)})

        async def put_one(entry: BatchEntry, value: bytes) -> str:
            of_its_own = {
                "Fleet-Prefix-Tokens": entry.prefix_tokens,
                "Fleet-Parent": encode_header(entry.parent) if entry.parent else None,
                "Fleet-Cost-Seconds": entry.cost_seconds,
            }
            own = {**headers, **told(of_its_own)}
            return await self._put(entry.key, value, None, own, self._asking(deadline))

        try:
            with self._order.begin(items, tags) as turn:
                await turn.come(deadline)
                batches = self._batches(deadline, turn.answer_seconds(BATCH_SECONDS))
                return await batches.put(entries, headers, put_one, chain=chain, parent=parent)
        except PutManyError:
            raise
        except RequestError as late:
            refused = BatchError(error=late.text, code=late.code)
            raise PutManyError({}, dict.fromkeys(items, refused)) from None

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
        batches = self._batches(Deadline(deadline_seconds))
        return await batches.warm([checked_text("the key", key) for key in keys], cancel=cancel)


def _as_bytes(key: str, value: Buffer) -> bytes:
    """What is put under the key, as bytes or a view of them, whose length is that in bytes.

    Raises:
        ValueError: the key is too long.
        TypeError: the key or the value is of a wrong type, or the value is in pieces.
    """
    key_bytes(key)
    if not isinstance(value, Buffer):
        raise TypeError(f"the value of {key!r:.40} is bytes, not {type(value).__name__}")
    if not isinstance(value, memoryview):
        return cast(bytes, value)
    if not value.c_contiguous:
        raise TypeError(f"the value of {key!r:.40} is in pieces in memory: give bytes of it")
    return cast(bytes, value.cast("B")) if value.nbytes else b""
