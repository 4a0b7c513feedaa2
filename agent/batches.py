"""Many cache entries in as few messages as the server lets through, for `CacheClient`."""

import asyncio
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import TypeVar

import msgspec

from agent.asking import Asking
from agent.bus.client import size_on_wire
from schemas.api import (
    BatchEntry,
    BatchError,
    KeysReply,
    KeysRequest,
    MatchReply,
    TagReply,
    TagRequest,
    WarmReply,
    WarmRequest,
)
from schemas.cache import INLINE_LIMIT_BYTES, MAX_BATCH_KEYS, MAX_CHAIN_KEYS, encode_header
from schemas.protocols import RequestError

IN_FLIGHT = 4
"""Messages of one call that are on their way at once."""
REQUEST_SECONDS = 10.0
KEYS_A_PAGE = 10_000
ROOM_BYTES = 1024
"""Left free in a message, for what an entry's parent and the list's brackets take."""
LEFT_OUT = -1
_encode = msgspec.json.encode
_decode_sizes = msgspec.json.Decoder(list[int | None]).decode
_decode_versions = msgspec.json.Decoder(list[str | BatchError]).decode
T = TypeVar("T")


class PutManyError(RequestError):
    """Some entries were refused: `errors` by key; `versions` has those that were kept."""

    def __init__(self, versions: dict[str, str], errors: dict[str, BatchError]) -> None:
        key, first = next(iter(errors.items()))
        shown = key if len(key) <= 80 else f"{key[:80]}…"
        super().__init__(first.code, f"{len(errors)} entries refused; {shown!r}: {first.error}")
        self.versions = versions
        self.errors = errors


class Batches:
    """One operation on many entries, by the deadline of `asking`."""

    def __init__(self, asking: Asking, max_payload: int) -> None:
        """`max_payload`: bytes of a message that the server lets through."""
        self._asking = asking
        self._max_payload = max_payload

    async def match(self, keys: Sequence[str]) -> int:
        """Length of the longest cached prefix of a chain; long chains go in several messages.

        The root's message goes first, so that nothing is refreshed that no prefix reaches; those
        before the last are sent again, the root's last, so that a head stays newer than its tail.
        """
        matched = 0
        used: list[list[str]] = []
        for part in self._parts(keys, MAX_CHAIN_KEYS):
            reply = await self._ask("match", part, MatchReply)
            matched += reply.matched
            if reply.matched:
                used.append(part)
            if reply.matched < len(part):
                break
        for part in reversed(used[:-1]):
            await self._ask("match", part, MatchReply)
        return matched

    async def get(
        self,
        keys: Iterable[str],
        headers: Mapping[str, str],
        get_one: Callable[[str], Awaitable[bytes | None]],
    ) -> dict[str, bytes]:
        """The values that are there, by key.

        The last keys are asked for first, so that the head of a chain is what was used last. What
        did not fit into an answer, its first keys, is asked for again, in lists as long as what
        did, and what is too large for any answer by `get_one`.
        """
        wanted = list(dict.fromkeys(keys))
        waiting = wanted.copy()
        found: dict[str, bytes] = {}
        limit, at_once = MAX_BATCH_KEYS, 1  # until it is known how much an answer holds
        while waiting:
            parts = list(self._parts(waiting, limit))[-at_once:]
            del waiting[-sum(map(len, parts)) :]
            answers = await _some_at_once(self._mget, [(part, headers) for part in reversed(parts)])
            at_once = IN_FLIGHT
            for values, left_out in reversed(answers):
                found.update(values)
                if values:
                    waiting += left_out
                    limit = min(limit, len(values)) if left_out else limit
                    continue
                for key in reversed(left_out):
                    value = await get_one(key)
                    if value is not None:
                        found[key] = value
        return {key: found[key] for key in wanted if key in found}

    async def _mget(
        self, keys: list[str], headers: Mapping[str, str]
    ) -> tuple[dict[str, bytes], list[str]]:
        answer = await self._asking.ask("mget", _encode(keys), headers)
        end = answer.payload.index(b"\n") + 1
        values: dict[str, bytes] = {}
        left_out: list[str] = []
        for key, size in zip(keys, _decode_sizes(answer.payload[:end]), strict=True):
            if size == LEFT_OUT:
                left_out.append(key)
            elif size is not None:
                values[key] = answer.payload[end : end + size]
                end += size
        return values, left_out

    async def put(
        self,
        entries: Sequence[tuple[BatchEntry, bytes]],
        headers: Mapping[str, str],
        put_one: Callable[[BatchEntry, bytes], Awaitable[str]],
        *,
        chain: bool,
        parent: str | None,
    ) -> dict[str, str]:
        """The version of each entry; those above the inline limit go by `put_one`.

        A chain goes one message after the other, anything else several at once.

        Raises:
            PutManyError: some were refused. What follows them in a chain is not sent.
        """
        results: list[Mapping[str, str | BatchError]] = []
        room = self._max_payload - size_on_wire(b"", headers) - ROOM_BYTES
        if chain and entries:
            room -= max(len(encode_header(entry.key)) for entry, _ in entries)  # Fleet-Parent
        messages = list(_messages(entries, room))
        if chain:
            for message in messages:
                results.append(await self._mput(message, headers, put_one, chain, parent))
                parent = message[-1][0].key
                errors = [one for one in results[-1].values() if isinstance(one, BatchError)]
                if errors:
                    break
            done = sum(map(len, results))
            refused = BatchError(error="not sent: what it extends was refused", code=409)
            results.append({entry.key: refused for entry, _ in entries[done:]})
        else:
            calls = [(message, headers, put_one) for message in messages]
            results += await _some_at_once(self._mput_patiently, calls)
        merged = {key: one for result in results for key, one in result.items()}
        versions = {key: one for key, one in merged.items() if isinstance(one, str)}
        refusals = {key: one for key, one in merged.items() if isinstance(one, BatchError)}
        if refusals:
            raise PutManyError(versions, refusals)
        return versions

    async def _mput_patiently(
        self,
        message: Sequence[tuple[BatchEntry, bytes]],
        headers: Mapping[str, str],
        put_one: Callable[[BatchEntry, bytes], Awaitable[str]],
    ) -> Mapping[str, str | BatchError]:
        """The version or error of each; entries for which the cache was busy are put again."""
        results: dict[str, str | BatchError] = {}
        while True:
            results |= await self._mput(message, headers, put_one)
            message = [one for one in message if _retry_after_seconds(results[one[0].key])]
            pauses = [_retry_after_seconds(results[entry.key]) for entry, _ in message]
            if not pauses or not await self._asking.may_ask_again(max(pauses)):
                return results

    async def _mput(
        self,
        message: Sequence[tuple[BatchEntry, bytes]],
        headers: Mapping[str, str],
        put_one: Callable[[BatchEntry, bytes], Awaitable[str]],
        chain: bool = False,
        parent: str | None = None,
    ) -> Mapping[str, str | BatchError]:
        keys = [entry.key for entry, _ in message]
        entry, value = message[0]
        try:
            if len(value) > INLINE_LIMIT_BYTES:
                alone = msgspec.structs.replace(entry, parent=parent) if chain else entry
                return {entry.key: await put_one(alone, value)}
            line = _encode([entry for entry, _ in message])
            if chain:
                headers = {**headers, "Fleet-Chain": "1"}
                if parent is not None:
                    headers["Fleet-Parent"] = encode_header(parent)
            payload = b"".join((line, b"\n", *(value for _, value in message)))
            answer = await self._asking.ask("mput", payload, headers)
        except RequestError as error:
            return dict.fromkeys(keys, BatchError(error=error.text, code=error.code))
        return dict(zip(keys, _decode_versions(answer.payload), strict=True))

    async def keys(self, prefix: str, after: str) -> KeysReply:
        """A page of the keys in RAM, from the one behind `after` on."""
        request = KeysRequest(prefix=prefix, after=after, limit=KEYS_A_PAGE)
        return await self._ask("keys", request, KeysReply)

    async def warm(self, keys: Iterable[str], *, cancel: bool) -> WarmReply:
        """Queue the keys; the last answer, with all that were accepted."""
        accepted = 0
        reply = None
        for part in self._parts(list(dict.fromkeys(keys)), MAX_CHAIN_KEYS):
            reply = await self._ask("warm", WarmRequest(keys=part, cancel=cancel), WarmReply)
            accepted += reply.accepted
            cancel = False
        if reply is None:
            reply = await self._ask("warm", WarmRequest(cancel=cancel), WarmReply)
        return msgspec.structs.replace(reply, accepted=accepted)

    async def delete_tag(self, tag: str) -> TagReply:
        """Delete all that was put with the tag."""
        return await self._ask("delete", TagRequest(tag=tag), TagReply)

    def _parts(self, keys: Sequence[str], limit: int) -> Iterator[list[str]]:
        """Lists that fit into a message."""
        room = self._max_payload - ROOM_BYTES
        part: list[str] = []
        size = 0
        for key in keys:
            key_size = len(_encode(key)) + 1
            if part and (len(part) == limit or size + key_size > room):
                yield part
                part, size = [], 0
            part.append(key)
            size += key_size
        if part:
            yield part

    async def _ask(self, operation: str, request: object, reply: type[T]) -> T:
        answer = await self._asking.ask(operation, _encode(request))
        return msgspec.json.decode(answer.payload, type=reply)


def _retry_after_seconds(result: str | BatchError) -> float:
    """When to put the entry again; 0: not at all."""
    return 0.0 if isinstance(result, str) else result.retry_after_seconds or 0.0


def _messages(
    entries: Sequence[tuple[BatchEntry, bytes]], room_bytes: int
) -> Iterator[list[tuple[BatchEntry, bytes]]]:
    """Runs of entries that fit into a message; one above the inline limit stands alone."""
    message: list[tuple[BatchEntry, bytes]] = []
    size = 0
    for entry, value in entries:
        entry_size = len(_encode(entry)) + 1 + len(value)
        alone = len(value) > INLINE_LIMIT_BYTES
        if message and (alone or len(message) == MAX_BATCH_KEYS or size + entry_size > room_bytes):
            yield message
            message, size = [], 0
        message.append((entry, value))
        size += entry_size
        if alone:
            yield message
            message, size = [], 0
    if message:
        yield message


async def _some_at_once(
    call: Callable[..., Awaitable[T]], arguments: Sequence[tuple[object, ...]]
) -> list[T]:
    """The results in order, `IN_FLIGHT` calls at once.

    The first error is raised once those under way have ended: what they write must not take
    effect behind it, when its caller believes that it is over.
    """
    results: list[T] = []
    for start in range(0, len(arguments), IN_FLIGHT):
        some = arguments[start : start + IN_FLIGHT]
        ended = await asyncio.gather(*(call(*these) for these in some), return_exceptions=True)
        for one in ended:
            if isinstance(one, BaseException):
                raise one
            results.append(one)
    return results
