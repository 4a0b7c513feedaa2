"""Evictions as a cache would send them, a clock to set, and a store that fails on demand."""

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from agent.blocking import BlockingThread
from archive import codec, frame
from archive.folder import FolderStore
from archive.frame import FrameHeader
from schemas.cache import EVICTED_HEADER, Evicted, encode_header
from schemas.units import SECOND_NS, instant

NOW_NS = 1_800_000_000 * SECOND_NS


class ManualClock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.ns = NOW_NS

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * SECOND_NS)


def folder_store(folder: Path) -> FolderStore:
    """A store as the program builds it, with fewer threads."""
    return FolderStore(folder, [BlockingThread("store-1"), BlockingThread("store-2")])


class FailingStore(FolderStore):
    """Fails writes with `write_errno` and reads with `read_errno` while they are set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [BlockingThread("store")])
        self.write_errno: int | None = None
        self.read_errno: int | None = None

    def _write(self, target: Path, content: bytes) -> None:
        if self.write_errno is not None:
            raise OSError(self.write_errno, os.strerror(self.write_errno), str(target))
        super()._write(target, content)

    async def get(self, name: str) -> bytes | None:
        await self._fail()
        return await super().get(name)

    async def get_range(self, name: str, first: int, end: int) -> bytes | None:
        await self._fail()
        return await super().get_range(name, first, end)

    async def _fail(self) -> None:
        def fail() -> None:
            if self.read_errno is not None:
                raise OSError(self.read_errno, os.strerror(self.read_errno))

        await self._run(fail)


def evicted(
    key: str = "k", value: bytes = b"value", version: str = "b1-01", **fields: Any
) -> Evicted:
    """The manifest of an evicted value that lives for an hour."""
    named: dict[str, Any] = {
        "namespace": "default",
        "generation": 0,
        "evicted_at": instant(NOW_NS),
        "size_bytes": len(value),
        "digest": hashlib.sha256(value).hexdigest(),
        "expires_at": instant(NOW_NS + 3600 * SECOND_NS),
    }
    return Evicted(key=key, version=version, **{**named, **fields})


def tombstone(key: str = "k", version: str = "b1-02", **fields: Any) -> Evicted:
    """The manifest that says that versions below `version` are gone."""
    named = {"size_bytes": 0, "digest": "", "expires_at": None, "tombstone": True}
    return evicted(key, b"", version, **{**named, **fields})


def single_object(manifest: Evicted, value: bytes) -> bytes:
    """An object of format 1, as earlier releases wrote them."""
    codec_name, payload = codec.compress(
        value, dtype=manifest.meta.get("dtype", ""), level=3, min_ratio=1.1
    )
    header = FrameHeader(
        manifest=manifest,
        codec=codec_name,
        stored_at=instant(NOW_NS),
        payload_bytes=len(payload),
    )
    return frame.encode(header, payload)


def manifest_headers(manifest: Evicted) -> dict[str, str]:
    """The headers of the eviction's message."""
    return {EVICTED_HEADER: encode_header(msgspec.json.encode(manifest).decode())}
