"""Packs entries into segments and stores each with one write: the archive's group commit."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from typing import Protocol

import msgspec

from archive import codec, frame, segment
from archive.billing import made_for
from archive.frame import FrameHeader
from archive.index_entry import IndexEntry, record_of
from archive.settings import ArchiveSettings
from archive.store import ObjectStore, StoreError
from schemas.cache import Evicted
from schemas.protocols import PublishError
from schemas.units import instant

INLINE_BYTES = 16 * 1024
"""Up to this size, compressing takes less than handing it to a thread."""
ALONE_BYTES = 4 * 1024 * 1024
"""A value of this size has a segment of its own."""


class Stream(Protocol):
    """A value that need not be in memory as a whole; its calls raise what keeps it from coming."""

    async def sample(self) -> bytes:
        """Some of it, by which to choose a codec."""

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """The value in order, verified at its end; again each time."""


Value = bytes | Stream


@dataclasses.dataclass(eq=False)
class _Segment:
    """`frames` by their first bytes; that of a large value, which is alone, in two pieces.

    What `stream` gives comes behind them.
    """

    name: str
    seal: bytes
    stored: asyncio.Future[None]
    is_alone: bool = False
    frames: dict[int, bytes] = dataclasses.field(default_factory=dict)
    frames_bytes: int = 0
    stream: Stream | None = None
    entries: list[IndexEntry] = dataclasses.field(default_factory=list)
    records: list[msgspec.Raw] = dataclasses.field(default_factory=list)
    records_bytes: int = 0
    is_closed: bool = False

    def add(self, header: FrameHeader, *pieces: bytes, follows: bool) -> IndexEntry:
        """List an entry, of whose frame these pieces are here."""
        first = self.frames_bytes
        for piece in pieces:
            self.frames[self.frames_bytes] = piece
            self.frames_bytes += len(piece)
        frame_bytes = self.frames_bytes - first
        if self.stream is not None:
            frame_bytes += header.payload_bytes
        entry = IndexEntry.of(header, frame_bytes, segment=self.name, first=first, follows=follows)
        record = record_of(entry)
        self.entries.append(entry)
        self.records.append(record)
        self.records_bytes += len(bytes(record))
        return entry

    def read(self, entry: IndexEntry) -> bytes | None:
        """The frame of an entry, if all of it is here."""
        if self.stream is not None:
            return None
        return b"".join(self.frames.values()) if self.is_alone else self.frames.get(entry.first)

    async def pieces(self, footer: bytes) -> AsyncGenerator[bytes, None]:
        """All of it, in order."""
        for piece in self.frames.values():
            yield piece
        if self.stream is not None:
            async with contextlib.aclosing(self.stream.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        yield footer


class Packer:
    """The segments being filled, one for each TTL class, and those on their way to the store.

    A segment is closed when it has `segment_bytes`, when its first entry is `segment_seconds`
    old, or when `hurry` says that no more can come. What an entry is packed into can be read from
    here until it is stored. A write that fails is tried again, with growing pauses, until it
    succeeds or `close` is called: nothing is given up here, the senders hold it until then.

    Args:
        on_failure: is told of each write that failed, with an entry of the segment.
        on_stored: is given each segment's name, footer and length, before anybody hears that it
            is stored; a PublishError from it is raised to who waits for that.
    """

    def __init__(
        self,
        store: ObjectStore,
        settings: ArchiveSettings,
        on_failure: Callable[[IndexEntry, StoreError], Awaitable[None]],
        on_stored: Callable[[str, bytes, int], Awaitable[None]],
    ) -> None:
        self._store = store
        self._settings = settings
        self._on_failure = on_failure
        self._on_stored = on_stored
        self._open: dict[str, _Segment] = {}
        self._segments: dict[str, _Segment] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self.store_error = ""

    async def add(
        self,
        manifest: Evicted,
        value: Value,
        *,
        stored_ns: int,
        ttl_class: str,
        follows: bool,
    ) -> IndexEntry:
        """Put an entry into the open segment of its class; `wait` says when it is stored.

        A large value that does not compress is sent to the store as it comes: it is there, with
        its footer, when this returns, and cannot be read from here before.
        """
        if not isinstance(value, bytes):
            if manifest.size_bytes >= ALONE_BYTES and await self._is_raw(manifest, value):
                header = _header(manifest, codec.RAW, manifest.size_bytes, stored_ns)
                return await self._pass_on(header, value, ttl_class, follows=follows)
            async with contextlib.aclosing(value.pieces()) as pieces:
                value = b"".join([piece async for piece in pieces])
        if len(value) <= INLINE_BYTES:
            return self.add_small(
                manifest, value, stored_ns=stored_ns, ttl_class=ttl_class, follows=follows
            )
        name, payload = await asyncio.to_thread(self._compress, manifest, value)
        header = _header(manifest, name, len(payload), stored_ns)
        if len(payload) < ALONE_BYTES:
            return self._append(self._segment(ttl_class), header, payload, follows=follows)
        alone = self._begin(ttl_class)
        alone.is_alone = True
        entry = alone.add(header, frame.head(header, alone.seal), payload, follows=follows)
        self._close(alone)
        return entry

    def add_small(
        self,
        manifest: Evicted,
        value: bytes,
        *,
        stored_ns: int,
        ttl_class: str,
        follows: bool,
    ) -> IndexEntry:
        """As `add`, at once: a value of no more than `INLINE_BYTES`."""
        name, payload = self._compress(manifest, value)
        header = _header(manifest, name, len(payload), stored_ns)
        return self._append(self._segment(ttl_class), header, payload, follows=follows)

    def move(self, entry: IndexEntry, content: bytes, ttl_class: str) -> IndexEntry:
        """Put `entry`, with its frame from another segment, into the open one of this class.

        Raises:
            ArchiveObjectError: its header is damaged.
        """
        header, payload = frame.split(content, segment.seal_of(entry.segment))
        target = self._segment(ttl_class)
        return self._append(target, header, payload, follows=entry.follows)

    async def wait(self, name: str) -> None:
        """Return once the segment is stored; at once where it is not one of those here."""
        found = self._segments.get(name)
        if found is not None:
            await asyncio.shield(found.stored)

    async def wait_all(self, entries: Iterable[IndexEntry]) -> None:
        """Return once the segments of all of them are stored."""
        for name in {entry.segment for entry in entries}:
            await self.wait(name)

    def holds(self, name: str) -> bool:
        """Whether the segment is here, and not stored yet."""
        return name in self._segments

    def read(self, entry: IndexEntry) -> bytes | None:
        """The frame of an entry that is here."""
        found = self._segments.get(entry.segment)
        return None if found is None else found.read(entry)

    def hurry(self) -> None:
        """Nothing more can come before something is stored: write what there is."""
        if not self._writing:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        for open_segment in list(self._open.values()):
            self._close(open_segment)

    async def close(self) -> None:
        """Give up what is not stored."""
        for unstored in self._segments.values():
            unstored.stored.cancel()
        self._open.clear()
        self._segments.clear()
        for writing in self._writing:
            writing.cancel()
        if self._writing:
            await asyncio.wait(self._writing)

    async def _pass_on(
        self, header: FrameHeader, stream: Stream, ttl_class: str, *, follows: bool
    ) -> IndexEntry:
        alone = self._begin(ttl_class)
        alone.is_alone, alone.is_closed, alone.stream = True, True, stream
        entry = alone.add(header, frame.head(header, alone.seal), follows=follows)
        try:
            footer = await self._put(alone)
        except BaseException:
            del self._segments[alone.name]
            raise
        self._start(self._tell(alone, footer))
        return entry

    async def _is_raw(self, manifest: Evicted, value: Stream) -> bool:
        sample = await value.sample()
        name, _ = await asyncio.to_thread(self._compress, manifest, sample)
        return name == codec.RAW

    def _compress(self, manifest: Evicted, value: bytes) -> tuple[str, bytes]:
        return codec.compress(
            value,
            dtype=manifest.meta.get("dtype", ""),
            level=self._settings.zstd_level,
            min_ratio=self._settings.min_ratio,
        )

    def _segment(self, ttl_class: str) -> _Segment:
        found = self._open.get(ttl_class)
        if found is None:
            found = self._open[ttl_class] = self._begin(ttl_class)
            loop = asyncio.get_running_loop()
            loop.call_later(self._settings.segment_seconds, self._close, found)
        return found

    def _begin(self, ttl_class: str) -> _Segment:
        name = segment.new_name(ttl_class)
        stored = asyncio.get_running_loop().create_future()
        begun = self._segments[name] = _Segment(name, segment.seal_of(name), stored)
        return begun

    def _append(
        self, target: _Segment, header: FrameHeader, payload: bytes, *, follows: bool
    ) -> IndexEntry:
        entry = target.add(header, frame.encode(header, payload, target.seal), follows=follows)
        if (
            target.frames_bytes >= self._settings.segment_bytes
            or target.records_bytes >= segment.MAX_RECORDS_BYTES
        ):
            self._close(target)
        return entry

    def _close(self, closing: _Segment) -> None:
        """Write the segment, unless that was begun already."""
        if closing.is_closed:
            return
        closing.is_closed = True
        ttl_class = segment.class_of(closing.name)
        if self._open.get(ttl_class) is closing:
            del self._open[ttl_class]
        self._start(self._write(closing))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, closed: _Segment) -> None:
        try:
            footer = await self._put(closed)
        except Exception as error:
            closed.stored.set_exception(error)
            raise
        await self._tell(closed, footer)

    async def _put(self, closed: _Segment) -> bytes:
        """Returns its footer."""
        with made_for(closed.entries):
            return await self._put_until_stored(closed)

    async def _put_until_stored(self, closed: _Segment) -> bytes:
        footer = await asyncio.to_thread(segment.footer, closed.name, closed.records)
        pause_seconds = self._settings.retry_seconds
        while True:
            try:
                async with contextlib.aclosing(closed.pieces(footer)) as pieces:
                    # A small one whole: that is one request, where a stream may be several.
                    if closed.is_alone:
                        await self._store.put_stream(closed.name, pieces)
                    else:
                        whole = b"".join([piece async for piece in pieces])
                        await self._store.put(closed.name, whole)
            except StoreError as error:
                self.store_error = str(error)
                await self._on_failure(closed.entries[0], error)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, self._settings.retry_max_seconds)
            else:
                self.store_error = ""
                return footer

    async def _tell(self, closed: _Segment, footer: bytes) -> None:
        """Say that it is in the store."""
        entry = closed.entries[-1]
        try:
            await self._on_stored(
                closed.name, footer, entry.first + entry.object_bytes + len(footer)
            )
        except PublishError as error:
            # Who waits for it later must hear of that too, so it stays, without its bytes.
            closed.frames.clear()
            closed.stored.set_exception(error)
            return
        except Exception as error:
            closed.stored.set_exception(error)
            raise
        del self._segments[closed.name]
        closed.stored.set_result(None)


def _header(manifest: Evicted, codec_name: str, payload_bytes: int, stored_ns: int) -> FrameHeader:
    return FrameHeader(
        manifest=manifest,
        codec=codec_name,
        stored_at=instant(stored_ns),
        payload_bytes=payload_bytes,
    )
