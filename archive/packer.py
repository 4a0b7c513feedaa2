"""Packs entries into segments and stores each with one write: the archive's group commit."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import msgspec

from archive import codec, frame, segment
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


@dataclasses.dataclass(eq=False)
class _Segment:
    name: str
    seal: bytes
    stored: asyncio.Future[None]
    content: bytearray = dataclasses.field(default_factory=bytearray)
    large: bytes | bytearray = b""
    entries: list[IndexEntry] = dataclasses.field(default_factory=list)
    records: list[msgspec.Raw] = dataclasses.field(default_factory=list)
    records_bytes: int = 0
    is_closed: bool = False


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
        value: bytes | bytearray,
        *,
        stored_ns: int,
        ttl_class: str,
        follows: bool,
    ) -> IndexEntry:
        """Put an entry into the open segment of its class; `wait` says when it is stored."""
        if len(value) <= INLINE_BYTES:
            name, payload = self._compress(manifest, value)
        else:
            name, payload = await asyncio.to_thread(self._compress, manifest, value)
        header = FrameHeader(
            manifest=manifest, codec=name, stored_at=instant(stored_ns), payload_bytes=len(payload)
        )
        if len(payload) < ALONE_BYTES:
            return self._append(self._segment(ttl_class), header, payload, follows=follows)
        alone = self._begin(ttl_class)
        alone.content += frame.head(header, alone.seal)
        alone.large = payload
        entry = IndexEntry.of(
            header, len(alone.content) + len(payload), segment=alone.name, follows=follows
        )
        self._list(alone, entry)
        self._close(alone)
        return entry

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
        if found is None:
            return None
        if found.large:
            return bytes(found.content) + found.large
        return bytes(found.content[entry.first : entry.first + entry.object_bytes])

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

    def _compress(
        self, manifest: Evicted, value: bytes | bytearray
    ) -> tuple[str, bytes | bytearray]:
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
        self, target: _Segment, header: FrameHeader, payload: bytes | bytearray, *, follows: bool
    ) -> IndexEntry:
        content = frame.encode(header, payload, target.seal)
        first = len(target.content)
        entry = IndexEntry.of(
            header, len(content), segment=target.name, first=first, follows=follows
        )
        target.content += content
        self._list(target, entry)
        if (
            len(target.content) >= self._settings.segment_bytes
            or target.records_bytes >= segment.MAX_RECORDS_BYTES
        ):
            self._close(target)
        return entry

    def _list(self, target: _Segment, entry: IndexEntry) -> None:
        record = record_of(entry)
        target.entries.append(entry)
        target.records.append(record)
        target.records_bytes += len(bytes(record))

    def _close(self, closing: _Segment) -> None:
        """Write the segment, unless that was begun already."""
        if closing.is_closed:
            return
        closing.is_closed = True
        ttl_class = segment.class_of(closing.name)
        if self._open.get(ttl_class) is closing:
            del self._open[ttl_class]
        task = asyncio.create_task(self._write(closing))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, closed: _Segment) -> None:
        try:
            footer = await asyncio.to_thread(segment.footer, closed.name, closed.records)
            await self._put(closed, footer)
            object_bytes = len(closed.content) + len(closed.large) + len(footer)
            await self._on_stored(closed.name, footer, object_bytes)
        except PublishError as error:
            # Who waits for it later must hear of that too, so it stays, without its bytes.
            closed.content, closed.large = bytearray(), b""
            closed.stored.set_exception(error)
            return
        except Exception as error:
            closed.stored.set_exception(error)
            raise
        del self._segments[closed.name]
        closed.stored.set_result(None)

    async def _put(self, closed: _Segment, footer: bytes) -> None:
        async def pieces() -> AsyncIterator[bytes | bytearray]:
            for piece in (closed.content, closed.large, footer):
                yield piece

        pause_seconds = self._settings.retry_seconds
        while True:
            try:
                # A small one whole: that is one request, where a stream may be several.
                if closed.large:
                    await self._store.put_stream(closed.name, pieces())
                else:
                    await self._store.put(closed.name, closed.content + footer)
            except StoreError as error:
                self.store_error = str(error)
                await self._on_failure(closed.entries[0], error)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, self._settings.retry_max_seconds)
            else:
                self.store_error = ""
                return
