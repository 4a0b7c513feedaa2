"""Whether what a segment holds of its entries is what was stored: headers and values."""

from collections.abc import Iterable

from archive import frame, segment
from archive.frame import ArchiveObjectError
from archive.index_entry import IndexEntry, order


def check(entry: IndexEntry, stored: bytes | memoryview) -> None:
    """Verify a frame, its value too; at most one value is in memory beside it.

    Raises:
        ArchiveObjectError: it is damaged, or another entry's.
    """
    at = frame.payload_offset(bytes(stored[: frame.PREFIX_BYTES]))
    header, frame_bytes = frame.decode_header(bytes(stored[:at]), segment.seal_of(entry.segment))
    if frame_bytes != len(stored):
        raise ArchiveObjectError(f"it is {len(stored)} bytes instead of {frame_bytes}")
    manifest = header.manifest
    if (manifest.namespace, manifest.key, order(manifest)) != (
        entry.namespace,
        entry.key,
        entry.order,
    ):
        raise ArchiveObjectError("the object holds another entry")
    frame.value_of(header, memoryview(stored)[at:])


def damaged(content: bytes, entries: Iterable[IndexEntry]) -> frozenset[int]:
    """Where those of a segment's entries begin whose frames are damaged; for a thread.

    Entries without bytes of their own are left out.
    """
    whole = memoryview(content)
    found = set()
    for entry in entries:
        try:
            if entry.object_bytes:
                check(entry, whole[entry.first : entry.first + entry.object_bytes])
        except ArchiveObjectError:
            found.add(entry.first)
    return frozenset(found)
