"""Values of any size between a client and the cache: ranges and parts, several in flight."""

import asyncio
import contextlib
import io
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import BinaryIO, TypeVar

import msgspec

from agent.asking import TRIES, UNANSWERED, Asking
from agent.same_host import OpenFile, SameHost
from agent.sources import Source
from schemas.cache import PART_BYTES, PARTS_IN_FLIGHT, part_count, part_range
from schemas.digest import Digest
from schemas.protocols import RequestError

T = TypeVar("T")
OnProgress = Callable[[int, int], None]
"""Called after each part with the bytes done and the bytes of the whole value."""

_UNKNOWN, _CHANGED, _GONE = 404, 409, 503
_AGAIN = (UNANSWERED, _GONE)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A large value that the cache has: which version of it, and which instance gives it."""

    key: bytes
    version: str
    size_bytes: int
    digest: str
    instance: str


class Transfer:
    """One get or put, by the deadline of `asking`: RequestError 408 then says how far it came.

    A part without an answer is asked for again, three times, as is a value that changes. A get
    whose value changes under it, or whose cache goes away, starts again, and so does a put whose
    upload the cache has forgotten. With `verify`, what was received has the digest that the cache
    checked when the value was put.
    """

    def __init__(
        self,
        asking: Asking,
        *,
        in_flight: int = PARTS_IN_FLIGHT,
        verify: bool = False,
        on_progress: OnProgress | None = None,
        files: SameHost | None = None,
    ) -> None:
        self._asking = asking
        self.request_class: str | None = None
        self._verify = verify
        self._files = files
        self._in_flight = in_flight
        self._on_progress = on_progress
        self._done_bytes = 0
        self._total_bytes = 0

    async def get(self, key: bytes, *, restore: bool) -> bytes | None:
        """The value, or None."""
        whole = _InOrder()
        found = await self._get(key, restore, whole.begin, whole.take, OpenFile.read)
        return whole.value() if isinstance(found, Found) else found

    async def get_into(self, key: bytes, buffer: memoryview, *, restore: bool) -> int | None:
        """Write the value to the start of `buffer`; its size, or None for a miss.

        Raises:
            ValueError: the buffer is too small; nothing was written.
        """

        def check_room(size_bytes: int) -> None:
            if size_bytes > buffer.nbytes:
                raise ValueError(f"value of {size_bytes} bytes, buffer of {buffer.nbytes} bytes")

        def take(part: int, payload: bytes) -> None:
            start = part * PART_BYTES
            buffer[start : start + len(payload)] = payload

        found = await self._get(key, restore, check_room, take, lambda file: file.read_into(buffer))
        if isinstance(found, int):
            return found
        if isinstance(found, bytes):
            check_room(len(found))
            take(0, found)
            return len(found)
        return None if found is None else found.size_bytes

    async def get_to(self, key: bytes, file: BinaryIO, *, restore: bool) -> int | None:
        """Write the value to `file` as it comes; its size, or None for a miss.

        A value that changes after its first bytes were written is not started again.
        """
        return await self._in_time(self._copy(key, file, restore))

    async def find(self, key: bytes, *, restore: bool) -> Found | bytes | None:
        """A small value, where a large one is, or None."""
        found = await self._find(key, restore, None)
        assert not isinstance(found, OpenFile)  # noqa: S101 - none was asked for
        return found

    async def read(self, found: Found) -> AsyncGenerator[bytes, None]:
        """The value in order, at most `in_flight` parts ahead of its reader.

        Raises:
            RequestError: 409 that version is gone; 500 the digest is wrong, after the last part.
        """
        digest = Digest(like=found.digest)
        coming: deque[asyncio.Task[bytes]] = deque()
        try:
            for part in range(part_count(found.size_bytes)):
                coming.append(asyncio.create_task(self._read_part(found, part)))
                if len(coming) >= self._in_flight:
                    yield await self._next(coming, digest.update, found)
            while coming:
                yield await self._next(coming, digest.update, found)
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)
        if self._verify:
            _check(found, str(digest))

    async def put(self, source: Source, headers: Mapping[str, str]) -> str:
        """Send a large value; returns its version."""
        return await self._in_time(self._put(source, headers))

    async def _find(
        self, key: bytes, restore: bool, files: SameHost | None
    ) -> OpenFile | Found | bytes | None:
        headers = {} if restore else {"Fleet-No-Restore": "1"}
        if self.request_class:
            headers["Fleet-Class"] = self.request_class
        if files is not None and files.is_possible:
            headers["Fleet-Same-Host"] = "1"
        asked_at = time.monotonic()
        answer = await self._asking.ask("get", key, headers)
        if files is not None and "Fleet-File" in answer.headers:
            file = files.open(key, answer, asked_at)
            return file or await self._find(key, restore, None)
        if answer.headers.get("Fleet-Status") == "miss":
            return None
        if "Fleet-Size" not in answer.headers:
            return answer.payload
        return Found(
            key=key,
            version=answer.headers["Fleet-Version"],
            size_bytes=int(answer.headers["Fleet-Size"]),
            digest=answer.headers["Fleet-Digest"],
            instance=answer.headers["Fleet-Instance"],
        )

    async def _get(
        self,
        key: bytes,
        restore: bool,
        make_room: Callable[[int], None],
        take: Callable[[int, bytes], None],
        read_file: Callable[[OpenFile], Awaitable[T]],
    ) -> Found | bytes | T | None:
        """Have the parts of a large value taken, in any order, and its digest checked.

        What is on this host is taken by `read_file` instead, whose answer this is then.
        """
        files = self._files
        for tries_left in reversed(range(TRIES)):
            found = await self._find(key, restore, files)
            files = None  # one that could not be read is not tried again
            if isinstance(found, OpenFile):
                with contextlib.suppress(OSError):
                    value = await self._in_time(read_file(found))
                    self._note(found.size_bytes, found.size_bytes)
                    return value
                continue
            if not isinstance(found, Found):
                return found
            make_room(found.size_bytes)
            try:
                await self._in_time(self._read_all(found, take))
            except RequestError as error:
                if error.code not in (_CHANGED, _GONE) or not tries_left:
                    raise
            else:
                return found
        raise AssertionError("the last try returns or raises")

    async def _read_all(self, found: Found, take: Callable[[int, bytes], None]) -> None:
        parts = iter(range(part_count(found.size_bytes)))
        digest = _RunningDigest(found.digest)
        self._done_bytes = 0

        async def read_some() -> None:
            for part in parts:
                payload = await self._read_part(found, part)
                take(part, payload)
                if self._verify:
                    digest.add(part, payload)
                self._note(len(payload), found.size_bytes)

        async def read() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._in_flight):
                    group.create_task(read_some())

        await _unwrapped(read())
        if self._verify:
            _check(found, await digest.finish())

    async def _read_part(self, found: Found, part: int) -> bytes:
        first, end = part_range(part, found.size_bytes)
        answer = await self._asking.ask(
            f"range.{found.instance}",
            found.key,
            {"Fleet-Version": found.version, "Fleet-Range": f"{first}-{end - 1}"},
            _AGAIN,
        )
        if len(answer.payload) != end - first:
            raise RequestError(500, f"{len(answer.payload)} bytes for range {first}-{end - 1}")
        return answer.payload

    async def _next(
        self,
        coming: deque[asyncio.Task[bytes]],
        update: Callable[[bytes], None],
        found: Found,
    ) -> bytes:
        payload = await coming[0]
        coming.popleft()
        if self._verify:
            await asyncio.to_thread(update, payload)
        self._note(len(payload), found.size_bytes)
        return payload

    async def _copy(self, key: bytes, file: BinaryIO, restore: bool) -> int | None:
        for tries_left in reversed(range(TRIES)):
            found = await self._find(key, restore, None)
            assert not isinstance(found, OpenFile)  # noqa: S101 - none was asked for
            if not isinstance(found, Found):
                if found is not None:
                    await asyncio.to_thread(file.write, found)
                return None if found is None else len(found)
            self._done_bytes = 0
            try:
                async with contextlib.aclosing(self.read(found)) as pieces:
                    async for piece in pieces:
                        await asyncio.to_thread(file.write, piece)
            except RequestError as error:
                if self._done_bytes or error.code not in (_CHANGED, _GONE) or not tries_left:
                    raise
            else:
                return found.size_bytes
        raise AssertionError("the last try returns or raises")

    async def _put(self, source: Source, headers: Mapping[str, str]) -> str:
        for tries_left in reversed(range(TRIES)):
            try:
                return await self._send(source, headers)
            except RequestError as error:
                if error.code != _UNKNOWN or not source.can_repeat or not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _send(self, source: Source, headers: Mapping[str, str]) -> str:
        # Named here, so that it can be given up before the answer to its begin is there.
        upload = {"Fleet-Upload": secrets.token_hex(16)}
        subject = "put"
        announced = {**headers, **upload, "Fleet-Size": str(source.size_bytes)}
        try:
            begun = await self._asking.ask("put", b"", announced, _AGAIN)
            upload = {"Fleet-Upload": begun.headers["Fleet-Upload"]}
            subject = f"put.{begun.headers['Fleet-Instance']}"
            return await self._send_parts(source, subject, upload)
        except (Exception, asyncio.CancelledError) as error:
            # Given up, not refused: it must not be kept when a later write of the key is.
            if not isinstance(error, RequestError) or error.code == UNANSWERED:
                await self._asking.abort(subject, upload)
            raise

    async def _send_parts(self, source: Source, subject: str, upload: Mapping[str, str]) -> str:
        size_bytes = source.size_bytes
        last = part_count(size_bytes) - 1
        final: list[bytes] = []
        free = asyncio.Semaphore(self._in_flight)
        self._done_bytes = 0

        async def send(part: int, block: bytes) -> None:
            await self._asking.ask(subject, block, {**upload, "Fleet-Part": str(part)}, _AGAIN)
            free.release()
            self._note(len(block), size_bytes)

        async def send_all_but_the_last() -> None:
            part = 0
            async with asyncio.TaskGroup() as group, contextlib.aclosing(source.blocks()) as blocks:
                async for block in blocks:
                    if part == last:
                        final.append(block)
                    else:
                        await free.acquire()
                        group.create_task(send(part, block))
                    part += 1

        await _unwrapped(send_all_but_the_last())
        # It completes the value, so it is sent alone, and what it is refused for is final.
        carried = {**upload, "Fleet-Part": str(last), "Fleet-Digest": await source.digest()}
        answer = await self._asking.ask(subject, final[0], carried, (UNANSWERED,))
        self._note(len(final[0]), size_bytes)
        return answer.headers["Fleet-Version"]

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            return await self._asking.in_time(work)
        except RequestError as error:
            if error.code != UNANSWERED:
                raise
            done = f"{self._done_bytes} of {self._total_bytes} bytes done"
            raise RequestError(UNANSWERED, f"{error.text}: {done}") from None

    def _note(self, size_bytes: int, total_bytes: int) -> None:
        self._done_bytes += size_bytes
        self._total_bytes = total_bytes
        if self._on_progress is not None:
            self._on_progress(self._done_bytes, total_bytes)


class _InOrder:
    """Puts parts that come in any order together. Memory: the value, and the parts in flight."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, _size_bytes: int) -> None:
        self._file = io.BytesIO()
        self._early: dict[int, bytes] = {}
        self._next = 0

    def take(self, part: int, payload: bytes) -> None:
        self._early[part] = payload
        while self._next in self._early:
            # Grows in place, so that fresh memory, which is slow to get, is taken once.
            self._file.write(self._early.pop(self._next))
            self._next += 1

    def value(self) -> bytes:
        return self._file.getvalue()


class _RunningDigest:
    """The digest of parts that come in any order, computed in a thread while others come."""

    def __init__(self, like: str) -> None:
        self._digest = Digest(like)
        self._waiting: dict[int, bytes] = {}
        self._next = 0
        self._running: asyncio.Task[None] | None = None

    def add(self, part: int, payload: bytes) -> None:
        self._waiting[part] = payload
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())

    async def finish(self) -> str:
        if self._running is not None:
            await self._running
        return str(self._digest)

    async def _run(self) -> None:
        while self._next in self._waiting:
            await asyncio.to_thread(self._digest.update, self._waiting.pop(self._next))
            self._next += 1


def _check(found: Found, digest: str) -> None:
    if digest != found.digest:
        raise RequestError(500, "what was received does not have the digest the cache told")


async def _unwrapped(work: Awaitable[T]) -> T:
    """Raise the first error of a TaskGroup as it is."""
    try:
        return await work
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
