"""Whether the store can do all that the archive will ask of it; for an operator who looks."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from archive.catalog import Catalog
from archive.claim import Claim
from archive.index_bucket import IndexBucket
from archive.marks import ClaimError
from archive.settings import ArchiveSettings
from archive.store import StoreError
from archive.stores import make_store
from schemas.protocols import BlockingCalls, Bucket, PublishError

SPARE_SEGMENTS = 4
"""Room for less is none: one is written while the next fills, and a sweep writes others anew."""


@runtime_checkable
class _KnowsRights(Protocol):
    """A store that asks for rights one by one."""

    async def refusals(self) -> list[StoreError]:
        """What is refused, or fails."""


async def checked(
    settings: ArchiveSettings, folder: Path, make_thread: Callable[[str], BlockingCalls]
) -> tuple[str, list[str]]:
    """What is there, and everything that is wrong with it, each with what to do.

    A folder that is not there yet is not made. In a bucket trial objects are written and removed.
    """
    if settings.bucket_and_prefix is None and not await asyncio.to_thread(folder.exists):
        return await asyncio.to_thread(_to_be_made, settings, folder)
    store = make_store(settings, folder, make_thread)
    try:
        await store.open()
        if not isinstance(store, _KnowsRights):
            room = await store.probe()
            return f"{store.description}: {room}", _cramped(settings, folder, folder)
        refused = [str(error) for error in await store.refusals()]
        answers = "" if refused else await store.probe()
        return f"{store.description}: {answers}, all rights are there", refused
    except StoreError as error:
        return "", [str(error)]
    finally:
        await store.close()


async def compared(
    settings: ArchiveSettings,
    folder: Path,
    make_thread: Callable[[str], BlockingCalls],
    state: Bucket,
    index: Bucket,
) -> tuple[str, str]:
    """Whose the store is by its mark and by the bus, and what is wrong with that, with the remedy.

    Nothing is written. Both are empty where there is nothing to compare: no folder yet, or one of
    both does not answer, which other checks tell.
    """
    store = make_store(settings, folder, make_thread)
    claim = Claim(store, state, Catalog(store, IndexBucket(index)).recognises)
    is_folder = settings.bucket_and_prefix is None
    try:
        if is_folder and not await asyncio.to_thread(folder.exists):
            await claim.look_for_lost()
            return "", ""
        if not is_folder:
            await store.open()
        return f"{store.description}: {await claim.look()}", ""
    except ClaimError as error:
        return "", str(error)
    except (StoreError, PublishError):
        return "", ""
    finally:
        await store.close()


def _to_be_made(settings: ArchiveSettings, folder: Path) -> tuple[str, list[str]]:
    place = next(place for place in folder.parents if place.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        return "", [f"folder {folder} cannot be made: this user cannot write to {place}"]
    return f"folder {folder} will be made", _cramped(settings, folder, place)


def _cramped(settings: ArchiveSettings, folder: Path, place: Path) -> list[str]:
    """That `place`, where `folder` is or will be, has no room for what the archive writes."""
    needed_bytes = SPARE_SEGMENTS * settings.segment_bytes
    disk = os.statvfs(place)
    free_bytes = disk.f_bavail * disk.f_frsize
    remedy = "make room there, or set archive.folder to another disk"
    if free_bytes < needed_bytes:
        return [
            f"archive folder {folder} is full, or nearly: {free_bytes / 2**20:.1f} MiB free, "
            f"{needed_bytes / 2**20:.0f} MiB are needed; {remedy}"
        ]
    if disk.f_files and not disk.f_favail:
        return [f"the disk of archive folder {folder} has no file left (inodes): {remedy}"]
    return []
