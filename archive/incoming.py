"""A value on its way from the store: what has come of it can be read while the rest comes."""

import asyncio

from archive import codec, frame, segment
from archive.frame import ArchiveObjectError, FrameHeader
from archive.index_entry import IndexEntry, order
from archive.packer import INLINE_BYTES
from schemas.cache import INLINE_LIMIT_BYTES, PART_BYTES, Evicted
from schemas.digest import RunningDigest


class Incoming:
    """One value that is being fetched, and those who wait for parts of it.

    Its last byte is given out when all of it is verified: who has read it all has what was stored.
    Without `verify` that is left to the reader, for a large value that is stored as it is.
    """

    def __init__(self, *, verify: bool = True) -> None:
        self.verify = verify
        self._manifest: Evicted | None = None
        self._value = memoryview(b"")
        self._come = 0
        self._has_ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    @property
    def has_begun(self) -> bool:
        """Whether its manifest is known."""
        return self._manifest is not None

    def begin(self, manifest: Evicted, value: memoryview) -> None:
        """It is this one, and comes into this buffer."""
        self._manifest, self._value = manifest, value
        self._tell()

    def came(self, end: int) -> None:
        """Its bytes are there up to, not with, `end`."""
        self._come = end
        self._tell()

    def end(self, error: Exception | None = None) -> None:
        """All of it is there and verified; or `error` says why not; or, not begun, it is absent."""
        if not self._has_ended:
            self._has_ended, self._error = True, error
            self._tell()

    async def begun(self) -> Evicted | None:
        """Its manifest; None: it is absent. Raises the error that it ended with."""
        while self._manifest is None and not self._has_ended:
            await self._news.wait()
        if self._manifest is None and self._error is not None:
            raise self._error
        return self._manifest

    async def read(self, first: int, end: int) -> memoryview:
        """Its bytes from `first` up to, not with, `end`. Raises the error that it ended with."""
        while not self._has_ended and (end > self._come or end == len(self._value)):
            await self._news.wait()
        if self._error is not None:
            raise self._error
        return self._value[first:end]

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class IncomingFrame:
    """The frame of an entry, filled from its start: `incoming` learns what comes of the value.

    That is a large one that is stored as it is; any other is there when the frame is.
    ArchiveObjectError: the frame is not what the index says.
    """

    def __init__(self, entry: IndexEntry, incoming: Incoming) -> None:
        self.content = memoryview(bytearray(entry.object_bytes))
        self._entry = entry
        self._incoming = incoming
        self._header: FrameHeader | None = None
        self._payload_at = self._come = self._told = 0
        self._value: memoryview | None = None
        self._digest: RunningDigest | None = None

    def came(self, end: int) -> None:
        """It is there up to, not with, `end`."""
        self._come = end
        if self._header is None:
            self._read_header()
        come = end - self._payload_at
        # Not for each of many small pieces: that costs more than it gives.
        is_enough = come >= self._told + PART_BYTES or end == len(self.content)
        if self._value is not None and is_enough:
            if self._digest is not None:
                self._digest.came(self._told, come)
            self._incoming.came(come)
            self._told = come

    async def finish(self) -> tuple[Evicted, memoryview]:
        """Manifest and value, verified, once no more comes."""
        if self._header is None or self._come < len(self.content):
            raise ArchiveObjectError(f"it ends after {self._come} of {len(self.content)} bytes")
        manifest, payload = self._header.manifest, self.content[self._payload_at :]
        if self._value is not None:
            if self._digest is not None and await self._digest.finish() != manifest.digest:
                raise ArchiveObjectError(frame.WRONG_DIGEST)
            return manifest, self._value
        if len(payload) <= INLINE_BYTES:
            value = frame.value_of(self._header, payload)
        else:
            value = await asyncio.to_thread(frame.value_of, self._header, payload)
        return manifest, memoryview(value)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        if self._digest is not None:
            self._digest.cancel()

    def _read_header(self) -> None:
        """Read it, if it is there."""
        if self._come < frame.PREFIX_BYTES:
            return
        self._payload_at = frame.payload_offset(bytes(self.content[: frame.PREFIX_BYTES]))
        if self._come < self._payload_at:
            return
        start = bytes(self.content[: self._payload_at])
        header, frame_bytes = frame.decode_header(start, segment.seal_of(self._entry.segment))
        manifest = header.manifest
        if frame_bytes != len(self.content):
            raise ArchiveObjectError(f"it has {frame_bytes} bytes, not {len(self.content)}")
        if (manifest.namespace, manifest.key, order(manifest)) != (
            self._entry.namespace,
            self._entry.key,
            self._entry.order,
        ):
            raise ArchiveObjectError("the object holds another entry")
        self._header = header
        if header.codec == codec.RAW and header.payload_bytes > INLINE_LIMIT_BYTES:
            if manifest.size_bytes != header.payload_bytes:
                raise ArchiveObjectError("the value is longer or shorter than its manifest says")
            self._value = value = self.content[self._payload_at :]
            if self._incoming.verify:
                self._digest = RunningDigest(
                    lambda digest, first, end: digest.update(value[first:end]), like=manifest.digest
                )
            self._incoming.begin(manifest, value)
